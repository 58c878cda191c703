from typing import Any

import orjson
import pytest

from common.canonical.errors import GatewayError
from common.canonical.generation import (
    GenerationRequest,
    ImagePart,
    Message,
    OpaquePart,
    Part,
    Reasoning,
    ReasoningPart,
    ResponseFormat,
    Role,
    TextPart,
    Tool,
    ToolCallPart,
    ToolChoice,
    ToolResultPart,
)
from workers.providers.base import Deployment
from workers.providers.openai_responses.wire import OPENAI_RESPONSES as WIRE

DEPLOYMENT = Deployment("openai", "https://api.example/v1", "the-key", "the-model")


def user(*parts: Part) -> Message:
    return Message(Role.USER, list(parts) or [TextPart("hi")])


def build(*messages: Message, **fields: Any) -> dict[str, Any]:
    return orjson.loads(WIRE.build_request(GenerationRequest("m", list(messages) or [user()], **fields), DEPLOYMENT).body)


def test_the_least_request():
    built = WIRE.build_request(GenerationRequest("m", [user()]), DEPLOYMENT)

    assert built.url == "https://api.example/v1/responses"
    assert orjson.loads(built.body) == {
        "model": "the-model",
        "input": [{"role": "user", "content": [{"type": "input_text", "text": "hi"}]}],
        "stream": True,
        "store": False,
    }


def test_leading_system_messages_are_instructions_and_later_ones_keep_their_place():
    system = [Message(Role.SYSTEM, [TextPart(text)]) for text in ("One.", "Two.", "Three.")]

    body = build(*system[:2], user(), system[2], user(TextPart("go on")))

    assert body["instructions"] == "One.\n\nTwo."
    assert [item["role"] for item in body["input"]] == ["user", "developer", "user"]
    assert body["input"][1]["content"] == [{"type": "input_text", "text": "Three."}]


def test_instructions_alone_are_said_by_the_user():
    body = build(Message(Role.SYSTEM, [TextPart("Greet me.")]))

    assert body["input"] == [{"role": "user", "content": [{"type": "input_text", "text": "Greet me."}]}]
    assert "instructions" not in body


def test_a_tool_loop_becomes_items_in_their_order():
    thinking = ReasoningPart("hm", "openai-responses:gAAAA")
    calls = [ToolCallPart("a", "f", '{"x":1}'), ToolCallPart("b", "g", "{}")]
    results = [ToolResultPart("a", [TextPart("1")]), ToolResultPart("b", [TextPart("2")])]

    body = build(user(), Message(Role.ASSISTANT, [thinking, TextPart("I do."), *calls]), user(*results, TextPart("and?")))

    assert body["input"][1:] == [
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}], "encrypted_content": "gAAAA"},
        {"role": "assistant", "content": [{"type": "output_text", "text": "I do."}]},
        {"type": "function_call", "call_id": "a", "name": "f", "arguments": '{"x":1}'},
        {"type": "function_call", "call_id": "b", "name": "g", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "a", "output": "1"},
        {"type": "function_call_output", "call_id": "b", "output": "2"},
        {"role": "user", "content": [{"type": "input_text", "text": "and?"}]},
    ]
    assert body["include"] == ["reasoning.encrypted_content"]


@pytest.mark.parametrize("part", [ReasoningPart("hm"), ReasoningPart("hm", "SIG"), ReasoningPart(redacted="ENC")])
def test_thinking_of_another_vendor_is_left_out(part: ReasoningPart):
    body = build(user(), Message(Role.ASSISTANT, [part, TextPart("y")]), user())

    assert [item.get("role") for item in body["input"]] == ["user", "assistant", "user"]
    assert "include" not in body


def test_reasoning_that_nothing_follows_is_left_out():
    thought = ReasoningPart("hm", signature="openai-responses:gAAAA")
    interrupted, answered = Message(Role.ASSISTANT, [thought]), Message(Role.ASSISTANT, [TextPart("a"), thought])

    body = build(user(TextPart("hi")), interrupted, user(TextPart("go on")), answered, user(TextPart("on")))

    assert [item.get("type", item.get("role")) for item in body["input"]] == ["user", "user", "assistant", "user"]


def test_images_stand_where_they_stood_and_in_results():
    own, other = ImagePart(data="QUJD", media_type="image/png"), ImagePart(url="https://x/y.png", detail="low")

    call = Message(Role.ASSISTANT, [ToolCallPart("a", "f", "{}")])
    body = build(user(own, TextPart("and"), other), call, user(ToolResultPart("a", [TextPart("see"), other])))

    far = {"type": "input_image", "image_url": "https://x/y.png", "detail": "low"}
    assert body["input"][0]["content"] == [
        {"type": "input_image", "image_url": "data:image/png;base64,QUJD"},
        {"type": "input_text", "text": "and"},
        far,
    ]
    assert body["input"][2]["output"] == [{"type": "input_text", "text": "see"}, far]


