"""When are two requests the same, so that one answer serves both?

The key is a digest of everything that can change the answer: the whole body, the targets that the model name leads to, the
headers that the upstream gets, the guardrails of the answer, the dialect, and who may share it. A body is compared as JSON with
sorted fields. Only what is known not to change the answer is left out, so an unknown field is a part of the key.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

FORMAT = 1  # Raised when keys are made in another way: older entries are then no longer found.

# Fields that name the client or the cost, and are not in the answer. A response of /v1/responses repeats most of them.
_NAMES_ONLY = frozenset({"user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"})
_LEFT_OUT: dict[str, frozenset[str]] = {
    "openai-chat": _NAMES_ONLY | {"store"},
    "openai-responses": frozenset({"client_metadata"}),
    "anthropic-messages": frozenset({"metadata"}),
    "unified": _NAMES_ONLY | {"store"},
    "agentary": frozenset(),
}
_TEXT_TYPES = ("text", "input_text")


def request_key(
    dialect: str, body: Mapping[str, Any], *, shared_with: Sequence[str], route: Sequence[str], others: Mapping[str, Any]
) -> str:
    """Return the key of a request, 64 hexadecimal digits.

    Args:
        shared_with: who may get the answer: the scope, its name, and the client's own provider key.
        route: the targets, as ``provider/model``.
        others: what else changes the answer, by name; JSON values.
    """
    parts = [FORMAT, dialect, shared_with, route, others, comparable_body(dialect, body)]
    return hashlib.sha256(orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)).hexdigest()


def comparable_body(dialect: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """Return a body without what does not change the answer. Where a text has two spellings, it has one here."""
    left_out = _LEFT_OUT[dialect]
    # ``stream`` may also come from the query, so the caller adds it. The route has the provider.
    comparable = {
        name: value
        for name, value in body.items()
        if value is not None and name not in left_out and name not in ("stream", "provider")
    }
    for name in ("messages", "input", "tools"):
        if isinstance(items := comparable.get(name), list):
            comparable[name] = [_without_mark(item) for item in items]
    if "system" in comparable:
        comparable["system"] = _content(comparable["system"])
    return comparable


def _without_mark(item: Any) -> Any:
    """Return a message, a part or a tool without the mark with which a client asks the vendor to cache its prompt."""
    if not isinstance(item, dict):
        return item
    plain = {name: value for name, value in item.items() if name != "cache_control"}
    if "content" in plain:
        plain["content"] = _content(plain["content"])
    return plain


def _content(content: Any) -> Any:
    """Return a content in which a single text is a plain string."""
    if not isinstance(content, list):
        return content
    parts = [_without_mark(part) for part in content]
    only = parts[0] if len(parts) == 1 else None
    if isinstance(only, dict) and only.keys() == {"type", "text"} and only["type"] in _TEXT_TYPES:
        return only["text"]
    return parts
