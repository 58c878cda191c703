"""What clients of /api/{provider} get, and what they may send. Behaviour all dialects share: contracts/."""

from typing import Any

import orjson
import pytest

from common.canonical.errors import ErrorKind, Failed, GatewayError
from common.canonical.events import (
    Completed,
    Event,
    Finished,
    FinishReason,
    ReasoningDelta,
    ReasoningSigned,
    RefusalDelta,
    Started,
    TextDelta,
    ToolCallDelta,
    ToolCallStarted,
    Usage,
)
from common.canonical.generation import (
    GenerationRequest,
    Message,
    OpaquePart,
    Role,
    TextPart,
    Tool,
    ToolCallPart,
    ToolChoice,
    ToolResultPart,
)
from common.canonical.reply import fold
from common.dialects.agentary.dialect import AGENTARY
from common.dialects.base import OpenStream, ReplyInfo
from tests.support.clients.seed_clients import as_agentary_js

INFO = ReplyInfo("gen_1", "a-model", 7, "anthropic", elapsed_ms=lambda: 245)
HELLO = [{"role": "user", "content": "hi"}]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
END: list[Event] = [Finished(FinishReason.STOP), Completed(Usage(5, 2))]


def parse(**body: Any) -> GenerationRequest:
    return AGENTARY.parse({"model": "m", "messages": HELLO, **body})


def from_input(items: object, **body: Any) -> list[Message]:
    return AGENTARY.parse({"model": "m", "input": items, **body}).messages


def encode(*events: Event) -> bytes:
    encoder = AGENTARY.encoder(parse(), INFO)
    return b"".join(encoder.encode(event) for event in events)


def whole(*events: Event) -> dict[str, Any]:
    return orjson.loads(AGENTARY.encode_reply(fold(events), parse(), INFO))


def test_stream_is_the_documented_one_with_an_end_of_its_own() -> None:
    data = encode(Started(), TextDelta("Hello"), TextDelta(" world"), TextDelta("!"), *END)

    assert data.split(b"\n\n") == [
        b'data: {"token":"Hello","tokenId":0,"isFirst":true,"ttfbMs":245}',
        b'data: {"token":" world","tokenId":1}',
        b'data: {"token":"!","tokenId":2}',
        b'data: {"token":"","tokenId":3,"isLast":true,"finishReason":"stop",'
        b'"usage":{"promptTokens":5,"completionTokens":2,"totalTokens":7}}',
        b"data: [DONE]",
        b"",
    ]


def test_client_that_adds_up_the_stream_loses_no_text() -> None:
    assert as_agentary_js(encode(TextDelta("a\u2028b"), TextDelta("c"), *END)) == ("a\u2028bc", 2)


def test_empty_pieces_and_thinking_are_no_tokens() -> None:
    data = encode(
        TextDelta(""), ReasoningDelta("hm"), ReasoningSigned("s"), TextDelta("a"), TextDelta(""), TextDelta("b"), *END
    )

    assert data.count(b'"tokenId"') == 3
    assert data.startswith(b'data: {"token":"a","tokenId":0,"isFirst":true,')


def test_refusal_is_text() -> None:
    assert as_agentary_js(encode(TextDelta("a"), RefusalDelta("no"), *END)) == ("ano", 2)
    assert whole(TextDelta("a"), RefusalDelta("no"), TextDelta("b"), *END)["content"] == "anob"


def test_tool_calls_come_whole_in_one_chunk_without_a_token() -> None:
    data = encode(
        ToolCallStarted(0, "a", "f"),
        ToolCallStarted(1, "b", "g"),
        ToolCallDelta(0, '{"x":'),
        ToolCallDelta(0, "1}"),
        Finished(FinishReason.TOOL_CALLS),
        Completed(),
    )

    calls, last, _ = data.removesuffix(b"\n\n").split(b"\n\n")
    assert orjson.loads(calls[6:]) == {
        "token": "",
        "tokenId": 0,
        "isFirst": True,
        "ttfbMs": 245,
        "toolCalls": [
            {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}},
            {"id": "b", "type": "function", "function": {"name": "g", "arguments": "{}"}},
        ],
    }
    assert orjson.loads(last[6:]) == {"token": "", "tokenId": 1, "isLast": True, "finishReason": "tool_calls"}


def test_whole_answer_is_what_the_client_reads_of_json() -> None:
    assert whole(TextDelta("Hi"), ToolCallStarted(0, "a", "f"), *END) == {
        "token": "Hi",
        "tokenId": 0,
        "content": "Hi",
        "finish_reason": "stop",
        "usage": {"promptTokens": 5, "completionTokens": 2, "totalTokens": 7},
        "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
    }
    assert "tool_calls" not in whole(TextDelta("Hi"), *END)  # An empty list would be calls to the client.


def test_error_in_the_stream_is_a_line_of_its_own() -> None:
    failed = Failed(ErrorKind.UPSTREAM_UNAVAILABLE, "It broke.", code="upstream_cut")

    assert AGENTARY.error_event(failed, OpenStream("gen_1")) == (
        b'error: {"message":"It broke.","statusCode":502,"code":"upstream_cut"}\n\n'
    )


