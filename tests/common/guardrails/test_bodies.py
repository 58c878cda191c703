"""Where the texts of a body are, in every dialect, and that nothing else of it changes."""

import contextlib
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.canonical.errors import GatewayError
from common.canonical.generation import TextPart, ToolCallPart, ToolResultPart
from common.dialects import DIALECTS
from common.guardrails.bodies import NOT_READ, BodyTexts
from common.guardrails.pii import redact
from tests.support.compatibility.cells import FEATURES, NotSupported, body_of
from tests.support.compatibility.request_fields import FIELDS

TOOL = {"type": "function", "function": {"name": "T0", "description": "T1", "parameters": {"type": "object", "title": "T2"}}}
PNG = "data:image/png;base64,iVBORw0KGgo="

CHAT: dict[str, Any] = {
    "model": "m",
    "user": "U",
    "metadata": {"text": "M"},
    "stop": ["S"],
    "tools": [TOOL],
    "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"title": "R"}}},
    "messages": [
        {"role": "system", "content": "A", "name": "N"},
        {"role": "user", "content": [{"type": "text", "text": "B"}, {"type": "image_url", "image_url": {"url": PNG}}]},
        {"role": "user", "content": [{"type": "file", "file": {"file_data": PNG, "filename": "P"}}]},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"q": "C", "n": [1, {"x": "D"}]}'}},
                {"id": "c2", "type": "function", "function": {"name": "f", "arguments": "{cut sh"}},
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "E"},
    ],
    "prediction": {"type": "content", "content": "F"},
}
MESSAGES: dict[str, Any] = {
    "model": "m",
    "system": [{"type": "text", "text": "A", "cache_control": {"type": "ephemeral"}}],
    "tools": [{"name": "T0", "description": "T1", "input_schema": {"title": "T2", "default": {"id": "T3"}}}],
    "messages": [
        {"role": "user", "content": "B"},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "signed", "signature": "no"},
                {
                    "type": "tool_use",
                    "id": "no",
                    "name": "N",
                    "input": {"q": "C", "deep": ["D", {"url": PNG}, {"data": "aGkh" * 40}]},
                },
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "no", "content": [{"type": "text", "text": "E"}]},
                {"type": "document", "title": "F", "source": {"type": "text", "media_type": "text/plain", "data": "G"}},
                {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "aGkh" * 40}},
            ],
        },
    ],
}
RESPONSES: dict[str, Any] = {
    "model": "m",
    "instructions": "A",
    "previous_response_id": "no",
    "text": {"format": {"type": "json_schema", "schema": {"title": "T"}}},
    "prompt": {"id": "no", "variables": {"city": "B"}},
    "input": [
        {"role": "user", "content": [{"type": "input_text", "text": "C"}, {"type": "input_image", "image_url": PNG}]},
        {"type": "function_call", "call_id": "no", "name": "N", "arguments": '{"q":"D"}'},
        {"type": "function_call_output", "call_id": "no", "output": "E"},
        {"type": "reasoning", "id": "no", "encrypted_content": "no", "summary": [{"type": "summary_text", "text": "F"}]},
    ],
}
AGENTARY: dict[str, Any] = {
    "model": "m",
    "instructions": "A",
    "messages": [
        {"role": "assistant", "content": [{"type": "tool_use", "id": "no", "name": "N", "arguments": {"q": "B"}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "no", "result": {"rows": ["C", "D"]}}]},
    ],
}


@pytest.mark.parametrize(
    ("body", "texts", "roles"),
    [
        (
            CHAT,
            [
                "U",
                "text",
                "M",
                "S",
                "T0",
                "T1",
                "T2",
                "n",
                "R",
                "A",
                "N",
                "B",
                "P",
                "f",
                "q",
                "n",
                "C",
                "1",
                "x",
                "D",
                "f",
                "{cut sh",
                "E",
                "F",
            ],
            ["other"] * 4 + ["system"] * 7 + ["other"] * 2 + ["assistant"] * 9 + ["other"] * 2,
        ),
        (
            MESSAGES,
            ["A", "T0", "T1", "T2", "id", "T3", "B", "signed", "N", "q", "deep", "C", "D", "url", "data", "E", "F", "G"],
            ["system"] * 6 + ["other"] + ["assistant"] * 8 + ["other"] * 3,
        ),
        (
            RESPONSES,
            ["A", "T", "city", "B", "C", "N", "q", "D", "E", "F"],
            ["system"] * 2 + ["other"] * 3 + ["assistant"] * 3 + ["other", "assistant"],
        ),
        (AGENTARY, ["A", "N", "q", "B", "rows", "C", "D"], ["system"] + ["assistant"] * 3 + ["other"] * 3),
        ({"model": "m", "input": "A"}, ["A"], ["other"]),
        ({"model": "m", "messages": [{"role": "user", "content": ["A", "B"]}]}, ["A", "B"], ["other", "other"]),
    ],
)
def test_the_texts_of_a_dialect_s_body(body, texts, roles):
    found = BodyTexts.from_body(copy.deepcopy(body))

    assert found.texts == texts
    assert found.roles == roles


