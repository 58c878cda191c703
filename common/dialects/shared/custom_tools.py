"""How is a tool whose input is plain text offered to a vendor that has none?

OpenAI's chat completions and responses have such custom tools. For other vendors one is a function with a single text, and a
call of it becomes a custom call again.
Source: https://platform.openai.com/docs/guides/function-calling#custom-tools
"""

from collections.abc import Mapping
from typing import Any

import orjson

from common.canonical.generation import Tool

_PARAMETERS = {
    "type": "object",
    "properties": {"input": {"type": "string", "description": "The whole input, as plain text."}},
    "required": ["input"],
    "additionalProperties": False,
}


def custom_function(name: str, description: str | None, format_: Mapping[str, Any] | None) -> Tool:
    """Return the function. No other vendor enforces a grammar, so its description quotes it."""
    descriptions = [description] if description else []
    # Responses have the grammar's fields in the format, chat completions in an object of their own.
    grammar = (format_ or {}).get("grammar", format_)
    match grammar:
        case {"syntax": str() as syntax, "definition": str() as definition}:
            descriptions.append(f"The input must match this {syntax} grammar:\n{definition}")
    return Tool(name, "\n\n".join(descriptions) or None, _PARAMETERS)


def custom_arguments(text: str) -> str:
    """Return the arguments of a call with this input."""
    return orjson.dumps({"input": text}).decode()


def custom_input(arguments: str) -> str:
    """Return the plain text in the arguments of a call."""
    try:
        fields = orjson.loads(arguments or "{}")
    except orjson.JSONDecodeError:
        return arguments
    if fields == {}:
        return ""
    text = fields.get("input") if isinstance(fields, dict) else None
    return text if isinstance(text, str) else arguments
