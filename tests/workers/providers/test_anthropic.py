"""What Anthropic is sent, and how what it sends is read. Behaviour all wires share: contracts/."""

from typing import Any

import orjson
import pytest

from common.canonical.errors import ErrorKind, Failed, GatewayError
from common.canonical.events import Completed, Event, FinishReason, Started, Usage
from common.canonical.generation import (
    GenerationRequest,
    Message,
    Reasoning,
    ReasoningPart,
    Role,
    TextPart,
    Tool,
    ToolCallPart,
    ToolChoice,
    ToolResultPart,
)
from common.canonical.reply import ReasoningBlock, Reply, ToolCall, fold
from common.dialects import DIALECTS
from common.vendors.models import MODELS
from tests.support.upstreams.recordings import OWN, Recording, blocks_of, data_of, parameters
from workers.providers.anthropic.wire import ANTHROPIC
from workers.providers.base import Deployment

MODEL = "claude-sonnet-4-5"
DEPLOYMENT = Deployment("anthropic", "https://api.example", "the-key", MODEL, facts=MODELS.facts("anthropic", MODEL))
FINISH = {
    "end_turn": FinishReason.STOP,
    "stop_sequence": FinishReason.STOP_SEQUENCE,
    "max_tokens": FinishReason.LENGTH,
    "tool_use": FinishReason.TOOL_CALLS,
    "refusal": FinishReason.REFUSAL,
    "pause_turn": FinishReason.PAUSE,
}


def decode(*blocks: bytes) -> list[Event]:
    decoder = ANTHROPIC.decoder()
    return [event for block in blocks for event in decoder.decode(block)] + decoder.end()


def own_events(case: str) -> list[Event]:
    return decode(*blocks_of((OWN / "anthropic" / f"{case}.sse").read_bytes()))


def own(case: str) -> Reply:
    return fold(own_events(case))


def simple_fold(body: bytes) -> dict[str, Any]:
    """A stream read in the plainest way there is."""
    blocks: dict[int, dict[str, Any]] = {}
    usage: dict[str, Any] = {}
    finish = None
    order: list[dict[str, Any]] = []
    for each in data_of(body):
        match each["type"]:
            case "message_start":
                usage |= each["message"]["usage"]
            case "content_block_start":
                blocks[each["index"]] = {**each["content_block"], "json": ""}
                order.append(blocks[each["index"]])
            case "content_block_delta":
                delta, block = each["delta"], blocks[each["index"]]
                for kind, field in (("text", "text"), ("thinking", "thinking"), ("signature", "signature")):
                    if delta["type"] == f"{kind}_delta":
                        block[field] = block.get(field, "") + delta[field]
                if delta["type"] == "input_json_delta":
                    block["json"] += delta["partial_json"]
            case "message_delta":
                usage |= {name: value for name, value in each["usage"].items() if value is not None}
                finish = each["delta"]["stop_reason"]
    return {"blocks": order, "usage": usage, "finish": finish}


@pytest.mark.parametrize("recording", parameters(wire="anthropic-messages"))
def test_recorded_streams_say_what_their_raw_json_says(recording: Recording) -> None:
    if b"event: error" in recording.body:
        assert isinstance(decode(*blocks_of(recording.body))[-1], Failed)
        return
    reply, raw = fold(decode(*blocks_of(recording.body))), simple_fold(recording.body)
    choice = reply.choices[0]

    assert choice.text == "".join(block["text"] for block in raw["blocks"] if block["type"] == "text")
    assert [(call.id, call.name, call.arguments) for call in choice.tool_calls] == [
        (block["id"], block["name"], block["json"] or "{}") for block in raw["blocks"] if block["type"] == "tool_use"
    ]
    assert [(block.text, block.signature) for block in choice.reasoning if block.redacted is None] == [
        (block["thinking"], block["signature"]) for block in raw["blocks"] if block["type"] == "thinking"
    ]
    assert choice.finish_reason is FINISH[raw["finish"]]
    usage = raw["usage"]
    read, written = usage.get("cache_read_input_tokens", 0), usage.get("cache_creation_input_tokens", 0)
    assert reply.usage is not None
    assert reply.usage.input_tokens == usage["input_tokens"] + read + written
    assert reply.usage.output_tokens == usage["output_tokens"]


