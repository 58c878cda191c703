"""What clients of OpenAI's responses may send. Behaviour all dialects share: contracts/."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.canonical.errors import ErrorKind, GatewayError
from common.canonical.generation import (
    DocumentPart,
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
from common.canonical.reply import ReasoningBlock, ToolCall
from common.dialects.openai_responses.request import parse
from common.dialects.openai_responses.response_object import Items, ResponseInfo, generation_of_item, unfinished_response
from common.dialects.openai_responses.tools import custom_tools, flat_name, namespaces
from common.dialects.openai_responses.wrapped_reasoning import is_wrapped, wrap
from tests.support.upstreams.recordings import Recording, parameters

FUNCTION = {"type": "function", "name": "f"}
CUSTOM = {"type": "custom", "name": "c"}


def ask(**body: Any) -> GenerationRequest:
    return parse({"model": "m", "input": "hi", **body})


def messages(*items: dict[str, Any]) -> list[Message]:
    return ask(input=list(items)).messages


def parts(*content: dict[str, Any], role: str = "user") -> list[Part]:
    return messages({"role": role, "content": list(content)})[0].parts


def fault(**body: Any) -> str | None:
    with pytest.raises(GatewayError) as caught:
        ask(**body)
    assert caught.value.failed.kind is ErrorKind.INVALID_REQUEST
    return caught.value.failed.param


def test_smallest_request_gets_the_defaults() -> None:
    assert ask() == GenerationRequest("m", [Message(Role.USER, [TextPart("hi")])])


def test_all_fields_are_read() -> None:
    request = ask(
        instructions="Be brief.",
        stream=True,
        max_output_tokens=5,
        temperature=1,
        top_p=0.5,
        parallel_tool_calls=False,
        reasoning={"effort": "low", "summary": "auto"},
        user="u",
        safety_identifier="s",
        tools=[{**FUNCTION, "description": "d", "parameters": {"type": "object"}, "strict": True}],
        tool_choice={"type": "function", "name": "f"},
        text={"format": {"type": "json_schema", "name": "s", "schema": {"type": "object"}, "strict": True}},
    )

    assert request == GenerationRequest(
        "m",
        [Message(Role.SYSTEM, [TextPart("Be brief.")]), Message(Role.USER, [TextPart("hi")])],
        stream=True,
        tools=[Tool("f", "d", {"type": "object"}, True)],
        tool_choice=ToolChoice("tool", "f"),
        parallel_tool_calls=False,
        max_output_tokens=5,
        temperature=1.0,
        top_p=0.5,
        response_format=ResponseFormat({"type": "object"}, "s", True),
        reasoning=Reasoning(effort="low"),
        end_user="u",
    )


def test_what_is_stored_or_served_here_and_what_is_unknown_changes_nothing() -> None:
    request = ask(
        store=True,
        metadata={"a": "b"},
        previous_response_id="resp_1",
        include=["reasoning.encrypted_content"],
        client_metadata={"a": "b"},
        stream_options={"include_obfuscation": False},
        something_new={"deep": [1]},
        service_tier="auto",
        truncation="disabled",
        top_logprobs=0,
        text={"format": {"type": "text"}, "verbosity": "medium"},
        tools=[],
        temperature=None,
    )

    assert request == ask()


def test_in_the_background_it_runs_as_a_stream() -> None:
    assert ask(background=True).stream


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"include": ["message.output_text.logprobs"]}, "include"),
        ({"tool_choice": {"type": "web_search"}}, "tool_choice"),
        ({"tool_choice": "required", "tools": [{"type": "web_search"}]}, "tool_choice"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format"),
    ],
)
def test_what_only_openai_has_is_kept_as_opaque(body: dict[str, Any], path: str) -> None:
    assert [part.path for part in ask(**body).opaque] == [path]


def test_what_is_merely_offered_or_hinted_is_dropped_by_name() -> None:
    request = ask(
        tools=[FUNCTION, {"type": "web_search"}, {"type": "computer"}, {"type": "mcp", "server_label": "x"}],
        service_tier="flex",
        truncation="auto",
        text={"verbosity": "low"},
    )

    assert request.tools == [Tool("f")]
    assert request.dropped == [
        "service_tier",
        "truncation",
        "text.verbosity",
        "tools.1",
        "tools.2",
        "tools.3",
    ]
    assert not request.opaque


# The conversation


def test_roles_and_text_in_all_their_forms() -> None:
    assert messages(
        {"role": "developer", "content": "a"},
        {"type": "message", "role": "system", "content": [{"type": "input_text", "text": "b"}]},
        {"role": "user", "content": [{"type": "text", "text": "c"}]},
        {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant", "content": "d"},
        {"role": "assistant", "content": [{"type": "output_text", "text": "e", "annotations": []}]},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "f"}]},
    ) == [
        Message(Role.SYSTEM, [TextPart("a")]),
        Message(Role.SYSTEM, [TextPart("b")]),
        Message(Role.USER, [TextPart("c")]),
        Message(Role.ASSISTANT, [TextPart("d")]),
        Message(Role.ASSISTANT, [TextPart("e")]),
        Message(Role.ASSISTANT, [TextPart("f")]),
    ]


DOCX = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"


def test_images_and_files() -> None:
    assert parts(
        {"type": "input_image", "image_url": "data:image/PNG;base64,QUJD", "detail": "low"},
        {"type": "input_image", "image_url": "https://x/y.png"},
        {"type": "input_image", "file_id": "file_1"},
        {"type": "input_file", "file_id": "file_1"},
        {"type": "input_file", "file_url": "https://x/y.pdf?z=1"},
        {"type": "input_file", "filename": "a.docx", "file_data": "QUJD"},
        {"type": "input_file"},
    ) == [
        ImagePart(data="QUJD", media_type="image/png", detail="low"),
        ImagePart(url="https://x/y.png"),
        OpaquePart("input_image", "input.0.content.2"),
        DocumentPart("application/pdf", file_id="file_1", files_at="openai"),
        DocumentPart("application/pdf", url="https://x/y.pdf?z=1"),
        DocumentPart(DOCX, data="QUJD", name="a.docx"),
        OpaquePart("input_file", "input.0.content.6"),
    ]


def test_a_turn_of_the_model_is_one_message_and_its_results_another() -> None:
    assert messages(
        {"role": "user", "content": "go"},
        {"type": "reasoning", "summary": [], "encrypted_content": "sluice-signed:S"},
        {"role": "assistant", "content": [{"type": "output_text", "text": "I look."}]},
        {"type": "function_call", "call_id": "a", "name": "f", "arguments": '{"x":1}'},
        {"type": "function_call", "id": "fc_1", "call_id": "b", "name": "g", "arguments": "", "status": "completed"},
        {"type": "function_call_output", "call_id": "a", "output": "1"},
        {"type": "function_call_output", "call_id": "b", "output": [{"type": "input_text", "text": "2"}]},
        {"role": "user", "content": "and?"},
    ) == [
        Message(Role.USER, [TextPart("go")]),
        Message(
            Role.ASSISTANT,
            [
                ReasoningPart(signature="S"),
                TextPart("I look."),
                ToolCallPart("a", "f", '{"x":1}'),
                ToolCallPart("b", "g", "{}"),
            ],
        ),
        Message(Role.USER, [ToolResultPart("a", [TextPart("1")]), ToolResultPart("b", [TextPart("2")])]),
        Message(Role.USER, [TextPart("and?")]),
    ]


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        ({"summary": [{"type": "summary_text", "text": "hm"}], "encrypted_content": "gAAAA"}, [ReasoningPart("hm")]),
        (
            {"summary": [{"type": "summary_text", "text": "a"}, {"type": "summary_text", "text": "b"}]},
            [ReasoningPart("a\n\nb")],
        ),
        ({"summary": [], "content": [{"type": "reasoning_text", "text": "c"}]}, [ReasoningPart("c")]),
    ],
)
def test_reasoning_of_other_makers_is_its_text(item: dict[str, Any], expected: list[Part]) -> None:
    assert messages({"type": "reasoning", "id": "rs_1", **item})[0].parts == expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"summary": "auto"}, Reasoning()),
        ({"generate_summary": "concise"}, Reasoning()),
        ({"effort": "low", "summary": None}, Reasoning(effort="low", is_shown=False)),
        ({"effort": "none", "summary": "auto"}, Reasoning(enabled=False)),
        ({}, None),
    ],
)
def test_a_summary_is_a_wish_to_see_the_reasoning(fields: dict[str, Any], expected: Reasoning | None) -> None:
    assert ask(reasoning=fields).reasoning == expected


def test_reasoning_that_nobody_can_read_is_left_out() -> None:
    items = [{"role": "user", "content": "x"}, {"type": "reasoning", "summary": [], "encrypted_content": "gAAAA"}]

    assert messages(*items) == [Message(Role.USER, [TextPart("x")])]


@pytest.mark.parametrize(
    "block",
    [ReasoningBlock("hm", "S:="), ReasoningBlock("", "S"), ReasoningBlock(redacted="R"), ReasoningBlock("hm")],
)
def test_thinking_comes_back_as_it_went(block: ReasoningBlock) -> None:
    item = Items("gen_ab", {}).from_block(0, block, "completed")

    assert messages(item)[0].parts == [ReasoningPart(block.text, block.signature, block.redacted)]


def test_only_our_own_seal_is_ours() -> None:
    assert is_wrapped(wrap(signature="S"))
    assert is_wrapped(wrap(redacted=""))
    assert not is_wrapped("gAAAA")
    assert not is_wrapped(None)


PATCH = {"type": "custom_tool_call", "call_id": "a", "name": "apply_patch", "input": "*** x"}
SHELL = {"type": "local_shell_call", "id": "lsh_1", "call_id": "b", "status": "completed", "action": {"command": ["ls"]}}


def test_calls_that_only_openai_has_are_calls_in_the_history() -> None:
    assert messages(
        PATCH,
        SHELL,
        {"type": "custom_tool_call_output", "call_id": "a", "output": "ok"},
        {"type": "local_shell_call_output", "call_id": "b", "output": [{"stdout": "x"}]},
        {"type": "computer_call_output", "call_id": "c", "output": {"type": "computer_screenshot", "image_url": "https://x/y"}},
    ) == [
        Message(
            Role.ASSISTANT,
            [
                ToolCallPart("a", "apply_patch", '{"input":"*** x"}'),
                ToolCallPart("b", "local_shell", '{"action":{"command":["ls"]}}'),
            ],
        ),
        Message(
            Role.USER,
            [
                ToolResultPart("a", [TextPart("ok")]),
                ToolResultPart("b", [TextPart('{"stdout":"x"}')]),
                ToolResultPart("c", [ImagePart(url="https://x/y")]),
            ],
        ),
    ]


def test_what_ran_at_openai_belongs_to_the_models_turn_and_keeps_its_texts_apart() -> None:
    search = {"type": "web_search_call", "id": "ws_1", "action": {}}
    said = [{"role": "assistant", "content": text} for text in ("a", "b")]

    assert messages(said[0], search, said[1]) == [
        Message(Role.ASSISTANT, [TextPart("a"), OpaquePart("web_search_call", "input.1")]),
        Message(Role.ASSISTANT, [TextPart("b")]),
    ]


def test_tools_that_come_as_items_are_tools() -> None:
    space = {"type": "namespace", "name": "crm", "tools": [FUNCTION, {"type": "custom", "name": "exec"}]}
    items = [
        {"type": "additional_tools", "role": "developer", "tools": [FUNCTION, space]},
        {"role": "user", "content": "x"},
        {"type": "tool_search_output", "tools": [FUNCTION, {"type": "function", "name": "late"}]},
    ]

    request = ask(input=items, tool_choice={"type": "function", "name": "late"})

    assert [tool.name for tool in request.tools] == ["f", "crm__f", "crm__exec", "late"]
    assert request.dropped == []
    assert len(request.messages) == 2
    assert namespaces({"input": items}) == {"crm__f": ("crm", "f"), "crm__exec": ("crm", "exec")}


@pytest.mark.parametrize("type_", ["item_reference", "web_search_call", "tool_search_call", "compaction"])
def test_items_that_only_openai_has_are_opaque(type_: str) -> None:
    assert messages({"role": "user", "content": "x"}, {"type": type_, "id": "x_1"})[1].parts == [OpaquePart(type_, "input.1")]


def test_a_reference_needs_no_type() -> None:
    assert messages({"id": "msg_1"})[0].parts == [OpaquePart("item_reference", "input.0")]


def test_a_prompt_that_is_kept_at_openai_needs_no_input() -> None:
    assert parse({"model": "m", "prompt": {"id": "p"}}).messages == [Message(Role.USER, [OpaquePart("prompt", "prompt")])]


# Tools


def test_functions_of_a_namespace_get_flat_names_and_find_back() -> None:
    space = {
        "type": "namespace",
        "name": "crm",
        "description": "d",
        "tools": [FUNCTION, {"type": "custom", "name": "c"}, {"type": "mcp"}],
    }
    request = ask(tools=[FUNCTION, space])

    assert [tool.name for tool in request.tools] == ["f", "crm__f", "crm__c"]
    assert request.dropped == ["tools.1.tools.2"]
    assert namespaces({"tools": [FUNCTION, space]}) == {"crm__f": ("crm", "f"), "crm__c": ("crm", "c")}
    assert custom_tools({"tools": [FUNCTION, space]}) == {"crm__c"}
    called = {"type": "function_call", "call_id": "a", "name": "f", "namespace": "crm", "arguments": "{}"}
    assert messages(called)[0].parts == [ToolCallPart("a", "crm__f", "{}")]


def test_a_custom_tool_is_a_function_with_one_text() -> None:
    grammar = {"type": "grammar", "syntax": "lark", "definition": "start: x"}
    request = ask(tools=[{"type": "custom", "name": "patch", "description": "d", "format": grammar}])

    (tool,) = request.tools
    assert (tool.name, tool.parameters["required"]) == ("patch", ["input"])
    assert tool.description == "d\n\nThe input must match this lark grammar:\nstart: x"
    assert request.dropped == []


@pytest.mark.parametrize(
    ("arguments", "text"), [('{"input":"*** x"}', "*** x"), ("{}", ""), ("", ""), ("*** x", "*** x"), ('{"a":1}', '{"a":1}')]
)
def test_a_call_of_a_custom_tool_goes_back_as_one(arguments: str, text: str) -> None:
    item = Items("gen_" + "ab" * 16, {"crm__exec": ("crm", "exec")}, frozenset({"crm__exec"})).from_block(
        0, ToolCall("a", "crm__exec", arguments), "completed"
    )

    assert item == {
        "id": "ctc_" + "ab" * 16 + "00",
        "type": "custom_tool_call",
        "status": "completed",
        "input": text,
        "call_id": "a",
        "name": "exec",
        "namespace": "crm",
    }
    assert generation_of_item(item["id"]) == "gen_" + "ab" * 16


def test_long_flat_names_stay_apart_and_within_what_vendors_take() -> None:
    names = {flat_name("n" * 60, f"{'f' * 60}{i}") for i in range(5)}

    assert len(names) == 5
    assert {len(name) for name in names} == {64}


def test_allowed_tools_are_those_that_are_offered() -> None:
    tools = [FUNCTION, {"type": "function", "name": "g"}, {"type": "web_search"}]
    choice = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "g"}, {"type": "web_search"}]}

    request = ask(tools=tools, tool_choice=choice)

    assert (request.tools, request.tool_choice) == ([Tool("g")], ToolChoice("required"))


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": ["x"]}, "input.0"),
        ({"input": [{"type": "reasoning", "summary": []}]}, "input"),
        ({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, "input.0.call_id"),
        ({"input": [{"type": "function_call", "call_id": "a", "name": "f", "arguments": {}}]}, "input.0.arguments"),
        ({"input": [{"type": "function_call_output", "call_id": "a"}]}, "input.0.output"),
        ({"input": [{"type": "function_call_output", "call_id": "a", "output": {}}]}, "input.0.output"),
        ({"input": [{"type": "reasoning", "summary": "x"}]}, "input.0.summary"),
        ({"tools": ["x"]}, "tools.0"),
        ({"tools": [{}]}, "tools.0.type"),
        ({"tools": [{"type": "function"}]}, "tools.0.name"),
        ({"tools": [{"type": "namespace", "name": "n", "tools": [{"type": "function"}]}]}, "tools.0.tools.0.name"),
        ({"tool_choice": "some"}, "tool_choice"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.schema"),
        ({"text": {"format": "x"}}, "text.format"),
        ({"reasoning": {"effort": 1}}, "reasoning.effort"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"store": "no"}, "store"),
        ({"previous_response_id": 7}, "previous_response_id"),
    ],
)
def test_faults_are_named_by_their_path(body: dict[str, Any], param: str) -> None:
    assert fault(**body) == param


@pytest.mark.parametrize("recording", parameters(wire="openai-responses"))
def test_recorded_requests_are_read(recording: Recording) -> None:
    if recording.request is None or "input" not in recording.request:
        return
    assert parse(recording.request).messages


def any_of(words: str) -> st.SearchStrategy[str]:
    return st.sampled_from(words.split())


WORDS = any_of(
    "message reasoning function_call function_call_output item_reference user assistant developer input_text output_text "
    "input_image refusal summary_text function namespace web_search custom allowed_tools required auto json_schema "
    "data:image/png;base64,AA https://x/y"
)
KEYS = any_of(
    "type role content text image_url detail refusal summary encrypted_content call_id name namespace arguments output "
    "tools parameters strict mode format schema verbosity effort description"
)
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 3) | st.text(max_size=4) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=15,
)
FIELDS = (
    "instructions tools tool_choice text reasoning include metadata stream background store previous_response_id "
    "prompt conversation truncation service_tier top_logprobs max_output_tokens user"
)


BODY = st.fixed_dictionaries({"input": VALUE | st.lists(VALUE, max_size=4)}, optional=dict.fromkeys(FIELDS.split(), VALUE))


@given(body=BODY)
def test_any_body_is_parsed_or_refused(body: dict[str, Any]) -> None:
    try:
        request = ask(**body)
    except GatewayError as error:
        failed = error.failed
    else:
        assert request.messages
        # What parsing lets through can be answered.
        assert unfinished_response(ResponseInfo("gen_ab", "m", 7, {"model": "m", **body}))["object"] == "response"
        assert Items("gen_ab", namespaces(body)).call(0, ToolCall("a", "n__f"), "completed")["call_id"] == "a"
        return

    assert failed.kind is ErrorKind.INVALID_REQUEST
    assert failed.param
