"""What must hold for every wire format, on everything that vendors were seen to send."""

import itertools
import random
import re
from dataclasses import astuple, replace

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import sse
from common.canonical.errors import ErrorKind, Failed, GatewayError
from common.canonical.events import (
    OUTPUT,
    Completed,
    Event,
    Finished,
    ReasoningDelta,
    Started,
    TextDelta,
    ToolCallDelta,
    ToolCallStarted,
)
from common.canonical.generation import (
    DocumentPart,
    GenerationRequest,
    Message,
    OpaquePart,
    Role,
    TextPart,
    ToolCallPart,
    ToolResultPart,
)
from common.canonical.reply import fold
from common.dialects import DIALECTS
from common.dialects.base import ReplyInfo
from common.sse import SseCutter
from tests.support.upstreams.recordings import Recording, blocks_of, parameters
from workers.providers import WIRES
from workers.providers.base import Decoder, Deployment, FamilyWire, TokenCounter, Wire

EVENT_BYTES_MAX = 1 << 22

streams = pytest.mark.parametrize("recording", parameters())
wires = pytest.mark.parametrize("wire", WIRES.values(), ids=WIRES.keys())
FAMILIES = {name: wire for name, wire in WIRES.items() if isinstance(wire, FamilyWire)}
family_wires = pytest.mark.parametrize("wire", FAMILIES.values(), ids=FAMILIES.keys())


def decode(wire: Wire, chunks: list[bytes]) -> list[Event]:
    cutter, decoder, events = SseCutter(EVENT_BYTES_MAX), wire.decoder(), []
    for chunk in chunks:
        for block in cutter.feed(chunk):
            events += decoder.decode(block)
    rest = cutter.end().strip()
    if rest:
        events += decoder.decode(rest + b"\n\n")
    return events + decoder.end()


def cut(body: bytes, size: int) -> list[bytes]:
    return [body[start : start + size] for start in range(0, len(body), size)]


def check_order(events: list[Event]) -> None:
    """A stream is: Started, deltas, one Finished per choice, exactly one terminal event."""
    assert isinstance(events[-1], Completed | Failed)
    assert sum(isinstance(event, Completed | Failed) for event in events) == 1
    assert sum(isinstance(event, Started) for event in events) <= 1
    finished: list[int] = []
    calls: set[tuple[int, int]] = set()
    for event in events:
        if isinstance(event, Finished):
            finished.append(event.choice)
        elif isinstance(event, OUTPUT):
            assert not finished
        if isinstance(event, ToolCallStarted):
            assert event.id
            assert event.index == sum(choice == event.choice for choice, _ in calls)
            calls.add((event.choice, event.index))
        elif isinstance(event, ToolCallDelta):
            assert (event.choice, event.index) in calls
    assert len(finished) == len(set(finished))
    if isinstance(events[-1], Completed):
        assert {getattr(event, "choice", 0) for event in events if isinstance(event, OUTPUT)} <= set(finished)


@streams
def test_events_do_not_depend_on_how_the_bytes_were_cut(recording: Recording) -> None:
    wire = WIRES[recording.wire]
    whole = decode(wire, [recording.body])

    assert decode(wire, cut(recording.body, 1)) == whole
    assert decode(wire, blocks_of(recording.body)) == whole
    sizes = random.Random(recording.id)
    assert decode(wire, cut(recording.body, sizes.randint(2, 2000))) == whole
    check_order(whole)


@streams
def test_arguments_of_complete_calls_are_json_objects(recording: Recording) -> None:
    reply = fold(decode(WIRES[recording.wire], [recording.body]))

    for choice in reply.choices.values():
        if choice.finish_reason == "tool_calls":
            # A proxy that began again left the first call of the answer it gave up: nothing can complete that one.
            abandoned = max(0, recording.body.count(b'{"type":"message_start"') - 1)
            assert all(isinstance(orjson.loads(call.arguments), dict) for call in choice.tool_calls[abandoned:])


# What a stream must have said before it may count as whole.
ENDINGS = {"anthropic-messages": b'"stop_reason":"', "openai-responses": b'"usage":{', "gemini": b'Reason":'}


