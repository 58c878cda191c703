"""What clients of OpenAI's responses get. Behaviour all dialects share: contracts/."""

from typing import Any

import orjson
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

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
from common.canonical.reply import fold
from common.dialects.base import OpenStream, ReplyInfo
from common.dialects.openai_responses.dialect import OPENAI_RESPONSES
from tests.support.upstreams.recordings import Recording, blocks_of, data_of, parameters
from workers.providers import WIRES

BODY: dict[str, Any] = {"model": "a-model", "input": "hi"}
DONE: list[Event] = [Finished(FinishReason.STOP), Completed(Usage(5, 3, cache_read_tokens=2, reasoning_tokens=1))]


def encode(*events: Event, **body: Any) -> bytes:
    asked = {**BODY, **body}
    encoder = OPENAI_RESPONSES.encoder(OPENAI_RESPONSES.parse(asked), ReplyInfo("gen_ab", "a-model", 7, body=asked))
    return b"".join(encoder.encode(event) for event in events)


def said(*events: Event, **body: Any) -> list[dict[str, Any]]:
    """The stream's events, each checked: its name, its number, and by the SDK's own types."""
    stream = encode(*events, **body)
    found = data_of(stream)
    names = [line[7:].decode() for line in stream.split(b"\n") if line.startswith(b"event: ")]
    assert names == [event["type"] for event in found]
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    for event in found:
        TypeAdapter(ResponseStreamEvent).validate_python(event)
    return found


def whole(*events: Event, **body: Any) -> dict[str, Any]:
    asked = {**BODY, **body}
    info = ReplyInfo("gen_ab", "a-model", 7, body=asked)
    found = orjson.loads(OPENAI_RESPONSES.encode_reply(fold(events), OPENAI_RESPONSES.parse(asked), info))
    Response.model_validate(found, strict=True)
    return found


