"""What clients of /v1/chat get, and what they may send. Behaviour all dialects share: contracts/."""

from decimal import Decimal
from typing import Any

import orjson
import pytest

from common.canonical.errors import ErrorKind, Failed, GatewayError
from common.canonical.events import (
    Completed,
    Event,
    Finished,
    FinishReason,
    ReasoningDelta,
    RefusalDelta,
    Started,
    TextDelta,
    ToolCallDelta,
    ToolCallStarted,
    Usage,
)
from common.canonical.generation import GenerationRequest, Message, ResponseFormat, Role, TextPart, Tool, ToolChoice
from common.canonical.reply import fold
from common.dialects.base import OpenStream, ReplyInfo
from common.dialects.unified.dialect import UNIFIED
from common.dialects.unified.request import check
from common.metering.pricing import Cost
from common.vendors.table import VENDORS

BODY: dict[str, Any] = {"provider": "openai", "model": "gpt-4o", "messages": [{"role": "user", "content": "Hello"}]}
COST = Cost(Decimal("0.000025"), Decimal("0.0002504"))
INFO = ReplyInfo("gen_1", "gpt-4o", 7, "openai", elapsed_ms=lambda: 1234, price=lambda usage: COST)
UNPRICED = ReplyInfo("gen_1", "own", 7, "openai", elapsed_ms=lambda: 1234)
END: list[Event] = [Finished(FinishReason.STOP), Completed(Usage(10, 25))]


def parse(**body: Any) -> GenerationRequest:
    return UNIFIED.parse({**BODY, **body})


def encode(*events: Event, info: ReplyInfo = INFO) -> bytes:
    encoder = UNIFIED.encoder(parse(stream=True), info)
    return b"".join(encoder.encode(event) for event in events)


def whole(*events: Event, info: ReplyInfo = INFO) -> dict[str, Any]:
    return orjson.loads(UNIFIED.encode_reply(fold(events), parse(), info))


def refused(body: dict[str, Any]) -> dict[str, Any]:
    """The answer to a body that is wrong, at a gateway that has these providers."""
    with pytest.raises(GatewayError) as caught:
        check(body, {"openai", "lab"})
        UNIFIED.parse(body)
    assert UNIFIED.status(caught.value.failed) == 400
    return orjson.loads(UNIFIED.error_body(caught.value.failed, "req_1"))


def test_stream_is_the_documented_one() -> None:
    data = encode(Started(), ReasoningDelta("hm"), TextDelta("Once"), TextDelta(""), TextDelta(" upon"), *END)

    assert data.split(b"\n\n") == [
        b'event: chunk\ndata: {"content":"Once","role":"assistant"}',
        b'event: chunk\ndata: {"content":" upon","role":"assistant"}',
        b'event: done\ndata: {"usage":{"prompt_tokens":10,"completion_tokens":25,"total_tokens":35},'
        b'"cost":{"total_tokens":35,"input_tokens":10,"output_tokens":25,"estimated_cost_usd":"0.000275",'
        b'"input_cost_usd":"0.000025","output_cost_usd":"0.000250"},"latency_ms":1234,"finish_reason":"stop"}',
        b"",
    ]


def test_whole_answer_is_the_documented_one() -> None:
    assert whole(TextDelta("Hello! I'm doing well"), *END) == {
        "provider": "openai",
        "message": {"role": "assistant", "content": "Hello! I'm doing well"},
        "usage": {"prompt_tokens": 10, "completion_tokens": 25, "total_tokens": 35},
        "cost": {
            "total_tokens": 35,
            "input_tokens": 10,
            "output_tokens": 25,
            "estimated_cost_usd": "0.000275",
            "input_cost_usd": "0.000025",
            "output_cost_usd": "0.000250",
        },
        "latency_ms": 1234,
        "finish_reason": "stop",
    }


@pytest.mark.parametrize(("info", "usage"), [(UNPRICED, Usage(10, 25)), (INFO, None)])
def test_unknown_price_is_null_and_never_0(info: ReplyInfo, usage: Usage | None) -> None:
    answer = whole(TextDelta("x"), Finished(FinishReason.STOP), Completed(usage), info=info)

    money = {name: value for name, value in answer["cost"].items() if name.endswith("_usd")}
    assert money == {"estimated_cost_usd": None, "input_cost_usd": None, "output_cost_usd": None}
    assert answer["cost"]["total_tokens"] == (35 if usage else 0)