def test_thinking_keeps_its_signatures_and_redactions() -> None:
    reply = own("thinking_then_text")

    assert reply.choices[0].reasoning == [ReasoningBlock("let me", "SIG=="), ReasoningBlock(redacted="ENC==")]
    assert reply.choices[0].stop_sequence == "END"
    assert reply.usage == Usage(117, 9, cache_read_tokens=100, cache_write_tokens=10, reasoning_tokens=4)


def test_call_without_arguments_gets_an_empty_object() -> None:
    calls = own("calls_one_without_arguments").choices[0].tool_calls

    assert calls == [ToolCall("toolu_1", "now", "{}"), ToolCall("toolu_2", "add", '{"a": "x\\n"}')]


def test_input_that_came_whole_with_its_block_is_kept() -> None:
    start = {"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}}
    events = decode(
        b'data: {"type":"content_block_start","index":0,"content_block":' + orjson.dumps(start) + b"}\n\n",
        b'data: {"type":"content_block_stop","index":0}\n\n',
        b'data: {"type":"message_stop"}\n\n',
    )

    assert fold(events).choices[0].tool_calls == [ToolCall("t", "f", '{"a":1}')]


def test_tools_that_run_at_the_vendor_are_passed_over() -> None:
    reply = own("server_tool_and_unknown")

    assert (reply.choices[0].text, reply.choices[0].tool_calls) == ("found", [])
    assert reply.choices[0].finish_reason is FinishReason.PAUSE
    assert reply.usage == Usage(1615, 9, cache_read_tokens=20, details={"web_searches": 1})


def test_second_message_start_counts_nothing_twice() -> None:
    events = own_events("second_message_start")

    assert sum(isinstance(event, Started) for event in events) == 1
    assert fold(events).usage == Usage(7, 9)


def test_compactions_are_a_part_of_the_usage_and_attempts_before_a_fallback_are_not() -> None:
    compaction = {"type": "compaction", "input_tokens": 180, "output_tokens": 35, "cache_read_input_tokens": 10}
    iterations = [
        compaction,
        {"type": "message", "input_tokens": 23, "output_tokens": 5},
        {"type": "fallback_message", "input_tokens": 9},
    ]
    answer = {
        "content": [],
        "stop_reason": "end_turn",
        "usage": {"input_tokens": 23, "output_tokens": 5, "iterations": iterations},
    }

    events = ANTHROPIC.decoder().decode_whole(orjson.dumps(answer))

    assert fold(events).usage == Usage(213, 40, cache_read_tokens=10)


@pytest.mark.parametrize(
    ("type_", "kind", "status"),
    [
        ("overloaded_error", ErrorKind.UPSTREAM_UNAVAILABLE, 529),
        ("rate_limit_error", ErrorKind.UPSTREAM_RATE_LIMITED, 429),
        ("authentication_error", ErrorKind.UPSTREAM_CREDENTIALS, 502),
        ("permission_error", ErrorKind.UPSTREAM_CREDENTIALS, 502),
        ("invalid_request_error", ErrorKind.UPSTREAM_REJECTED, 400),
        ("api_error", ErrorKind.UPSTREAM_UNAVAILABLE, 502),
        ("new_error", ErrorKind.UPSTREAM_UNAVAILABLE, 502),
    ],
)
def test_error_events_become_kinds(type_: str, kind: ErrorKind, status: int) -> None:
    error = orjson.dumps({"type": "error", "error": {"type": type_, "message": "why"}})

    [failed] = decode(b"event: error\ndata: " + error + b"\n\n")

    assert isinstance(failed, Failed)
    assert (failed.kind, failed.http_status) == (kind, status)


def test_a_stream_is_whole_once_its_stop_reason_has_come() -> None:
    blocks = blocks_of((OWN / "anthropic" / "text.sse").read_bytes())

    for behind in (b"", b"data: [DONE]\n\n", b"data: {half\n\n", b'event: error\ndata: {"type":"error","error":{}}\n\n'):
        assert isinstance(decode(*blocks[:-1], *[behind] * bool(behind))[-1], Completed)
        failed = decode(*blocks[:-2], *[behind] * bool(behind))[-1]
        assert isinstance(failed, Failed)
    assert failed.code != "upstream_cut"  # The vendor's own word says more.


def test_passed_request_keeps_the_clients_version_and_betas() -> None:
    headers = {"anthropic-version": "2026-10-21", "anthropic-beta": "a,b", "authorization": "Bearer client"}

    passed = ANTHROPIC.pass_request({"model": "m", "stream": True, "odd": {}}, headers, DEPLOYMENT)

    assert passed.url == "https://api.example/v1/messages"
    assert passed.headers == {
        "content-type": "application/json",
        "accept-encoding": "identity",
        "anthropic-version": "2026-10-21",
        "anthropic-beta": "a,b",
        "x-api-key": "the-key",
    }
    assert orjson.loads(passed.body) == {"model": MODEL, "stream": True, "odd": {}}


def build(body: dict[str, Any]) -> dict[str, Any]:
    """What an OpenAI client's body becomes."""
    parsed = DIALECTS["openai-chat"].parse({"model": "m", "messages": [{"role": "user", "content": "x"}], **body})
    return build_parsed(parsed)


def build_parsed(parsed: GenerationRequest) -> dict[str, Any]:
    built: dict[str, Any] = orjson.loads(ANTHROPIC.build_request(parsed, DEPLOYMENT).body)
    return built


def text(value: str) -> dict[str, str]:
    return {"type": "text", "text": value}


def test_openai_conversation_becomes_turns() -> None:
    built = build(
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "developer", "content": [{"type": "text", "text": "Be kind."}]},
                {"role": "user", "content": "look"},
                {"role": "user", "content": "now"},
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [
                        {"id": "functions.f:0", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}},
                        {"id": "call_2", "type": "function", "function": {"name": "g", "arguments": ""}},
                    ],
                },
                {"role": "tool", "tool_call_id": "functions.f:0", "content": "one"},
                {"role": "tool", "tool_call_id": "call_2", "content": [{"type": "text", "text": "two"}]},
                {"role": "system", "content": "In the middle."},
                {"role": "assistant", "content": "", "reasoning_content": "unsigned"},
                {"role": "user", "content": "go on"},
            ]
        }
    )

    assert built["system"] == "Be brief.\n\nBe kind."
    assert built["messages"] == [
        {"role": "user", "content": [text("look"), text("now")]},
        {
            "role": "assistant",
            "content": [
                {"type": "tool_use", "id": "functions_f_0", "name": "f", "input": {"a": 1}},
                {"type": "tool_use", "id": "call_2", "name": "g", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "functions_f_0", "content": [text("one")]},
                {"type": "tool_result", "tool_use_id": "call_2", "content": [text("two")]},
                text("In the middle."),
                text("go on"),
            ],
        },
    ]
    assert (built["max_tokens"], built["stream"]) == (4096, True)