@streams
def test_cut_stream_fails(recording: Recording) -> None:
    wire = WIRES[recording.wire]
    blocks = [block for block in blocks_of(recording.body) if b"data:" in block]

    kinds = [type(decode(wire, blocks[:count])[-1]) for count in range(len(blocks) + 1)]

    # Once a stream counts as whole, more of it changes nothing; until then it must have failed.
    assert kinds[0] is Failed
    assert kinds == sorted(kinds, key=lambda kind: kind is Completed)
    ending = ENDINGS.get(recording.wire, b'"finish_reason"')
    for count, kind in enumerate(kinds):
        if kind is Completed:
            assert ending in b"".join(blocks[:count])


@streams
def test_plain_blocks_hold_one_piece_of_output(recording: Recording) -> None:
    decoder, full, skipped = WIRES[recording.wire].decoder(), WIRES[recording.wire].decoder(), 0

    for block in blocks_of(recording.body):
        events = full.decode(block)
        if decoder.is_plain(block):
            skipped += 1
            assert [type(event) for event in events] in ([TextDelta], [ReasoningDelta]), block
        else:
            assert decoder.decode(block) == events

    # The decoder that never saw the plain blocks comes to the same end.
    assert decoder.end() == full.end()


TEXT_BLOCKS = {
    "openai-chat": b'data: {"id":"c","object":"chat.completion.chunk","created":%d,"model":"m","choices":[{"index":0,'
    b'"delta":{"content":"tok%d"},"logprobs":null,"finish_reason":null}],"obfuscation":"%s"}\n\n',
    "anthropic-messages": b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,'
    b'"delta":{"type":"text_delta","text":"tok%d"}%s}\n\n',
    "openai-responses": b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","content_index":0,'
    b'"output_index":%d,"delta":"tok%d","item_id":"msg_1","logprobs":[],"obfuscation":"y%s","sequence_number":%d}\n\n',
}


@family_wires
def test_blocks_of_a_long_text_are_plain(wire: FamilyWire) -> None:
    decoder, plain = wire.decoder(), 0
    decoder.decode(b'data: {"type":"message_start","choices":[]}\n\n')
    for count in range(100):
        padding = (b" " if wire.dialect == "anthropic-messages" else b"x") * (count % 7)
        numbers = (count,) if wire.dialect == "openai-responses" else ()
        block = TEXT_BLOCKS[wire.dialect] % (count // 50, count, padding, *numbers)
        if decoder.is_plain(block):
            plain += 1
        else:
            decoder.decode(block)

    assert plain == 98  # All but the first of each second, or of each content block.


@pytest.mark.parametrize(
    "odd",
    [
        b'{"index":0,"delta":{"content":"b","tool_calls":[{"index":0}]},"finish_reason":null}],"obfuscation":"x"}',
        b'{"index":0,"delta":{"content":"b"},"finish_reason":"stop"}],"obfuscation":"x"}',
        b'{"index":0,"delta":{"content":"b"},"finish_reason":null}],"usage":{"prompt_tokens":1},"obfuscation":"x"}',
        b'{"index":0,"delta":{"content":"b"},"finish_reason":null}],"obfuscation":"x","usage":{"prompt_tokens":1}}',
        b'{"index":0,"delta":{"content":"b"},"finish_reason":null}],"obfuscation":"x","error":"e"}',
        b'{"index":0,"delta":{"content":"b\\"},"finish_reason":null}],"obfuscation":"x"}',
        b'{"index":0,"delta":{"content":""},"finish_reason":null}],"obfuscation":"x"}',
        b'{"index":1,"delta":{"content":"b"},"finish_reason":null}],"obfuscation":"x"}',
        b'{"index":0,"delta":{"content":"b',
    ],
)
def test_block_with_anything_beside_its_text_is_not_plain(odd: bytes) -> None:
    decoder = WIRES["openai-chat"].decoder()
    usual = b'{"index":0,"delta":{"content":"a"},"finish_reason":null}],"obfuscation":"xyz"}'
    decoder.decode(b'data: {"choices":[]}\n\n')
    decoder.decode(b'data: {"choices":[' + usual + b"\n\n")

    assert decoder.is_plain(b'data: {"choices":[' + usual + b"\n\n")
    assert not decoder.is_plain(b'data: {"choices":[' + odd + b"\n\n")


@streams
def test_the_head_of_a_run_is_plain_only_if_each_of_its_events_is(recording: Recording) -> None:
    decoder, blocks = WIRES[recording.wire].decoder(), blocks_of(recording.body)
    full = WIRES[recording.wire].decoder()
    is_output = [[type(event) for event in full.decode(block)] in ([TextDelta], [ReasoningDelta]) for block in blocks]

    for at, block in enumerate(blocks):
        for length in (1, 2, 5):
            run = blocks[at : at + length]
            count, size = decoder.plain_head(b"".join(run))
            assert size == len(b"".join(run[:count]))
            assert all(is_output[at : at + count])
        decoder.decode(block)


TEXT = re.compile(rb'(?:[^"\\\r\n]|\\["\\/bfnrtu])+')


@given(st.lists(st.lists(st.sampled_from([b"a", b"\\", b'"', b"\n", b"\n\n", b"\r", b"data: ", b"}"])).map(b"".join)))
def test_whatever_stands_in_a_run_its_head_is_plain_up_to_the_first_that_is_not(texts: list[bytes]) -> None:
    decoder = WIRES["openai-chat"].decoder()
    event = b'data: {"choices":[{"index":0,"delta":{"content":"%s"},"finish_reason":null}]}\n\n'
    decoder.decode(event % b"a")
    decoder.decode(event % b"a")
    run = b"".join(event % text for text in texts)

    count, size = decoder.plain_head(run)

    good = list(itertools.takewhile(TEXT.fullmatch, texts))
    if any(b"\n" in text for text in texts):  # Such a run is looked at event by event.
        assert count <= len(good)
    else:
        assert count == len(good)
    assert run[:size] == b"".join(event % text for text in texts[:count])
    assert all(decoder.decode(block) for block in sse.cut(run[:size]))


def any_of(words: str) -> st.SearchStrategy[str]:
    return st.sampled_from(words.split())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2**40) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
