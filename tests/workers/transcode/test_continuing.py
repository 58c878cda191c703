"""The rest of an answer that broke off, event by event. Whole answers are in tests/workers/continuation."""

import orjson
import pytest

from common.canonical.errors import ErrorKind, Failed
from common.canonical.events import Completed, FinishReason, Usage
from common.dialects import DIALECTS
from common.dialects.base import Progress, ReplyInfo
from common.metering.token_estimate import estimate_text_tokens
from common.sse import split_blocks
from workers.providers import WIRES
from workers.transcode.continuing import Continuing, Rereading
from workers.transcode.splice import Splice

BODY = {"model": "m", "max_tokens": 100, "stream": True, "messages": [{"role": "user", "content": "hi"}]}
SAID = [
    {"type": "message_start", "message": {"id": "msg_1", "role": "assistant", "content": [], "usage": {"input_tokens": 1}}},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Once upon"}},
]
# A model that is asked to go on, and thinks about it first.
MORE = [
    {"type": "message_start", "message": {"id": "msg_2", "role": "assistant", "content": [], "usage": {"input_tokens": 5}}},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "Go on."}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "signature_delta", "signature": "c2ln"}},
    {"type": "content_block_stop", "index": 0},
    {"type": "content_block_start", "index": 1, "content_block": {"type": "redacted_thinking", "data": "c2Vj"}},
    {"type": "content_block_stop", "index": 1},
    {"type": "content_block_start", "index": 2, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 2, "delta": {"type": "text_delta", "text": " a time"}},
    {"type": "content_block_stop", "index": 2},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 9}},
    {"type": "message_stop"},
]


def block(event: dict) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (event["type"].encode(), orjson.dumps(event))


def continued(said: list[dict], more: list[dict]) -> list[dict]:
    """The events that a client of Anthropic's messages gets behind ``said``, of an upstream of the same kind."""
    dialect = DIALECTS["anthropic-messages"]
    request = dialect.parse(BODY)
    progress = dialect.resume(request, ReplyInfo("gen_1", "m", 1, "anthropic", BODY), [block(event) for event in said])
    pump = Continuing(WIRES["anthropic-messages"], progress, Splice(progress.text), Usage(), 0)
    data = pump.feed([block(event) for event in more]) + pump.end()
    return [orjson.loads(piece.partition(b"data: ")[2]) for piece in split_blocks(data)]


def test_thinking_has_no_place_in_the_middle_of_a_text():
    events = continued(SAID, MORE)

    assert [event["type"] for event in events] == [
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert (events[0]["index"], events[0]["delta"]) == (0, {"type": "text_delta", "text": " a time"})


@pytest.mark.parametrize("said", [SAID[:1], []])
def test_thinking_comes_through_where_no_text_was_said(said: list[dict]):
    events = continued(said, MORE)

    blocks = [event["content_block"]["type"] for event in events if event["type"] == "content_block_start"]
    assert blocks == ["thinking", "redacted_thinking", "text"]


CHAT = DIALECTS["openai-chat"]
CHAT_BODY = {"model": "m", "messages": BODY["messages"], "stream": True, "stream_options": {"include_usage": True}}
SPENT = Usage(input_tokens=10, output_tokens=3)


def chat_block(text: str | None = None, finish: str | None = None, **more: object) -> bytes:
    delta = {} if text is None else {"content": text}
    chunk = {"id": "c2", "model": "m", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}], **more}
    return b"data: %s\n\n" % orjson.dumps(chunk)


USAGE_BLOCK = b'data: {"id":"c2","choices":[],"usage":{"prompt_tokens":20,"completion_tokens":4,"total_tokens":24}}\n\n'
DONE = b"data: [DONE]\n\n"


def chat_progress(text: str, missing_events: bytes = b"") -> Progress:
    encoder = CHAT.encoder(CHAT.parse(CHAT_BODY), ReplyInfo("gen_1", "m", 1, "lab", CHAT_BODY))
    return Progress(text, is_plain=True, encoder=encoder, missing_events=missing_events)


def chat_continuing(text: str = "Once", missing_events: bytes = b"", *, echoes: bool = False) -> Continuing:
    progress = chat_progress(text, missing_events)
    return Continuing(WIRES["openai-chat"], progress, Splice(text, echoes=echoes), SPENT, input_tokens=12)


def texts_of(data: bytes) -> list[str]:
    chunks = [orjson.loads(block[len(b"data: ") :]) for block in split_blocks(data) if block != DONE]
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    return [delta["content"] for delta in deltas if delta.get("content")]


def usage_of(data: bytes) -> dict[str, int]:
    chunks = [orjson.loads(block[len(b"data: ") :]) for block in split_blocks(data) if block != DONE]
    (usage,) = [chunk["usage"] for chunk in chunks if chunk.get("usage")]
    return {name: usage[name] for name in ("prompt_tokens", "completion_tokens")}