def test_results_stand_first_in_their_turn() -> None:
    call = Message(Role.ASSISTANT, [ToolCallPart("a", "f", "{}")])
    parsed = GenerationRequest("m", [call, Message(Role.USER, [TextPart("and"), ToolResultPart("a", [TextPart("r")], True)])])

    assert build_parsed(parsed)["messages"][1]["content"] == [
        {"type": "tool_result", "tool_use_id": "a", "content": [text("r")], "is_error": True},
        text("and"),
    ]


def test_legacy_functions_are_paired() -> None:
    built = build(
        {
            "messages": [
                {"role": "user", "content": "x"},
                {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
                {"role": "function", "name": "f", "content": "r"},
            ],
            "functions": [{"name": "f"}],
        }
    )

    assert built["messages"][1]["content"][0]["id"] == built["messages"][2]["content"][0]["tool_use_id"]
    assert built["tools"] == [{"name": "f", "input_schema": {"type": "object", "properties": {}}}]


def test_openai_options_become_anthropics() -> None:
    built = build(
        {
            "max_tokens": 50,
            "stop": "END",
            "temperature": 1.7,
            "top_p": 1,
            "top_k": 3,
            "user": "u",
            "seed": 7,
            "presence_penalty": 0.5,
            "tools": [{"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}],
            "tool_choice": "required",
            "parallel_tool_calls": False,
        }
    )

    assert built["max_tokens"] == 50
    assert built["stop_sequences"] == ["END"]
    assert (built["temperature"], built["top_k"]) == (1.0, 3)
    assert "top_p" not in built
    assert built["metadata"] == {"user_id": "u"}
    assert built["tools"] == [{"name": "f", "description": "d", "input_schema": {"type": "object", "properties": {}}}]
    assert built["tool_choice"] == {"type": "any", "disable_parallel_tool_use": True}
    assert not {"seed", "presence_penalty"} & built.keys()


def test_what_anthropic_has_no_word_for_is_named() -> None:
    request = GenerationRequest(
        "m",
        [Message(Role.USER, [TextPart("x")])],
        seed=7,
        frequency_penalty=0.1,
        temperature=0.5,
        top_k=3,
        max_output_tokens=4000,
        reasoning=Reasoning(budget_tokens=2000),
        tools=[Tool("f", strict=True)],
    )

    built = ANTHROPIC.build_request(request, DEPLOYMENT)

    assert built.dropped == ["seed", "frequency_penalty", "temperature", "top_k", "tools.strict"]
    request.tool_choice = ToolChoice("required")  # With a forced call Anthropic lets no model think.
    assert ANTHROPIC.build_request(request, DEPLOYMENT).dropped == ["seed", "frequency_penalty", "tools.strict", "reasoning"]


def test_thinking_of_other_vendors_is_taken_out_of_a_conversation() -> None:
    own = {"type": "thinking", "thinking": "a", "signature": "EqQB"}
    unsigned, gemini = ({"type": "thinking", "thinking": "b", "signature": sign} for sign in ("", "gemini:abc"))
    text = {"type": "text", "text": "c"}
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": [own, text]}]
    foreign = [{"role": "assistant", "content": [unsigned, gemini, text]}, {"role": "assistant", "content": [unsigned]}]

    passed = ANTHROPIC.pass_request({"model": "m", "messages": [*turns, *foreign]}, {}, DEPLOYMENT)

    assert orjson.loads(passed.body)["messages"] == [*turns, {"role": "assistant", "content": [text]}]
    parts = [ReasoningPart("a", "EqQB"), ReasoningPart("b", "openai-responses:x"), ReasoningPart("d"), TextPart("c")]
    built = ANTHROPIC.build_request(GenerationRequest("m", [Message(Role.ASSISTANT, parts)]), DEPLOYMENT)
    assert orjson.loads(built.body)["messages"][0]["content"] == [own, text]


@pytest.mark.parametrize(
    ("choice", "wanted"),
    [
        ("auto", {"type": "auto"}),
        ("none", {"type": "none"}),
        ({"type": "function", "function": {"name": "f"}}, {"type": "tool", "name": "f"}),
        (None, None),
    ],
)
def test_tool_choices_are_said(choice: object, wanted: object) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]

    assert build({"tools": tools, "tool_choice": choice}).get("tool_choice") == wanted
    assert "tool_choice" not in build({"tool_choice": choice})


def test_images_are_said_by_url_or_data() -> None:
    content = [
        {"type": "image_url", "image_url": {"url": "https://x/y.png", "detail": "low"}},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD"}},
    ]

    assert build({"messages": [{"role": "user", "content": content}]})["messages"][0]["content"] == [
        {"type": "image", "source": {"type": "url", "url": "https://x/y.png"}},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "QUJD"}},
    ]


