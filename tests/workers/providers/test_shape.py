"""What a request looks like before any wire writes it, and how the calls of its answer come back."""

import re
from typing import Any

import pytest

from common.canonical.generation import (
    GenerationRequest,
    ImagePart,
    Message,
    Part,
    ResponseFormat,
    Role,
    TextPart,
    Tool,
    ToolCallPart,
    ToolChoice,
    ToolResultPart,
)
from common.vendors.models import MODELS, UNKNOWN, ModelFacts
from workers.providers.openai_chat.wire import OPENAI_COMPATIBLE
from workers.providers.shared.schemas import answer_schema, tool_schema
from workers.providers.shared.shape import ClientCalls, fit_shape
from workers.providers.shared.tool_names import client_names, vendor_name

LONG = "mcp__plugin_oh-my-claudecode_omc-tools__lsp_diagnostics_directory_with_more"
OPENAI = MODELS.facts("openai", "gpt-4.1")
GOOGLE = MODELS.facts("google-ai-studio", "gemini-2.5-flash")
CLAUDE = MODELS.facts("anthropic", "claude-sonnet-4-5")


def user(*parts: Part) -> Message:
    return Message(Role.USER, list(parts))


def model(*parts: Part) -> Message:
    return Message(Role.ASSISTANT, list(parts))


def call(id_: str, name: str = "f") -> ToolCallPart:
    return ToolCallPart(id_, name, "{}")


def result(id_: str, text: str = "r") -> ToolResultPart:
    return ToolResultPart(id_, [TextPart(text)])


def fitted(*messages: Message, facts: ModelFacts = UNKNOWN) -> list[Message]:
    return fit_shape(GenerationRequest("m", [user(TextPart("hi")), *messages]), facts)[0].messages[1:]


# Names


@pytest.mark.parametrize("name", [LONG, "weather.get", "größe", "1st_tool", "a b", "", "x" * 65])
@pytest.mark.parametrize("facts", [OPENAI, GOOGLE, CLAUDE], ids=["openai", "google", "anthropic"])
def test_each_name_becomes_one_that_the_vendor_takes(name, facts):
    sent = vendor_name(name, facts)

    assert len(sent) <= facts.tool_name_chars_max
    assert re.fullmatch(facts.tool_name_pattern, sent)
    assert vendor_name(sent, facts) == sent


def test_names_that_fit_stay_and_others_stay_apart():
    assert vendor_name(LONG[:64], OPENAI) == LONG[:64]
    assert vendor_name(LONG, UNKNOWN) == LONG
    assert len({vendor_name(f"{LONG}{number}", OPENAI) for number in range(5)}) == 5
    assert vendor_name("a.b", OPENAI) != vendor_name("a_b", OPENAI)


def test_a_name_that_the_vendor_keeps_for_itself_is_changed():
    assert vendor_name("python", MODELS.facts("openai", "o3")).startswith("python_")
    assert vendor_name("python", OPENAI) == "python"


def test_a_name_is_the_same_in_tools_choice_and_history():
    request = GenerationRequest(
        "m",
        [user(TextPart("hi")), model(call("c", LONG)), user(result("c"))],
        tools=[Tool("other"), Tool(LONG)],
        tool_choice=ToolChoice("tool", LONG),
    )

    shaped, _ = fit_shape(request, OPENAI)

    short = shaped.tools[1].name
    assert short != LONG
    assert (shaped.tool_choice.name, shaped.messages[1].parts[0].name) == (short, short)
    assert client_names(request, OPENAI) == {short: LONG}
    assert request.tools[1].name == LONG  # The client's request is still needed for the answer.


# Calls of the answer


def started(request: GenerationRequest, id_: str, name: str, facts: ModelFacts = OPENAI) -> Any:
    return ClientCalls(OPENAI_COMPATIBLE, request, facts, "gen_1").decoder().start_call(0, id_, name, 0)