KEYS = any_of(
    "id type object index delta message content choices usage error role text thinking signature name input "
    "arguments function tool_calls function_call finish_reason stop_reason content_block reasoning "
    "partial_json code status_code prompt_tokens completion_tokens input_tokens output_tokens "
    "prompt_tokens_details cached_tokens x_groq data"
)
WORDS = any_of(
    "content_block_delta content_block_start content_block_stop message_start message_delta message_stop error "
    "ping text thinking tool_use redacted_thinking text_delta input_json_delta signature_delta thinking_delta "
    "stop"
)
LIKELY = st.recursive(
    JSON | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=6),
    max_leaves=25,
)


def feed_all(decoder: Decoder, blocks: list[bytes]) -> list[Event]:
    events: list[Event] = []
    for block in blocks:
        decoder.is_plain(block)
        events += decoder.decode(block)
    return events + decoder.end()


@wires
@given(blocks=st.lists(st.binary(max_size=60), max_size=4))
def test_no_bytes_make_a_decoder_raise(wire: Wire, blocks: list[bytes]) -> None:
    check_order(feed_all(wire.decoder(), [b"data: " + block + b"\n\n" for block in blocks]))
    check_order(feed_all(wire.decoder(), blocks))
    for block in blocks:
        check_order(wire.decoder().decode_whole(block))
        wire.read_error(500, {}, block)
        if isinstance(wire, FamilyWire):
            wire.for_client(block, ReplyInfo("gen_1", "m", 0))


@wires
@given(items=st.lists(LIKELY, max_size=5), status=st.integers(300, 599))
def test_no_json_makes_a_decoder_raise(wire: Wire, items: list[object], status: int) -> None:
    bodies = [orjson.dumps(item) for item in items]

    check_order(feed_all(wire.decoder(), [b"data: " + body + b"\n\n" for body in bodies]))
    for body in bodies:
        check_order(wire.decoder().decode_whole(body))
        failed = wire.read_error(status, {"Retry-After": "soon"}, body)
        assert failed.message
        assert 400 <= failed.http_status <= 599


@wires
@given(delays=st.lists(st.text(max_size=12), min_size=2, max_size=2))
def test_no_header_makes_reading_an_error_raise(wire: Wire, delays: list[str]) -> None:
    failed = wire.read_error(429, {"retry-after": delays[0], "retry-after-ms": delays[1], "date": delays[0]}, b"")

    assert failed.retry_after_s is None or failed.retry_after_s >= 0


