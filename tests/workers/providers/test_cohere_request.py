"""What is Cohere sent? Behaviour all wires share: contracts/."""

from typing import Any

import orjson
import pytest

from common.canonical.errors import ErrorKind, GatewayError
from common.canonical.generation import (
    GenerationRequest,
    ImagePart,
    Message,
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
from common.dialects.openai_chat.dialect import OPENAI_CHAT
from common.vendors.models import ModelFacts
from workers.providers.base import Deployment, UpstreamRequest
from workers.providers.cohere.wire import COHERE

THINKS = ModelFacts(reasoning="by_default", reasoning_on="budget", reasoning_off="thinking", budget_tokens_min=1)
DEPLOYMENT = Deployment("cohere", "https://api.example", "the-key", "up-model", facts=THINKS)


def request(*messages: Message, **fields: Any) -> GenerationRequest:
    return GenerationRequest("m", list(messages) or [Message(Role.USER, [TextPart("hi")])], **fields)


def build(*messages: Message, **fields: Any) -> UpstreamRequest:
    return COHERE.build_request(request(*messages, **fields), DEPLOYMENT)


def body(*messages: Message, **fields: Any) -> dict[str, Any]:
    return orjson.loads(build(*messages, **fields).body)


def test_the_least_request() -> None:
    built = build()

    assert built.url == "https://api.example/v2/chat"
    assert built.headers["authorization"] == "Bearer the-key"
    assert orjson.loads(built.body) == {
        "model": "up-model",
        "messages": [{"role": "user", "content": "hi"}],
        "stream": True,
    }
    assert built.dropped == []


def test_a_conversation_with_tools_is_told_in_coheres_words() -> None:
    messages = body(
        Message(Role.SYSTEM, [TextPart("Be"), TextPart("brief.")]),
        Message(Role.USER, [TextPart("look")]),
        Message(
            Role.ASSISTANT,
            [ReasoningPart("mine"), ReasoningPart("another's", "SIG"), TextPart("I do."), ToolCallPart("a", "f", '{"x":1}')],
        ),
        Message(Role.USER, [ToolResultPart("a", [TextPart("1"), ImagePart(url="https://x/y.png")]), TextPart("well?")]),
        Message(Role.ASSISTANT, [ReasoningPart("over"), TextPart("Done.")]),
        Message(Role.ASSISTANT, [ReasoningPart("nothing said")]),
    )["messages"]

    assert messages == [
        {"role": "system", "content": "Be\n\nbrief."},
        {"role": "user", "content": "look"},
        {
            "role": "assistant",
            "content": "I do.",
            "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}}],
            "tool_plan": "mine",
        },
        {"role": "tool", "tool_call_id": "a", "content": "1"},
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": "https://x/y.png"}},
                {"type": "text", "text": "well?"},
            ],
        },
        {"role": "assistant", "content": "Done."},
    ]


def test_images_may_be_data() -> None:
    sent = body(Message(Role.USER, [ImagePart(data="QUJD", media_type="image/png", detail="low")]))

    image = {"url": "data:image/png;base64,QUJD", "detail": "low"}
    assert sent["messages"] == [{"role": "user", "content": [{"type": "image_url", "image_url": image}]}]


def test_an_image_of_the_assistants_is_left_out() -> None:
    assert build(Message(Role.ASSISTANT, [TextPart("a"), ImagePart(url="https://x/y.png", path="p")])).dropped == ["p"]


def test_sampling_fields_have_coheres_names_and_ranges() -> None:
    fields = {
        "max_output_tokens": 9,
        "temperature": 1.5,
        "top_p": 1.0,
        "top_k": 1000,
        "stop": ["END"],
        "seed": 7,
        "presence_penalty": 2.0,
        "frequency_penalty": 0.5,
    }

    sent = body(**fields)

    assert {name: sent[name] for name in sent.keys() - {"model", "messages", "stream"}} == {
        "max_tokens": 9,
        "temperature": 1.5,
        "p": 0.99,
        "k": 500,
        "stop_sequences": ["END"],
        "seed": 7,
        "presence_penalty": 1.0,
        "frequency_penalty": 0.5,
    }


