"""What Gemini is sent."""

from typing import Any

import orjson
import pytest

from common.canonical.errors import GatewayError
from common.canonical.generation import (
    GenerationRequest,
    ImagePart,
    Message,
    Part,
    Reasoning,
    ReasoningPart,
    Role,
    TextPart,
    ToolCallPart,
    ToolResultPart,
)
from common.dialects import DIALECTS
from common.vendors.models import MODELS
from workers.providers.base import Deployment, UpstreamRequest
from workers.providers.gemini.wire import GEMINI

BASE_URL = "https://generativelanguage.googleapis.com"
NEW, OLD = "gemini-3.8-flash", "gemini-2.5-flash"


def send(parsed: GenerationRequest, model: str = NEW, base_url: str = BASE_URL) -> UpstreamRequest:
    facts = MODELS.facts("google-ai-studio", model)
    return GEMINI.build_request(parsed, Deployment("google-ai-studio", base_url, "the-key", model, facts=facts))


def build(body: dict[str, Any], model: str = NEW) -> dict[str, Any]:
    """What an OpenAI client's body becomes."""
    parsed = DIALECTS["openai-chat"].parse({"model": "m", "messages": [{"role": "user", "content": "x"}], **body})
    return orjson.loads(send(parsed, model).body)


def build_from(*messages: Message, model: str = NEW, **fields: Any) -> dict[str, Any]:
    return orjson.loads(send(GenerationRequest("m", list(messages), **fields), model).body)


def config(body: dict[str, Any], model: str = NEW) -> dict[str, Any]:
    return build(body, model).get("generationConfig", {})


def user(*parts: Part) -> Message:
    return Message(Role.USER, list(parts))


def model(*parts: Part) -> Message:
    return Message(Role.ASSISTANT, list(parts))


CALL = ToolCallPart("call_1", "f", '{"a":1}')
RESULT = ToolResultPart("call_1", [TextPart("r")])
HI = user(TextPart("hi"))


# The address


@pytest.mark.parametrize(
    ("base_url", "name", "url"),
    [
        (BASE_URL, "gemini-x", f"{BASE_URL}/v1beta/models/gemini-x:streamGenerateContent?alt=sse"),
        (BASE_URL, "models/gemini-x", f"{BASE_URL}/v1beta/models/gemini-x:streamGenerateContent?alt=sse"),
        (f"{BASE_URL}/v1", "gemini-x", f"{BASE_URL}/v1/models/gemini-x:streamGenerateContent?alt=sse"),
        (f"{BASE_URL}/v1alpha", "gemini-x", f"{BASE_URL}/v1alpha/models/gemini-x:streamGenerateContent?alt=sse"),
        ("https://gw/v1/a/google", "gemini-x", "https://gw/v1/a/google/v1beta/models/gemini-x:streamGenerateContent?alt=sse"),
        # A name cannot lead to another method or another place.
        (
            BASE_URL,
            "../../v1/files?a#b",
            f"{BASE_URL}/v1beta/models/..%2F..%2Fv1%2Ffiles%3Fa%23b:streamGenerateContent?alt=sse",
        ),
    ],
)
def test_the_address_names_model_and_method(base_url: str, name: str, url: str) -> None:
    built = send(GenerationRequest("m", [HI]), name, base_url)

    assert built.url == url
    assert built.headers == {
        "content-type": "application/json",
        "accept-encoding": "identity",
        "x-goog-api-key": "the-key",
    }


def test_query_and_headers_of_the_deployment_are_sent() -> None:
    deployment = Deployment("g", "https://gw", "", "m", query="a=b", headers={"cf-aig-authorization": "t"})

    built = GEMINI.build_request(GenerationRequest("m", [HI]), deployment)

    assert built.url == "https://gw/v1beta/models/m:streamGenerateContent?a=b&alt=sse"
    assert built.headers["cf-aig-authorization"] == "t"
    assert "x-goog-api-key" not in built.headers


def test_counting_wraps_the_same_request() -> None:
    parsed = GenerationRequest("m", [Message(Role.SYSTEM, [TextPart("s")]), HI])
    deployment = Deployment("google-ai-studio", BASE_URL, "the-key", "models/gemini-x")

    counted = GEMINI.count_request(parsed, {}, {}, deployment)

    assert counted.url == f"{BASE_URL}/v1beta/models/gemini-x:countTokens"
    assert orjson.loads(counted.body) == {
        "generateContentRequest": {"model": "models/gemini-x", **orjson.loads(send(parsed).body)}
    }
    assert GEMINI.read_count(b'{"totalTokens": 31}') == 31
    assert GEMINI.read_count(b"{}") is GEMINI.read_count(b"no") is None