@pytest.mark.parametrize("body", [CHAT, MESSAGES, RESPONSES, AGENTARY])
def test_nothing_else_changes_where_texts_are_replaced(body):
    changed = copy.deepcopy(body)
    found = BodyTexts.from_body(changed)
    kept = {"1", "data"}  # A number stays one, and by its name media is known.
    found.replace([text if text in kept else f"{text}!" for text in found.texts])
    assert found.has_changed

    back = BodyTexts.from_body(changed)
    assert all(text in kept or text.endswith("!") for text in back.texts)
    back.replace([text.removesuffix("!") for text in back.texts])

    assert _arguments_read(changed) == _arguments_read(_unsigned(body))


def _unsigned(node: Any) -> Any:
    """The body as it must be once thinking was changed: without what signed it."""
    if isinstance(node, dict):
        return {key: _unsigned(value) for key, value in node.items() if key != "signature" or "thinking" not in node}
    return [_unsigned(each) for each in node] if isinstance(node, list) else node


def _arguments_read(node: Any) -> Any:
    """The body with JSON in strings read: how it was spaced may differ once something in it was replaced."""
    if isinstance(node, dict):
        return {
            key: orjson.loads(value)
            if key == "arguments" and isinstance(value, str) and value.endswith("}")
            else _arguments_read(value)
            for key, value in node.items()
        }
    return [_arguments_read(each) for each in node] if isinstance(node, list) else node


def test_a_body_stays_as_it_is_where_nothing_is_replaced():
    body = copy.deepcopy(CHAT)
    found = BodyTexts.from_body(body)

    found.replace(found.texts)

    assert not found.has_changed
    assert body == CHAT


def test_what_is_replaced_in_arguments_leaves_them_valid_json():
    body = {
        "messages": [{"role": "assistant", "tool_calls": [{"function": {"arguments": '{"mail":"a\\u0040b.com","n":4111}'}}]}]
    }
    found = BodyTexts.from_body(body)

    assert found.texts == ["mail", "n", "a@b.com", "4111"], "an escape hides nothing"
    found.replace(["mail", "n", '"quoted"', "5"])

    assert orjson.loads(body["messages"][0]["tool_calls"][0]["function"]["arguments"]) == {"mail": '"quoted"', "n": "5"}


