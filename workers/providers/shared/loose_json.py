"""How is JSON from an upstream or a model read, when nothing about it can be trusted?

Each function accepts any value and returns the type in its name, so that a decoder cannot raise.
"""

import json
from typing import Any

import orjson

# JSON with fewer brackets than this is not nested too deeply. orjson writes 254 levels, and reads 1,024.
_BRACKETS_MAX = 200
_LEVELS_MAX = 254
_PLACEHOLDERS = ("", "null", "None", "undefined")


class NestedTooDeeply(ValueError):
    """The value can be read, but not written again."""


def read_json(data: bytes) -> Any:
    """Return the value. It can also be written again, inside other objects.

    Raises:
        ValueError: it is not JSON, even for a lenient reader; NestedTooDeeply if that is the reason.
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
    """The same for data that servers send and orjson refuses: a lone surrogate escape (half an emoji), bytes that were cut
    within a character, a byte order mark.
    """
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
            for item in level
            if isinstance(item, dict | list)
            for inner in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return False
    return any(isinstance(item, dict | list) for item in level)


def _can_be_written(value: object) -> bool:
    try:
        orjson.dumps([[[[[[[[[[value]]]]]]]]]])
    except orjson.JSONEncodeError:
        return False
    return True


def is_nested_too_deeply(text: str) -> bool:
    """Whether JSON text is nested too deeply for an answer."""
    try:
        read_json(text.encode("utf-8", "replace"))
    except NestedTooDeeply:
        return True
    except ValueError:
        pass
    return False


def arguments_of(text: str) -> dict[str, Any]:
    """Return a call's arguments. If the model wrote something else than an object, the next turn still shows it that text."""
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


def written_text(value: object) -> str:
    """Return a text that may have been read as JSON before it was sent: Cloudflare sends the token "1" as a number."""
    return orjson.dumps(value).decode() if isinstance(value, dict | int | float) else text_of(value)


def word_of(value: object) -> str:
    """Return a word, name or id; "" for what servers write where they have none yet: null, "", spaces, "null" or "None"."""
    word = value.strip() if isinstance(value, str) else ""
    return "" if word in _PLACEHOLDERS else word
