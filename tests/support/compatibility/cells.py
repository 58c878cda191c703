"""What works between each client dialect and each provider?

Every cell is tested. A client's body is parsed, built for the provider, and searched for what the client requested. An answer
on the provider's wire goes through the pumps to the dialect's own clients. ``make compatibility`` writes the results to
docs/compatibility.md, and a test fails if the document says something else.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import anthropic
import openai
import orjson
import pytest

from common.canonical.errors import Failed, GatewayError
from common.canonical.events import Completed
from common.canonical.job import Job, Policy
from common.dialects import DIALECTS
from common.dialects.base import OpenStream, ReplyInfo
from common.sse import SseCutter
from common.vendors.table import VENDORS, Vendor
from tests.support.clients import sdk_clients, seed_clients
from tests.support.clients.sdk_clients import ClientAnswer, ResponseFailed
from tests.support.clients.seed_clients import SeedError
from tests.support.upstreams.wire_answers import ERRORS, STREAMS, WHOLES, AnswerSpec
from workers.attempt.prepare import Prepared, prepare_request
from workers.providers import WIRES
from workers.providers.base import Deployment, UpstreamRequest
from workers.transcode.pump import Pump

INFO = ReplyInfo("gen_abc", "client/model", 1_700_000_000, "openai")
RAISED = (openai.APIError, anthropic.APIError, ResponseFailed, SeedError)
EVENT_BYTES_MAX = 1 << 20
PDF = "JVBERi0xLjQK"
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk"
SCHEMA = {"type": "object", "properties": {"warmth": {"type": "string"}}, "required": ["warmth"], "additionalProperties": False}


@dataclass(frozen=True)
class Client:
    """How a dialect's clients send and read. ``fields_for`` returns the fields of the body that request a feature."""

    fields_for: Callable[[str], dict[str, Any]]
    read_stream: Callable[[bytes], ClientAnswer]
    read_whole: Callable[[bytes], ClientAnswer]
    read_error: Callable[[bytes, int], None]


def _message(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def _call(id_: str, name: str) -> dict[str, Any]:
    return {"id": id_, "type": "function", "function": {"name": name, "arguments": '{"city":"Oslo"}'}}


def _bare(name: str) -> dict[str, Any]:
    return {"name": name, "description": "Looks it up.", "parameters": SCHEMA}


def _chat(feature: str) -> dict[str, Any]:
    user = _message("user", "question")
    tools = [{"type": "function", "function": _bare(name)} for name in ("weather", "clock")]
    calls = [_call("call_1", "weather"), _call("call_2", "clock")]
    results = [_message("tool", "18 degrees", tool_call_id="call_1"), _message("tool", "noon", tool_call_id="call_2")]
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}}
    file = {"type": "file", "file": {"filename": "a.pdf", "file_data": f"data:application/pdf;base64,{PDF}"}}
    more: dict[str, dict[str, Any]] = {
        "system": {"messages": [_message("system", "Be brief."), user]},
        "multi-turn": {"messages": [user, _message("assistant", "answer"), _message("user", "more")]},
        "tools": {"tools": tools[:1]},
        "parallel tools": {"tools": tools, "parallel_tool_calls": True},
        "tool results": {"messages": [user, _message("assistant", None, tool_calls=calls), *results], "tools": tools},
        "images": {"messages": [_message("user", [{"type": "text", "text": "What is this?"}, image])]},
        "PDFs": {"messages": [_message("user", [{"type": "text", "text": "What is this?"}, file])]},
        "JSON schema": {
            "response_format": {"type": "json_schema", "json_schema": {"name": "report", "schema": SCHEMA, "strict": True}}
        },
        "stop": {"stop": ["HALT"]},
        "thinking": {"reasoning_effort": "low"},
    }
    return {"messages": [user], "stream_options": {"include_usage": True}, **more.get(feature, {})}


def _messages(feature: str) -> dict[str, Any]:
    user = _message("user", "question")
    tools = [{"name": name, "input_schema": SCHEMA} for name in ("weather", "clock")]
    named = (("call_1", "weather"), ("call_2", "clock"))
    calls = [{"type": "tool_use", "id": id_, "name": name, "input": {"city": "Oslo"}} for id_, name in named]
    outputs = (("call_1", "18 degrees"), ("call_2", "noon"))
    results = [{"type": "tool_result", "tool_use_id": id_, "content": text} for id_, text in outputs]
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}}
    file = {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": PDF}}
    more: dict[str, dict[str, Any]] = {
        "system": {"system": "Be brief."},
        "multi-turn": {"messages": [user, _message("assistant", "answer"), _message("user", "more")]},
        "tools": {"tools": tools[:1]},
        "parallel tools": {"tools": tools},
        "tool results": {"messages": [user, _message("assistant", calls), _message("user", results)], "tools": tools},
        "images": {"messages": [_message("user", [{"type": "text", "text": "What is this?"}, image])]},
        "PDFs": {"messages": [_message("user", [{"type": "text", "text": "What is this?"}, file])]},
        "JSON schema": {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}},
        "stop": {"stop_sequences": ["HALT"]},
        "thinking": {"thinking": {"type": "enabled", "budget_tokens": 1024}},
    }
    return {"messages": [user], "max_tokens": 4096, **more.get(feature, {})}


