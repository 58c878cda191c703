"""Does a vendor accept what Sluice sends? Every dialect, vendor and generation of models, with the strict judge as the vendor.

A wish is what a client wants, in no dialect's words; each dialect's clients say it in their own. ``outcome`` sends it the way a
worker does, and asks the judge.
"""

import re
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any
from urllib.parse import urlsplit

import orjson

from common.canonical.errors import GatewayError
from common.canonical.job import Job, Policy
from common.config.groups.models import ProviderSettings
from common.config.settings import Settings
from tests.support.compatibility.cells import INFO, PIXEL
from tests.support.upstreams.strict import refusal
from workers.attempt.prepare import prepare_request
from workers.providers import WIRES
from workers.upstream.deployments import deployments

# For each vendor, a model of each generation that takes other requests than the one before.
MODELS_OF: dict[str, tuple[str, ...]] = {
    "openai": (
        "gpt-4o",
        "gpt-4.1",
        "o3",
        "o1-pro",
        "gpt-5",
        "gpt-5-chat-latest",
        "gpt-5.1",
        "gpt-5.4",
        "gpt-5.5",
        "gpt-5.6",
        "gpt-6-sol",
        "gpt-6.1-sol",
    ),
    "azure-openai": ("gpt-4.1", "gpt-5", "gpt-5.4", "gpt-5.6"),
    "anthropic": (
        "claude-haiku-4-5",
        "claude-sonnet-4-5",
        "claude-opus-4-6",
        "claude-opus-4-8",
        "claude-sonnet-5",
        "claude-opus-5",
        "claude-haiku-5-5",
        "claude-sonnet-5-5",
        "claude-opus-5-5",
    ),
    "mistral": ("mistral-large-latest", "mistral-large-4", "mistral-small-latest", "mistral-medium-3-5", "codestral-latest"),
    "groq": ("llama-3.3-70b-versatile", "openai/gpt-oss-120b", "qwen/qwen3-32b"),
    "google-ai-studio": (
        "gemini-2.5-flash",
        "gemini-2.5-pro",
        "gemini-3-pro-preview",
        "gemini-3-flash-preview",
        "gemini-3.8-flash",
    ),
    "grok": ("grok-4", "grok-4.3", "grok-4.5"),
    "cerebras": ("gpt-oss-120b", "zai-glm-4.7", "qwen-3-235b-a22b-instruct-2507"),
    "perplexity": ("sonar-pro", "sonar-reasoning-pro", "perplexity/sonar", "low"),
    "cohere": ("command-a-03-2025", "command-a-reasoning-08-2025"),
    "workers-ai": ("@cf/openai/gpt-oss-120b", "@cf/meta/llama-3.3-70b-instruct-fp8-fast", "@cf/qwen/qwen3-30b-a3b-fp8"),
    "deepseek": ("deepseek-chat", "deepseek-v4-pro"),
    "ollama": ("qwen3.5",),
    "vllm": ("qwen3.5", "gpt-oss-120b"),
    "llama-cpp": ("qwen3.5",),
}
TARGETS = tuple(f"{vendor}/{model}" for vendor, models in MODELS_OF.items() for model in models)

_SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"], "additionalProperties": False}
_OPEN_SCHEMA = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 1}, "note": {"type": "string"}}}
_LONG_NAME = "mcp__plugin_oh-my-claudecode_omc-tools__lsp_diagnostics_directory_with_more"


@dataclass(frozen=True)
class Turn:
    """``calls`` and ``results`` are (id, name of the tool) and (id, text)."""

    role: str
    text: str = ""
    calls: tuple[tuple[str, str], ...] = ()
    results: tuple[tuple[str, str], ...] = ()
    thought: str = ""
    image: bool = False
    pdf: bool = False


@dataclass(frozen=True)
class Wish:
    turns: tuple[Turn, ...] = (Turn("user", "question"),)
    system: str = ""
    tools: tuple[tuple[str, dict[str, Any]], ...] = ()
    choice: str = ""  # "required", or the name of a tool.
    effort: str = ""  # A word, "off", or for Anthropic's dialect "budget".
    schema: dict[str, Any] | None = None
    is_json: bool = False  # Plain JSON, without a schema.
    is_strict: bool = True
    fields: dict[str, Any] = field(default_factory=dict)  # The same in all dialects.
    stop: tuple[str, ...] = ()
    max_tokens: int = 5000
    only: str = ""  # The one dialect whose clients send this.


