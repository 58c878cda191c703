"""What is left of a client's request behind a wire: the same conversation, whichever family it goes to."""

from dataclasses import replace
from typing import Any

import orjson
import pytest

from common.canonical.generation import (
    GenerationRequest,
    ImagePart,
    Message,
    ReasoningPart,
    Role,
    TextPart,
    Tool,
    ToolCallPart,
    ToolChoice,
    ToolResultPart,
)
from common.canonical.job import Job, Policy
from common.dialects.anthropic_messages.dialect import ANTHROPIC_MESSAGES
from common.dialects.openai_chat.dialect import OPENAI_CHAT
from common.dialects.openai_responses.dialect import OPENAI_RESPONSES
from common.vendors.models import MODELS
from tests.support.clients.every_dialect import INFO
from workers.attempt.prepare import prepare_request
from workers.providers import WIRES
from workers.providers.base import Deployment

CONVERSATION = GenerationRequest(
    "m",
    [
        Message(Role.SYSTEM, [TextPart("Be brief.")]),
        Message(
            Role.USER, [ImagePart(data="QUJD", media_type="image/png"), ImagePart(url="https://x/y.png"), TextPart("look")]
        ),
        Message(Role.ASSISTANT, [TextPart("I do."), ToolCallPart("a", "f", '{"x":1}'), ToolCallPart("b", "g", "{}")]),
        Message(Role.USER, [ToolResultPart("a", [TextPart("1")]), ToolResultPart("b", [TextPart("2")])]),
        Message(Role.ASSISTANT, [TextPart("Done.")]),
        Message(Role.USER, [TextPart("Thanks.")]),
    ],
    stream=True,
    tools=[
        Tool("f", "d", {"type": "object", "properties": {"x": {"type": "integer"}}}),
        Tool("g", None, {"type": "object", "properties": {}}),
    ],
    tool_choice=ToolChoice("auto"),
    parallel_tool_calls=False,
    max_output_tokens=4000,
    temperature=0.5,
    stop=["END"],
    end_user="u",
)


@pytest.mark.parametrize(
    ("wire", "dialect"),
    [("openai-chat", OPENAI_CHAT), ("anthropic-messages", ANTHROPIC_MESSAGES)],
    ids=["openai-chat", "anthropic-messages"],
)
def test_conversation_survives_the_way_through_a_wire(wire: str, dialect: Any) -> None:
    built = WIRES[wire].build_request(CONVERSATION, Deployment("openai", "https://x.example", "k", "m"))

    assert dialect.parse(orjson.loads(built.body)) == CONVERSATION


def test_conversation_survives_the_way_through_responses() -> None:
    asked = replace(CONVERSATION, stop=[])  # No words to stop at there.
    built = WIRES["openai-responses"].build_request(asked, Deployment("openai", "https://x.example", "k", "m"))

    found = OPENAI_RESPONSES.parse(orjson.loads(built.body))

    # Tools are strict there unless told otherwise.
    assert found == replace(asked, tools=[replace(tool, strict=False) for tool in asked.tools])


def test_signed_thinking_survives_its_own_wire_and_is_dropped_by_the_other() -> None:
    request = GenerationRequest(
        "m",
        [
            Message(Role.USER, [TextPart("x")]),
            Message(Role.ASSISTANT, [ReasoningPart("hm", "SIG"), ReasoningPart(redacted="ENC"), TextPart("y")]),
        ],
        stream=True,
        max_output_tokens=9,
    )
    deployment = Deployment("openai", "https://x.example", "k", "m")

    own = WIRES["anthropic-messages"].build_request(request, deployment)
    other = WIRES["openai-chat"].build_request(request, deployment)

    assert ANTHROPIC_MESSAGES.parse(orjson.loads(own.body)) == request
    assert OPENAI_CHAT.parse(orjson.loads(other.body)).messages[1].parts == [TextPart("y")]


LONG = "mcp__plugin_oh-my-claudecode_omc-tools__lsp_diagnostics_directory_with_more"
FUNCTION = {"name": LONG, "parameters": {"type": "object", "properties": {}}}
USER = {"role": "user", "content": "hi"}


@pytest.mark.parametrize("is_stream", [True, False])
@pytest.mark.parametrize("vendor", ["openai", "mistral"])
@pytest.mark.parametrize(
    ("dialect", "fields"),
    [
        ("openai-chat", {"messages": [USER], "tools": [{"type": "function", "function": FUNCTION}]}),
        ("anthropic-messages", {"messages": [USER], "max_tokens": 9, "tools": [{"name": LONG, "input_schema": {}}]}),
        ("openai-responses", {"input": "hi", "tools": [{"type": "function", **FUNCTION}]}),
        ("agentary", {"messages": [USER], "tools": [FUNCTION]}),
    ],
)
def test_a_tool_s_name_comes_back_as_the_client_s_own(
    dialect: str, fields: dict[str, Any], vendor: str, is_stream: bool
) -> None:
    body = {"model": "m", "stream": is_stream, **fields}
    job = Job("gen_1", "r", dialect, "m", is_stream, Policy.STOP, 0, 1, body=orjson.dumps(body))
    deployment = Deployment(vendor, "http://x", "k", "m", "openai-chat", facts=MODELS.facts(vendor, "m"))
    request, pump = prepare_request(job, WIRES["openai-chat"], deployment, replace(INFO, body=body))
    short = orjson.loads(request.body)["tools"][0]["function"]["name"]
    call = {"index": 0, "id": "c", "type": "function", "function": {"name": short, "arguments": "{}"}}
    choice = {"index": 0, "delta": {"tool_calls": [call]}, "finish_reason": "tool_calls"}

    data = (
        pump.feed([b"data: " + orjson.dumps({"choices": [choice]}) + b"\n\n"]) + pump.feed([b"data: [DONE]\n\n"]) + pump.end()
    )

    assert len(short) == 64
    assert LONG.encode() in data
    assert short.encode() not in data