def test_the_client_s_usage_is_that_of_all_attempts():
    pump = chat_continuing()

    data = pump.feed([chat_block(" upon"), chat_block(finish="stop"), USAGE_BLOCK, DONE])

    assert usage_of(data) == {"prompt_tokens": 30, "completion_tokens": 7}
    assert pump.usage == Usage(20, 4)  # The ledger counts attempts one by one.
    assert (pump.is_estimated, pump.finish_reason) == (False, FinishReason.STOP)


@pytest.mark.parametrize(("text", "is_empty"), [("", True), ("Once", False)])
def test_a_rest_without_content_is_an_error_only_if_nothing_came_before_it(text, is_empty):
    pump = chat_continuing(text)

    pump.feed([chat_block(finish="stop"), USAGE_BLOCK, DONE])

    assert type(pump.terminal) is (Failed if is_empty else Completed)


def test_usage_that_is_not_reported_is_estimated_by_the_prompt_and_all_text_of_the_attempt():
    pump = chat_continuing("Once upon a", echoes=True)

    data = pump.feed([chat_block("Once upon a"), chat_block(" time there was"), chat_block(finish="stop"), DONE])

    own = Usage(12, estimate_text_tokens("Once upon a time there was"))  # An echo is output too: the provider bills it.
    assert pump.usage == own
    assert pump.is_estimated
    assert usage_of(data) == {"prompt_tokens": 10 + own.input_tokens, "completion_tokens": 3 + own.output_tokens}


def test_an_answer_that_we_cut_is_estimated_from_its_text_so_far():
    pump = chat_continuing()
    pump.feed([chat_block(" upon a time")])

    total = pump.estimate_cut_usage(1_000)

    own = Usage(12, estimate_text_tokens(" upon a time"))
    assert (pump.usage, pump.is_estimated) == (own, True)
    assert total == Usage(10 + own.input_tokens, 3 + own.output_tokens)


def test_what_the_client_lacks_precedes_the_first_new_bytes_once():
    missing = b'data: {"missing":1}\n\n'
    pump = chat_continuing("Once upon", missing, echoes=True)

    assert pump.feed([chat_block("Once")]) == b""
    first = pump.feed([chat_block(" upon a")])
    second = pump.feed([chat_block(" time")])

    assert first.startswith(missing)
    assert texts_of(first.removeprefix(missing)) == [" a"]
    assert texts_of(second) == [" time"]


def test_text_that_was_held_as_a_possible_echo_comes_before_the_finish():
    pump = chat_continuing("Once upon", echoes=True)

    data = pump.feed([chat_block("Once"), chat_block(finish="stop"), DONE])

    assert texts_of(data) == ["Once"]
    assert isinstance(pump.terminal, Completed)


def test_an_upstream_s_error_is_not_encoded():
    pump = chat_continuing()

    assert pump.feed([b'data: {"error":{"message":"out of memory","type":"server_error"}}\n\n']) == b""
    assert isinstance(pump.terminal, Failed)


@pytest.mark.parametrize("kind", [Continuing, Rereading])
def test_another_answer_than_the_one_that_the_client_began_is_an_error_of_the_upstream(kind: type[Continuing]):
    progress, splice = chat_progress("Once upon"), Splice("Once upon", is_whole=True)
    request = CHAT.parse(CHAT_BODY)
    wire = WIRES["openai-chat"]
    pump = Rereading(wire, progress, splice, request) if kind is Rereading else Continuing(wire, progress, splice, SPENT, 12)

    assert pump.feed([chat_block("Twice"), chat_block(" a time")]) == b""

    assert isinstance(pump.terminal, Failed)
    assert pump.terminal.kind is ErrorKind.UPSTREAM_PROTOCOL


def test_a_body_instead_of_a_stream_continues_too():
    body = {
        "id": "c2",
        "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Once upon a time"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 20, "completion_tokens": 4, "total_tokens": 24},
    }
    pump = chat_continuing("Once upon", echoes=True)

    data = pump.feed_whole(orjson.dumps(body))

    assert texts_of(data) == [" a time"]
    assert usage_of(data) == {"prompt_tokens": 30, "completion_tokens": 7}
    assert isinstance(pump.terminal, Completed)


def test_an_answer_that_is_read_again_from_its_start_reports_its_whole_usage():
    request = CHAT.parse(CHAT_BODY)
    pump = Rereading(WIRES["openai-chat"], chat_progress("Once"), Splice("Once", is_whole=True), request)

    data = pump.feed([chat_block("Once upon"), chat_block(finish="stop"), USAGE_BLOCK, DONE]) + pump.end()

    assert texts_of(data) == [" upon"]
    assert usage_of(data) == {"prompt_tokens": 20, "completion_tokens": 4}
    assert pump.upstream_id == "c2"