_USER, _MORE = Turn("user", "question"), Turn("user", "and now?")
_WEATHER = (("weather", _SCHEMA),)
_TOOLS = (("weather", _SCHEMA), ("clock", _SCHEMA))
_ONE_CALL, _ONE_RESULT = Turn("assistant", calls=(("call_1", "weather"),)), Turn("user", results=(("call_1", "18 degrees"),))
_TWO_CALLS = Turn("assistant", "Let me see.", calls=(("call_2", "weather"), ("call_3", "clock")))
_TWO_RESULTS = Turn("user", results=(("call_2", "19 degrees"), ("call_3", "noon")))
_ANSWER = Turn("assistant", "It is warm.")
_THOUGHTFUL = tuple(replace(turn, thought="A thought.") for turn in (_ONE_CALL, _ANSWER))


def _loop(*turns: Turn, **more: Any) -> Wish:
    return Wish((_USER, *turns), tools=_TOOLS, **more)


WISHES: dict[str, Wish] = {
    "plain": Wish(),
    "system": Wish(system="Be brief."),
    "several turns": Wish((_USER, _ANSWER, _MORE)),
    "tools": Wish(tools=_TOOLS),
    "a tool loop that goes on": _loop(_ONE_CALL, _ONE_RESULT),
    "a tool loop of several turns": _loop(_ONE_CALL, _ONE_RESULT, _TWO_CALLS, _TWO_RESULTS, _ANSWER, _MORE),
    "a tool loop with thoughts": _loop(_THOUGHTFUL[0], _ONE_RESULT, _THOUGHTFUL[1], _MORE),
    "a tool loop with thinking on": _loop(_ONE_CALL, _ONE_RESULT, effort="high"),
    "a result and a text": _loop(_ONE_CALL, replace(_ONE_RESULT, text="A reminder.")),
    "a result with an image": _loop(_ONE_CALL, replace(_ONE_RESULT, image=True)),
    "an id of another vendor": _loop(
        Turn("assistant", calls=(("functions.weather:0", "weather"),)), Turn("user", results=(("functions.weather:0", "warm"),))
    ),
    "a long id": _loop(
        Turn("assistant", calls=(("call_" + "x" * 60, "weather"),)), Turn("user", results=(("call_" + "x" * 60, "warm"),))
    ),
    "a tool loop without tools": replace(_loop(_ONE_CALL, _ONE_RESULT), tools=()),
    "forced tool": Wish(tools=_TOOLS, choice="required"),
    "forced tool by name": Wish(tools=_TOOLS, choice="weather"),
    "forced tool with thinking on": Wish(tools=_TOOLS, choice="required", effort="medium"),
    "one call at a time": Wish(tools=_TOOLS, fields={"parallel_tool_calls": False}),
    "thinking off": Wish(effort="off"),
    "thinking with a budget": Wish(effort="budget"),
    **{f"effort {word}": Wish(effort=word) for word in ("minimal", "low", "medium", "high", "xhigh", "max")},
    "thinking and tools": Wish(tools=_TOOLS, effort="low"),
    "thinking off and tools": Wish(tools=_TOOLS, effort="off"),
    "plain JSON": Wish((Turn("user", "Answer in JSON."),), is_json=True),
    "plain JSON and tools": Wish((Turn("user", "Answer in JSON."),), is_json=True, tools=_WEATHER),
    "JSON schema": Wish(schema=_SCHEMA),
    "JSON schema, not strict": Wish(schema=_OPEN_SCHEMA, is_strict=False),
    "JSON schema and tools": Wish(schema=_SCHEMA, tools=_WEATHER),
    "image": Wish((Turn("user", "What is this?", image=True),)),
    "system in the middle": Wish((_USER, _ANSWER, Turn("system", "Be brief."), _MORE), system="Be kind."),
    "system after a result": _loop(_ONE_CALL, _ONE_RESULT, Turn("system", "Be brief.")),
    "two systems": Wish((Turn("system", "Be brief."), _USER), system="Be kind."),
    "developer": Wish((Turn("developer", "Be brief."), _USER)),
    "developer in the middle": Wish((_USER, _ANSWER, Turn("developer", "Be brief."), _MORE)),
    "prefill": Wish((_USER, Turn("assistant", "{"))),
    "two users in a row": Wish((_USER, _MORE)),
    "long tool name": Wish(tools=((_LONG_NAME, _SCHEMA),)),
    "tool name with dots": Wish(tools=(("files.read", _SCHEMA),)),
    "tool without properties": Wish(tools=(("now", {"type": "object"}),)),
    "tool with an empty schema": Wish(tools=(("now", {}),)),
    "tool with a choice at the top": Wish(tools=(("now", {"type": "object", "properties": {}, "anyOf": [{"required": []}]}),)),
    "temperature": Wish(fields={"temperature": 0.5}),
    "top_p": Wish(fields={"top_p": 0.5}),
    "temperature and top_p": Wish(fields={"temperature": 0.5, "top_p": 0.9}),
    "temperature, thinking off": Wish(fields={"temperature": 0.5}, effort="off"),
    "stop": Wish(stop=("HALT",)),
    "six stops": Wish(stop=("A", "B", "C", "D", "E", "F")),
    "stop at a line's end": Wish(stop=("\n",)),
    "many tokens": Wish(max_tokens=64_000),
    "one token": Wish(max_tokens=1),
    "PDF": Wish((Turn("user", "What is this?", pdf=True),)),
    "a result with a PDF": _loop(_ONE_CALL, replace(_ONE_RESULT, pdf=True)),
    "a whole answer": Wish(fields={"stream": False}),
    "Claude Code": Wish(
        (_USER, Turn("system", "Be brief."), _ONE_CALL, replace(_ONE_RESULT, text="A reminder."), _ANSWER, _MORE),
        system="Be kind.",
        tools=_TOOLS,
        effort="high",
        max_tokens=64_000,
        only="anthropic-messages",
        fields={
            "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
            "metadata": {"user_id": '{"device_id":"d"}'},
        },
    ),
    "Codex": Wish(
        (Turn("developer", "Be brief."), _USER, _ONE_CALL, _ONE_RESULT, _ANSWER, _MORE),
        system="Be kind.",
        tools=_TOOLS,
        effort="medium",
        only="openai-responses",
        fields={
            "include": ["reasoning.encrypted_content"],
            "prompt_cache_key": "k",
            "parallel_tool_calls": True,
            "tool_choice": "auto",
        },
    ),
    "text in parts": Wish(
        only="openai-chat",
        fields={
            "messages": [
                {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
                {"role": "user", "content": [{"type": "text", "text": "One."}, {"type": "text", "text": "Two."}]},
                {"role": "assistant", "content": [{"type": "text", "text": "Three."}]},
                {"role": "user", "content": "Four."},
            ]
        },
    ),
    "an empty answer before": Wish((_USER, Turn("assistant", ""), _MORE)),
}


def _chat_messages(wish: Wish) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = [{"role": "system", "content": wish.system}] if wish.system else []
    for turn in wish.turns:
        messages += [{"role": "tool", "tool_call_id": id_, "content": text} for id_, text in turn.results]
        if turn.results and not (turn.text or turn.image or turn.pdf):
            continue
        message: dict[str, Any] = {"role": turn.role, "content": turn.text}
        if turn.image or turn.pdf:
            text = [{"type": "text", "text": turn.text}] if turn.text else []
            image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}}
            pdf = {"type": "file", "file": {"filename": "a.pdf", "file_data": f"data:application/pdf;base64,{PIXEL}"}}
            message["content"] = [*text, pdf if turn.pdf else image]
        if turn.calls:
            message["content"] = turn.text or None
            message["tool_calls"] = [
                {"id": id_, "type": "function", "function": {"name": name, "arguments": '{"city":"Oslo"}'}}
                for id_, name in turn.calls
            ]
        if turn.thought:
            message["reasoning_content"] = turn.thought
        messages.append(message)
    return messages