# The conversation


def test_a_conversation_becomes_turns() -> None:
    calls = [
        {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}},
        {"id": "call_2", "type": "function", "function": {"name": "g", "arguments": ""}},
    ]
    built = build(
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "developer", "content": "Be kind."},
                {"role": "user", "content": "look"},
                {"role": "user", "content": "now"},
                {"role": "assistant", "content": "I do.", "reasoning_content": "unsigned", "tool_calls": calls},
                {"role": "tool", "tool_call_id": "call_1", "content": "one"},
                {"role": "tool", "tool_call_id": "call_2", "content": "two"},
                {"role": "system", "content": "In the middle."},
                {"role": "assistant", "content": ""},
                {"role": "user", "content": "go on"},
            ]
        },
        OLD,
    )

    assert built["systemInstruction"] == {"parts": [{"text": "Be brief.\n\nBe kind."}]}
    assert built["contents"] == [
        {"role": "user", "parts": [{"text": "look"}, {"text": "now"}]},
        {
            "role": "model",
            "parts": [
                {"text": "I do."},
                {"functionCall": {"id": "call_1", "name": "f", "args": {"a": 1}}},
                {"functionCall": {"id": "call_2", "name": "g", "args": {}}},
            ],
        },
        {
            "role": "user",
            "parts": [
                {"functionResponse": {"id": "call_1", "name": "f", "response": {"output": "one"}}},
                {"functionResponse": {"id": "call_2", "name": "g", "response": {"output": "two"}}},
                {"text": "In the middle."},
                {"text": "go on"},
            ],
        },
    ]


def test_results_stand_first_and_say_that_they_are_errors() -> None:
    failed = ToolResultPart("call_1", [TextPart("no"), TextPart("way")], is_error=True)

    built = build_from(HI, model(CALL), user(TextPart("and?"), failed))

    assert built["contents"][2]["parts"] == [
        {"functionResponse": {"id": "call_1", "name": "f", "response": {"error": "no\n\nway"}}},
        {"text": "and?"},
    ]


def test_a_result_of_no_call_is_a_text() -> None:
    contents = build_from(HI, user(ToolResultPart("call_9", [TextPart("7")])))["contents"]

    assert contents[0]["parts"][1:] == [{"text": "Result of the tool call call_9:"}, {"text": "7"}]


def test_an_id_that_comes_again_means_the_call_before_it() -> None:
    other = ToolCallPart("call_1", "g", "{}")

    contents = build_from(HI, model(CALL), user(RESULT), model(other), user(RESULT))["contents"]

    assert [contents[at]["parts"][0]["functionResponse"]["name"] for at in (2, 4)] == ["f", "g"]


def test_arguments_that_are_no_object_are_shown_all_the_same() -> None:
    deep = '{"a":' * 300 + "1" + "}" * 300
    built = build_from(HI, model(*[ToolCallPart("a", "f", text) for text in ("not json", "[1]", "", deep)]))

    args = [part["functionCall"]["args"] for part in built["contents"][1]["parts"]]
    assert args == [{"arguments": "not json"}, {"arguments": [1]}, {}, {"arguments": deep}]


def test_a_system_prompt_alone_becomes_the_users_word() -> None:
    built = build({"messages": [{"role": "system", "content": "Say hi."}]})

    assert built == {"contents": [{"role": "user", "parts": [{"text": "Say hi."}]}]}


# Signatures


def signatures(*parts: Part, name: str = NEW) -> list[str | None]:
    turn = build_from(HI, model(*parts), user(RESULT), model=name)["contents"][1]
    return [part.get("thoughtSignature") for part in turn["parts"]]


def test_a_signature_goes_back_on_the_part_that_it_signed() -> None:
    second = ToolCallPart("call_2", "g", "{}")

    assert signatures(ReasoningPart("", "gemini:SIG"), CALL, second) == ["SIG", None]
    assert signatures(ReasoningPart("thought", "gemini:SIG"), CALL, name=OLD) == ["SIG"]
    assert signatures(ReasoningPart("thought", "gemini:SIG"), TextPart("so"), CALL) == [
        "SIG",
        "skip_thought_signature_validator",
    ]
    assert signatures(ReasoningPart("", "gemini:A"), TextPart(""), ReasoningPart("", "gemini:B"), CALL) == ["A", "B"]