def test_schema_is_said_and_plain_json_is_asked_for() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": False}
    format_ = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}

    assert build({"response_format": format_})["output_config"] == {"format": {"type": "json_schema", "schema": schema}}
    plain = {"response_format": {"type": "json_object"}}
    system = {"role": "system", "content": "Be brief."}
    asked = build(plain)["system"]
    assert "JSON object and nothing else" in asked
    assert build({**plain, "messages": [system, {"role": "user", "content": "x"}]})["system"] == f"Be brief.\n\n{asked}"


@pytest.mark.parametrize(("field", "value"), [("n", 2), ("logprobs", True), ("audio", {"voice": "x"})])
def test_what_anthropic_has_not_is_refused(field: str, value: object) -> None:
    with pytest.raises(GatewayError) as caught:
        build({field: value})

    assert caught.value.failed.param == field


def test_system_prompt_alone_becomes_the_users_word() -> None:
    built = build({"messages": [{"role": "system", "content": "Say hi."}]})

    assert built["messages"] == [{"role": "user", "content": [text("Say hi.")]}]
    assert "system" not in built


def test_effort_becomes_a_budget_below_the_limit() -> None:
    free = build({"reasoning_effort": "low", "temperature": 0.2})
    tight = build({"reasoning_effort": "high", "max_tokens": 3000})
    too_tight = build({"reasoning_effort": "high", "max_tokens": 500, "temperature": 0.2})

    assert (free["thinking"], free["max_tokens"]) == ({"type": "enabled", "budget_tokens": 2048}, 6144)
    assert "temperature" not in free
    assert (tight["thinking"]["budget_tokens"], tight["max_tokens"]) == (2999, 3000)
    assert "thinking" not in too_tight
    assert too_tight["temperature"] == 0.2


