"""What clients of Anthropic's messages get. Behaviour all dialects share: contracts/."""

from typing import Any

import orjson
import pytest

from common.canonical.errors import ErrorKind, Failed
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
from common.canonical.generation import (
    GenerationRequest,
)
from common.canonical.reply import fold
from common.dialects.anthropic_messages.dialect import ANTHROPIC_MESSAGES
from common.dialects.base import OpenStream, ReplyInfo
from tests.support.upstreams.recordings import data_of

INFO = ReplyInfo("gen_1", "a-model", 7)
HELLO = [{"role": "user", "content": "hi"}]
PING = {"type": "ping"}


def parse(**body: Any) -> GenerationRequest:
    return ANTHROPIC_MESSAGES.parse({"model": "m", "max_tokens": 9, "messages": HELLO, **body})


def encode(*events: Event) -> list[dict[str, Any]]:
    encoder = ANTHROPIC_MESSAGES.encoder(parse(), INFO)
    return data_of(b"".join(encoder.encode(event) for event in events))


def outline(events: list[dict[str, Any]]) -> list[str]:
    """The stream in a line: what opens, what is added, what closes."""
    lines = []
    for event in events:
        match event["type"]:
            case "content_block_start":
                lines.append(f"{event['index']}:{event['content_block']['type']}")
            case "content_block_delta":
                delta = event["delta"]
                value = next(value for name, value in delta.items() if name != "type")
                lines.append(f"{event['index']}+{value}")
            case "content_block_stop":
                lines.append(f"{event['index']}.")
    return lines


def test_stream_has_anthropics_events_in_their_order() -> None:
    events = encode(
        Started("up", "upstream-model"),
        TextDelta("Hé"),
        TextDelta("!"),
        Finished(FinishReason.STOP_SEQUENCE, "END"),
        Completed(Usage(100, 7, cache_read_tokens=60, cache_write_tokens=10, reasoning_tokens=2)),
    )

    start = events[0]["message"]
    usage = start.pop("usage")
    assert start == {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "a-model",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
    }
    assert {usage[name] for name in usage if name.endswith("tokens")} == {0}
    assert events[1:] == [
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        PING,
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hé"}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "!"}},
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "stop_sequence", "stop_sequence": "END"},
            "usage": {
                "input_tokens": 30,
                "cache_creation_input_tokens": 10,
                "cache_read_input_tokens": 60,
                "output_tokens": 7,
                "output_tokens_details": {"thinking_tokens": 2},
            },
        },
        {"type": "message_stop"},
    ]


def test_event_name_is_the_type() -> None:
    encoder = ANTHROPIC_MESSAGES.encoder(parse(), INFO)
    data = b"".join(encoder.encode(event) for event in (TextDelta("a"), TextDelta("b"), Completed()))

    for block in data.split(b"\n\n")[:-1]:
        name, json = block.split(b"\n")
        assert name == b"event: " + orjson.loads(json.removeprefix(b"data: "))["type"].encode()


def test_change_of_kind_closes_the_block() -> None:
    events = encode(
        ReasoningDelta("hm"),
        ReasoningSigned("SIG"),
        ReasoningDelta("more"),
        RedactedReasoning("ENC"),
        TextDelta("a"),
        ToolCallStarted(0, "id", "f"),
        ToolCallDelta(0, "{}"),
        TextDelta("b"),
        RefusalDelta("c"),
        Finished(FinishReason.STOP),
        Completed(),
    )

    assert outline(events) == [
        *["0:thinking", "0+hm", "0+SIG", "0."],
        *["1:thinking", "1+more", "1."],
        *["2:redacted_thinking", "2."],
        *["3:text", "3+a", "3."],
        *["4:tool_use", "4+", "4+{}", "4."],
        *["5:text", "5+b", "5+c", "5."],
    ]
    assert events[-2]["delta"]["stop_reason"] == "refusal"


def test_calls_one_after_the_other_are_streamed_as_they_come() -> None:
    encoder = ANTHROPIC_MESSAGES.encoder(parse(), INFO)
    for event in (ToolCallStarted(0, "a", "f"), ToolCallDelta(0, '{"x":'), ToolCallDelta(0, "1}")):
        encoder.encode(event)

    assert outline(data_of(encoder.encode(ToolCallStarted(1, "b", "g")))) == ["0.", "1:tool_use", "1+"]
    assert outline(data_of(encoder.encode(ToolCallDelta(1, "{")))) == ["1+{"]


def test_overlapping_calls_become_blocks_in_sequence() -> None:
    events = encode(
        ToolCallStarted(0, "a", "f"),
        ToolCallStarted(1, "b", "g"),
        ToolCallDelta(0, '{"x":'),
        ToolCallDelta(1, '{"y":'),
        TextDelta("text"),
        ToolCallDelta(0, "1}"),
        ToolCallDelta(1, "2}"),
        Finished(FinishReason.TOOL_CALLS),
    )

    assert outline(events) == [
        *["0:tool_use", "0+", '0+{"x":', "0+1}", "0."],
        *["1:tool_use", "1+", '1+{"y":2}', "1."],
        *["2:text", "2+text", "2."],
    ]