def test_a_failed_call_says_so_in_its_text():
    calls = Message(Role.ASSISTANT, [ToolCallPart("a", "f", "{}"), ToolCallPart("b", "f", "{}")])
    failed = ToolResultPart("a", [TextPart("no such file")], is_error=True), ToolResultPart("b", [], is_error=True)
    body = build(calls, user(*failed))

    assert [item["output"] for item in body["input"][2:]] == ["Error: no such file", "Error"]


def test_tools_are_strict_only_where_the_client_wants_it():
    tools = [Tool("f", "d", {"type": "object"}), Tool("g", None, {}, strict=True)]

    body = build(tools=tools, tool_choice=ToolChoice("tool", "f"), parallel_tool_calls=False)

    assert body["tools"] == [
        {
            "type": "function",
            "name": "f",
            "description": "d",
            "strict": False,
            "parameters": {"type": "object", "properties": {}},
        },
        {"type": "function", "name": "g", "strict": True, "parameters": {"type": "object", "properties": {}}},
    ]
    assert body["tool_choice"] == {"type": "function", "name": "f"}
    assert body["parallel_tool_calls"] is False


@pytest.mark.parametrize(
    ("wanted", "format_"),
    [
        (ResponseFormat(), {"type": "json_object"}),
        (ResponseFormat({"type": "object"}), {"type": "json_schema", "name": "answer", "schema": {"type": "object"}}),
        (
            ResponseFormat({"type": "object"}, "n", strict=True),
            {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True},
        ),
    ],
)
def test_formats(wanted: ResponseFormat, format_: dict[str, Any]):
    assert build(response_format=wanted)["text"] == {"format": format_}


@pytest.mark.parametrize(
    ("reasoning", "effort"),
    [
        (None, None),
        (Reasoning(), None),
        (Reasoning(enabled=False), None),
        (Reasoning(effort="minimal"), "minimal"),
        (Reasoning(effort="max"), "max"),
        (Reasoning(budget_tokens=1024), "low"),
        (Reasoning(budget_tokens=30_000), "high"),
    ],
)
def test_reasoning_is_brought_back_encrypted_where_it_is_asked_for(reasoning: Reasoning | None, effort: str | None):
    body = build(reasoning=reasoning)

    assert body.get("reasoning") == ({"effort": effort} if effort else None)
    assert ("include" in body) == bool(effort)


def test_sampling_passes_and_what_has_no_word_is_named():
    request = GenerationRequest("m", [user()], temperature=0.5, top_p=0.9, top_k=3, seed=0, presence_penalty=1.0)

    built = WIRE.build_request(request, DEPLOYMENT)

    assert built.dropped == ["top_k", "seed", "presence_penalty"]
    body = orjson.loads(built.body)
    assert (body["temperature"], body["top_p"]) == (0.5, 0.9)
    assert not {"top_k", "seed", "presence_penalty"} & body.keys()


def test_limits_of_openai_are_kept():
    body = build(
        user(),
        Message(Role.ASSISTANT, [ToolCallPart("c" * 41, "f", "{}")]),
        user(ToolResultPart("c" * 41, [TextPart("1")])),
        max_output_tokens=1,
        end_user='{"device_id":"' + "d" * 64 + '"}',
    )

    assert body["max_output_tokens"] == 16
    assert len(body["user"]) == 64
    call, result = body["input"][1:]
    assert len(call["call_id"]) == 40
    assert call["call_id"] == result["call_id"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"choices": 2}, "n"),
        ({"stop": ["END"]}, "stop"),
        ({"opaque": [OpaquePart("logprobs", "logprobs")]}, "logprobs"),
        ({"messages": [user(OpaquePart("document", "messages.0.content.0"))]}, "messages.0.content.0"),
    ],
)
def test_what_would_change_the_answer_is_refused_by_name(fields: dict[str, Any], param: str):
    with pytest.raises(GatewayError) as caught:
        WIRE.build_request(GenerationRequest(**{"model": "m", "messages": [user()], **fields}), DEPLOYMENT)

    assert caught.value.failed.param == param


def test_a_count_asks_for_the_prompt_alone():
    request = GenerationRequest("m", [user()], max_output_tokens=9, temperature=1.0, tools=[Tool("f")])

    built = WIRE.count_request(request, {}, {}, DEPLOYMENT)

    assert built.url == "https://api.example/v1/responses/input_tokens"
    assert orjson.loads(built.body).keys() == {"model", "input", "tools"}
    assert WIRE.read_count(b'{"object":"response.input_tokens","input_tokens":11}') == 11
    assert [WIRE.read_count(body) for body in (b"", b"[]", b'{"input_tokens":"x"}')] == [None] * 3