def test_another_vendors_signature_is_none() -> None:
    assert signatures(ReasoningPart("thought", "EqQBCkYIARgCKkA="), CALL, name=OLD) == [None]
    assert signatures(ReasoningPart(redacted="ENC"), CALL, name=OLD) == [None]


def test_unsigned_calls_are_let_pass_where_a_signature_is_needed() -> None:
    second = ToolCallPart("call_2", "g", "{}")

    assert signatures(TextPart("well"), CALL, second) == [None, "skip_thought_signature_validator", None]
    assert signatures(CALL, name="gemini-flash-latest") == ["skip_thought_signature_validator"]
    for older in (OLD, "gemini-2.0-flash", "gemini-1.5-pro-002", "gemma-3-27b-it"):
        assert signatures(CALL, name=older) == [None]


def test_thoughts_do_not_go_back() -> None:
    built = build_from(HI, model(ReasoningPart("secret", "gemini:SIG"), TextPart("so")), HI)

    assert built["contents"][1]["parts"] == [{"text": "so", "thoughtSignature": "SIG"}]


# Images

PNG = ImagePart(data="QUJD", media_type="image/png")
INLINE = {"inlineData": {"mimeType": "image/png", "data": "QUJD"}}
TYPES = {"https://x/y.png": "image/png", "https://x/y.JPG?a=2#b": "image/jpeg", "https://x/y": None, "https://x.png/y": None}


@pytest.mark.parametrize(("url", "type_"), TYPES.items())
def test_an_image_by_url_is_a_file_that_google_fetches(url: str, type_: str | None) -> None:
    (part,) = build_from(user(ImagePart(url=url)))["contents"][0]["parts"]

    assert part == {"fileData": {"fileUri": url} | ({"mimeType": type_} if type_ else {})}


def test_an_image_by_data_stands_in_the_request() -> None:
    assert build_from(user(PNG))["contents"][0]["parts"] == [INLINE]


def test_images_of_a_result_stand_in_it_where_the_model_knows_that() -> None:
    result = ToolResultPart("call_1", [TextPart("see"), PNG, ImagePart(url="https://x/y.png")])
    file = {"fileData": {"fileUri": "https://x/y.png", "mimeType": "image/png"}}
    plain = {"id": "call_1", "name": "f", "response": {"output": "see"}}

    def parts(name: str) -> Any:
        return build_from(HI, model(CALL), user(result), model=name)["contents"][2]["parts"]

    assert parts(NEW) == [{"functionResponse": {**plain, "parts": [INLINE]}}, file]
    assert parts(OLD) == [{"functionResponse": plain}, INLINE, file]


# Tools

TOOL = {"type": "function", "function": {"name": "f"}}


def test_tools_keep_their_schemas_as_they_are() -> None:
    schema = {"$schema": "x", "type": "object", "properties": {"a": {"$ref": "#/$defs/a"}}, "$defs": {"a": {"const": 1}}}
    tools = [
        {"type": "function", "function": {"name": "f", "description": "d", "parameters": schema}},
        {"type": "function", "function": {"name": "g", "parameters": {"type": "object", "properties": {}}}},
        {"type": "function", "function": {"name": "h", "parameters": {"anyOf": []}}},
        TOOL,
    ]

    assert build({"tools": tools})["tools"] == [
        {
            "functionDeclarations": [
                {"name": "f", "description": "d", "parametersJsonSchema": schema},
                {"name": "g"},
                {"name": "h", "parametersJsonSchema": {"anyOf": []}},
                {"name": "f"},
            ]
        }
    ]


@pytest.mark.parametrize(
    ("choice", "wanted"),
    [
        ("auto", {"mode": "AUTO"}),
        ("none", {"mode": "NONE"}),
        ("required", {"mode": "ANY"}),
        ({"type": "function", "function": {"name": "f"}}, {"mode": "ANY", "allowedFunctionNames": ["f"]}),
    ],
)
def test_tool_choices_are_said(choice: object, wanted: object) -> None:
    assert build({"tools": [TOOL], "tool_choice": choice})["toolConfig"] == {"functionCallingConfig": wanted}
    assert "toolConfig" not in build({"tools": [TOOL]})
    assert "toolConfig" not in build({"tool_choice": choice})


# Settings