HALF_AN_EMOJI = {
    "openai-chat": b'{"choices":[{"index":0,"delta":{"content":"a\\ud83d"}}]}',
    "anthropic-messages": b'{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"a\\ud83d"}}',
    "openai-responses": b'{"type":"response.output_text.delta","output_index":0,"delta":"a\\ud83d"}',
    "cohere": b'{"type":"content-delta","index":0,"delta":{"message":{"content":{"text":"a\\ud83d"}}}}',
    "gemini": b'{"candidates":[{"content":{"parts":[{"text":"a\\ud83d"}]}}]}',
}


@pytest.mark.parametrize("name", WIRES)
def test_half_an_emoji_is_read_and_can_be_sent_on(name: str) -> None:
    events = WIRES[name].decoder().decode(b"data: " + HALF_AN_EMOJI[name] + b"\n\n")

    texts = [event.text for event in events if isinstance(event, TextDelta)]

    assert [orjson.loads(orjson.dumps(text)) for text in texts] == ["a?"]


@wires
def test_nonsense_is_a_protocol_failure(wire: Wire) -> None:
    for block in (b"data: <html>\n\n", b"data: [1]\n\n", b"data: \xff\n\n"):
        [failed] = wire.decoder().decode(block)

        assert isinstance(failed, Failed)
        assert failed.kind is ErrorKind.UPSTREAM_PROTOCOL


@wires
def test_nothing_comes_after_the_terminal_event(wire: Wire) -> None:
    decoder = wire.decoder()
    decoder.decode(b"data: <html>\n\n")

    assert decoder.decode(b"data: <html>\n\n") == []
    assert decoder.end() == []


@pytest.mark.parametrize("recording", parameters(is_stream=False))
def test_whole_answers_are_read(recording: Recording) -> None:
    events = WIRES[recording.wire].decoder().decode_whole(recording.body)
    reply = fold(events)

    check_order(events)
    assert reply.failed is None
    if b'"usage"' in recording.body:
        assert reply.usage is not None
        assert all(astuple(reply.usage)[:2])


DEPLOYMENT = Deployment("openai", "https://upstream.example", "the-key", "the-model")


def request(**fields: object) -> GenerationRequest:
    return GenerationRequest("m", [Message(Role.USER, [TextPart("hi")])], **fields)  # type: ignore[arg-type]  # Any field.


@wires
def test_requests_carry_the_key_and_ask_for_a_plain_stream(wire: Wire) -> None:
    built = wire.build_request(request(), DEPLOYMENT)

    body, in_address = orjson.loads(built.body), "/the-model:streamGenerateContent?alt=sse"  # Where Gemini says it.
    assert (body.get("model"), body.get("stream")) == ("the-model", True) or built.url.endswith(in_address)
    assert built.url.startswith("https://upstream.example/")
    assert built.headers["accept-encoding"] == "identity"
    assert built.headers["content-type"] == "application/json"
    assert any("the-key" in value for value in built.headers.values())
    assert "the-key" not in repr(built)


@wires
def test_no_key_means_no_credentials_header(wire: Wire) -> None:
    built = wire.build_request(request(), Deployment("demo", "http://localhost:1", "", "m"))

    assert not {"authorization", "x-api-key", "x-goog-api-key"} & built.headers.keys()


@family_wires
def test_own_headers_win_over_the_clients(wire: FamilyWire) -> None:
    passed = wire.pass_request({"model": "m"}, {"authorization": "Bearer client", "x-api-key": "client"}, DEPLOYMENT)

    assert "client" not in str(passed.headers)


@wires
@pytest.mark.parametrize(
    "part",
    [
        OpaquePart("document", "messages.0.content.0"),
        DocumentPart("model/stl", data="QUJD", path="messages.0.content.0"),
        DocumentPart("application/pdf", file_id="f", path="messages.0.content.0"),
    ],
)
def test_what_a_wire_cannot_express_is_refused_by_its_path(wire: Wire, part: OpaquePart | DocumentPart) -> None:
    for asked in (
        GenerationRequest("m", [Message(Role.USER, [TextPart("hi"), part])]),
        request(opaque=[OpaquePart("document", "messages.0.content.0")]),
    ):
        with pytest.raises(GatewayError) as caught:
            wire.build_request(asked, replace(DEPLOYMENT, provider="somebody"))

        assert caught.value.failed.kind is ErrorKind.INVALID_REQUEST
        assert caught.value.failed.param == "messages.0.content.0"
        assert "messages.0.content.0" in str(caught.value)