@pytest.mark.parametrize(
    ("failed", "status", "phrase"),
    [
        (Failed(ErrorKind.UNAUTHENTICATED, "why"), 401, "Unauthorized"),
        (Failed(ErrorKind.MODEL_NOT_FOUND, "why", param="model"), 400, "Invalid model"),
        (Failed(ErrorKind.PERMISSION_DENIED, "why", param="model"), 400, "Invalid model"),
        (Failed(ErrorKind.UPSTREAM_REJECTED, "why", 404), 400, "Invalid model"),
        (Failed(ErrorKind.UPSTREAM_REJECTED, "why", 400, code="model_not_found"), 400, "Invalid model"),
        (Failed(ErrorKind.RATE_LIMITED, "why"), 429, "Rate limit exceeded"),
        (Failed(ErrorKind.UPSTREAM_RATE_LIMITED, "why", 429), 429, "Rate limit exceeded"),
        (Failed(ErrorKind.MODEL_NOT_FOUND, "why", code="model_not_found", param="provider"), 404, "why"),
        (Failed(ErrorKind.PERMISSION_DENIED, "why"), 403, "why"),
        (Failed(ErrorKind.INVALID_REQUEST, "why", param="messages"), 400, "why"),
        (Failed(ErrorKind.OVERLOADED, "why"), 503, "why"),
    ],
)
def test_errors_use_the_documented_phrases_and_keep_the_detail(failed: Failed, status: int, phrase: str) -> None:
    body = orjson.loads(AGENTARY.error_body(failed, "req_1"))

    assert AGENTARY.status(failed) == status
    assert (body["error"], body["message"]) == (phrase, "why")
    assert body["type"] == failed.kind
    assert body.get("param") == failed.param


def test_smallest_request_streams() -> None:
    assert parse() == GenerationRequest("m", [Message(Role.USER, [TextPart("hi")])], stream=True)
    assert parse(stream=None).stream
    assert not parse(stream=False).stream


def test_all_fields_are_read() -> None:
    request = parse(
        provider="groq",
        max_tokens=5,
        temperature=1,
        top_p=0.5,
        top_k=4,
        seed=3,
        stop=["END", ""],
        tools=[{"name": "f", "description": "d", "parameters": SCHEMA}],
        tool_choice="auto",
    )

    assert request == GenerationRequest(
        "m",
        [Message(Role.USER, [TextPart("hi")])],
        provider="groq",
        stream=True,
        max_output_tokens=5,
        temperature=1.0,
        top_p=0.5,
        top_k=4,
        seed=3,
        stop=["END"],
        tools=[Tool("f", "d", SCHEMA)],
        tool_choice=ToolChoice("auto"),
    )


@pytest.mark.parametrize("name", ["max_tokens", "max_new_tokens", "max_output_tokens"])
def test_limit_has_three_names(name: str) -> None:
    assert parse(**{name: 9}).max_output_tokens == 9


def test_what_steers_browser_models_only_is_left_out_and_named() -> None:
    request = parse(repetition_penalty=1.1, deterministic=True, enable_thinking=False)

    assert request.dropped == ["repetition_penalty", "deterministic"]


@pytest.mark.parametrize(
    "tool",
    [
        {"name": "f", "parameters": SCHEMA},
        {"name": "f", "input_schema": SCHEMA},
        {"type": "function", "name": "f", "parameters": SCHEMA},
        {"type": "function", "function": {"name": "f", "parameters": SCHEMA}},
    ],
)
def test_tools_are_read_bare_and_wrapped(tool: dict[str, Any]) -> None:
    assert parse(tools=[tool]).tools == [Tool("f", None, SCHEMA)]


def test_tools_that_run_at_a_vendor_are_opaque() -> None:
    assert parse(tools=[{"type": "web_search_20250305", "name": "web_search"}]).opaque == [
        OpaquePart("web_search_20250305", "tools.0")
    ]


@pytest.mark.parametrize(
    ("value", "choice"),
    [
        ("none", ToolChoice("none")),
        ("required", ToolChoice("required")),
        ({"type": "any"}, ToolChoice("required")),
        ({"type": "auto"}, ToolChoice("auto")),
        ({"type": "tool", "name": "f"}, ToolChoice("tool", "f")),
        ({"type": "function", "function": {"name": "f"}}, ToolChoice("tool", "f")),
    ],
)
def test_tool_choices_are_read_in_either_vendors_words(value: object, choice: ToolChoice) -> None:
    assert parse(tool_choice=value).tool_choice == choice