def test_a_call_comes_back_under_the_client_s_own_name():
    request = GenerationRequest("m", [user(TextPart("hi"))], tools=[Tool(LONG)])

    assert started(request, "c", vendor_name(LONG, OPENAI)).name == LONG
    assert started(request, "c", "invented").name == "invented"


def test_an_id_that_the_conversation_has_already_becomes_another_the_same_in_every_worker():
    request = GenerationRequest("m", [user(TextPart("hi")), model(call("functions.f:0")), user(result("functions.f:0"))])

    first, again = (started(request, "functions.f:0", "f").id for _ in range(2))

    assert first == again != "functions.f:0"
    assert started(request, "functions.f:1", "f").id == "functions.f:1"


# Calls and results of the history


def test_a_history_in_order_is_not_copied():
    messages = [
        model(TextPart("a"), call("1"), call("2")),
        user(result("1"), result("2"), TextPart("go")),
        model(TextPart("b")),
    ]

    assert all(after is before for after, before in zip(fitted(*messages), messages, strict=True))


def test_an_id_that_comes_again_is_made_unique_with_its_result():
    turn = [model(call("0")), user(result("0"))]

    assert fitted(*turn, *turn) == [*turn, model(call("0_2")), user(result("0_2"))]


def test_missing_ids_are_filled_in():
    assert fitted(model(call(""), call("")), user(result("", "a"), result("", "b"))) == [
        model(call("call"), call("call_2")),
        user(result("call", "a"), result("call_2", "b")),
    ]


def test_an_interrupted_call_gets_a_result_that_says_so():
    placed = fitted(model(call("1"), call("2")), user(result("2"), TextPart("stop")))

    assert [part.tool_call_id for part in placed[1].parts[:2]] == ["1", "2"]
    assert placed[1].parts[0].is_error
    assert placed[1].parts[2:] == [TextPart("stop")]


def test_results_move_to_their_calls():
    placed = fitted(model(call("1")), user(TextPart("wait")), user(result("1")))

    assert placed == [model(call("1")), user(result("1"), TextPart("wait"))]


def test_a_result_without_a_call_and_a_second_result_become_text():
    placed = fitted(user(result("9", "x")), model(call("1")), user(result("1"), result("1", "again")))

    assert placed[0] == user(TextPart("Result of the tool call 9:"), TextPart("x"))
    assert placed[2] == user(result("1"), TextPart("Result of the tool call 1:"), TextPart("again"))


def test_calls_of_the_last_message_are_the_vendor_s_to_judge():
    assert fitted(model(call("1"))) == [model(call("1"))]


def test_a_longer_conversation_begins_like_the_shorter_one():
    turns = [
        model(call("0")),
        user(TextPart("stop")),
        model(call("0")),
        user(result("0")),
        model(call("0", LONG)),
        user(result("0")),
    ]

    whole = fitted(*turns, facts=OPENAI)

    assert fitted(*turns[:4], facts=OPENAI) == whole[:4]


# Media types


@pytest.mark.parametrize(
    ("declared", "data", "sent"),
    [
        ("image/jpg", "QUJD", "image/jpeg"),
        ("image/jpeg", "iVBORw0KGgoAAAA", "image/png"),
        ("image/png", "/9j/4AAQ", "image/jpeg"),
        ("IMAGE/PNG", "QUJD", "image/png"),
        ("image/webp", "UklGRh4", "image/webp"),
    ],
)
def test_images_have_their_true_media_type(declared, data, sent):
    image = ImagePart(data=data, media_type=declared)
    turns = fitted(user(image), model(call("1")), user(ToolResultPart("1", [image])))

    assert turns[0].parts[0].media_type == turns[2].parts[0].content[0].media_type == sent


# Schemas


@pytest.mark.parametrize("schema", [{}, {"type": "object"}, {"type": "object", "properties": None}, {"type": None}])
def test_a_tool_s_schema_is_an_object_with_properties(schema):
    assert tool_schema(schema, UNKNOWN) == {"type": "object", "properties": {}}


