"""What clients of OpenAI's chat completions may send, and what they get. Behaviour all dialects share: contracts/."""

from dataclasses import replace
from typing import Any

import orjson
import pytest

from common.canonical.errors import ErrorKind, Failed, GatewayError
from common.canonical.events import (
    Completed,
    Event,
    Finished,
    FinishReason,
    RefusalDelta,
    Started,
    TextDelta,
    ToolCallDelta,
    ToolCallStarted,
    Usage,
)
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
from common.canonical.reply import fold
from common.dialects.base import OpenStream, ReplyInfo
from common.dialects.openai_chat.dialect import OPENAI_CHAT
from tests.support.upstreams.recordings import data_of

INFO = ReplyInfo("gen_1", "a-model", 7)
HELLO = [{"role": "user", "content": "hi"}]


def parse(**body: Any) -> GenerationRequest:
    return OPENAI_CHAT.parse({"model": "m", "messages": HELLO, **body})


def messages(*items: dict[str, Any]) -> list[Message]:
    return parse(messages=list(items)).messages


def encode(*events: Event, **body: Any) -> bytes:
    encoder = OPENAI_CHAT.encoder(parse(stream=True, **body), INFO)
    return b"".join(encoder.encode(event) for event in events)


def test_smallest_request_gets_the_defaults() -> None:
    assert parse() == GenerationRequest("m", [Message(Role.USER, [TextPart("hi")])], include_usage=False)


def test_all_fields_are_read() -> None:
    request = parse(
        stream=True,
        stream_options={"include_usage": True},
        max_tokens=5,
        max_completion_tokens=6,
        temperature=1,
        top_p=0.5,
        stop="END",
        seed=3,
        presence_penalty=0.1,
        frequency_penalty=0.2,
        n=2,
        reasoning_effort="low",
        user="u",
        parallel_tool_calls=False,
        tools=[{"type": "function", "function": {"name": "f", "description": "d", "parameters": {}, "strict": True}}],
        tool_choice={"type": "function", "function": {"name": "f"}},
        response_format={"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object"}, "strict": True}},
    )

    assert request == GenerationRequest(
        "m",
        [Message(Role.USER, [TextPart("hi")])],
        stream=True,
        include_usage=True,
        tools=[Tool("f", "d", {}, True)],
        tool_choice=ToolChoice("tool", "f"),
        parallel_tool_calls=False,
        max_output_tokens=6,
        temperature=1.0,
        top_p=0.5,
        stop=["END"],
        seed=3,
        presence_penalty=0.1,
        frequency_penalty=0.2,
        choices=2,
        response_format=ResponseFormat({"type": "object"}, "s", True),
        reasoning=Reasoning(effort="low"),
        end_user="u",
    )


def test_hints_are_named_as_left_out() -> None:
    request = parse(store=True, metadata={"a": "b"}, service_tier="flex", verbosity="low")

    assert request == replace(parse(), dropped=["metadata", "service_tier", "store", "verbosity"])


def test_a_safety_identifier_is_an_end_user() -> None:
    assert parse(safety_identifier="s").end_user == "s"
    assert parse(safety_identifier="s", user="u").end_user == "u"


def test_what_asks_for_nothing_and_unknown_fields_are_ignored() -> None:
    request = parse(
        store=False,
        metadata={},
        service_tier="auto",
        verbosity="medium",
        something_new={"deep": [1]},
        logprobs=False,
        logit_bias={},
        modalities=["text"],
        temperature=None,
        tools=None,
        stop=None,
        stream=None,
    )

    assert request == parse()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("logprobs", True),
        ("top_logprobs", 3),
        ("logit_bias", {"1": 2}),
        ("modalities", ["text", "audio"]),
        ("audio", {"voice": "x"}),
        ("prediction", {"type": "content"}),
        ("web_search_options", {}),
    ],
)
def test_what_only_openai_has_is_kept_as_opaque(field: str, value: object) -> None:
    assert parse(**{field: value}).opaque == [OpaquePart(field, field)]