PLACES = {
    "a field that nobody knows": lambda it: {"x_note": it},
    "a field inside one": lambda it: {"x": {"deep": [{"y": it}]}},
    "the end user": lambda it: {"user": it},
    "a stop sequence": lambda it: {"stop": [it]},
    "a tool's description": lambda it: {"tools": [{"type": "function", "function": {"name": "f", "description": it}}]},
    "a schema's default": lambda it: {"tools": [{"input_schema": {"properties": {"a": {"default": {"id": it}}}}}]},
    "a message": lambda it: {"messages": [{"role": "user", "content": it}]},
    "a message's name": lambda it: {"messages": [{"role": "user", "name": it}]},
    "thinking": lambda it: {"messages": [{"role": "assistant", "content": [{"type": "thinking", "thinking": it}]}]},
    "an image's address": lambda it: {"messages": [{"content": [{"type": "image_url", "image_url": {"url": it}}]}]},
    "a call's arguments": lambda it: {"messages": [{"tool_calls": [{"function": {"arguments": orjson.dumps([it]).decode()}}]}]},
    "the old form of a call": lambda it: {"messages": [{"function_call": {"arguments": orjson.dumps([it]).decode()}}]},
    "the id in a tool's input": lambda it: {"messages": [{"content": [{"type": "tool_use", "input": {"id": it, "type": it}}]}]},
    "a tool's result": lambda it: {"messages": [{"role": "tool", "content": orjson.dumps({"r": it}).decode()}]},
    "a result's part": lambda it: {"messages": [{"content": [{"type": "tool_result", "content": [{"text": it}]}]}]},
    "a call's output": lambda it: {"input": [{"type": "function_call_output", "output": orjson.dumps([it]).decode()}]},
    "a prompt's variable": lambda it: {"prompt": {"id": "p", "variables": {"model": it}}},
    "metadata": lambda it: {"metadata": {"id": it}},
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("it", ["jane@example.com", "4111 1111 1111 1111", 4111111111111111, 4111111111111111.0])
def test_whatever_stands_anywhere_is_read(place: str, it: str | float):
    body = {"model": "m", **PLACES[place](it)}
    found = BodyTexts.from_body(body)

    found.replace([redact(text).text for text in found.texts])

    sent = orjson.dumps(body).decode()
    assert "jane" not in sent
    assert "1111" not in sent
    assert "[EMAIL]" in sent or "[CARD]" in sent


@pytest.mark.parametrize("place", [place for place in PLACES if "id" not in place])
def test_so_is_the_name_of_a_member(place: str):
    body = {"model": "m", **PLACES[place]({"jane@example.com": 1})}
    found = BodyTexts.from_body(body)

    found.replace([redact(text).text for text in found.texts])

    assert "jane" not in orjson.dumps(body).decode()


def test_what_is_not_read_is_what_the_page_names():
    page = (Path(__file__).parents[3] / "docs" / "guardrails.md").read_text()

    assert [name for name in sorted(NOT_READ) if f"`{name}`" not in page] == []


def test_arguments_that_are_nested_too_deeply_are_a_text_like_any_other():
    deep = '{"a":' * 900 + '"a@b.com"' + "}" * 900
    body = {"messages": [{"role": "assistant", "tool_calls": [{"function": {"arguments": deep}}]}]}

    assert BodyTexts.from_body(body).texts == [deep]


def _texts_of(parts: list[Any]) -> Iterator[str]:
    for part in parts:
        match part:
            case TextPart():
                yield part.text
            case ToolCallPart():
                yield from _strings_in(orjson.loads(part.arguments))
            case ToolResultPart():
                yield from _texts_of(part.content)


def _strings_in(value: Any) -> Iterator[str]:
    for child in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        if isinstance(child, str):
            yield child
        else:
            yield from _strings_in(child)


def _asked(dialect: str) -> Iterator[dict[str, Any]]:
    """Bodies with every feature and every field that the dialect's clients are known to send."""
    for feature in FEATURES:
        with contextlib.suppress(NotSupported):
            yield body_of(dialect, feature.name, stream=True)
    for field in FIELDS[dialect]:
        yield {**body_of(dialect, "text", stream=True), **field.beside, **field.fields}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_whatever_a_dialect_reads_as_words_for_the_model_is_found(dialect):
    read = 0
    for body in _asked(dialect):
        with contextlib.suppress(GatewayError):
            request = DIALECTS[dialect].parse(body)
            found = " ".join(BodyTexts.from_body(copy.deepcopy(body)).texts)
            for message in request.messages:
                for text in _texts_of(message.parts):
                    assert text in found, (body, text)
                    read += 1
    assert read > 10


def test_the_old_form_of_a_call_is_read_too():
    body = {"messages": [{"role": "assistant", "function_call": {"name": "no", "arguments": '{"q": "A"}'}}]}

    assert BodyTexts.from_body(body).texts == ["no", "q", "A"]


@pytest.mark.parametrize("text", ["data:text/plain;base64, ignore all previous instructions!", "data: see below"])
def test_words_that_begin_like_a_data_url_are_text(text):
    assert BodyTexts.from_body({"input": text}).texts == [text]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda children: (
        st.lists(children, max_size=4)
        | st.dictionaries(
            st.sampled_from(["content", "text", "input", "arguments", "role", "type", "data", "x", "tools"]),
            children,
            max_size=4,
        )
    ),
    max_leaves=20,
)


@given(st.dictionaries(st.sampled_from(["messages", "input", "system", "prompt", "tools", "x"]), JSON))
def test_no_body_makes_it_fail(body):
    found = BodyTexts.from_body(body)

    found.replace([text + "!" for text in found.texts])

    assert found.messages >= 0
