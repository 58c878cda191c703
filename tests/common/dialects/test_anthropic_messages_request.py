"""What clients of Anthropic's messages may send. Behaviour all dialects share: contracts/."""

from typing import Any

import pytest

from common.canonical.errors import GatewayError
from common.canonical.generation import (
    DocumentPart,
    GenerationRequest,
    ImagePart,
    Message,
    OpaquePart,
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
from common.dialects.anthropic_messages.dialect import ANTHROPIC_MESSAGES

HELLO = [{"role": "user", "content": "hi"}]


def parse(**body: Any) -> GenerationRequest:
    return ANTHROPIC_MESSAGES.parse({"model": "m", "max_tokens": 9, "messages": HELLO, **body})


def test_smallest_request_gets_the_defaults() -> None:
    assert parse() == GenerationRequest("m", [Message(Role.USER, [TextPart("hi")])], max_output_tokens=9)


def test_all_fields_are_read() -> None:
    request = parse(
        stream=True,
        system="s",
        temperature=1,
        top_p=0.5,
        top_k=4,
        stop_sequences=["END"],
        metadata={"user_id": '{"device":"x"}'},
        tools=[{"name": "f", "description": "d", "input_schema": {"type": "object"}, "cache_control": {"type": "ephemeral"}}],
        tool_choice={"type": "any", "disable_parallel_tool_use": True},
        thinking={"type": "enabled", "budget_tokens": 2048},
        output_config={"effort": "high", "format": {"type": "json_schema", "schema": {"type": "object"}}},
    )

    assert request == GenerationRequest(
        "m",
        [Message(Role.SYSTEM, [TextPart("s")]), Message(Role.USER, [TextPart("hi")])],
        stream=True,
        tools=[Tool("f", "d", {"type": "object"}, cache_mark={"type": "ephemeral"})],
        tool_choice=ToolChoice("required"),
        parallel_tool_calls=False,
        max_output_tokens=9,
        temperature=1.0,
        top_p=0.5,
        top_k=4,
        stop=["END"],
        response_format=ResponseFormat({"type": "object"}),
        reasoning=Reasoning(budget_tokens=2048),
        end_user='{"device":"x"}',
        dropped=["output_config.effort"],  # The budget says it.
    )


def test_what_claude_code_sends_is_accepted() -> None:
    request = parse(
        system=[{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}, {"type": "text", "text": "b"}],
        messages=[*HELLO, {"role": "system", "content": "middle"}, {"role": "assistant", "content": []}],
        thinking={"type": "adaptive"},
        output_config={"effort": "medium"},
        context_management={"edits": []},
        betas=["x"],
        service_tier="auto",
        metadata={"user_id": "u"},
    )

    assert [message.role for message in request.messages] == [Role.SYSTEM, Role.USER, Role.SYSTEM, Role.ASSISTANT]
    assert request.messages[0].parts == [TextPart("a", {"type": "ephemeral"}), TextPart("b")]
    assert request.reasoning == Reasoning(effort="medium", effort_is_hint=True)
    assert request.opaque == []
    assert request.dropped == ["context_management"]


@pytest.mark.parametrize(
    ("body", "reasoning"),
    [
        ({}, None),
        ({"thinking": {"type": "disabled"}}, Reasoning(enabled=False)),
        ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "low"}}, Reasoning(effort="low", effort_is_hint=True)),
        ({"thinking": {"type": "adaptive"}}, Reasoning()),
        ({"thinking": {"type": "between_tools"}}, Reasoning(enabled=False)),
        ({"output_config": {"effort": "low"}}, Reasoning(effort="low", is_shown=False)),
        ({"thinking": {"type": "adaptive", "display": "omitted"}}, Reasoning(is_shown=False)),
        ({"thinking": {"type": "enabled", "budget_tokens": 5, "display": "summarized"}}, Reasoning(budget_tokens=5)),
    ],
)
def test_thinking_is_read(body: dict[str, Any], reasoning: Reasoning | None) -> None:
    assert parse(**body).reasoning == reasoning


