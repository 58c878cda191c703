"""How does Perplexity's Agent API differ from OpenAI's Responses API?

It takes fewer fields and fewer kinds of items, and refuses the rest: ``json: unknown field "store"``. Since 2026-09-27 it is
the only API of Perplexity's models; a name without a maker is one of its presets, which bring their own search.

Sources: https://docs.perplexity.ai/docs/agent-api/openai-compatibility,
https://github.com/perplexityai/perplexity-py/blob/main/src/perplexity/types/response_create_params.py,
https://github.com/anomalyco/opencode/issues/32108
"""

from collections.abc import Iterator
from typing import Any

from workers.providers.shared.answer_format import json_prompt
from workers.providers.shared.history import mention
from workers.providers.shared.loose_json import dict_of, list_of, text_of

_FIELDS = frozenset(
    {
        "background",
        "input",
        "instructions",
        "language_preference",
        "max_output_tokens",
        "max_steps",
        "model",
        "models",
        "preset",
        "reasoning",
        "response_format",
        "stream",
        "tools",
    }
)
_CALL_FIELDS = {
    "function_call": ("type", "call_id", "name", "arguments", "thought_signature"),
    "function_call_output": ("type", "call_id", "name", "output", "thought_signature"),
}


def fit_agent_body(body: dict[str, Any]) -> list[str]:
    """Change a body of the Responses API to one of the Agent API, and return the names of the dropped fields."""
    if "/" not in text_of(body.get("model")):
        body["preset"] = body.pop("model")
    if isinstance(body.get("input"), list):
        body["input"] = list(_items(body["input"]))
    format_ = dict_of(dict_of(body.pop("text", None)).get("format"))
    if format_.get("type") == "json_schema":
        body["response_format"] = {"type": "json_schema", "json_schema": _without_type(format_)}
    elif format_.get("type") == "json_object":
        # It has no plain JSON mode.
        body["instructions"] = "\n\n".join(filter(None, [text_of(body.get("instructions")), json_prompt(None)]))
    if isinstance(body.get("reasoning"), dict):
        effort = body["reasoning"].get("effort")
        body |= {"reasoning": {"effort": effort}} if effort else {"reasoning": None}
    choice = body.pop("tool_choice", None)
    if choice == "none":
        body.pop("tools", None)
    dropped = ["tool_choice"] if choice not in (None, "auto", "none") else []
    dropped += [name for name in list(body) if name not in _FIELDS and body.pop(name) is not None]
    for name in [name for name, value in body.items() if value is None]:
        del body[name]
    return dropped


def _items(items: list[Any]) -> Iterator[dict[str, Any]]:
    """Yield the items that the Agent API has, with its fields. A result is a string, so its images follow as the user's."""
    images: list[dict[str, Any]] = []
    for item in map(dict_of, items):
        kind = item.get("type", "message")
        if images and kind != "function_call_output":
            yield {"type": "message", "role": "user", "content": images}
            images = []
        if kind == "message":
            if content := _content(item.get("content")):
                yield {"type": "message", "role": item.get("role"), "content": content}
        elif kind in _CALL_FIELDS:
            fields = {name: item[name] for name in _CALL_FIELDS[kind] if name in item}
            if isinstance(fields.get("output"), list):
                parts = [dict_of(part) for part in fields["output"]]
                images += [part for part in parts if part.get("type") == "input_image"]
                fields["output"] = "\n\n".join(_text(part) for part in parts if part.get("type") != "input_image")
            yield fields
    if images:
        yield {"type": "message", "role": "user", "content": images}


def _content(content: Any) -> Any:
    """Return a string if all is text: there is no part for an assistant's text."""
    parts = [dict_of(part) for part in list_of(content)]
    if parts and all("text" in part for part in parts):
        return "\n\n".join(_text(part) for part in parts)
    return content


def _text(part: dict[str, Any]) -> str:
    return text_of(part.get("text")) if "text" in part else mention(f"a document {text_of(part.get('filename'))}".rstrip())


def _without_type(format_: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in format_.items() if name != "type"}