def _responses(feature: str) -> dict[str, Any]:
    user = _message("user", "question")
    tools = [{"type": "function", **_bare(name), "strict": True} for name in ("weather", "clock")]
    named = (("call_1", "weather"), ("call_2", "clock"))
    calls = [{"type": "function_call", "call_id": id_, "name": name, "arguments": '{"city":"Oslo"}'} for id_, name in named]
    outputs = (("call_1", "18 degrees"), ("call_2", "noon"))
    results = [{"type": "function_call_output", "call_id": id_, "output": text} for id_, text in outputs]
    image = {"type": "input_image", "image_url": f"data:image/png;base64,{PIXEL}"}
    file = {"type": "input_file", "filename": "a.pdf", "file_data": f"data:application/pdf;base64,{PDF}"}
    more: dict[str, dict[str, Any]] = {
        "system": {"instructions": "Be brief."},
        "multi-turn": {"input": [user, _message("assistant", "answer"), _message("user", "more")]},
        "tools": {"tools": tools[:1]},
        "parallel tools": {"tools": tools, "parallel_tool_calls": True},
        "tool results": {"input": [user, *calls, *results], "tools": tools},
        "images": {"input": [_message("user", [{"type": "input_text", "text": "What is this?"}, image])]},
        "PDFs": {"input": [_message("user", [{"type": "input_text", "text": "What is this?"}, file])]},
        "JSON schema": {"text": {"format": {"type": "json_schema", "name": "report", "schema": SCHEMA, "strict": True}}},
        "thinking": {"reasoning": {"effort": "low"}},
    }
    return {"input": [user], **more.get(feature, {})}


def _agentary(feature: str) -> dict[str, Any]:
    fields = _chat(feature)
    del fields["stream_options"]
    return fields


CLIENTS = {
    "openai-chat": Client(_chat, sdk_clients.openai_stream, sdk_clients.openai_whole, sdk_clients.openai_error),
    "openai-responses": Client(
        _responses, sdk_clients.responses_stream, sdk_clients.responses_whole, sdk_clients.responses_error
    ),
    "anthropic-messages": Client(
        _messages, sdk_clients.anthropic_stream, sdk_clients.anthropic_whole, sdk_clients.anthropic_error
    ),
    "agentary": Client(_agentary, seed_clients.agentary_stream, seed_clients.agentary_whole, seed_clients.agentary_error),
    "unified": Client(_agentary, seed_clients.unified_stream, seed_clients.unified_whole, seed_clients.unified_error),
}


@dataclass(frozen=True)
class Feature:
    """``sent`` must appear in the upstream's body, in this order. The client must receive the upstream's ``answer``."""

    name: str
    sent: tuple[str, ...] = ()
    answer: AnswerSpec = field(default_factory=lambda: AnswerSpec(text="answer"))


_CALL = ("call_a", "weather", {"city": "Oslo"})
_CALLS = [_CALL, ("call_b", "clock", {"zone": "UTC"})]
FEATURES = [
    Feature("text", ("question",)),
    Feature("system", ("Be brief.",)),
    Feature("multi-turn", ("question", "answer", "more")),
    Feature("tools", ('"weather"', "warmth"), AnswerSpec(calls=[_CALL])),
    Feature("parallel tools", ('"weather"', '"clock"'), AnswerSpec(calls=_CALLS)),
    Feature("tool results", ('"weather"', "Oslo", '"clock"', "18 degrees", "noon")),
    Feature("images", (PIXEL,)),
    Feature("PDFs", (PDF,)),
    Feature("thinking", ("question",), AnswerSpec(text="answer", thinking="thought")),
    Feature("JSON schema", ("warmth",), AnswerSpec(text='{"warmth":"mild"}')),
    Feature("stop", ("HALT",)),
    Feature("usage"),
    Feature("cached usage", answer=AnswerSpec(text="answer", cached_tokens=5)),
    Feature("error before the stream"),
    Feature("error in the stream", answer=AnswerSpec(text="half", error="The model fell over.")),
]


class NotSupported(Exception):
    """The combination does not work; the message says why."""


def deployment_of(vendor: Vendor, dialect: str) -> Deployment:
    query = "api-version=2025-04-01-preview" if vendor.id == "azure-openai" else ""
    model = "some-model"
    return Deployment(vendor.id, "https://upstream.example", "key", model, vendor.wire_for(dialect), query)


def body_of(dialect: str, feature: str, *, stream: bool) -> dict[str, Any]:
    provider = {"provider": "openai"} if dialect in ("agentary", "unified") else {}
    return {"model": "m", "stream": stream, **provider, **CLIENTS[dialect].fields_for(feature)}


def prepare_upstream(body: dict[str, Any], dialect: str, deployment: Deployment) -> Prepared:
    """Return the request that a worker would send, and the pump that makes the client's bytes from the answer."""
    stream = bool(body["stream"])
    job = Job("gen_abc", "req_1", dialect, "m", stream, Policy.STOP, grace_s=0, created_s=1, body=orjson.dumps(body))
    return prepare_request(job, WIRES[deployment.wire], deployment, replace(INFO, body=body))


