"""Under which name does a vendor know a client's tool?

Vendors limit the length and the characters of tool names, each in its own way, and some keep names for tools of their own. A
name that a vendor would refuse is replaced by one that follows from the name and the limits alone. So a conversation keeps its
prefix from turn to turn, and every worker can derive the names again: nothing is stored.
"""

import hashlib
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from common.canonical.generation import GenerationRequest, ToolCallPart
from common.vendors.models import ModelFacts
from workers.providers.shared.loose_json import dict_of, list_of

_NAMELESS = "unnamed"  # Some models call a tool without a name. Every vendor refuses that in the history.
_DIGEST_CHARS = 8
_CACHED_NAMES_MAX = 8_192


def vendor_name(name: str, facts: ModelFacts) -> str:
    """Return a tool's name at the vendor: mostly the client's own."""
    return _vendor_name(name, facts.tool_name_chars_max, facts.tool_name_pattern, facts.tool_names_reserved)


@lru_cache(_CACHED_NAMES_MAX)
def _vendor_name(name: str, chars_max: int | None, pattern: str | None, reserved: frozenset[str]) -> str:
    name = name or _NAMELESS
    is_fitting = re.compile(pattern).fullmatch if pattern else re.compile(".+", re.DOTALL).fullmatch
    if is_fitting(name) and (chars_max is None or len(name) <= chars_max) and name not in reserved:
        return name
    cleaned = "".join(char if is_fitting(f"a{char}") else "_" for char in name)
    cleaned = cleaned if is_fitting(cleaned) else f"_{cleaned}"
    digest = hashlib.sha256(name.encode()).hexdigest()[:_DIGEST_CHARS]  # Keeps shortened names apart.
    return f"{cleaned[: (chars_max or len(cleaned) + 9) - _DIGEST_CHARS - 1]}_{digest}"


def client_names(request: GenerationRequest, facts: ModelFacts) -> dict[str, str]:
    """Map the vendor's names that differ back to the client's, for the tools of a request and the calls of its history."""
    names = {tool.name for tool in request.tools}
    names |= {part.name for message in request.messages for part in message.parts if isinstance(part, ToolCallPart)}
    return {vendor: name for name in names if name and (vendor := vendor_name(name, facts)) != name}


def has_other_names(body: Mapping[str, Any], facts: ModelFacts) -> bool:
    """Whether a chat completions body has tools that the vendor must know by another name."""
    tools = [dict_of(dict_of(tool).get("function")) for tool in list_of(body.get("tools"))]
    tools += map(dict_of, list_of(body.get("functions")))
    return any(_named(tool, facts) is not tool for tool in tools)


def rename_tools(body: dict[str, Any], facts: ModelFacts) -> None:
    """Give the tools of a chat completions body, and the calls of its history, the vendor's names.

    Values inside the body are replaced, never changed in place.
    """
    if not (facts.tool_name_pattern or facts.tool_name_chars_max or facts.tool_names_reserved):
        return
    for field_name in ("tools", "functions"):
        if isinstance(body.get(field_name), list):
            body[field_name] = [_renamed(tool, facts) for tool in body[field_name]]
    for field_name in ("tool_choice", "function_call"):
        if isinstance(body.get(field_name), dict):
            body[field_name] = _renamed(body[field_name], facts)
    if isinstance(body.get("messages"), list):
        body["messages"] = [_with_renamed_calls(message, facts) for message in body["messages"]]


def _with_renamed_calls(message: Any, facts: ModelFacts) -> Any:
    fields = dict_of(message)
    calls = list_of(fields.get("tool_calls"))
    renamed = [_renamed(call, facts) for call in calls]
    if any(new is not old for new, old in zip(renamed, calls, strict=True)):
        return {**fields, "tool_calls": renamed}
    return message


def _renamed(item: Any, facts: ModelFacts) -> Any:
    """Return a tool, a choice or a call. Its name stands in ``function``, in the older form beside it."""
    fields = dict_of(item)
    function = fields.get("function")
    if isinstance(function, dict):
        named = _named(function, facts)
        return item if named is function else {**fields, "function": named}
    return _named(fields, facts) if fields else item


def _named(fields: dict[str, Any], facts: ModelFacts) -> dict[str, Any]:
    name = fields.get("name")
    if not isinstance(name, str) or (vendor := vendor_name(name, facts)) == name:
        return fields
    return {**fields, "name": vendor}
