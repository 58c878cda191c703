"""What does the body of a unified chat request ask for?

``provider``, ``model`` and ``messages`` are required, and all faults in them are reported together. All other fields
(sampling, tools, ``response_format``, ``stream``) are those of OpenAI's chat completions, read by the same reader.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from common.canonical.errors import ErrorKind, GatewayError
from common.canonical.generation import GenerationRequest, OpaquePart
from common.dialects.openai_chat import request as openai_chat_request
from common.dialects.shared.reading import invalid
from common.vendors.table import VENDORS

_REQUIRED: dict[str, type] = {"provider": str, "model": str, "messages": list}
_TYPE_NAMES: dict[type, str] = {str: "string", list: "array", dict: "object", bool: "boolean", int: "number", float: "number"}
_TOO_SHORT: dict[type, str] = {
    str: "String must contain at least 1 character(s)",
    list: "Array must contain at least 1 element(s)",
}
_QUOTED_CHARS_MAX = 100

_PROVIDERS = list(VENDORS)
_ROLES = ["system", "user", "assistant"]

# Sent to a client whose body is invalid.
SCHEMA: dict[str, Any] = {
    "structure": {
        "type": "object",
        "properties": {
            "provider": {"type": "enum", "options": _PROVIDERS},
            "model": {"type": "string"},
            "messages": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {"role": {"type": "enum", "options": _ROLES}, "content": {"type": "string"}},
                },
            },
        },
    },
    "description": "\n".join(
        (
            f"provider: enum: {' | '.join(_PROVIDERS)}",
            "model: string",
            "messages: array of:",
            f"  role: enum: {' | '.join(_ROLES)}",
            "  content: string",
        )
    ),
    "example": {"provider": "openai", "model": "gpt-4-turbo", "messages": [{"role": "user", "content": "Hello"}]},
}


def check(body: Mapping[str, Any], providers: Collection[str] | None = None) -> None:
    """Check the required fields of a body. ``providers`` are the ids of all known providers; None: do not check the id.

    Raises:
        GatewayError: INVALID_REQUEST with all ``faults``.
    """
    faults = {name: fault for name, type_ in _REQUIRED.items() if (fault := _fault(body, name, type_))}
    if providers is not None and "provider" not in faults and body["provider"] not in providers:
        options = " | ".join(f"'{provider}'" for provider in _PROVIDERS)
        faults["provider"] = f"Invalid enum value. Expected {options}, received '{body['provider'][:_QUOTED_CHARS_MAX]}'"
    if faults:
        field, fault = next(iter(faults.items()))
        raise GatewayError(ErrorKind.INVALID_REQUEST, f"{field} is not valid: {fault}.", param=field, faults=faults)


def parse(body: Mapping[str, Any]) -> GenerationRequest:
    check(body)
    request = openai_chat_request.parse(body)
    if request.choices != 1:
        raise invalid("n", "must be 1: the answer is one message")
    for index, item in enumerate(body.get("tools") or []):
        if item.get("type") == "custom":  # Calls of this format are functions' only.
            request.opaque.append(OpaquePart("custom", f"tools.{index}"))
    request.provider = body["provider"]
    request.include_usage = True
    if request.reasoning is not None:
        request.reasoning = replace(request.reasoning, is_shown=False)  # The answer has no field for it.
    return request


def _fault(body: Mapping[str, Any], name: str, type_: type) -> str | None:
    """Return the fault of a required field, in zod's wording: clients of this format may look for it."""
    if name not in body:
        return "Required"
    value = body[name]
    if not isinstance(value, type_):
        return f"Expected {_TYPE_NAMES[type_]}, received {_TYPE_NAMES.get(type(value), 'null')}"
    return None if value else _TOO_SHORT[type_]