def client_bytes_of(pump: Pump, wire: str, spec: AnswerSpec) -> bytes:
    """Return the client's bytes for the upstream's answer, which is a stream or a whole body as the pump expects."""
    if not pump.is_stream:
        return pump.feed_whole(WHOLES[wire](spec))
    client_bytes = pump.feed(SseCutter(EVENT_BYTES_MAX).feed(STREAMS[wire](spec)))
    return client_bytes + pump.end()


def try_cell(dialect: str, vendor: Vendor, feature: Feature) -> None:
    """Test a feature, in a stream and in a whole answer.

    Raises:
        NotSupported: the dialect or the provider does not support it.
        AssertionError: it should work, but does not.
    """
    deployment = deployment_of(vendor, dialect)
    for stream in (True, False):
        body = body_of(dialect, feature.name, stream=stream)
        try:
            request, pump = prepare_upstream(body, dialect, deployment)
        except GatewayError as error:
            raise NotSupported(f"400 that names `{error.failed.param}`") from None
        _check_sent(request, dialect, feature)
        if feature.name == "error before the stream":
            _try_early_error(dialect, deployment)
            return
        client_bytes = client_bytes_of(pump, deployment.wire, feature.answer)
        if feature.answer.error:
            _try_late_error(dialect, pump, client_bytes, feature.answer.error)
            return  # In a whole answer, it is an error before the stream.
        assert isinstance(pump.terminal, Completed)
        result = (CLIENTS[dialect].read_stream if stream else CLIENTS[dialect].read_whole)(client_bytes)
        _check_answer(result, client_bytes, feature, knows_cached=bool(pump.usage and pump.usage.cache_read_tokens))


def _check_sent(request: UpstreamRequest, dialect: str, feature: Feature) -> None:
    sent, start = request.body.decode(), 0
    for words in feature.sent:
        position = sent.find(words, start if feature.name == "multi-turn" else 0)
        if position < 0:
            assert not _can_express(dialect, feature, words)
            raise NotSupported("the dialect has no field for it")
        start = position + 1


def _can_express(dialect: str, feature: Feature, words: str) -> bool:
    """Whether a client can request it at all: a field that its dialect does not define has no effect."""
    fields = CLIENTS[dialect].fields_for(feature.name)
    known = not (dialect == "agentary" and "response_format" in fields)
    return known and words.encode() in orjson.dumps(fields)


def _check_answer(result: ClientAnswer, client_bytes: bytes, feature: Feature, *, knows_cached: bool) -> None:
    expected = feature.answer
    assert result.text == expected.text
    assert result.calls == expected.calls
    assert (result.input_tokens, result.output_tokens) == (expected.input_tokens, expected.output_tokens)
    if expected.thinking and result.thinking != expected.thinking:
        assert expected.thinking.encode() not in client_bytes
        raise NotSupported("the dialect has no place for it")
    if expected.cached_tokens and not _cached_in(client_bytes, expected.cached_tokens):
        counts_others = "Cohere's figure counts other tokens than those that it bills"
        raise NotSupported("the dialect has no place for it" if knows_cached else counts_others)


def _cached_in(client_bytes: bytes, tokens: int) -> bool:
    names = ("cached_tokens", "cache_read_input_tokens", "cacheReadTokens")
    return any(f'"{name}":{tokens}'.encode() in client_bytes.replace(b": ", b":") for name in names)


def _try_early_error(dialect: str, deployment: Deployment) -> None:
    message = "There is no capacity."
    failed = WIRES[deployment.wire].read_error(503, {}, orjson.dumps(ERRORS[deployment.wire](message)))
    assert DIALECTS[dialect].status(failed) == 503
    _check_raises(lambda: CLIENTS[dialect].read_error(DIALECTS[dialect].error_body(failed, "req_1"), 503), message)


def _try_late_error(dialect: str, pump: Pump, client_bytes: bytes, message: str) -> None:
    assert isinstance(pump.terminal, Failed)
    # The API writes this after the frames, see ``api.relay.response``.
    last = client_bytes[client_bytes[:-2].rfind(b"\n\n") + 2 :] if b"\n\n" in client_bytes[:-2] else client_bytes
    client_bytes += DIALECTS[dialect].error_event(pump.terminal, OpenStream("gen_abc", last, "m", 1))
    _check_raises(lambda: CLIENTS[dialect].read_stream(client_bytes), message)


def _check_raises(read: Callable[[], object], message: str) -> None:
    with pytest.raises(RAISED) as caught:
        read()
    assert message in str(caught.value)


def cell_of(dialect: str, vendor: Vendor, feature: Feature) -> str:
    """Return why the combination does not work, or an empty text if it works."""
    try:
        try_cell(dialect, vendor, feature)
    except NotSupported as reason:
        return str(reason)
    return ""


REMOTE = [vendor for vendor in VENDORS.values() if vendor.id != "demo"]