def test_no_thinking_where_anthropic_would_refuse_it() -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    going_on = [
        {"role": "user", "content": "x"},
        {
            "role": "assistant",
            "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "a", "content": "r"},
    ]

    assert "thinking" not in build({"reasoning_effort": "low", "tools": tools, "tool_choice": "required"})
    assert "thinking" not in build({"reasoning_effort": "low", "tools": tools, "messages": going_on})
    assert "thinking" in build({"reasoning_effort": "low", "tools": tools})
    assert "thinking" not in build({"reasoning_effort": "none"})


def test_thinking_goes_back_only_with_its_signature() -> None:
    parts: list[Any] = [
        ReasoningPart("mine", "SIG"),
        ReasoningPart(redacted="ENC"),
        ReasoningPart("another's"),
        ReasoningPart("", "SIG", is_whole=False),
        ToolCallPart("a", "f", "not json"),
    ]
    parsed = GenerationRequest(
        "m",
        [Message(Role.USER, [TextPart("x")]), Message(Role.ASSISTANT, parts), Message(Role.USER, [ToolResultPart("a", [])])],
        reasoning=Reasoning(budget_tokens=2000),
    )

    built = build_parsed(parsed)

    assert built["messages"][1]["content"] == [
        {"type": "thinking", "thinking": "mine", "signature": "SIG"},
        {"type": "redacted_thinking", "data": "ENC"},
        {"type": "tool_use", "id": "a", "name": "f", "input": {"arguments": "not json"}},
    ]
    assert built["thinking"] == {"type": "enabled", "budget_tokens": 2000}