def test_tool_calls_come_whole() -> None:
    events: list[Event] = [
        TextDelta("a"),
        ToolCallStarted(0, "c", "f"),
        ToolCallDelta(0, '{"x":1}'),
        Finished(FinishReason.TOOL_CALLS),
        Completed(),
    ]
    calls = [{"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}}]

    chunk = encode(*events).split(b"\n\n")[1]
    assert chunk == b"event: chunk\ndata: " + orjson.dumps({"content": "", "role": "assistant", "tool_calls": calls})
    assert whole(*events)["message"] == {"role": "assistant", "content": "a", "tool_calls": calls}
    assert whole(*events)["finish_reason"] == "tool_calls"


def test_refusal_is_text() -> None:
    assert whole(RefusalDelta("no"), Finished(FinishReason.REFUSAL), Completed())["message"]["content"] == "no"
    assert b'{"content":"no","role":"assistant"}' in encode(RefusalDelta("no"))


def test_error_in_the_stream_is_an_event_of_its_own() -> None:
    failed = Failed(ErrorKind.UPSTREAM_UNAVAILABLE, "It broke.")

    assert UNIFIED.error_event(failed, OpenStream("gen_1")) == (
        b'event: error\ndata: {"error":"It broke.","type":"upstream_unavailable","code":"upstream_unavailable"}\n\n'
    )


def test_missing_provider_gets_the_documented_answer() -> None:
    options = list(VENDORS)

    answer = refused({name: value for name, value in BODY.items() if name != "provider"})

    assert answer == {
        "error": "Invalid request",
        "details": {"provider": {"_errors": ["Required"]}},
        "expectedSchema": {
            "structure": {
                "type": "object",
                "properties": {
                    "provider": {"type": "enum", "options": options},
                    "model": {"type": "string"},
                    "messages": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "properties": {
                                "role": {"type": "enum", "options": ["system", "user", "assistant"]},
                                "content": {"type": "string"},
                            },
                        },
                    },
                },
            },
            "description": f"provider: enum: {' | '.join(options)}\n"
            "model: string\nmessages: array of:\n  role: enum: system | user | assistant\n  content: string",
            "example": {"provider": "openai", "model": "gpt-4-turbo", "messages": [{"role": "user", "content": "Hello"}]},
        },
    }
    assert {"openai", "anthropic"} < set(options)


def test_all_needed_fields_are_told_at_once() -> None:
    details = refused({"provider": "closedai", "messages": []})["details"]

    assert details == {
        "provider": {"_errors": [details["provider"]["_errors"][0]]},
        "model": {"_errors": ["Required"]},
        "messages": {"_errors": ["Array must contain at least 1 element(s)"]},
    }
    assert details["provider"]["_errors"][0].startswith("Invalid enum value. Expected 'openai' | 'anthropic' | ")
    assert details["provider"]["_errors"][0].endswith(", received 'closedai'")


@pytest.mark.parametrize(
    ("change", "details"),
    [
        ({"model": 7}, {"model": {"_errors": ["Expected string, received number"]}}),
        ({"model": None}, {"model": {"_errors": ["Expected string, received null"]}}),
        ({"model": ""}, {"model": {"_errors": ["String must contain at least 1 character(s)"]}}),
        ({"temperature": "hot"}, {"temperature": {"_errors": ["must be a number."]}}),
        ({"n": 2}, {"n": {"_errors": ["must be 1: the answer is one message."]}}),
        (
            {"messages": [{"content": "x"}]},
            {"messages": {"_errors": [], "0": {"_errors": [], "role": {"_errors": ["Required"]}}}},
        ),
    ],
)
def test_faults_are_nested_as_the_body_is(change: dict[str, Any], details: dict[str, Any]) -> None:
    assert refused({**BODY, **change})["details"] == details


def test_providers_of_the_gateways_own_are_known() -> None:
    check({**BODY, "provider": "lab"}, {"openai", "lab"})


def test_fault_of_the_whole_body_has_no_field() -> None:
    failed = Failed(ErrorKind.INVALID_REQUEST, "The body is not valid JSON.", code="invalid_json")

    answer = orjson.loads(UNIFIED.error_body(failed, "req_1"))
    assert answer["details"] == {"_errors": ["The body is not valid JSON."]}


def test_other_errors_tell_their_kind() -> None:
    failed = Failed(ErrorKind.MODEL_NOT_FOUND, "No such model.", param="model")

    assert UNIFIED.status(failed) == 404
    assert orjson.loads(UNIFIED.error_body(failed, "req_1")) == {
        "error": "No such model.",
        "type": "model_not_found",
        "code": "model_not_found",
        "param": "model",
    }


def test_faults_survive_the_way_through_the_log() -> None:
    failed = Failed(ErrorKind.INVALID_REQUEST, "x", faults={"a": "b"})

    assert Failed.from_dict(orjson.loads(orjson.dumps(failed.to_dict()))) == failed


def test_smallest_request_gets_the_defaults() -> None:
    assert parse() == GenerationRequest("gpt-4o", [Message(Role.USER, [TextPart("Hello")])], provider="openai")


def test_the_rest_of_the_body_is_openais() -> None:
    request = parse(
        stream=True,
        temperature=1,
        max_tokens=5,
        top_p=0.5,
        stop="END",
        seed=3,
        presence_penalty=0.1,
        frequency_penalty=0.2,
        tools=[{"type": "function", "function": {"name": "f"}}],
        tool_choice="required",
        response_format={"type": "json_object"},
    )

    assert request == GenerationRequest(
        "gpt-4o",
        [Message(Role.USER, [TextPart("Hello")])],
        provider="openai",
        stream=True,
        temperature=1.0,
        max_output_tokens=5,
        top_p=0.5,
        stop=["END"],
        seed=3,
        presence_penalty=0.1,
        frequency_penalty=0.2,
        tools=[Tool("f")],
        tool_choice=ToolChoice("required"),
        response_format=ResponseFormat(),
    )
