"""What becomes of a wish for JSON that a model does not take, alone or next to tools?"""

from typing import Any

import orjson
import pytest

from common.canonical.generation import GenerationRequest, Message, ResponseFormat, Role, TextPart, Tool
from common.vendors.models import ModelFacts
from workers.providers.base import Deployment
from workers.providers.openai_chat.wire import OPENAI_COMPATIBLE
from workers.providers.shared.answer_format import fit_answer_format, fit_passed_answer_format
from workers.providers.shared.schemas import answer_schema

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
NO_SCHEMA, NOT_WITH_TOOLS = ModelFacts(json_schema=False), ModelFacts(json_schema_with_tools=False)
TOOL = Tool("clock")


def request(format_: ResponseFormat | None, *tools: Tool) -> GenerationRequest:
    messages = [Message(Role.SYSTEM, [TextPart("Be kind.")]), Message(Role.USER, [TextPart("Where?")])]
    return GenerationRequest("m", messages, response_format=format_, tools=list(tools))


def texts(fitted: GenerationRequest) -> list[tuple[str, str]]:
    return [(message.role.value, part.text) for message in fitted.messages for part in message.parts]  # type: ignore[union-attr]


def test_a_schema_that_the_model_does_not_take_stands_in_the_prompt() -> None:
    fitted, dropped = fit_answer_format(request(ResponseFormat(SCHEMA, "a", strict=True)), NO_SCHEMA)

    assert (fitted.response_format, dropped) == (ResponseFormat(), ["response_format"])
    (first, prompt, question) = texts(fitted)
    assert (first, question) == (("system", "Be kind."), ("user", "Where?"))
    assert prompt[0] == "system"
    assert orjson.dumps(SCHEMA).decode() in prompt[1]


@pytest.mark.parametrize("format_", [ResponseFormat(SCHEMA), ResponseFormat()])
def test_where_json_and_tools_exclude_each_other_the_tools_stay(format_: ResponseFormat) -> None:
    fitted, dropped = fit_answer_format(request(format_, TOOL), NOT_WITH_TOOLS)

    assert (fitted.response_format, fitted.tools, dropped) == (None, [TOOL], ["response_format"])
    assert "do not call a tool" in texts(fitted)[1][1]


@pytest.mark.parametrize(
    ("asked", "facts"),
    [
        (request(ResponseFormat(SCHEMA)), ModelFacts()),
        (request(ResponseFormat(SCHEMA)), NOT_WITH_TOOLS),
        (request(ResponseFormat(), TOOL), NO_SCHEMA),
        (request(None, TOOL), NOT_WITH_TOOLS),
    ],
)
def test_what_the_model_takes_stays(asked: GenerationRequest, facts: ModelFacts) -> None:
    assert fit_answer_format(asked, facts) == (asked, [])


@pytest.mark.parametrize("has_tools", [False, True])
def test_a_body_that_passes_gets_the_same_prompt(has_tools: bool) -> None:
    facts = NOT_WITH_TOOLS if has_tools else NO_SCHEMA
    fitted, _ = fit_answer_format(request(ResponseFormat(SCHEMA), *[TOOL] * has_tools), facts)
    body: dict[str, Any] = {
        "messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Where?"}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}},
        **({"tools": [{"type": "function", "function": {"name": "clock"}}]} if has_tools else {}),
    }

    dropped = fit_passed_answer_format(body, facts)

    assert dropped == ["response_format"]
    assert body.get("response_format") == (None if has_tools else {"type": "json_object"})
    assert [(message["role"], message["content"]) for message in body["messages"]] == texts(fitted)


def test_a_body_to_openai_itself_stays_as_it_is() -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "response_format": {"type": "json_schema"}}
    built = OPENAI_COMPATIBLE.pass_request(body, {}, Deployment("openai", "https://x.example", "k", "m", facts=NO_SCHEMA))

    assert (orjson.loads(built.body), built.dropped) == (body, [])


def test_an_object_requires_a_property_where_the_vendor_wants_one() -> None:
    facts = ModelFacts(schema_required_needed=True)
    inner = {"type": "object", "properties": {"n": {"type": "integer"}, "note": {"type": "string"}}}
    schema = {"type": "object", "properties": {"inner": inner}, "required": ["inner"]}

    assert answer_schema(schema, facts) == {**schema, "properties": {"inner": {**inner, "required": ["n"]}}}
    assert answer_schema(SCHEMA, facts) == SCHEMA
    assert answer_schema({"type": "object"}, facts) is None