CONVERSATION = [
    Message(Role.SYSTEM, [TextPart("Be brief.")]),
    Message(Role.USER, [TextPart("Weather?")]),
    Message(Role.ASSISTANT, [TextPart("Let me see."), ToolCallPart("a", "f", '{"city":"Oslo"}'), ToolCallPart("b", "g", "{}")]),
    Message(Role.USER, [ToolResultPart("a", [TextPart("rain")]), ToolResultPart("b", [TextPart('{"t":3}')])]),
    Message(Role.ASSISTANT, [TextPart("Rain.")]),
    Message(Role.USER, [TextPart("Thanks")]),
]


def test_conversation_in_the_clients_own_parts() -> None:
    read = parse(
        messages=[
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Weather?"}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "text", "text": "Let me see."},
                    {"type": "tool_use", "id": "a", "name": "f", "arguments": {"city": "Oslo"}},
                    {"type": "tool_use", "id": "b", "name": "g", "input": {}},
                ],
            },
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "result": "rain"}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "b", "content": {"t": 3}}]},
            {"role": "assistant", "content": "Rain."},
            {"role": "user", "content": "Thanks"},
        ]
    )

    assert read.messages == CONVERSATION


def test_conversation_in_openais_old_form() -> None:
    calls = [
        {"id": "a", "type": "function", "function": {"name": "f", "arguments": {"city": "Oslo"}}},
        {"id": "b", "type": "function", "function": {"name": "g", "arguments": "{}"}},
    ]
    read = parse(
        messages=[
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Weather?"},
            {"role": "assistant", "content": "Let me see.", "tool_calls": calls},
            {"role": "tool", "tool_call_id": "a", "content": "rain"},
            {"role": "tool", "tool_call_id": "b", "content": '{"t":3}'},
            {"role": "assistant", "content": "Rain."},
            {"role": "user", "content": "Thanks"},
        ]
    )

    assert read.messages == CONVERSATION


def test_conversation_as_openais_responses_have_it_and_the_client_sends_it() -> None:
    read = from_input(
        [
            {"type": "message", "role": "system", "content": "Be brief."},
            {"type": "message", "role": "user", "content": "Weather?"},
            {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Let me see."}]},
            {"type": "function_call", "call_id": "a", "name": "f", "arguments": '{"city":"Oslo"}'},
            {"type": "function_call", "call_id": "b", "name": "g", "arguments": ""},
            {"type": "function_call_output", "call_id": "a", "output": "rain"},
            {"type": "function_call_output", "call_id": "b", "output": {"t": 3}},
            {"type": "message", "role": "developer", "content": "Rain."},
            {"role": "user", "content": "Thanks"},
        ]
    )

    assert read == CONVERSATION


def test_input_may_be_text_with_instructions() -> None:
    assert from_input("hi", instructions="Be brief.") == [
        Message(Role.SYSTEM, [TextPart("Be brief.")]),
        Message(Role.USER, [TextPart("hi")]),
    ]


def test_developer_who_speaks_first_is_the_system() -> None:
    assert from_input([{"role": "developer", "content": "a"}, {"role": "user", "content": "b"}])[0].role is Role.SYSTEM


def test_results_of_any_json_become_text() -> None:
    results: list[Any] = [["a"], 7, [{"type": "Feature"}], [{"type": "text", "text": "a"}], None]
    messages = [
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": result} for result in results]}
    ]

    assert [part.content for part in parse(messages=messages).messages[0].parts] == [
        [TextPart('["a"]')],
        [TextPart("7")],
        [TextPart('[{"type":"Feature"}]')],
        [TextPart("a")],
        [],
    ]


def test_what_has_no_place_is_opaque() -> None:
    read = parse(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}])

    assert read.messages[0].parts == [OpaquePart("image_url", "messages.0.content.0")]
    assert from_input([{"type": "reasoning", "id": "rs"}])[0].parts == [OpaquePart("reasoning", "input.0")]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": None, "input": []}, "input"),
        ({"messages": None, "input": 7}, "input"),
        ({"messages": None, "input": [7]}, "input.0"),
        ({"messages": None, "input": [{"type": "function_call"}]}, "input.0.call_id"),
        ({"messages": None, "input": [{"role": "tool", "content": "x"}]}, "input.0.role"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.tool_call_id"),
        ({"messages": [{"role": "assistant", "tool_calls": 7}]}, "messages.0.tool_calls"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"id": "a"}]}]}, "messages.0.tool_calls.0.function"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_use", "id": "a"}]}]}, "messages.0.content.0.name"),
        (
            {"messages": [{"role": "user", "content": [{"type": "tool_use", "id": "a", "name": "f", "input": 7}]}]},
            "messages.0.content.0.input",
        ),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stream": "no"}, "stream"),
        ({"stop": 7}, "stop"),
        ({"tools": [7]}, "tools.0"),
        ({"tools": [{"function": {}}]}, "tools.0.function.name"),
        ({"tool_choice": ["f"]}, "tool_choice"),
    ],
)
def test_faults_name_the_field_as_the_client_wrote_it(body: dict[str, Any], param: str) -> None:
    with pytest.raises(GatewayError) as caught:
        parse(**body)

    assert caught.value.failed.param == param
    assert str(caught.value).startswith(f"{param} ")
