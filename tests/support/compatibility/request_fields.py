"""What happens to each field of a client's request, on each wire?

Every field is tested: the body with it and the body without it are built for the wire and compared. A field
that makes no difference must be named as dropped; otherwise the client would be misled, and the test fails.
"""

from dataclasses import dataclass, field
from typing import Any

import orjson

from common.canonical.errors import ErrorKind, GatewayError
from common.vendors.table import VENDORS
from tests.support.compatibility.cells import CLIENTS, PIXEL, SCHEMA, prepare_upstream
from workers.providers.base import Deployment, UpstreamRequest

# For each wire, the vendor after which it is named, and the model of that vendor that accepts the most fields.
TARGETS = {
    "openai-chat": ("openai", "gpt-5"),
    "openai-responses": ("openai", "gpt-5"),
    "anthropic-messages": ("anthropic", "claude-haiku-4-5"),
    "cohere": ("cohere", "command-a-03-2025"),
    "gemini": ("google-ai-studio", "gemini-2.5-flash"),
}


@dataclass(frozen=True)
class Field:
    """``name`` is the client's name for it, ``fields`` are the body's fields that set it, ``beside`` those that it needs."""

    name: str
    fields: dict[str, Any]
    beside: dict[str, Any] = field(default_factory=dict)


def _plain(**values: Any) -> list[Field]:
    return [Field(name, {name: value}) for name, value in values.items()]


_TOOL = {"name": "weather", "parameters": SCHEMA}
_CHAT_TOOLS = {"tools": [{"type": "function", "function": _TOOL}]}
_CHAT_STRICT = {"tools": [{"type": "function", "function": {**_TOOL, "strict": True}}]}
_CHAT_IMAGE = {"url": f"data:image/png;base64,{PIXEL}"}
_CHAT_FORMAT = {"type": "json_schema", "json_schema": {"name": "report", "schema": SCHEMA}}
_SAMPLING = _plain(temperature=0.5, top_p=0.5, top_k=5, seed=7, stop=["HALT"], max_tokens=50)


def _chat_image(**more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {**_CHAT_IMAGE, **more}}]}]}


_CHAT = [
    *_SAMPLING,
    *_plain(max_completion_tokens=50, presence_penalty=0.5, frequency_penalty=0.5, n=2, reasoning_effort="low"),
    *_plain(functions=[_TOOL], user="u", safety_identifier="s"),
    Field("function_call", {"function_call": {"name": "weather"}}, {"functions": [_TOOL]}),
    Field("tools", _CHAT_TOOLS),
    Field("tools[].strict", _CHAT_STRICT, _CHAT_TOOLS),
    Field("tools[] of the type custom", {"tools": [{"type": "custom", "custom": {"name": "x"}}]}),
    Field("tool_choice", {"tool_choice": "required"}, _CHAT_TOOLS),
    Field("parallel_tool_calls", {"parallel_tool_calls": False}, _CHAT_TOOLS),
    Field("response_format: json_object", {"response_format": {"type": "json_object"}}),
    Field("response_format: json_schema", {"response_format": _CHAT_FORMAT}),
    Field("image_url.detail", _chat_image(detail="low"), _chat_image()),
    Field("stream_options", {"stream_options": {"include_usage": True}}, {"stream_options": {}}),
    *_plain(logprobs=True, top_logprobs=3, logit_bias={"1": 2}, modalities=["text", "audio"], audio={"voice": "x"}),
    *_plain(prediction={"type": "content", "content": "x"}, web_search_options={"search_context_size": "low"}),
    *_plain(metadata={"a": "b"}, moderation={"model": "x"}, prompt_cache_key="k", prompt_cache_options={"ttl": "30m"}),
    *_plain(prompt_cache_retention="24h", service_tier="flex", store=True, verbosity="low"),
]
_MESSAGES_TOOLS = {"tools": [{"name": "weather", "input_schema": SCHEMA}]}
_MESSAGES = [
    *_plain(max_tokens=50, temperature=0.5, top_p=0.5, top_k=5, stop_sequences=["HALT"], system="Be brief."),
    *_plain(metadata={"user_id": "u"}, thinking={"type": "enabled", "budget_tokens": 1024}),
    Field("output_config.format", {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}}),
    Field("output_config.effort", {"output_config": {"effort": "high"}}, {"thinking": {"type": "adaptive"}}),
    Field("tools", _MESSAGES_TOOLS),
    Field("tools[] that run at Anthropic", {"tools": [{"type": "web_search_20250305", "name": "web_search"}]}),
    Field("tool_choice", {"tool_choice": {"type": "any"}}, _MESSAGES_TOOLS),
    Field(
        "tool_choice.disable_parallel_tool_use",
        {"tool_choice": {"type": "auto", "disable_parallel_tool_use": True}},
        {**_MESSAGES_TOOLS, "tool_choice": {"type": "auto"}},
    ),
    *_plain(mcp_servers=[{"type": "url", "url": "https://x.example", "name": "x"}], container="c", compaction={"a": 1}),
    *_plain(thread={"type": "create"}, cache_control={"type": "ephemeral"}, context_management={"edits": [{"type": "x"}]}),
    *_plain(billing_policy={"bill_to": "x"}, diagnostics={"previous_message_id": "x"}, fallback_credit_token="t"),
    *_plain(fallbacks="default", inference_geo="us", service_tier="standard_only", speed="fast", user_profile_id="u"),
    *_plain(workspace_id="w"),
]
_RESPONSES_TOOLS = {"tools": [{"type": "function", **_TOOL, "strict": False}]}
_RESPONSES_FORMAT = {"type": "json_schema", "name": "report", "schema": SCHEMA}
_RESPONSES = [
    *_plain(max_output_tokens=50, temperature=0.5, top_p=0.5, instructions="Be brief.", reasoning={"effort": "low"}),
    *_plain(user="u", safety_identifier="s"),
    Field("text.format: json_object", {"text": {"format": {"type": "json_object"}}}),
    Field("text.format: json_schema", {"text": {"format": _RESPONSES_FORMAT}}),
    Field("text.verbosity", {"text": {"verbosity": "low"}}),
    Field("tools", _RESPONSES_TOOLS),
    Field("tools[].strict", {"tools": [{"type": "function", **_TOOL, "strict": True}]}, _RESPONSES_TOOLS),
    Field("tools[] that run at OpenAI", {"tools": [{"type": "web_search"}]}),
    Field("tool_choice", {"tool_choice": "required"}, _RESPONSES_TOOLS),
    Field("parallel_tool_calls", {"parallel_tool_calls": False}, _RESPONSES_TOOLS),
    *_plain(background=True, store=False, previous_response_id="resp_1", metadata={"a": "b"}),
    Field("include: reasoning.encrypted_content", {"include": ["reasoning.encrypted_content"]}),
    Field("include: message.output_text.logprobs", {"include": ["message.output_text.logprobs"]}),
    *_plain(conversation="conv_1", prompt={"id": "p"}, top_logprobs=3, access_programs=[{}], image={"a": 1}),
    *_plain(context_management=[{"type": "compaction"}], max_tool_calls=3, moderation={"model": "x"}, prompt_cache_key="k"),
    *_plain(prompt_cache_options={"ttl": "30m"}, prompt_cache_retention="24h", service_tier="flex", truncation="auto"),
    *_plain(stream_options={"include_obfuscation": True}),
]
_AGENTARY = [
    *_SAMPLING,
    *_plain(
        max_new_tokens=50,
        max_output_tokens=50,
        instructions="Be brief.",
        repetition_penalty=1.1,
        deterministic=True,
        enable_thinking=True,
    ),
    Field("tools", {"tools": [_TOOL]}),
    Field("tool_choice", {"tool_choice": "required"}, {"tools": [_TOOL]}),
]
FIELDS: dict[str, list[Field]] = {
    "openai-chat": _CHAT,
    "openai-responses": _RESPONSES,
    "anthropic-messages": _MESSAGES,
    "agentary": _AGENTARY,
    "unified": _CHAT,
}
# Features that Sluice itself provides, whichever the provider is.
OWN = {
    "openai-chat": {"stream_options"},
    "openai-responses": {
        *("background", "include: reasoning.encrypted_content", "metadata"),
        *("previous_response_id", "store"),
    },
    "unified": {"stream_options"},
}


