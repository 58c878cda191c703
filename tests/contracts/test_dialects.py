"""What must hold for every client dialect; the vendors' own SDKs are the judges of what it sends."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import anthropic
import openai
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.canonical.errors import ErrorKind, Failed, GatewayError
from common.canonical.events import (
    Completed,
    Event,
    Finished,
    FinishReason,
    ReasoningDelta,
    ReasoningSigned,
    RedactedReasoning,
    RefusalDelta,
    Started,
    TextDelta,
    ToolCallDelta,
    ToolCallStarted,
    Usage,
)
from common.canonical.reply import RefusalBlock, TextBlock, fold
from common.dialects import DIALECTS
from common.dialects.base import Dialect, OpenStream, ReplyInfo
from common.sse import last_block, split_blocks
from tests.support.clients import sdk_clients, seed_clients
from tests.support.clients.sdk_clients import ClientAnswer, ResponseFailed
from tests.support.clients.seed_clients import SeedError
from tests.support.upstreams.recordings import Recording, blocks_of, parameters
from workers.providers import WIRES
from workers.providers.base import Deployment

DEPLOYMENT = Deployment("openai", "https://upstream.example", "k", "m")
INFO = ReplyInfo("gen_abc", "client/model-name", 1_700_000_000)
BODIES: dict[str, dict[str, Any]] = {
    "openai-chat": {
        "model": "m",
        "messages": [{"role": "user", "content": "x"}],
        "stream": True,
        "stream_options": {"include_usage": True},
    },
    "openai-responses": {"model": "m", "input": [{"role": "user", "content": "x"}], "stream": True},
    "anthropic-messages": {
        "model": "m",
        "max_tokens": 9,
        "messages": [{"role": "user", "content": "x"}],
        "stream": True,
    },
    "agentary": {"model": "m", "messages": [{"role": "user", "content": "x"}], "provider": "openai"},
    "unified": {"model": "m", "messages": [{"role": "user", "content": "x"}], "provider": "openai", "stream": True},
}
READ_STREAM: dict[str, Callable[[bytes], ClientAnswer]] = {
    "openai-chat": sdk_clients.openai_stream,
    "openai-responses": sdk_clients.responses_stream,
    "anthropic-messages": sdk_clients.anthropic_stream,
    "agentary": seed_clients.agentary_stream,
    "unified": seed_clients.unified_stream,
}
READ_WHOLE: dict[str, Callable[[bytes], ClientAnswer]] = {
    "openai-chat": sdk_clients.openai_whole,
    "openai-responses": sdk_clients.responses_whole,
    "anthropic-messages": sdk_clients.anthropic_whole,
    "agentary": seed_clients.agentary_whole,
    "unified": seed_clients.unified_whole,
}
READ_ERROR: dict[str, Callable[[bytes, int], None]] = {
    "openai-chat": sdk_clients.openai_error,
    "openai-responses": sdk_clients.responses_error,
    "anthropic-messages": sdk_clients.anthropic_error,
    "agentary": seed_clients.agentary_error,
    "unified": seed_clients.unified_error,
}
RAISED = (openai.APIError, anthropic.APIError, SeedError, ResponseFailed)
TEXT_ONLY = ("agentary", "unified")  # Formats without a place for thinking, refusals, ids and models.
FINISH_WORDS = {
    "openai-chat": {"tool_calls": "tool_calls", "length": "length", "content_filter": "content_filter"},
    "anthropic-messages": {
        "tool_calls": "tool_use",
        "length": "max_tokens",
        "content_filter": "refusal",
        "refusal": "refusal",
        "pause": "pause_turn",
        "stop_sequence": "stop_sequence",
    },
    "openai-responses": {
        "length": "max_output_tokens",
        "content_filter": "content_filter",
        "refusal": "content_filter",
    },
    "agentary": {
        "tool_calls": "tool_calls",
        "length": "length",
        "content_filter": "content_filter",
        "refusal": "content_filter",
    },
    "unified": {
        "tool_calls": "tool_calls",
        "length": "length",
        "content_filter": "content_filter",
        "refusal": "content_filter",
    },
}
FINISH_ELSE = {
    "openai-chat": "stop",
    "openai-responses": "completed",
    "anthropic-messages": "end_turn",
    "agentary": "stop",
    "unified": "stop",
}
MESSAGES = {"openai-responses": "input"}  # The name of the field, where it is not "messages".

dialects = pytest.mark.parametrize("dialect", DIALECTS.values(), ids=DIALECTS.keys())


def encode(dialect: Dialect, events: list[Event]) -> bytes:
    encoder = dialect.encoder(dialect.parse(BODIES[dialect.name]), INFO)
    return b"".join(encoder.encode(event) for event in events)


def encode_reply(dialect: Dialect, events: list[Event]) -> bytes:
    return dialect.encode_reply(fold(events), dialect.parse(BODIES[dialect.name]), INFO)


def decoded(recording: Recording) -> list[Event]:
    decoder = WIRES[recording.wire].decoder()
    events = [event for block in blocks_of(recording.body) for event in decoder.decode(block)]
    return events + decoder.end()


def expected(dialect: Dialect, events: list[Event]) -> ClientAnswer:
    """What a client of ``dialect`` must see of ``events``."""
    reply = fold(events)
    choice = reply.choices[0]
    usage = reply.usage or Usage()
    refusal, text = choice.refusal, choice.text
    finish = FINISH_WORDS[dialect.name].get(choice.finish_reason or "", FINISH_ELSE[dialect.name])
    if dialect.name == "anthropic-messages" and refusal:
        refusal, text, finish = "", text + refusal, "refusal"
    if dialect.name == "openai-chat" and choice.finish_reason is FinishReason.REFUSAL:
        finish = "content_filter"
    calls = [(call.id, call.name, orjson.loads(call.arguments or "{}")) for call in choice.tool_calls]
    thinking = "".join(block.text for block in choice.reasoning)
    if dialect.name in TEXT_ONLY:
        refusal, thinking = "", ""
        text = "".join(block.text for block in choice.blocks if isinstance(block, TextBlock | RefusalBlock))
    return ClientAnswer(text, refusal, thinking, calls, finish, usage.input_tokens, usage.output_tokens)


@dialects
@pytest.mark.parametrize("recording", parameters())
def test_sdks_read_recorded_streams_as_they_were_sent(dialect: Dialect, recording: Recording) -> None:
    events = decoded(recording)
    if isinstance(events[-1], Failed):
        with pytest.raises(RAISED) as caught:
            READ_STREAM[dialect.name](encode(dialect, events))

        assert events[-1].message in str(caught.value)
        return
    if recording.body.count(b'{"type":"message_start"') > 1 and b"tool_use" in recording.body:
        return  # An answer that a proxy began anew leaves half a call, which no client can read.

    seen = READ_STREAM[dialect.name](encode(dialect, events))

    wanted = expected(dialect, events)
    if not fold(events).usage and dialect.name in ("openai-chat", "agentary"):
        wanted.input_tokens = wanted.output_tokens = None
    assert seen == wanted
    assert READ_WHOLE[dialect.name](encode_reply(dialect, events)) == expected(dialect, events)


EVERYTHING: list[Event] = [
    Started("up_1", "upstream-model"),
    ReasoningDelta("hm"),
    ReasoningSigned("SIG"),
    RedactedReasoning("ENC"),
    ReasoningDelta("more"),
    TextDelta('Grüße, "Welt"\n\u2028🦆'),
    TextDelta("!"),
    ToolCallStarted(0, "call_a", "first"),
    ToolCallStarted(1, "call_b", "second"),
    ToolCallDelta(0, '{"a":'),
    ToolCallDelta(1, '{"b":'),
    TextDelta(" Wait."),
    ToolCallDelta(0, "1}"),
    ToolCallDelta(1, "2}"),
    ToolCallStarted(2, "call_c", "third"),
    ToolCallDelta(2, "{}"),
    Finished(FinishReason.TOOL_CALLS),
    Completed(Usage(100, 20, cache_read_tokens=30, cache_write_tokens=10, reasoning_tokens=5)),
]


@dialects
def test_sdks_read_a_stream_of_everything(dialect: Dialect) -> None:
    seen = READ_STREAM[dialect.name](encode(dialect, EVERYTHING))

    assert seen == expected(dialect, EVERYTHING)
    assert seen.calls == [("call_a", "first", {"a": 1}), ("call_b", "second", {"b": 2}), ("call_c", "third", {})]
    assert (seen.input_tokens, seen.output_tokens) == (100, 20)
    assert READ_WHOLE[dialect.name](encode_reply(dialect, EVERYTHING)) == seen


@dialects
def test_every_piece_is_whole_events(dialect: Dialect) -> None:
    encoder = dialect.encoder(dialect.parse(BODIES[dialect.name]), INFO)
    for event in EVERYTHING:
        piece = encoder.encode(event)

        assert piece == b"" or piece.endswith(b"\n\n")
        for block in split_blocks(piece):
            assert block.count(b"\n") == (2 if block.startswith(b"data: ") else 3)


@dialects
def test_only_the_last_event_of_a_stream_is_final(dialect: Dialect) -> None:
    blocks = split_blocks(encode(dialect, EVERYTHING))
    failed = dialect.error_event(Failed(ErrorKind.WORKER_LOST, "gone"), OpenStream(INFO.generation_id, blocks[-2]))

    assert [dialect.is_final(block) for block in blocks] == [False] * (len(blocks) - 1) + [True]
    # After a failure too nothing follows; OpenAI's chat has no event of its own for it.
    assert dialect.is_final(last_block(failed)) or dialect.name == "openai-chat"
    assert last_block(b"".join(blocks)) == blocks[-1]


@dialects
def test_ids_and_model_are_the_clients_own(dialect: Dialect) -> None:
    prefixes = {"openai-chat": "chatcmpl-abc", "openai-responses": "resp_abc", "anthropic-messages": "msg_abc"}
    prefix = prefixes.get(dialect.name)

    for data in (encode(dialect, EVERYTHING), encode_reply(dialect, EVERYTHING)):
        if dialect.name not in TEXT_ONLY:
            assert prefix
            assert prefix.encode() in data
            assert b"client/model-name" in data
        assert b"up_1" not in data
        assert b"upstream-model" not in data


@dialects
def test_stream_may_begin_without_being_announced(dialect: Dialect) -> None:
    events: list[Event] = [TextDelta("a"), TextDelta("b"), Finished(FinishReason.STOP), Completed(Usage(1, 2))]

    assert READ_STREAM[dialect.name](encode(dialect, events)).text == "ab"


@dialects
def test_answer_without_any_output_is_still_whole(dialect: Dialect) -> None:
    events: list[Event] = [Started(), Finished(FinishReason.STOP), Completed(Usage(1, 0))]

    assert READ_STREAM[dialect.name](encode(dialect, events)).finish == FINISH_ELSE[dialect.name]
    assert READ_WHOLE[dialect.name](encode_reply(dialect, events)).finish == FINISH_ELSE[dialect.name]


@dialects
def test_failure_after_output_never_ends_cleanly(dialect: Dialect) -> None:
    failed = Failed(ErrorKind.UPSTREAM_UNAVAILABLE, "The provider went away.")
    data = encode(dialect, [Started(), TextDelta("half"), failed])

    with pytest.raises(RAISED, match="The provider went away"):
        READ_STREAM[dialect.name](data)
    assert b"[DONE]" not in data
    assert b"message_stop" not in data
    said = data.removesuffix(split_blocks(data)[-1])
    assert data.endswith(dialect.error_event(failed, OpenStream(INFO.generation_id, said, INFO.model, INFO.created_s)))


@dialects
@pytest.mark.parametrize("kind", ErrorKind)
def test_errors_keep_their_message_and_status_in_the_sdks(dialect: Dialect, kind: ErrorKind) -> None:
    failed = Failed(kind, "Do this instead.", type="server_error", code="a_code", param="a.field")
    body, status = dialect.error_body(failed, "req_1"), dialect.status(failed)

    with pytest.raises((openai.APIStatusError, anthropic.APIStatusError, SeedError), match=r"Do this instead\.") as caught:
        READ_ERROR[dialect.name](body, status)

    assert caught.value.status_code == status
    assert (status == 529) == (dialect.name == "anthropic-messages" and kind is ErrorKind.OVERLOADED)


@dialects
def test_cancelled_says_so_in_its_code(dialect: Dialect) -> None:
    failed = Failed(ErrorKind.CANCELLED, "Stopped.")

    assert b'"code":"cancelled"' in dialect.error_body(failed, "r")
    assert b'"code":"cancelled"' in dialect.error_event(failed, OpenStream("gen_1"))


@dialects
@pytest.mark.parametrize("field", ["model", "messages"])
@pytest.mark.parametrize("value", [None, "", [], 7, {}, True])
def test_required_fields_are_asked_for_by_name(dialect: Dialect, field: str, value: object) -> None:
    field = MESSAGES.get(dialect.name, field) if field == "messages" else field
    body = {**BODIES[dialect.name], field: value}
    if value is None:
        del body[field]

    with pytest.raises(GatewayError, match=field) as caught:
        dialect.parse(body)

    assert caught.value.failed.kind is ErrorKind.INVALID_REQUEST
    assert caught.value.failed.param == field


@dialects
@pytest.mark.parametrize(
    ("message", "param"),
    [
        ("hi", "messages.0"),
        ({}, "messages.0.role"),
        ({"role": "king", "content": "x"}, "messages.0.role"),
        ({"role": "user"}, "messages.0.content"),
        ({"role": "user", "content": 7}, "messages.0.content"),
        ({"role": "user", "content": [7]}, "messages.0.content.0"),
        ({"role": "user", "content": [{"text": "x"}]}, "messages.0.content.0.type"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages.0.content.0.text"),
        ({"role": "user", "content": [{"type": "text", "text": None}]}, "messages.0.content.0.text"),
    ],
)
def test_faults_in_messages_are_named_by_their_path(dialect: Dialect, message: object, param: str) -> None:
    with pytest.raises(GatewayError) as caught:
        dialect.parse({**BODIES[dialect.name], MESSAGES.get(dialect.name, "messages"): [message]})

    param = param.replace("messages", MESSAGES.get(dialect.name, "messages"))
    assert caught.value.failed.param == param
    assert str(caught.value).startswith(param)


def any_of(words: str) -> st.SearchStrategy[str]:
    return st.sampled_from(words.split())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 200) | st.floats(allow_nan=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=8,
)
WORDS = any_of(
    "user assistant system tool function developer text image image_url tool_use tool_result thinking base64 "
    "url auto any none required json_schema json_object enabled adaptive data:image/png;base64,AAAA "
    "http://x/y.png web_search"
)
KEYS = any_of(
    "role content type text source url data media_type image_url id name input tool_use_id tool_call_id "
    "tool_calls function arguments parameters input_schema thinking signature json_schema schema budget_tokens"
)
PART = st.recursive(JSON | WORDS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner), max_leaves=12)
MESSAGE = st.fixed_dictionaries(
    {"role": WORDS}, optional={"content": PART, "tool_calls": PART, "function_call": PART, "tool_call_id": PART}
)
FIELDS = (
    "max_tokens stream stream_options tools tool_choice functions function_call n stop stop_sequences system "
    "thinking metadata output_config response_format reasoning_effort temperature top_p top_k seed user "
    "logprobs logit_bias modalities mcp_servers"
)
BODY = st.fixed_dictionaries(
    {"model": JSON, "messages": JSON | st.lists(MESSAGE, max_size=4)},
    optional=dict.fromkeys(FIELDS.split(), PART),
)


@dialects
@given(body=BODY, is_likely=st.booleans())
def test_any_body_is_parsed_or_refused(dialect: Dialect, body: dict[str, Any], is_likely: bool) -> None:
    if is_likely:
        body |= {"model": "m", "max_tokens": 9, "provider": "openai", "input": body["messages"]}
    try:
        request = dialect.parse(body)
    except GatewayError as error:
        failed = error.failed
    else:
        assert request.messages
        for wire in WIRES.values():
            with suppress(GatewayError):
                assert {"messages", "input", "contents"} & orjson.loads(wire.build_request(request, DEPLOYMENT).body).keys()
        return

    assert failed.kind is ErrorKind.INVALID_REQUEST
    assert failed.param


PIECES = st.one_of(
    st.text(max_size=5).map(TextDelta),
    st.text(max_size=5).map(ReasoningDelta),
    st.text(max_size=5).map(RefusalDelta),
    st.just(ReasoningSigned("s")),
    st.just(RedactedReasoning("d")),
)


@dialects
@given(order=st.lists(st.integers(0, 2) | PIECES, max_size=20))
def test_calls_that_overlap_with_anything_come_out_whole(dialect: Dialect, order: list[int | Event]) -> None:
    calls: list[list[Event]] = [
        [ToolCallStarted(i, f"id_{i}", f"tool_{i}"), *[ToolCallDelta(i, piece) for piece in ('{"k', f'":{i}', "}")]]
        for i in range(3)
    ]
    events: list[Event] = [Started()]
    for step in order:
        if not isinstance(step, int):
            events.append(step)
        elif calls[step] and (step == 0 or len(calls[step - 1]) < 4):  # Calls begin in order on every wire.
            events.append(calls[step].pop(0))
    events += [event for call in calls for event in call]
    events += [Finished(FinishReason.TOOL_CALLS), Completed(Usage(1, 1))]

    seen = READ_STREAM[dialect.name](encode(dialect, events))

    wanted = expected(dialect, events)
    assert (seen.calls, seen.thinking) == (wanted.calls, wanted.thinking)
    assert sorted(seen.text + seen.refusal) == sorted(wanted.text + wanted.refusal)
