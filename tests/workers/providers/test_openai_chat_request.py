"""What OpenAI and its compatible vendors are sent. Behaviour all wires share: contracts/."""

from typing import Any

import orjson
import pytest

from common.canonical.errors import GatewayError
from common.canonical.generation import GenerationRequest, Message, Reasoning, ResponseFormat, Role, TextPart
from common.dialects import DIALECTS
from workers.providers.base import Deployment
from workers.providers.openai_chat.wire import OPENAI_COMPATIBLE

OPENAI = Deployment("openai", "https://api.example/v1", "the-key", "up-model")
GROQ = Deployment("groq", "https://api.example/v1", "the-key", "up-model")
MISTRAL = Deployment("mistral", "https://api.example/v1", "the-key", "up-model")


def test_passed_stream_asks_for_usage_and_keeps_the_other_options() -> None:
    body = {"model": "m", "stream": True, "stream_options": {"include_obfuscation": False}, "odd": [1]}

    passed = OPENAI_COMPATIBLE.pass_request(body, {"openai-beta": "x", "cookie": "y"}, OPENAI)

    assert orjson.loads(passed.body) == {
        "model": "up-model",
        "stream": True,
        "stream_options": {"include_obfuscation": False, "include_usage": True},
        "odd": [1],
    }
    assert passed.url == "https://api.example/v1/chat/completions"
    assert passed.headers["authorization"] == "Bearer the-key"
    assert passed.headers["openai-beta"] == "x"
    assert "cookie" not in passed.headers


def test_passed_whole_answer_asks_for_nothing_more() -> None:
    assert b"stream_options" not in OPENAI_COMPATIBLE.pass_request({"model": "m"}, {}, OPENAI).body
    assert b"stream_options" not in OPENAI_COMPATIBLE.pass_request({"model": "m", "stream": True}, {}, MISTRAL).body


def build(body: dict[str, Any], deployment: Deployment = OPENAI) -> dict[str, Any]:
    """What an Anthropic client's body becomes."""
    parsed = DIALECTS["anthropic-messages"].parse({"model": "m", "max_tokens": 100, **body})
    built: dict[str, Any] = orjson.loads(OPENAI_COMPATIBLE.build_request(parsed, deployment).body)
    return built


def test_limit_is_called_what_the_vendor_calls_it() -> None:
    hello = {"messages": [{"role": "user", "content": "hi"}]}

    assert build(hello)["max_completion_tokens"] == 100
    assert "max_tokens" not in build(hello)
    assert build(hello, GROQ)["max_tokens"] == 100
    assert build(hello, GROQ)["stream_options"] == {"include_usage": True}
    assert "stream_options" not in build(hello, MISTRAL)


def test_anthropic_conversation_becomes_messages() -> None:
    built = build(
        {
            "system": [{"type": "text", "text": "Be brief."}, {"type": "text", "text": "Be kind."}],
            "messages": [
                {"role": "user", "content": "look"},
                {
                    "role": "assistant",
                    "content": [
                        {"type": "thinking", "thinking": "hm", "signature": "s"},
                        {"type": "redacted_thinking", "data": "d"},
                        {"type": "text", "text": "I "},
                        {"type": "text", "text": "look."},
                        {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"a": 1}},
                        {"type": "tool_use", "id": "toolu_2", "name": "g", "input": {}},
                    ],
                },
                {
                    "role": "user",
                    "content": [
                        {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "one"}]},
                        {
                            "type": "tool_result",
                            "tool_use_id": "toolu_2",
                            "content": [{"type": "image", "source": {"type": "url", "url": "https://x/y.png"}}],
                        },
                        {"type": "text", "text": "go on"},
                    ],
                },
                {"role": "system", "content": "In the middle."},
            ],
        }
    )

    assert built["messages"] == [
        {"role": "system", "content": "Be brief.\n\nBe kind."},
        {"role": "user", "content": "look"},
        {
            "role": "assistant",
            "content": "I look.",
            "tool_calls": [
                {"id": "toolu_1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}},
                {"id": "toolu_2", "type": "function", "function": {"name": "g", "arguments": "{}"}},
            ],
        },
        {"role": "tool", "tool_call_id": "toolu_1", "content": "one"},
        {"role": "tool", "tool_call_id": "toolu_2", "content": ""},
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": "https://x/y.png"}},
                {"type": "text", "text": "go on"},
            ],
        },
        {"role": "system", "content": "In the middle."},
    ]


def test_anthropic_options_become_openais() -> None:
    built = build(
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "QUJD"}},
                        {"type": "text", "text": "what?"},
                    ],
                }
            ],
            "stop_sequences": ["END"],
            "temperature": 0.5,
            "top_p": 0.9,
            "top_k": 4,
            "metadata": {"user_id": "u"},
            "tools": [{"name": "f", "description": "d", "input_schema": {"type": "object"}, "cache_control": {}}],
            "tool_choice": {"type": "tool", "name": "f", "disable_parallel_tool_use": True},
            "thinking": {"type": "enabled", "budget_tokens": 4096},
        }
    )

    assert built["messages"][0]["content"][0]["image_url"]["url"] == "data:image/png;base64,QUJD"
    assert built["stop"] == ["END"]
    assert (built["temperature"], built["top_p"], built["user"]) == (0.5, 0.9, "u")
    assert "top_k" not in built
    assert built["tools"] == [
        {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}}}
    ]
    assert built["tool_choice"] == {"type": "function", "function": {"name": "f"}}
    assert built["parallel_tool_calls"] is False
    assert built["reasoning_effort"] == "medium"


@pytest.mark.parametrize(
    ("reasoning", "effort"),
    [
        (None, None),
        (Reasoning(), None),
        (Reasoning(enabled=False), None),
        (Reasoning(effort="low"), "low"),
        (Reasoning(effort="max"), "max"),
        (Reasoning(budget_tokens=1024), "low"),
        (Reasoning(budget_tokens=32000), "high"),
    ],
)
def test_effort_is_sent_only_where_it_was_asked_for(reasoning: Reasoning | None, effort: str | None) -> None:
    request = GenerationRequest("m", [Message(Role.USER, [TextPart("x")])], reasoning=reasoning)

    assert orjson.loads(OPENAI_COMPATIBLE.build_request(request, OPENAI).body).get("reasoning_effort") == effort


def test_response_formats_are_said() -> None:
    request = GenerationRequest("m", [Message(Role.USER, [TextPart("x")])], response_format=ResponseFormat())
    assert orjson.loads(OPENAI_COMPATIBLE.build_request(request, OPENAI).body)["response_format"] == {"type": "json_object"}

    request.response_format = ResponseFormat({"type": "object"})
    assert orjson.loads(OPENAI_COMPATIBLE.build_request(request, OPENAI).body)["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "answer", "schema": {"type": "object"}},
    }


def test_mistral_gets_its_own_words_and_short_call_ids() -> None:
    messages = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "toolu_1", "name": "f", "input": {}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": "r"}]},
    ]

    built = build({"messages": messages, "metadata": {"user_id": "u"}}, MISTRAL)

    call_id = built["messages"][1]["tool_calls"][0]["id"]
    assert len(call_id) == 9
    assert call_id.isalnum()
    assert built["messages"][2]["tool_call_id"] == call_id
    assert "user" not in built


def test_document_is_refused_by_its_path() -> None:
    messages = [{"role": "user", "content": [{"type": "document", "source": {}}]}]

    with pytest.raises(GatewayError, match=r"messages\.0\.content\.0"):
        build({"messages": messages})