PDF = {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0="}
FOUND = {"type": "search_result", "title": "t", "source": "https://x", "content": [{"type": "text", "text": "found"}]}


@pytest.mark.parametrize(
    ("source", "document"),
    [
        (PDF, DocumentPart("application/pdf", data="JVBERi0=")),
        ({"type": "text", "media_type": "text/plain", "data": "hi"}, DocumentPart("text/plain", text="hi")),
        ({"type": "base64", "media_type": "text/plain", "data": "aGk="}, DocumentPart("text/plain", text="hi")),
        ({"type": "content", "content": "hi"}, DocumentPart("text/plain", text="hi")),
        ({"type": "content", "content": [{"type": "text", "text": "hi"}]}, DocumentPart("text/plain", text="hi")),
        ({"type": "content", "content": [{"type": "image"}]}, OpaquePart("document", "messages.0.content.0")),
        ({"type": "url", "url": "https://x/y"}, DocumentPart("application/pdf", url="https://x/y")),
        ({"type": "url", "url": "gs://x/y"}, OpaquePart("document", "messages.0.content.0")),
        ({"type": "file", "file_id": "f"}, DocumentPart("application/pdf", file_id="f", files_at="anthropic")),
        ({"type": "container"}, OpaquePart("document", "messages.0.content.0")),
    ],
)
def test_documents_are_read(source: dict[str, Any], document: DocumentPart | OpaquePart) -> None:
    block = {"type": "document", "source": source}

    assert parse(messages=[{"role": "user", "content": [block]}]).messages[0].parts == [document]


def test_a_result_holds_documents_and_unknown_blocks_as_text() -> None:
    blocks = [{"type": "document", "source": PDF}, {"type": "new", "data": "A" * 5000}, "bare", {"no": "type"}]
    turn = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": blocks}]}

    assert parse(messages=[turn]).messages[0].parts == [
        ToolResultPart(
            "a",
            [
                DocumentPart("application/pdf", data="JVBERi0="),
                TextPart('{"type":"new","data":"…"}'),
                TextPart("bare"),
                TextPart('{"no":"type"}'),
            ],
        )
    ]


def test_content_blocks_are_read() -> None:
    request = parse(
        messages=[
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "a", "citations": None},
                    {"type": "image", "source": {"type": "url", "url": "https://x/y.png"}},
                    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "QUJD"}},
                    {"type": "image", "source": {"type": "file", "file_id": "f"}},
                    {"type": "document", "source": PDF, "title": "a.pdf", "citations": {"enabled": True}},
                ],
            },
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": "SIG"},
                    {"type": "thinking", "thinking": "hm", "signature": ""},
                    {"type": "redacted_thinking", "data": "ENC"},
                    {"type": "tool_use", "id": "a", "name": "f", "input": {"x": 1}, "caller": {}},
                    {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "a", "content": "r", "is_error": True},
                    {"type": "tool_result", "tool_use_id": "b"},
                    {
                        "type": "tool_result",
                        "tool_use_id": "c",
                        "content": [{"type": "tool_reference", "tool_name": "g"}, FOUND],
                    },
                ],
            },
        ]
    )

    assert [message.parts for message in request.messages] == [
        [
            TextPart("a"),
            ImagePart(url="https://x/y.png"),
            ImagePart(data="QUJD", media_type="image/png"),
            OpaquePart("image", "messages.0.content.3"),
            DocumentPart("application/pdf", data="JVBERi0=", name="a.pdf"),
        ],
        [
            ReasoningPart("hm", "SIG"),
            ReasoningPart("hm"),
            ReasoningPart(redacted="ENC"),
            ToolCallPart("a", "f", '{"x":1}'),
            OpaquePart("server_tool_use", "messages.1.content.4"),
        ],
        [
            ToolResultPart("a", [TextPart("r")], is_error=True),
            ToolResultPart("b", []),
            ToolResultPart("c", [TextPart('{"type":"tool_reference","tool_name":"g"}'), TextPart("t\nhttps://x\n\nfound")]),
        ],
    ]