def deployment_on(wire: str, vendor: str | None = None) -> Deployment:
    provider, model = TARGETS[wire]
    return Deployment(vendor or provider, "https://upstream.example", "key", model, wire)


def fate_of(request_field: Field, dialect: str, deployment: Deployment) -> str:
    """Return "carried", "dropped" (with its name in the response header, if that differs), "refused" or "own".

    Raises:
        AssertionError: the field is ignored, or is refused but not named.
    """
    base = {"model": "m", "stream": True, **CLIENTS[dialect].fields_for("text")}
    base |= {"provider": "openai"} if dialect in ("agentary", "unified") else {}
    without = _build({**base, **request_field.beside}, dialect, deployment)
    assert isinstance(without, UpstreamRequest)
    request = _build({**base, **request_field.beside, **request_field.fields}, dialect, deployment)
    if isinstance(request, str):
        assert request.partition(".")[0] in request_field.fields, f"{request_field.name} is refused as {request}"
        return "refused"
    if named := [name for name in request.dropped if name not in without.dropped]:
        return "dropped" if named == [request_field.name] else f"dropped, as `{', '.join(named)}`"
    if orjson.loads(request.body) != orjson.loads(without.body):
        return "carried"
    assert request_field.name in OWN.get(dialect, ()), f"{request_field.name} of {dialect} is ignored on {deployment.wire}"
    return "own"


def _build(body: dict[str, Any], dialect: str, deployment: Deployment) -> UpstreamRequest | str:
    """Return the upstream's request, or the name of the field that is refused."""
    try:
        return prepare_upstream(body, dialect, deployment)[0]
    except GatewayError as error:
        failed = error.failed
    assert failed.kind is ErrorKind.INVALID_REQUEST
    assert failed.param
    return failed.param


def dropped_by(vendor: str) -> list[str]:
    """Return the fields of an openai-chat client that OpenAI gets but this vendor of the openai-chat wire does not."""
    openai, other = deployment_on("openai-chat"), deployment_on("openai-chat", vendor)
    return [
        field.name
        for field in FIELDS["openai-chat"]
        if fate_of(field, "openai-chat", other).startswith("dropped") and fate_of(field, "openai-chat", openai) == "carried"
    ]


CHAT_VENDORS = [id_ for id_, vendor in VENDORS.items() if "openai-chat" in vendor.wires and id_ not in ("openai", "demo")]