def _chat(wish: Wish) -> dict[str, Any] | None:
    if wish.effort == "budget":
        return None
    body: dict[str, Any] = {"messages": _chat_messages(wish), "max_completion_tokens": wish.max_tokens, **wish.fields}
    if wish.tools:
        body["tools"] = [{"type": "function", "function": {"name": name, "parameters": schema}} for name, schema in wish.tools]
    if wish.choice:
        named = {"type": "function", "function": {"name": wish.choice}}
        body["tool_choice"] = "required" if wish.choice == "required" else named
    if wish.effort:
        body["reasoning_effort"] = wish.effort.replace("off", "none")
    if wish.schema:
        report = {"name": "report", "schema": wish.schema, "strict": wish.is_strict}
        body["response_format"] = {"type": "json_schema", "json_schema": report}
    if wish.is_json:
        body["response_format"] = {"type": "json_object"}
    if wish.stop:
        body["stop"] = list(wish.stop)
    return body


def _agentary(wish: Wish) -> dict[str, Any] | None:
    return None if any(turn.image or turn.pdf for turn in wish.turns) else _chat(wish)


def _openai_chat(wish: Wish) -> dict[str, Any] | None:
    body = _chat(wish)
    is_streamed = wish.fields.get("stream", True)
    return body and body | ({"stream_options": {"include_usage": True}} if is_streamed else {})


