"""How is JSON from an upstream, or from a model, read, when nothing about it can be trusted?

Every function takes anything and returns the type it names, so that a decoder cannot raise.
"""

import json
from typing import Any

import orjson

# What holds fewer brackets than this is not nested too deeply. orjson writes 254 levels, and reads 1,024.
_BRACKETS_MAX = 200
_LEVELS_MAX = 254


class NestedTooDeeply(ValueError):
    """It could be read, but not written again."""


def read_json(data: bytes) -> Any:
    """Return the value, which can also be written again, with something around it.

    Raises:
        ValueError: not JSON, whichever way one looks at it; NestedTooDeeply where that is the reason.
    """
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        value = _read_lenient(data)
    # Hot path: a token's block is shorter than the shortest JSON with so many levels.
    if len(data) > 2 * _BRACKETS_MAX and data.count(b"{") + data.count(b"[") > _BRACKETS_MAX and not _can_be_written(value):
        raise NestedTooDeeply("nested too deeply")
    return value


def _read_lenient(data: bytes) -> Any:
    """The same for what orjson refuses and servers send: half an emoji as a lone surrogate escape, bytes cut in a character,
    a byte order mark."""
    try:
        value = json.loads(data.decode("utf-8-sig", "replace"))
    except RecursionError as exc:  # After about a thousand levels, since Python 3.13 about ten thousand.
        raise NestedTooDeeply("nested too deeply") from exc
    if _is_deeper(value, _LEVELS_MAX):
        raise NestedTooDeeply("nested too deeply")
    return orjson.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))


def _is_deeper(value: object, levels: int) -> bool:
    level = [value]
    for _ in range(levels):
        level = [
            inner
            for each in level
            if isinstance(each, dict | list)
            for inner in (each.values() if isinstance(each, dict) else each)
        ]
        if not level:
            return False
    return any(isinstance(each, dict | list) for each in level)


def _can_be_written(value: object) -> bool:
    try:
        orjson.dumps([[[[[[[[[[value]]]]]]]]]])
    except orjson.JSONEncodeError:
        return False
    return True


def is_nested_too_deeply(text: str) -> bool:
    """Whether JSON text is nested more deeply than an answer can hold it."""
    try:
        read_json(text.encode("utf-8", "replace"))
    except NestedTooDeeply:
        return True
    except ValueError:
        pass
    return False


def arguments_of(text: str) -> dict[str, Any]:
    """Return a call's arguments. A model may have written ones that are no object: the next turn must show it what it wrote."""
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        value = text
    if not _can_be_written(value):
        value = text
    if isinstance(value, dict):
        return value
    return {} if value in (None, "") else {"arguments": value}


def dict_of(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def list_of(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def text_of(value: object) -> str:
    return value if isinstance(value, str) else ""
