"""How is what Cohere sends read? Behaviour all wires share: contracts/."""

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
    Started,
    TextDelta,
    ToolCallDelta,
    ToolCallStarted,
    Usage,
)
from common.canonical.reply import Reply, ToolCall, fold
from tests.support.upstreams.recordings import OWN, blocks_of
from workers.providers.cohere.wire import COHERE

STARTED, DONE = b'data: {"type":"message-start","id":"m_1"}\n\n', b"data: [DONE]\n\n"


def decode(*blocks: bytes) -> list[Event]:
    decoder = COHERE.decoder()
    return [event for block in blocks for event in decoder.decode(block)] + decoder.end()


def own(case: str) -> Reply:
    return fold(decode(*blocks_of((OWN / "cohere" / f"{case}.sse").read_bytes())))


def ending(reason: str, **more: Any) -> bytes:
    return b"data: " + orjson.dumps({"type": "message-end", "delta": {"finish_reason": reason, **more}}) + b"\n\n"


def call_event(kind: str, index: int, **call: Any) -> bytes:
    fields = {"type": f"tool-call-{kind}", "index": index, "delta": {"message": {"tool_calls": call}}}
    return b"data: " + orjson.dumps(fields) + b"\n\n"


def test_thinking_and_text_are_told_apart_and_citations_passed_over() -> None:
    reply = own("thinking_then_text_with_citation")

    assert ("".join(block.text for block in reply.choices[0].reasoning), reply.choices[0].text) == ("let me", "Grüße 🦆!")
    assert reply.choices[0].finish_reason is FinishReason.STOP


def test_usage_is_what_cohere_bills() -> None:
    assert own("thinking_then_text_with_citation").usage == Usage(7, 9, reasoning_tokens=4)


def test_usage_without_billed_units_is_the_real_one() -> None:
    events = decode(ending("COMPLETE", usage={"tokens": {"input_tokens": 5, "output_tokens": 6}}))

    assert events[-1] == Completed(Usage(5, 6))


def test_a_plan_is_thinking_and_missing_arguments_are_an_empty_object() -> None:
    reply = own("plan_and_calls_without_arguments")

    assert reply.choices[0].reasoning[0].text == "I will look."
    assert reply.choices[0].tool_calls == [
        ToolCall("add_1", "add", '{"a": 1}'),
        ToolCall("now_1", "now", "{}"),
        ToolCall("now_2", "now", "{}"),
    ]
    assert reply.choices[0].finish_reason is FinishReason.TOOL_CALLS


def test_a_call_that_nobody_ends_is_ended_by_the_answer() -> None:
    start = call_event("start", 0, id="a", function={"name": "f", "arguments": ""})

    assert fold(decode(start, ending("TOOL_CALL"))).choices[0].tool_calls == [ToolCall("a", "f", "{}")]


def test_calls_under_one_index_are_two_calls() -> None:
    reply = fold(
        decode(
            call_event("start", 0, id="a", function={"name": "f", "arguments": ""}),
            call_event("start", 0, id="b", function={"name": "g", "arguments": ""}),
            call_event("delta", 0, function={"arguments": "{}"}),
            ending("TOOL_CALL"),
        )
    )

    assert reply.choices[0].tool_calls == [ToolCall("a", "f", "{}"), ToolCall("b", "g", "{}")]


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("COMPLETE", FinishReason.STOP),
        ("STOP_SEQUENCE", FinishReason.STOP_SEQUENCE),
        ("MAX_TOKENS", FinishReason.LENGTH),
        ("TOOL_CALL", FinishReason.TOOL_CALLS),
        ("FROM_TOMORROW", FinishReason.STOP),
    ],
)
def test_finish_reasons(word: str, reason: FinishReason) -> None:
    assert decode(STARTED, ending(word), DONE) == [Started("m_1"), Finished(reason), Completed()]


def test_error_as_the_finish_reason_is_a_failure() -> None:
    failed = own("error_as_finish").failed

    assert failed == Failed(
        ErrorKind.UPSTREAM_UNAVAILABLE,
        "your request resulted in an invalid tool generation",
        502,
        type="INVALID_TOOL_GENERATION",
    )


def test_timeout_as_the_finish_reason_is_a_timeout() -> None:
    failed = decode(STARTED, ending("TIMEOUT"))[-1]

    assert isinstance(failed, Failed)
    assert (failed.kind, failed.http_status) == (ErrorKind.UPSTREAM_TIMEOUT, 504)


@pytest.mark.parametrize(
    "block",
    [
        b'event: error\ndata: {"message":"It broke."}\n\n',
        b'data: {"type":"error","message":"It broke."}\n\n',
        b'data: {"id":"x","message":"It broke."}\n\n',
    ],
)
def test_an_error_body_in_the_stream_is_a_failure(block: bytes) -> None:
    failed = decode(STARTED, block)[-1]

    assert isinstance(failed, Failed)
    assert failed.message == "It broke."


def test_done_without_an_end_is_a_cut() -> None:
    failed = decode(STARTED, DONE)[-1]

    assert isinstance(failed, Failed)
    assert failed.code == "upstream_cut"


def test_a_whole_answer_is_read() -> None:
    answer = {
        "id": "m_1",
        "message": {
            "tool_plan": "I look. ",
            "content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "Hi."}],
            "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "null"}}],
        },
        "finish_reason": "TOOL_CALL",
        "usage": {"billed_units": {"input_tokens": 1, "output_tokens": 2}},
    }

    assert COHERE.decoder().decode_whole(orjson.dumps(answer)) == [
        Started("m_1"),
        ReasoningDelta("I look. "),
        ReasoningDelta("hm"),
        TextDelta("Hi."),
        ToolCallStarted(0, "a", "f"),
        ToolCallDelta(0, "{}"),
        Finished(FinishReason.TOOL_CALLS),
        Completed(Usage(1, 2)),
    ]


def test_a_whole_answer_of_version_1_is_read() -> None:
    body = b'{"generation_id":"g","text":"Hi.","finish_reason":"COMPLETE","meta":{"billed_units":{"input_tokens":1}}}'

    assert COHERE.decoder().decode_whole(body) == [
        Started("g"),
        TextDelta("Hi."),
        Finished(FinishReason.STOP),
        Completed(Usage(1, 0)),
    ]


def test_error_bodies_keep_their_words() -> None:
    body = b'{"error_type":"TOO_MANY_TOKENS","id":"x","message":"too many tokens"}'

    failed = COHERE.read_error(400, {}, body)

    assert failed == Failed(ErrorKind.UPSTREAM_REJECTED, "too many tokens", 400, type="TOO_MANY_TOKENS")


def test_a_refused_key_is_not_quoted() -> None:
    failed = COHERE.read_error(401, {}, b'{"id":"x","message":"Incorrect API key provided: abc"}')

    assert failed.kind is ErrorKind.UPSTREAM_CREDENTIALS
    assert "abc" not in failed.message