def test_what_nobody_misses_is_dropped_by_name() -> None:
    built = build(end_user="u", presence_penalty=-1.0, frequency_penalty=-0.5, tools=[Tool("f")], parallel_tool_calls=False)

    assert built.dropped == ["user", "presence_penalty", "frequency_penalty", "parallel_tool_calls"]
    assert orjson.loads(built.body).keys() == {"model", "messages", "stream", "tools"}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"choices": 2}, "n"),
        ({"tools": [Tool("f")], "tool_choice": ToolChoice("tool", "g")}, "tool_choice"),
    ],
)
def test_what_would_be_missed_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(GatewayError, match=param) as caught:
        build(**fields)

    assert (caught.value.failed.kind, caught.value.failed.param) == (ErrorKind.INVALID_REQUEST, param)


@pytest.mark.parametrize(
    ("choice", "word", "names"),
    [
        (None, None, ["f", "g"]),
        (ToolChoice("auto"), None, ["f", "g"]),
        (ToolChoice("none"), "NONE", ["f", "g"]),
        (ToolChoice("required"), "REQUIRED", ["f", "g"]),
        (ToolChoice("tool", "g"), "REQUIRED", ["g"]),
    ],
)
def test_tool_choices(choice: ToolChoice | None, word: str | None, names: list[str]) -> None:
    sent = body(tools=[Tool("f", "d", {"type": "object"}), Tool("g")], tool_choice=choice, parallel_tool_calls=True)

    assert sent.get("tool_choice") == word
    assert [tool["function"]["name"] for tool in sent["tools"]] == names
    assert "strict_tools" not in sent


def test_a_tool_without_parameters_has_an_empty_schema() -> None:
    assert body(tools=[Tool("f", "d")])["tools"] == [
        {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}}}
    ]


def test_cohere_is_strict_with_all_tools_or_none() -> None:
    strict = Tool("f", None, {"type": "object", "required": ["x"]}, strict=True)

    assert body(tools=[strict])["strict_tools"] is True
    for other in (Tool("g"), Tool("g", strict=True)):
        built = build(tools=[strict, other])

        assert built.dropped == ["tools.strict"]
        assert "strict_tools" not in orjson.loads(built.body)


@pytest.mark.parametrize(
    ("wanted", "sent"),
    [
        (ResponseFormat(), {"type": "json_object"}),
        (ResponseFormat({"type": "object"}, "x", True), {"type": "json_object", "json_schema": {"type": "object"}}),
    ],
)
def test_response_formats(wanted: ResponseFormat, sent: dict[str, Any]) -> None:
    assert body(response_format=wanted)["response_format"] == sent


@pytest.mark.parametrize(
    ("reasoning", "sent"),
    [
        (None, None),
        (Reasoning(), None),
        (Reasoning(enabled=False), {"type": "disabled"}),
        (Reasoning(budget_tokens=1000), {"type": "enabled", "token_budget": 1000}),
        (Reasoning(effort="low"), {"type": "enabled", "token_budget": 2048}),
        (Reasoning(effort="high"), {"type": "enabled", "token_budget": 24_576}),
    ],
)
def test_thinking(reasoning: Reasoning | None, sent: dict[str, Any] | None) -> None:
    assert body(reasoning=reasoning).get("thinking") == sent


def test_a_chat_clients_whole_request_goes_through() -> None:
    asked = {
        "model": "m",
        "messages": [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "hi"}],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
        "tool_choice": "required",
        "max_completion_tokens": 9,
        "reasoning_effort": "none",
    }

    sent = orjson.loads(COHERE.build_request(OPENAI_CHAT.parse(asked), DEPLOYMENT).body)

    assert sent["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]
    assert (sent["tool_choice"], sent["max_tokens"], sent["thinking"]) == ("REQUIRED", 9, {"type": "disabled"})