SOMEBODY = replace(DEPLOYMENT, provider="somebody")
UNREADABLE = DocumentPart("application/pdf", file_id="f", name="a.pdf", path="messages.0.content.0")
HISTORY = [
    Message(Role.USER, [UNREADABLE, OpaquePart("new", "messages.0.content.1"), TextPart("read it")]),
    Message(Role.ASSISTANT, [OpaquePart("search", "messages.1.content.0"), ToolCallPart("call_1", "f", "{}")]),
    Message(Role.USER, [ToolResultPart("call_1", [replace(UNREADABLE, path="messages.2.content.0"), TextPart("done")])]),
]


@wires
def test_history_never_ends_a_session(wire: Wire) -> None:
    built = wire.build_request(GenerationRequest("m", HISTORY), SOMEBODY)
    longer = [*HISTORY, Message(Role.ASSISTANT, [TextPart("a")]), Message(Role.USER, [TextPart("b")])]
    next_built = wire.build_request(GenerationRequest("m", longer), SOMEBODY)

    assert built.dropped == [
        "messages.0.content.0",
        "messages.0.content.1",
        "messages.1.content.0",
        "messages.2.content.0",
    ]
    assert built.body.count(b"a.pdf") == 2
    # The conversation so far stays the same, byte for byte, from turn to turn.
    assert next_built.body.startswith(built.body[: built.body.rindex(b"a.pdf")])


@wires
def test_a_plain_text_is_read_everywhere(wire: Wire) -> None:
    asked = Message(Role.USER, [DocumentPart("text/plain", text="words", name="a.txt"), TextPart("hi")])

    built = wire.build_request(GenerationRequest("m", [asked]), SOMEBODY)

    assert (b"words" in built.body, b"a.txt" in built.body, built.dropped) == (True, True, [])


@pytest.mark.parametrize("recording", [*parameters(), *parameters(is_stream=False)])
def test_recorded_requests_pass_with_only_the_model_changed(recording: Recording) -> None:
    wire = WIRES[recording.wire]
    if not isinstance(wire, FamilyWire):
        return
    body = recording.request or {"model": "m", "messages": []}

    # OpenAI itself does not know all that these clients sent to others.
    passed = orjson.loads(wire.pass_request(body, {}, replace(DEPLOYMENT, provider="p")).body)

    # Asked for besides, and what Sluice does itself.
    changed = {"stream_options", "background", "previous_response_id"}
    passed.pop("stream_options", None)
    assert passed == {**{k: v for k, v in body.items() if k not in changed}, "model": "the-model"}


@pytest.mark.parametrize("recording", [*parameters(), *parameters(is_stream=False)])
def test_recorded_requests_are_parsed_and_built_for_the_other_family(recording: Recording) -> None:
    if recording.wire not in DIALECTS or recording.request is None:
        return  # No client's body, or hand-written.
    if recording.request.get("anthropic_version") or "model" not in recording.request:
        return  # A body of a vendor that wraps the family's own.
    try:
        parsed = DIALECTS[recording.wire].parse(recording.request)
        bodies = [orjson.loads(wire.build_request(parsed, DEPLOYMENT).body) for wire in WIRES.values()]
    except GatewayError as error:
        failed = error.failed
    else:
        assert all(body.get("messages") or body.get("input") or body.get("contents") for body in bodies)
        return

    # Documents and tools that run at the vendor: there is no other place for them.
    assert failed.kind is ErrorKind.INVALID_REQUEST
    assert failed.param


COUNTERS = {name: wire for name, wire in WIRES.items() if isinstance(wire, TokenCounter)}
counters = pytest.mark.parametrize("wire", COUNTERS.values(), ids=COUNTERS.keys())


@counters
def test_a_count_names_the_model_and_carries_the_key(wire: TokenCounter) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}

    asked = wire.count_request(request(), body, {}, DEPLOYMENT)

    assert "the-model" in asked.url + asked.body.decode()
    assert b"hi" in asked.body
    assert any("the-key" in value for value in asked.headers.values())


@counters
@given(body=st.binary(max_size=60) | LIKELY.map(orjson.dumps))
def test_nothing_makes_reading_a_count_raise(wire: TokenCounter, body: bytes) -> None:
    tokens = wire.read_count(body)

    assert tokens is None or tokens > 0