def test_tools_that_no_other_vendor_has_are_opaque() -> None:
    request = parse(tools=[{"type": "mcp", "server": "x"}, {"type": "function", "function": {"name": "f"}}])

    assert request.opaque == [OpaquePart("mcp", "tools.0")]
    assert request.tools == [Tool("f")]


def test_system_and_developer_are_one_role() -> None:
    read = messages({"role": "system", "content": "a"}, {"role": "developer", "content": "b"})

    assert read == [Message(Role.SYSTEM, [TextPart("a")]), Message(Role.SYSTEM, [TextPart("b")])]


def test_content_parts_are_read() -> None:
    [message] = messages(
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "a"},
                {"type": "image_url", "image_url": {"url": "https://x/y.png", "detail": "high"}},
                {"type": "image_url", "image_url": "https://x/z.png"},
                {"type": "image_url", "image_url": {"url": "data:image/JPEG;base64,QUJD"}},
                {"type": "image_url", "image_url": {"url": "gs://bucket/x"}},
                {"type": "input_audio", "input_audio": {"data": "QUJD", "format": "mp3"}},
                {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBERi0="}},
                {"type": "file", "file": {"filename": "a.txt", "file_data": "aGk="}},
                {"type": "file", "file": {"file_id": "file_1"}},
                {"type": "file", "file": {}},
                {"type": "video_url"},
            ],
        }
    )

    assert message.parts == [
        TextPart("a"),
        ImagePart(url="https://x/y.png", detail="high"),
        ImagePart(url="https://x/z.png"),
        ImagePart(data="QUJD", media_type="image/jpeg"),
        OpaquePart("image_url", "messages.0.content.4.image_url"),
        DocumentPart("audio/mpeg", data="QUJD"),
        DocumentPart("application/pdf", data="JVBERi0=", name="a.pdf"),
        DocumentPart("text/plain", text="hi", name="a.txt"),
        DocumentPart("application/pdf", file_id="file_1", files_at="openai"),
        OpaquePart("file", "messages.0.content.9"),
        OpaquePart("video_url", "messages.0.content.10"),
    ]


def test_a_result_holds_files_and_unknown_parts_as_text() -> None:
    file = {"type": "file", "file": {"file_data": "data:application/pdf;base64,JVBERi0="}}
    content = [{"type": "text", "text": "a"}, file, {"type": "reference", "id": 1}]

    assert messages({"role": "tool", "tool_call_id": "a", "content": content})[0].parts == [
        ToolResultPart(
            "a", [TextPart("a"), DocumentPart("application/pdf", data="JVBERi0="), TextPart('{"type":"reference","id":1}')]
        )
    ]


@pytest.mark.parametrize("mode", ["auto", "required"])
def test_allowed_tools_are_those_that_are_offered(mode: str) -> None:
    tools = [{"type": "function", "function": {"name": name}} for name in ("f", "g")]
    choice = {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools[1:]}}

    request = parse(tools=tools, tool_choice=choice)

    assert ([tool.name for tool in request.tools], request.tool_choice) == (["g"], ToolChoice(mode))
    assert parse(tools=tools[:1], tool_choice=choice).opaque == (
        [OpaquePart(mode, "tool_choice")] if mode == "required" else []
    )


def test_assistant_turn_is_read_with_its_calls() -> None:
    [message] = messages(
        {
            "role": "assistant",
            "content": None,
            "reasoning_content": "hm",
            "refusal": "no",
            "tool_calls": [
                {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}},
                {"id": "b", "function": {"name": "g", "arguments": ""}},
                {"id": "c", "type": "function", "function": {"name": "h", "arguments": {"y": 2}}},
                {"id": "d", "type": "custom", "custom": {"name": "p", "input": "*** x"}},
            ],
        }
    )

    assert message.parts == [
        ReasoningPart("hm"),
        TextPart("no"),
        ToolCallPart("a", "f", '{"x":1}'),
        ToolCallPart("b", "g", "{}"),
        ToolCallPart("c", "h", '{"y":2}'),
        ToolCallPart("d", "p", '{"input":"*** x"}'),
    ]


@pytest.mark.parametrize("extra", [{}, {"content": None}, {"content": ""}])
def test_empty_assistant_turn_is_accepted(extra: dict[str, Any]) -> None:
    assert len(messages(*HELLO, {"role": "assistant", **extra})) == 2


