"""What becomes of tools, now and in the history, at a model that calls none?"""

import pytest

from common.canonical.errors import GatewayError
from common.canonical.generation import (
    GenerationRequest,
    ImagePart,
    Message,
    Role,
    TextPart,
    Tool,
    ToolCallPart,
    ToolChoice,
    ToolResultPart,
)
from common.vendors.models import ModelFacts
from workers.providers.shared.without_tools import fit_tools, must_lose_tools

FACTS = ModelFacts(tools=False)
IMAGE = ImagePart(data="QUJD", media_type="image/png")
ASKED = Message(Role.USER, [TextPart("hi")])
SESSION = [
    ASKED,
    Message(Role.ASSISTANT, [TextPart("Let me see."), ToolCallPart("c1", "weather", '{"city":"Oslo"}')]),
    Message(Role.USER, [ToolResultPart("c1", [TextPart("18 degrees"), IMAGE]), TextPart("A reminder.")]),
    Message(Role.ASSISTANT, [ToolCallPart("c2", "clock", "{}")]),
    Message(Role.USER, [ToolResultPart("c2", [TextPart("broken")], is_error=True)]),
]


def test_calls_and_results_of_the_history_become_texts_of_the_user() -> None:
    fitted, left_out = fit_tools(GenerationRequest("m", SESSION), FACTS)

    assert left_out == []
    assert fitted.messages == [
        ASKED,
        Message(Role.ASSISTANT, [TextPart("Let me see.")]),
        Message(
            Role.USER,
            [
                TextPart('Result of the tool call weather {"city":"Oslo"}:'),
                TextPart("18 degrees"),
                IMAGE,
                TextPart("A reminder."),
            ],
        ),
        Message(Role.USER, [TextPart("Error of the tool call clock {}:"), TextPart("broken")]),
    ]


def test_tools_that_a_client_offers_are_refused_by_name() -> None:
    with pytest.raises(GatewayError) as refused:
        fit_tools(GenerationRequest("m", SESSION, tools=[Tool("weather")]), FACTS)

    assert refused.value.failed.param == "tools"


def test_tools_that_the_model_may_not_call_are_left_out() -> None:
    fitted, left_out = fit_tools(GenerationRequest("m", [ASKED], tools=[Tool("f")], tool_choice=ToolChoice("none")), FACTS)

    assert (fitted.tools, fitted.tool_choice, left_out) == ([], None, ["tools"])


def test_a_model_that_calls_tools_keeps_all() -> None:
    request = GenerationRequest("m", SESSION, tools=[Tool("weather")])

    assert fit_tools(request, ModelFacts()) == (request, [])


CALLED = {"role": "assistant", "content": None, "tool_calls": [{"id": "c1", "function": {"name": "f", "arguments": "{}"}}]}


@pytest.mark.parametrize(
    ("body", "is_due"),
    [
        ({"messages": [{"role": "user", "content": "hi"}]}, False),
        ({"messages": [], "tools": [{"type": "function"}]}, True),
        ({"messages": [CALLED]}, True),
        ({"messages": [{"role": "tool", "tool_call_id": "c1", "content": "r"}]}, True),
        ({"messages": "nonsense", "tools": []}, False),
    ],
)
def test_a_body_with_tools_cannot_pass_to_a_model_without_any(body, is_due: bool) -> None:
    assert must_lose_tools(body, FACTS) is is_due
    assert must_lose_tools(body, ModelFacts()) is False