def test_settings_are_said_in_googles_words() -> None:
    sampling = {"temperature": 1.7, "top_p": 0.9, "top_k": 3, "presence_penalty": 0.5, "frequency_penalty": 0.25}

    asked = {**sampling, "max_tokens": 50, "stop": ["a", "b"], "seed": 7, "n": 2}
    assert config(asked, "gemini-2.0-flash") == {
        "maxOutputTokens": 50,
        "temperature": 1.7,
        "topP": 0.9,
        "topK": 3,
        "stopSequences": ["a", "b"],
        "seed": 7,
        "presencePenalty": 0.5,
        "frequencyPenalty": 0.25,
        "candidateCount": 2,
    }
    assert config(asked).keys().isdisjoint({"presencePenalty", "frequencyPenalty"})  # Newer models refuse them.
    assert "generationConfig" not in build({"n": 1})


@pytest.mark.parametrize("seed", [2**31, 2**63 - 1, -1])
def test_a_seed_fits_into_googles(seed: int) -> None:
    assert 0 <= config({"seed": seed})["seed"] < 2**31


@pytest.mark.parametrize(("field", "value"), [("stop", list("abcdef")), ("n", 9), ("logprobs", True)])
def test_what_gemini_has_not_is_refused(field: str, value: object) -> None:
    with pytest.raises(GatewayError) as caught:
        build({field: value})

    assert caught.value.failed.param == field


def test_json_is_asked_for_with_and_without_a_schema() -> None:
    schema = {"type": "object", "additionalProperties": False}
    with_schema = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}

    assert config({"response_format": {"type": "json_object"}}) == {"responseMimeType": "application/json"}
    assert config({"response_format": with_schema}) == {
        "responseMimeType": "application/json",
        "responseJsonSchema": schema,
    }


@pytest.mark.parametrize(
    ("name", "reasoning", "wanted"),
    [
        (NEW, None, None),
        (NEW, Reasoning(), {"includeThoughts": True}),
        (NEW, Reasoning(effort="minimal"), {"includeThoughts": True, "thinkingLevel": "low"}),
        (NEW, Reasoning(effort="medium"), {"includeThoughts": True, "thinkingLevel": "medium"}),
        (NEW, Reasoning(effort="xhigh"), {"includeThoughts": True, "thinkingLevel": "high"}),
        (NEW, Reasoning(budget_tokens=1024), {"includeThoughts": True, "thinkingLevel": "low"}),
        (NEW, Reasoning(budget_tokens=31_999), {"includeThoughts": True, "thinkingLevel": "high"}),
        (NEW, Reasoning(enabled=False), {"thinkingLevel": "low"}),
        ("gemini-3-pro-preview", Reasoning(effort="medium"), {"includeThoughts": True, "thinkingLevel": "high"}),
        (OLD, Reasoning(), {"includeThoughts": True}),
        (OLD, Reasoning(effort="medium"), {"includeThoughts": True, "thinkingBudget": 8192}),
        (OLD, Reasoning(budget_tokens=31_999), {"includeThoughts": True, "thinkingBudget": 24_576}),
        (OLD, Reasoning(enabled=False), {"thinkingBudget": 0}),
        ("gemini-2.5-pro", Reasoning(enabled=False), {"thinkingBudget": 128}),
        ("gemini-2.0-flash", Reasoning(effort="high"), None),
    ],
)
def test_reasoning_becomes_what_the_models_generation_knows(name: str, reasoning: Reasoning | None, wanted: object) -> None:
    built = build_from(HI, model=name, reasoning=reasoning)

    assert built.get("generationConfig", {}).get("thinkingConfig") == wanted


def test_what_nobody_misses_is_left_out_and_named() -> None:
    tool = {"type": "function", "function": {"name": "f", "strict": True}}
    image = {"type": "image_url", "image_url": {"url": "https://x/y.png", "detail": "low"}}
    body = {
        "model": "m",
        "messages": [{"role": "user", "content": [image]}],
        "tools": [tool],
        "parallel_tool_calls": False,
        "user": "u",
        "reasoning_effort": "low",
    }
    parsed = DIALECTS["openai-chat"].parse(body)

    assert send(parsed, NEW).dropped == ["user", "parallel_tool_calls", "tools.strict", "detail"]
    assert send(parsed, "gemini-2.0-flash").dropped == ["user", "parallel_tool_calls", "tools.strict", "detail", "reasoning"]
    assert send(GenerationRequest("m", [HI])).dropped == []