SEARCH = {"type": "web_search_20250305", "name": "web_search"}
OWN = {"type": "custom", "name": "f", "input_schema": {}}


def test_tools_that_run_at_the_vendor_are_dropped_where_they_are_merely_offered() -> None:
    for choice in (None, {"type": "auto"}, {"type": "any"}, {"type": "tool", "name": "f"}, {"type": "none"}):
        request = parse(tools=[SEARCH, OWN], tool_choice=choice)

        assert request.tools == [Tool("f")]
        assert (request.dropped, request.opaque) == (["tools.0"], [])


@pytest.mark.parametrize(
    ("tools", "choice", "path"),
    [
        ([OWN, SEARCH], {"type": "tool", "name": "web_search"}, "tools.1"),
        ([SEARCH], {"type": "any"}, "tools.0"),
    ],
)
def test_tools_that_run_at_the_vendor_are_opaque_where_they_must_be_called(tools: Any, choice: Any, path: str) -> None:
    assert parse(tools=tools, tool_choice=choice).opaque == [OpaquePart("web_search", path)]


def test_servers_of_tools_are_opaque() -> None:
    assert parse(mcp_servers=[{"type": "url"}]).opaque == [OpaquePart("mcp_servers", "mcp_servers")]


@pytest.mark.parametrize(
    ("field", "value", "param"),
    [
        ("max_tokens", None, "max_tokens"),
        ("max_tokens", 0, "max_tokens"),
        ("max_tokens", "9", "max_tokens"),
        ("temperature", "hot", "temperature"),
        ("stop_sequences", "END", "stop_sequences"),
        ("stop_sequences", [7], "stop_sequences.0"),
        ("system", 7, "system"),
        ("system", [{"type": "text"}], "system.0.text"),
        ("tools", [{"name": "f"}], "tools.0.input_schema"),
        ("tool_choice", "auto", "tool_choice"),
        ("tool_choice", {"type": "tool"}, "tool_choice.name"),
        ("tool_choice", {"type": "x"}, "tool_choice.type"),
        ("thinking", {"type": "enabled", "budget_tokens": "many"}, "thinking.budget_tokens"),
        ("messages", [{"role": "system", "content": ""}], "messages"),
        ("messages", [{"role": "system", "content": []}], "messages"),
        ("messages", [{"role": "tool", "content": "x"}], "messages.0.role"),
        ("messages", [{"role": "user", "content": [{"type": "image"}]}], "messages.0.content.0.source"),
        ("messages", [{"role": "user", "content": [{"type": "tool_result"}]}], "messages.0.content.0.tool_use_id"),
        (
            "messages",
            [{"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "f", "input": "x"}]}],
            "messages.0.content.0.input",
        ),
    ],
)
def test_faults_name_the_field(field: str, value: object, param: str) -> None:
    with pytest.raises(GatewayError) as caught:
        parse(**{field: value})

    assert caught.value.failed.param == param
    assert str(caught.value).startswith(f"{param} ")


def test_missing_max_tokens_is_asked_for() -> None:
    with pytest.raises(GatewayError, match=r"^max_tokens is required\.$"):
        ANTHROPIC_MESSAGES.parse({"model": "m", "messages": HELLO})


def test_the_last_effort_that_a_message_sets_is_the_request_s() -> None:
    def effort(level: str) -> dict[str, Any]:
        return {"role": "system", "content": [], "output_config": {"effort": level}}

    turns = [{"role": "user", "content": "hi"}, effort("low"), {"role": "assistant", "content": "yo"}, effort("max")]
    request = parse(output_config={"effort": "high"}, messages=[*turns, {"role": "user", "content": "on"}])

    assert [message.role for message in request.messages] == [Role.USER, Role.ASSISTANT, Role.USER]
    assert request.reasoning is not None
    assert request.reasoning.effort == "max"