def test_results_that_follow_each_other_are_one_turn() -> None:
    read = messages(
        {"role": "tool", "tool_call_id": "a", "content": "one"},
        {"role": "tool", "tool_call_id": "b", "name": "g", "content": [{"type": "text", "text": "two"}]},
        {"role": "user", "content": "x"},
        {"role": "tool", "tool_call_id": "c", "content": None},
    )

    assert read == [
        Message(Role.USER, [ToolResultPart("a", [TextPart("one")]), ToolResultPart("b", [TextPart("two")])]),
        Message(Role.USER, [TextPart("x")]),
        Message(Role.USER, [ToolResultPart("c", [])]),
    ]


@pytest.mark.parametrize(
    ("value", "choice"),
    [
        ("auto", ToolChoice("auto")),
        ("none", ToolChoice("none")),
        ("required", ToolChoice("required")),
        ("any", ToolChoice("required")),
        ({"type": "tool", "name": "f"}, ToolChoice("tool", "f")),
    ],
)
def test_tool_choices_are_read(value: object, choice: ToolChoice) -> None:
    assert parse(tool_choice=value).tool_choice == choice


@pytest.mark.parametrize(
    ("field", "value", "param"),
    [
        ("n", 0, "n"),
        ("n", 129, "n"),
        ("n", "2", "n"),
        ("stream", "yes", "stream"),
        ("temperature", "hot", "temperature"),
        ("max_tokens", 0, "max_tokens"),
        ("max_tokens", 1.5, "max_tokens"),
        ("stop", 7, "stop"),
        ("stop", ["a", 7], "stop"),
        ("tools", {}, "tools"),
        ("tools", [7], "tools.0"),
        ("tools", [{"type": "function"}], "tools.0.function"),
        ("tools", [{"type": "function", "function": {"name": ""}}], "tools.0.function.name"),
        ("tool_choice", "always", "tool_choice"),
        ("tool_choice", {"type": "function", "function": {}}, "tool_choice.function.name"),
        ("response_format", "json", "response_format"),
        ("response_format", {"type": "json_schema"}, "response_format.json_schema"),
        ("response_format", {"type": "json_schema", "json_schema": {}}, "response_format.json_schema.schema"),
        ("stream_options", 7, "stream_options"),
        ("user", 7, "user"),
        ("messages", [{"role": "tool", "content": "x"}], "messages.0.tool_call_id"),
        ("messages", [{"role": "assistant", "tool_calls": {}}], "messages.0.tool_calls"),
        ("messages", [{"role": "assistant", "tool_calls": [{"id": "a"}]}], "messages.0.tool_calls.0.function"),
        ("messages", [{"role": "user", "content": [{"type": "image_url"}]}], "messages.0.content.0.image_url"),
    ],
)
def test_faults_name_the_field(field: str, value: object, param: str) -> None:
    with pytest.raises(GatewayError) as caught:
        parse(**{field: value})

    assert caught.value.failed.param == param
    assert str(caught.value).startswith(f"{param} ")


def test_the_fault_of_a_calls_arguments_names_what_openai_takes() -> None:
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": [1]}}

    with pytest.raises(
        GatewayError, match=r"^messages\.0\.tool_calls\.0\.function\.arguments must be a string that holds JSON\.$"
    ):
        parse(messages=[{"role": "assistant", "tool_calls": [call]}])


def test_message_says_what_the_field_must_be() -> None:
    with pytest.raises(GatewayError, match=r"^messages\.0\.content must be a string or a list of content parts\.$"):
        parse(messages=[{"role": "user", "content": 7}])