def types(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"].removeprefix("response.") for event in events]


def test_a_text_is_announced_filled_and_said_once_more() -> None:
    events = said(Started(), TextDelta("Hel"), TextDelta('lo "%d"'), *DONE)

    assert types(events) == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert events[5] == {
        "type": "response.output_text.delta",
        "content_index": 0,
        "delta": 'lo "%d"',
        "item_id": "msg_ab00",
        "logprobs": [],
        "output_index": 0,
        "sequence_number": 5,
    }
    part = {"type": "output_text", "annotations": [], "logprobs": [], "text": 'Hello "%d"'}
    item = {"id": "msg_ab00", "type": "message", "status": "completed", "content": [part], "role": "assistant"}
    assert events[8]["item"] == item
    assert events[9]["response"]["output"] == [item]


def test_the_response_repeats_the_request_and_ends_with_usage() -> None:
    schema = {"type": "json_schema", "name": "s", "schema": {"type": "object"}}
    tool = {"type": "function", "name": "f", "parameters": {"type": "object"}}
    asked = {
        "instructions": "Be brief.",
        "metadata": {"a": "b"},
        "temperature": 0.5,
        "reasoning": {"effort": "low"},
        "text": {"format": schema},
        "tools": [tool, {"type": "web_search"}],
        "store": False,
        "max_output_tokens": 9,
    }
    events = said(Started(), TextDelta("x"), *DONE, **asked)

    first, last = events[0]["response"], events[-1]["response"]
    assert (first["status"], first["usage"], first["output"], first["completed_at"]) == ("in_progress", None, [], None)
    assert last["usage"] == {
        "input_tokens": 5,
        "input_tokens_details": {"cache_write_tokens": 0, "cached_tokens": 2},
        "output_tokens": 3,
        "output_tokens_details": {"reasoning_tokens": 1},
        "total_tokens": 8,
    }
    for response in (first, last, whole(Started(), TextDelta("x"), *DONE, **asked)):
        assert (response["id"], response["model"], response["created_at"]) == ("resp_ab", "a-model", 7)
        assert {name: response[name] for name in ("instructions", "metadata", "temperature", "store")} == {
            name: asked[name] for name in ("instructions", "metadata", "temperature", "store")
        }
        assert response["reasoning"] == {"effort": "low", "summary": None}
        assert response["text"] == {"format": {"description": None, "strict": False, **schema}, "verbosity": "medium"}
        assert response["tools"][0].items() >= {**tool, "description": None}.items()
    assert last == whole(Started(), TextDelta("x"), *DONE, **asked)


def test_thinking_is_a_reasoning_item_that_holds_its_signature() -> None:
    events = [
        ReasoningDelta("hm"),
        ReasoningDelta("!"),
        ReasoningSigned("SIG"),
        RedactedReasoning("ENC"),
        TextDelta("x"),
        *DONE,
    ]

    found = said(*events)

    assert types(found)[2:11] == [
        "output_item.added",
        "reasoning_summary_part.added",
        "reasoning_summary_text.delta",
        "reasoning_summary_text.delta",
        "reasoning_summary_text.done",
        "reasoning_summary_part.done",
        "output_item.done",
        "output_item.added",
        "output_item.done",
    ]
    output = found[-1]["response"]["output"]
    assert output[:2] == [
        {
            "id": "rs_ab00",
            "type": "reasoning",
            "summary": [{"type": "summary_text", "text": "hm!"}],
            "encrypted_content": "sluice-signed:SIG",
        },
        {"id": "rs_ab01", "type": "reasoning", "summary": [], "encrypted_content": "sluice-redacted:ENC"},
    ]
    assert whole(*events)["output"] == output


def test_calls_one_after_the_other_are_done_one_after_the_other() -> None:
    events = [
        ReasoningSigned("GEM"),
        ToolCallStarted(0, "call_a", "f"),
        ToolCallDelta(0, '{"a":'),
        ToolCallDelta(0, "1}"),
        ToolCallStarted(1, "call_b", "g"),
        ToolCallDelta(1, ""),
        *DONE,
    ]

    found = said(*events)

    assert types(found)[2:] == [
        "output_item.added",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]
    output = found[-1]["response"]["output"]
    assert output[1] == {
        "id": "fc_ab01",
        "type": "function_call",
        "status": "completed",
        "arguments": '{"a":1}',
        "call_id": "call_a",
        "name": "f",
    }
    assert output[2]["arguments"] == "{}"
    assert whole(*events)["output"] == output


def test_calls_that_overlap_keep_their_places() -> None:
    events = [
        ToolCallStarted(0, "a", "f"),
        ToolCallStarted(1, "b", "g"),
        TextDelta("so"),
        ToolCallDelta(1, '{"b":2}'),
        ToolCallDelta(0, "{}"),
        TextDelta(" it is"),
        *DONE,
    ]

    found = said(*events)

    assert [(event["output_index"], event["delta"]) for event in found if event["type"].endswith(".delta")] == [
        (2, "so"),
        (1, '{"b":2}'),
        (0, "{}"),
        (2, " it is"),
    ]
    assert whole(*events)["output"] == found[-1]["response"]["output"]


def test_a_refusal_is_a_message_of_its_own() -> None:
    found = said(TextDelta("a"), RefusalDelta("I "), RefusalDelta("won't."), *DONE)

    assert types(found)[-6:-1] == ["refusal.delta", "refusal.delta", "refusal.done", "content_part.done", "output_item.done"]
    output = found[-1]["response"]["output"]
    assert [item["content"][0]["type"] for item in output] == ["output_text", "refusal"]
    assert output[1]["content"] == [{"type": "refusal", "refusal": "I won't."}]


@pytest.mark.parametrize(
    ("reason", "status", "details"),
    [
        (FinishReason.LENGTH, "incomplete", {"reason": "max_output_tokens"}),
        (FinishReason.CONTENT_FILTER, "incomplete", {"reason": "content_filter"}),
        (FinishReason.TOOL_CALLS, "completed", None),
        (FinishReason.STOP_SEQUENCE, "completed", None),
    ],
)
def test_an_answer_that_was_cut_is_incomplete(reason: FinishReason, status: str, details: object) -> None:
    events = [Started(), TextDelta("half a"), Finished(reason), Completed()]

    last = said(*events)[-1]

    assert last["type"] == f"response.{status}"
    for response in (last["response"], whole(*events)):
        assert (response["status"], response["incomplete_details"]) == (status, details)
        assert response["output"][0]["status"] == status


def test_functions_of_a_namespace_are_called_by_it() -> None:
    space = {"type": "namespace", "name": "n", "description": "", "tools": [{"type": "function", "name": "f"}]}

    found = said(ToolCallStarted(0, "a", "n__f"), ToolCallDelta(0, "{}"), *DONE, tools=[space])

    item = found[-1]["response"]["output"][0]
    assert (item["namespace"], item["name"]) == ("n", "f")


def test_a_custom_tool_is_called_with_plain_text() -> None:
    tools = [{"type": "custom", "name": "patch"}]
    pieces = [ToolCallStarted(0, "a", "patch"), ToolCallDelta(0, '{"input":"*** '), ToolCallDelta(0, 'x"}')]

    events = said(Started(), *pieces, *DONE, tools=tools)

    assert types(events)[2:] == [
        "output_item.added",
        "custom_tool_call_input.delta",
        "custom_tool_call_input.done",
        "output_item.done",
        "completed",
    ]
    item = events[-2]["item"]
    assert (item["type"], item["name"], item["input"]) == ("custom_tool_call", "patch", "*** x")
    assert events[2]["item"]["input"] == ""
    assert whole(Started(), *pieces, *DONE, tools=tools)["output"] == [item]


@pytest.mark.parametrize("last", [b"", b"data: [DONE]\n\n", b"data: {}\n\n"])
def test_a_failure_without_events_before_it_is_the_first(last: bytes) -> None:
    event = data_of(OPENAI_RESPONSES.error_event(Failed(ErrorKind.INTERNAL, "No."), OpenStream("gen_ab", last)))[0]

    assert event["sequence_number"] == 0


def test_a_failure_goes_on_counting_and_says_why() -> None:
    failed = Failed(ErrorKind.UPSTREAM_RATE_LIMITED, "Too many.")
    stream = encode(Started(), TextDelta("x"))

    [event] = data_of(OPENAI_RESPONSES.error_event(failed, OpenStream("gen_ab", stream, "a-model", 7)))

    TypeAdapter(ResponseStreamEvent).validate_python(event)
    assert (event["type"], event["sequence_number"]) == ("response.failed", 5)
    response = event["response"]
    assert response["error"] == {"code": "rate_limit_exceeded", "message": "Too many."}
    assert (response["id"], response["status"], response["model"]) == ("resp_ab", "failed", "a-model")


def test_a_cancelled_stream_fails_with_that_code() -> None:
    # openai-node throws on "response.cancelled".
    [event] = data_of(OPENAI_RESPONSES.error_event(Failed(ErrorKind.CANCELLED, "Stopped."), OpenStream("gen_ab")))

    assert (event["type"], event["response"]["error"]["code"]) == ("response.failed", "cancelled")


OWN_TO_OPENAI = {"obfuscation", "billing"}  # Padding, and who pays.
# Other vendors' fields are others, and tools that run at OpenAI are not translated.
ELSEWHERE = ("server-tools", "openrouter", "xai", "deepseek", "azure", "error", "own.")


@pytest.mark.parametrize(
    "recording", [each for each in parameters(wire="openai-responses") if not any(word in each.id for word in ELSEWHERE)]
)
def test_events_and_fields_are_those_that_openai_sends(recording: Recording) -> None:
    decoder = WIRES["openai-responses"].decoder()
    events = [event for block in blocks_of(recording.body) for event in decoder.decode(block)] + decoder.end()
    asked = {**BODY, **{name: value for name, value in (recording.request or {}).items() if name != "input"}}

    ours, theirs = data_of(encode(*events, **asked)), data_of(recording.body)

    kept = [event for event in theirs if event["type"] != "keepalive" and event.get("item", {}).get("type") != "reasoning"]
    if len(kept) == len(theirs):
        assert types(ours) == types(theirs)
    by_type = {event["type"]: event for event in ours}
    for event in kept:
        _has_fields_of(by_type[event["type"]], event)


def _has_fields_of(ours: Any, theirs: Any) -> None:
    if isinstance(theirs, dict) and isinstance(ours, dict):
        # The tools' parameters are the client's, and what reasoning is said of depends on the model.
        assert ours.keys() >= theirs.keys() - OWN_TO_OPENAI
        for name in theirs.keys() - OWN_TO_OPENAI - {"tools", "reasoning", "output", "item", "metadata", "text"}:
            _has_fields_of(ours[name], theirs[name])