def test_other_choices_are_left_out() -> None:
    assert outline(encode(TextDelta("a"), TextDelta("b", 1), Finished(FinishReason.STOP, choice=1))) == ["0:text", "0+a"]


def test_whole_answer_holds_all_blocks() -> None:
    events: list[Event] = [
        ReasoningDelta("hm"),
        RedactedReasoning("ENC"),
        TextDelta("a"),
        ToolCallStarted(0, "id", "f"),
        ToolCallDelta(0, '{"x": 1}'),
        ToolCallStarted(1, "id2", "g"),
        ToolCallDelta(1, '{"cut": '),
        Finished(FinishReason.TOOL_CALLS),
        Completed(Usage(3, 4)),
    ]

    whole = orjson.loads(ANTHROPIC_MESSAGES.encode_reply(fold(events), parse(), INFO))

    assert whole["content"] == [
        {"type": "thinking", "thinking": "hm", "signature": ""},
        {"type": "redacted_thinking", "data": "ENC"},
        {"type": "text", "text": "a"},
        {"type": "tool_use", "id": "id", "name": "f", "input": {"x": 1}},
        {"type": "tool_use", "id": "id2", "name": "g", "input": {}},
    ]
    assert (whole["stop_reason"], whole["usage"]["input_tokens"]) == ("tool_use", 3)


def test_a_thread_that_cannot_be_held_is_refused_in_the_sdks_words() -> None:
    failed = Failed(ErrorKind.INVALID_REQUEST, "m", param="thread")

    error = orjson.loads(ANTHROPIC_MESSAGES.error_body(failed, "req_1"))["error"]

    assert error["details"] == {"error_code": "thread_unsupported_request", "unsupported": ["thread"]}


@pytest.mark.parametrize(
    ("failed", "type_", "status"),
    [
        (Failed(ErrorKind.INVALID_REQUEST, "m"), "invalid_request_error", 400),
        (Failed(ErrorKind.UNAUTHENTICATED, "m"), "authentication_error", 401),
        (Failed(ErrorKind.PERMISSION_DENIED, "m"), "permission_error", 403),
        (Failed(ErrorKind.MODEL_NOT_FOUND, "m"), "not_found_error", 404),
        (Failed(ErrorKind.REQUEST_TOO_LARGE, "m"), "request_too_large", 413),
        (Failed(ErrorKind.RATE_LIMITED, "m"), "rate_limit_error", 429),
        (Failed(ErrorKind.OVERLOADED, "m"), "overloaded_error", 529),
        (Failed(ErrorKind.INTERNAL, "m"), "api_error", 500),
        (Failed(ErrorKind.DEADLINE_EXCEEDED, "m"), "timeout_error", 504),
        (Failed(ErrorKind.UPSTREAM_UNAVAILABLE, "m", 529, "overloaded_error"), "overloaded_error", 529),
        (Failed(ErrorKind.UPSTREAM_REJECTED, "m", 404, "invalid_request_error"), "not_found_error", 404),
        (Failed(ErrorKind.UPSTREAM_RATE_LIMITED, "m", 429, "tokens"), "rate_limit_error", 429),
    ],
)
def test_errors_use_anthropics_words(failed: Failed, type_: str, status: int) -> None:
    error = {"type": "error", "error": {"type": type_, "message": "m"}}

    assert ANTHROPIC_MESSAGES.status(failed) == status
    assert orjson.loads(ANTHROPIC_MESSAGES.error_body(failed, "req_1")) == {**error, "request_id": "req_1"}
    assert (
        ANTHROPIC_MESSAGES.error_event(failed, OpenStream("gen_1")) == b"event: error\ndata: " + orjson.dumps(error) + b"\n\n"
    )


@pytest.mark.parametrize(
    ("failed", "code"),
    [
        (Failed(ErrorKind.CANCELLED, "m", code="anything"), "cancelled"),
        (Failed(ErrorKind.OVERLOADED, "m", code="gateway_restarting"), "gateway_restarting"),
        (Failed(ErrorKind.WORKER_LOST, "m"), "worker_lost"),
        (Failed(ErrorKind.OVERLOADED, "m", code="queue_full"), None),
    ],
)
def test_a_code_stands_only_where_a_client_acts_on_what_no_type_can_say(failed: Failed, code: str | None) -> None:
    event = ANTHROPIC_MESSAGES.error_event(failed, OpenStream("gen_1"))

    assert orjson.loads(event.partition(b"data: ")[2])["error"].get("code") == code