def test_the_rest_of_a_tool_s_schema_stays():
    closed = {"type": "object", "additionalProperties": False}

    assert tool_schema(closed, UNKNOWN) == {**closed, "properties": {}}
    assert tool_schema({"anyOf": [{"type": "object"}]}, UNKNOWN) == {"anyOf": [{"type": "object"}]}


def test_alternatives_at_the_root_become_one_object():
    schema = {
        "anyOf": [{"$ref": "#/$defs/A"}, {"properties": {"b": {}, "c": {}}, "required": ["c"]}],
        "properties": {"a": {"type": "string"}},
        "$defs": {"A": {"properties": {"a": {}, "c": {"type": "integer"}}, "required": ["a", "c"]}},
    }

    assert tool_schema(schema, OPENAI) == {
        "type": "object",
        "properties": {"a": {"type": "string"}, "c": {"type": "integer"}, "b": {}},
        "required": ["c"],
        "$defs": schema["$defs"],
    }


def test_all_of_at_the_root_requires_what_any_of_them_requires():
    parts = [{"properties": {"a": {}}, "required": ["a"]}, {"properties": {"b": {}}, "required": ["b"]}]

    assert tool_schema({"type": "object", "allOf": parts}, OPENAI)["required"] == ["a", "b"]


def test_a_schema_that_points_to_itself_ends():
    assert tool_schema({"$ref": "#/$defs/A", "$defs": {"A": {"$ref": "#/$defs/A"}}}, OPENAI)["type"] == "object"


def test_an_answer_s_schema_says_in_words_what_the_vendor_has_no_keyword_for():
    number = {"type": "integer", "description": "Age", "minimum": 1}
    schema = {"type": "object", "properties": {"minimum": number}, "additionalProperties": {"type": "string"}}

    assert answer_schema(schema, CLAUDE) == {
        "type": "object",
        "properties": {"minimum": {"type": "integer", "description": "Age\n\n{minimum: 1}"}},
        "additionalProperties": False,
        "description": '{additionalProperties: {"type":"string"}}',
    }
    assert answer_schema(schema, OPENAI) == schema


def test_objects_are_closed_wherever_they_stand():
    inner = {"type": ["object", "null"], "properties": {}}
    schema = {"anyOf": [{"$ref": "#/$defs/A"}, {"type": "array", "items": inner}], "$defs": {"A": inner}}

    sent = answer_schema(schema, CLAUDE)

    assert sent["$defs"]["A"]["additionalProperties"] is sent["anyOf"][1]["items"]["additionalProperties"] is False


def test_an_answer_that_may_be_any_object_is_plain_json():
    request = GenerationRequest("m", [user(TextPart("x"))], response_format=ResponseFormat({"type": "object"}))

    assert fit_shape(request, CLAUDE)[0].response_format == ResponseFormat()


# Prefills, strict tools


def test_a_prefill_has_no_white_space_at_its_end():
    assert fitted(model(TextPart("a\n"))) == [model(TextPart("a"))]
    assert fitted(model(TextPart("a\n")), user(TextPart("b "))) == [model(TextPart("a\n")), user(TextPart("b "))]


def test_a_model_that_takes_no_prefill_is_asked_to_continue():
    request = GenerationRequest("m", [user(TextPart("hi")), model(TextPart("{"))])

    shaped, dropped = fit_shape(request, MODELS.facts("anthropic", "claude-opus-5"))

    assert [message.role for message in shaped.messages] == [Role.USER, Role.ASSISTANT, Role.USER]
    assert dropped == ["prefill"]
    assert fit_shape(request, CLAUDE) == (request, [])


def test_tools_are_strict_together_or_not_at_all_where_they_must_be():
    properties = {"type": "object", "properties": {}}
    request = GenerationRequest(
        "m", [user(TextPart("x"))], tools=[Tool("f", None, properties, True), Tool("g", None, properties)]
    )

    shaped, dropped = fit_shape(request, ModelFacts(tools_strict_alike=True))

    assert [tool.strict for tool in shaped.tools] == [None, None]
    assert dropped == ["tools.strict"]
    assert fit_shape(request, UNKNOWN)[1] == []