def _messages(wish: Wish) -> dict[str, Any] | None:
    if (
        wish.is_json
        or wish.effort == "minimal"
        or any(turn.role == "developer" for turn in wish.turns)
        or wish.turns[0].role == "system"
    ):
        return None
    fields = {name: value for name, value in wish.fields.items() if name != "parallel_tool_calls"}
    body: dict[str, Any] = {"messages": [_message(turn) for turn in wish.turns], "max_tokens": wish.max_tokens, **fields}
    if wish.system:
        body["system"] = [{"type": "text", "text": wish.system}]
    if wish.tools:
        body["tools"] = [{"name": name, "input_schema": schema} for name, schema in wish.tools]
    if wish.choice:
        body["tool_choice"] = {"type": "any"} if wish.choice == "required" else {"type": "tool", "name": wish.choice}
    if "parallel_tool_calls" in wish.fields:
        body["tool_choice"] = {"type": "auto", "disable_parallel_tool_use": True}
    if wish.effort == "off":
        body["thinking"] = {"type": "disabled"}
    elif wish.effort == "budget":
        body["thinking"] = {"type": "enabled", "budget_tokens": 4000}
    elif wish.effort:
        body |= {"thinking": {"type": "adaptive"}, "output_config": {"effort": wish.effort}}
    if wish.schema:
        body["output_config"] = {"format": {"type": "json_schema", "schema": wish.schema}}
    if wish.stop:
        body["stop_sequences"] = list(wish.stop)
    return body


def _message(turn: Turn) -> dict[str, Any]:
    kind, media_type = ("document", "application/pdf") if turn.pdf else ("image", "image/png")
    media = {"type": kind, "source": {"type": "base64", "media_type": media_type, "data": PIXEL}}
    has_media = turn.image or turn.pdf
    content: list[dict[str, Any]] = []
    if turn.thought:
        content.append({"type": "thinking", "thinking": turn.thought, "signature": "c2lnbmVk"})
    for id_, text in turn.results:
        content.append({"type": "tool_result", "tool_use_id": id_, "content": [{"type": "text", "text": text}]})
        if has_media:
            content[-1]["content"].append(media)
    if turn.text:
        content.append({"type": "text", "text": turn.text})
    if has_media and not turn.results:
        content.append(media)
    content += [{"type": "tool_use", "id": id_, "name": name, "input": {"city": "Oslo"}} for id_, name in turn.calls]
    return {"role": turn.role, "content": content}


def _responses(wish: Wish) -> dict[str, Any] | None:
    if wish.effort == "budget" or wish.stop:
        return None
    body: dict[str, Any] = {"input": _items(wish), "max_output_tokens": wish.max_tokens, "store": False, **wish.fields}
    if wish.system:
        body["instructions"] = wish.system
    if wish.tools:
        body["tools"] = [
            {"type": "function", "name": name, "parameters": schema, "strict": False} for name, schema in wish.tools
        ]
    if wish.choice:
        body["tool_choice"] = "required" if wish.choice == "required" else {"type": "function", "name": wish.choice}
    if wish.effort:
        body["reasoning"] = {"effort": wish.effort.replace("off", "none")}
    if wish.schema:
        body["text"] = {"format": {"type": "json_schema", "name": "report", "schema": wish.schema, "strict": wish.is_strict}}
    if wish.is_json:
        body["text"] = {"format": {"type": "json_object"}}
    return body