def test_stream_has_openais_chunks_in_their_order() -> None:
    data = encode(
        Started("up", "upstream-model"),
        TextDelta("Hé"),
        Finished(FinishReason.STOP),
        Completed(Usage(5, 2, cache_read_tokens=1, reasoning_tokens=1)),
        stream_options={"include_usage": True},
    )

    first, text, finish, usage = data_of(data)
    head = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 7,
        "model": "a-model",
        "system_fingerprint": None,
    }
    choice = {"index": 0, "logprobs": None, "finish_reason": None}
    opening = {"role": "assistant", "content": "", "refusal": None}
    assert first == {**head, "choices": [{**choice, "delta": opening}], "usage": None}
    assert text == {**head, "choices": [{**choice, "delta": {"content": "Hé"}}], "usage": None}
    assert finish == {**head, "choices": [{**choice, "delta": {}, "finish_reason": "stop"}], "usage": None}
    assert (usage["choices"], usage["usage"]["total_tokens"]) == ([], 7)
    assert usage["usage"]["prompt_tokens_details"]["cached_tokens"] == 1
    assert usage["usage"]["completion_tokens_details"]["reasoning_tokens"] == 1
    assert data.endswith(b"data: [DONE]\n\n")


def test_usage_comes_only_where_it_was_asked_for() -> None:
    data = encode(Started(), TextDelta("a"), Finished(FinishReason.STOP), Completed(Usage(5, 2)))

    assert b"usage" not in data
    assert data.endswith(b"data: [DONE]\n\n")


def test_each_choice_begins_with_its_role() -> None:
    data = encode(Started(), TextDelta("a"), TextDelta("b", 1), TextDelta("c", 1), Finished(FinishReason.LENGTH, choice=1), n=2)

    choices = [chunk["choices"][0] for chunk in data_of(data)]
    assert [choice["index"] for choice in choices] == [0, 0, 1, 1, 1, 1]
    assert choices[2]["delta"]["role"] == "assistant"
    assert choices[5]["finish_reason"] == "length"


def test_call_begins_with_id_and_name_and_goes_on_by_index() -> None:
    data = encode(ToolCallStarted(0, "id", "f"), ToolCallDelta(0, "{}"))

    _, start, piece = [chunk["choices"][0]["delta"].get("tool_calls") for chunk in data_of(data)]
    assert start == [{"index": 0, "id": "id", "type": "function", "function": {"name": "f", "arguments": ""}}]
    assert piece == [{"index": 0, "function": {"arguments": "{}"}}]


def test_whole_refusal_and_calls_have_null_content() -> None:
    for event in (RefusalDelta("no"), ToolCallStarted(0, "a", "f")):
        events: list[Event] = [event, Finished(FinishReason.STOP), Completed()]
        whole = orjson.loads(OPENAI_CHAT.encode_reply(fold(events), parse(), INFO))

        assert whole["choices"][0]["message"]["content"] is None
        assert whole["object"] == "chat.completion"


@pytest.mark.parametrize(
    ("failed", "type_", "code"),
    [
        (Failed(ErrorKind.INVALID_REQUEST, "m"), "invalid_request_error", "invalid_request"),
        (Failed(ErrorKind.UNAUTHENTICATED, "m"), "invalid_request_error", "invalid_api_key"),
        (Failed(ErrorKind.PERMISSION_DENIED, "m"), "permission_error", "permission_denied"),
        (Failed(ErrorKind.MODEL_NOT_FOUND, "m"), "invalid_request_error", "model_not_found"),
        (Failed(ErrorKind.RATE_LIMITED, "m"), "requests", "rate_limit_exceeded"),
        (Failed(ErrorKind.OVERLOADED, "m"), "server_error", "overloaded"),
        (Failed(ErrorKind.INTERNAL, "m"), "server_error", "internal"),
        (Failed(ErrorKind.UPSTREAM_RATE_LIMITED, "m", 429, "tokens", "rate_limit_exceeded"), "tokens", "rate_limit_exceeded"),
        (Failed(ErrorKind.UPSTREAM_UNAVAILABLE, "m", 529, "overloaded_error"), "server_error", "upstream_unavailable"),
    ],
)
def test_errors_use_openais_words(failed: Failed, type_: str, code: str) -> None:
    body = orjson.loads(OPENAI_CHAT.error_body(failed, "req_1"))

    assert body == {"error": {"message": "m", "type": type_, "param": None, "code": code}}
    assert OPENAI_CHAT.error_event(failed, OpenStream("gen_1")) == b"data: " + orjson.dumps(body) + b"\n\n"
