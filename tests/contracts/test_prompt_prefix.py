"""A conversation that grows keeps its beginning byte for byte, whatever family it goes to: vendors cache prompts by prefix."""

from collections.abc import Callable, Iterator
from typing import Any

import orjson
import pytest

from common.dialects import DIALECTS
from common.vendors.models import MODELS
from common.vendors.table import VENDORS
from workers.providers import WIRES
from workers.providers.base import Deployment

TURNS = 10
PICTURE = "iVBORw0KGgo="
MODELS_AT = {
    "openai": ("gpt-5", "gpt-5.6-sol", "gpt-4o"),
    "anthropic": ("claude-sonnet-4-5", "claude-opus-4-8"),
    "google-ai-studio": ("gemini-2.5-flash", "gemini-3-pro-preview"),
    "deepseek": ("deepseek-v4-pro", "deepseek-chat"),
    "mistral": ("mistral-large-latest", "magistral-medium-latest"),
    "groq": ("openai/gpt-oss-120b", "qwen/qwen3-32b"),
    "grok": ("grok-4",),
    "cerebras": ("gpt-oss-120b",),
    "perplexity": ("perplexity/sonar",),  # Its older models call no tools, and these sessions do.
    "cohere": ("command-a-03-2025", "command-a-reasoning-08-2025"),
    "workers-ai": ("@cf/openai/gpt-oss-120b",),
    "vllm": ("q",),
}
PLACES = [(vendor, model, wire) for vendor, models in MODELS_AT.items() for model in models for wire in VENDORS[vendor].wires]


def chat_turns() -> Iterator[list[dict[str, Any]]]:
    """Yield what each request of an agent's session adds."""
    yield [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Mend it."}]
    for turn in range(1, TURNS):
        call = {"id": f"call_{turn}", "type": "function", "function": {"name": "read", "arguments": f'{{"path":"{turn}"}}'}}
        spoken = {"role": "assistant", "content": f"I read {turn}.", "reasoning_content": f"Let me see {turn}."}
        added = [spoken | {"tool_calls": [call]}, {"role": "tool", "tool_call_id": call["id"], "content": f"text {turn}"}]
        if turn % 4 == 0:  # The model answers, and the user asks again.
            added += [{"role": "assistant", "content": "Done."}, {"role": "user", "content": f"And {turn}?"}]
        yield added


def messages_turns() -> Iterator[list[dict[str, Any]]]:
    yield [{"role": "user", "content": [{"type": "text", "text": "Mend it."}]}]
    for turn in range(1, TURNS):
        thinking = {"type": "thinking", "thinking": f"Let me see {turn}.", "signature": "EqRk"}
        call = {"type": "tool_use", "id": f"toolu_{turn}", "name": "read", "input": {"path": str(turn)}}
        result = {"type": "tool_result", "tool_use_id": call["id"], "content": [{"type": "text", "text": f"text {turn}"}]}
        if turn == 3:
            source = {"type": "base64", "media_type": "image/png", "data": PICTURE}
            result["content"].append({"type": "image", "source": source})
        reminder = {"type": "text", "text": f"<system-reminder>{turn}</system-reminder>"}
        answered = [{"role": "assistant", "content": [thinking, call]}, {"role": "user", "content": [result, reminder]}]
        if turn % 4 == 0:
            done = {"role": "assistant", "content": [{"type": "text", "text": "Done."}]}
            answered += [done, {"role": "user", "content": [{"type": "text", "text": f"And {turn}?"}]}]
        yield answered


def responses_turns() -> Iterator[list[dict[str, Any]]]:
    yield [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Mend it."}]}]
    for turn in range(1, TURNS):
        reasoning = {"type": "reasoning", "summary": [{"type": "summary_text", "text": f"Let me see {turn}."}]}
        call = {"type": "function_call", "call_id": f"call_{turn}", "name": "read", "arguments": f'{{"path":"{turn}"}}'}
        added = [reasoning, call, {"type": "function_call_output", "call_id": call["call_id"], "output": f"text {turn}"}]
        if turn % 4 == 0:
            done = {"role": "assistant", "content": [{"type": "output_text", "text": "Done."}]}
            added += [done, {"role": "user", "content": [{"type": "input_text", "text": f"And {turn}?"}]}]
        yield added


TOOL = {
    "name": "read",
    "description": "Read a file.",
    "parameters": {"type": "object", "properties": {"path": {"type": "string"}}},
}


def chat_body(items: list[Any], turn: int) -> dict[str, Any]:
    return {"model": "m", "messages": items, "stream": True, "tools": [{"type": "function", "function": TOOL}], "user": "u"}


def messages_body(items: list[Any], turn: int) -> dict[str, Any]:
    """Claude Code's first line differs with each request; its mark for the cache moves with the last message."""
    line = {"type": "text", "text": f"x-anthropic-billing-header: cc_version=2.1.245.abc; cc_entrypoint=cli; cch={turn};"}
    mark = {"cache_control": {"type": "ephemeral"}}
    system = [line, {"type": "text", "text": "Be brief.", **mark}]
    last = {**items[-1], "content": [*items[-1]["content"][:-1], {**items[-1]["content"][-1], **mark}]}
    tools = [{"name": "read", "description": TOOL["description"], "input_schema": TOOL["parameters"]}]
    return {"model": "m", "max_tokens": 9000, "system": system, "messages": [*items[:-1], last], "tools": tools}


def responses_body(items: list[Any], turn: int) -> dict[str, Any]:
    tools = [{"type": "function", **TOOL}]
    return {"model": "m", "instructions": "Be brief.", "input": items, "tools": tools, "prompt_cache_key": "k"}


SESSIONS: dict[str, tuple[Callable[[], Iterator[list[Any]]], Callable[[list[Any], int], dict[str, Any]]]] = {
    "openai-chat": (chat_turns, chat_body),
    "anthropic-messages": (messages_turns, messages_body),
    "openai-responses": (responses_turns, responses_body),
}
CASES = [(dialect, *place) for dialect in SESSIONS for place in PLACES if place[2] != dialect]


@pytest.mark.parametrize(("dialect", "vendor", "model", "wire"), CASES, ids=lambda value: str(value))
def test_a_session_keeps_its_beginning(dialect: str, vendor: str, model: str, wire: str) -> None:
    deployment = Deployment(vendor, "https://x.example", "k", model, wire=wire, facts=MODELS.facts(vendor, model))
    turns, body_of = SESSIONS[dialect]
    items: list[Any] = []
    before: list[bytes] = []
    rest_before: bytes | None = None
    for number, added in enumerate(turns()):
        items = [*items, *added]
        request = DIALECTS[dialect].parse(orjson.loads(orjson.dumps(body_of(items, number))))
        built = orjson.loads(WIRES[wire].build_request(request, deployment).body)
        messages = [orjson.dumps(unmarked(item)) for item in built.pop(next(iter(built.keys() & LISTS)))]
        rest = orjson.dumps({name: value for name, value in built.items() if name not in ("include", "thinking")})

        assert messages[: len(before)] == before
        assert len(messages) > len(before)
        assert rest_before in (None, rest)
        before, rest_before = messages, rest


LISTS = {"messages", "contents", "input"}


def unmarked(item: Any) -> Any:
    """A mark for the cache is no part of the prompt."""
    if isinstance(item, list):
        return [unmarked(inner) for inner in item]
    if isinstance(item, dict):
        return {name: unmarked(inner) for name, inner in item.items() if name != "cache_control"}
    return item