def _items(wish: Wish) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = []
    for turn in wish.turns:
        image = {"type": "input_image", "image_url": f"data:image/png;base64,{PIXEL}"}
        pdf = {"type": "input_file", "filename": "a.pdf", "file_data": f"data:application/pdf;base64,{PIXEL}"}
        media = [pdf] if turn.pdf else [image] if turn.image else []
        if turn.thought:
            summary = [{"type": "summary_text", "text": turn.thought}]
            items.append({"type": "reasoning", "id": f"rs_{len(items)}", "summary": summary, "encrypted_content": "c2VhbGVk"})
        for id_, text in turn.results:
            parts = [{"type": "input_text", "text": text}, *media]
            items.append({"type": "function_call_output", "call_id": id_, "output": parts if media else text})
        if turn.text or not (turn.calls or turn.results):
            kind = "output_text" if turn.role == "assistant" else "input_text"
            content = [{"type": kind, "text": turn.text}, *([] if turn.results else media)]
            items.append({"type": "message", "role": turn.role, "content": content})
        for id_, name in turn.calls:
            items.append({"type": "function_call", "call_id": id_, "name": name, "arguments": '{"city":"Oslo"}'})
    return items


_SAID_BY = {
    "openai-chat": _openai_chat,
    "openai-responses": _responses,
    "anthropic-messages": _messages,
    "agentary": _agentary,
    "unified": _chat,
}
# The vendors whose own clients speak a dialect, and the path to which those send their requests.
_OWN = {
    "openai-chat": (("openai", "azure-openai"), "/v1/chat/completions"),
    "openai-responses": (("openai", "azure-openai"), "/v1/responses"),
    "anthropic-messages": (("anthropic",), "/v1/messages"),
}


def body_for(dialect: str, wish: str, target: str) -> dict[str, Any] | None:
    """Return what a client of the dialect sends; None: it cannot say this."""
    body = _SAID_BY[dialect](WISHES[wish]) if WISHES[wish].only in ("", dialect) else None
    provider = {"provider": target.partition("/")[0]} if dialect in ("agentary", "unified") else {}
    return body and {"model": target, "stream": True, **provider, **body}


@cache
def _settings() -> Settings:
    own = {
        "azure-openai": "https://res.openai.azure.com",
        "workers-ai": "https://api.cloudflare.com/client/v4/accounts/a/ai/v1",
    }
    own |= dict.fromkeys(("ollama", "vllm", "llama-cpp"), "http://gpu.example")
    return Settings(
        azure_resource="res", providers={name: ProviderSettings(api_keys=("k",), base_url=own.get(name)) for name in MODELS_OF}
    )


@dataclass(frozen=True)
class Outcome:
    """``verdict``: "yes", "refused by Sluice", "refused as the client's own" or "refused". ``words``: the refusal's."""

    verdict: str
    words: str = ""


@cache
def outcome(dialect: str, target: str, wish: str) -> Outcome | None:
    """Return what becomes of a wish; None: the dialect's clients cannot say it."""
    body = body_for(dialect, wish, target)
    if body is None:
        return None
    job = Job("gen_abc", "req_1", dialect, target, body["stream"], Policy.STOP, grace_s=0, created_s=1, body=orjson.dumps(body))
    vendor = target.partition("/")[0]
    try:
        deployment = deployments(job, _settings())[0]
        request, _ = prepare_request(job, WIRES[deployment.wire], deployment, replace(INFO, body=body))
    except GatewayError as error:
        return Outcome("refused by Sluice", f"{error.failed.param}: {error.failed.message}")
    judgement = refusal(vendor, urlsplit(request.url).path, request.headers, orjson.loads(request.body))
    if judgement is None:
        return Outcome("yes")
    words = _words(judgement[1])
    vendors, path = _OWN.get(dialect, ((), ""))
    own_body = {**body, "model": deployment.model}
    if vendor in vendors and refusal(vendor, path, {**request.headers, "anthropic-version": "2023-06-01"}, own_body):
        return Outcome("refused as the client's own", words)
    return Outcome("refused", words)


def _words(answer: dict[str, Any]) -> str:
    """Return the message of a vendor's error, whatever its form."""
    error = answer.get("error", answer)
    message = error.get("message", error) if isinstance(error, dict) else error
    return re.sub(r"\s+", " ", message if isinstance(message, str) else orjson.dumps(message).decode())
