"""How is JSON from an upstream read, when nothing about it can be trusted?

Every function takes anything and returns the type it names, so that a decoder cannot raise.
"""

import json
from typing import Any

import orjson


def read_json(data: bytes) -> Any:
    """Return the value.

    Raises:
        ValueError: not JSON, whichever way one looks at it.
    """
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        return _read_lenient(data)


def _read_lenient(data: bytes) -> Any:
    """The same for what orjson refuses and servers send: half an emoji as a lone surrogate escape, bytes cut in a character."""
    try:
        value = json.loads(data.decode("utf-8", "replace"))
        return orjson.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))
    except RecursionError as exc:
        raise ValueError("nested too deeply") from exc


def dict_of(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def list_of(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def text_of(value: object) -> str:
    return value if isinstance(value, str) else ""


def count_of(value: object) -> int:
    """A number of tokens. Some servers send floats, and null for a figure that is not known yet."""
    return max(0, int(value)) if isinstance(value, int | float) and abs(value) < 1e15 else 0
