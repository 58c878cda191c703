"""What are a call's arguments, when Gemini sends them in pieces?

A piece is a path and a value, such as ``$.cities[0].name`` and a string. Pieces of one string follow each other. We never ask
for pieces, but a model or a gateway may send them. They are assembled, and returned when they are complete.

Source: https://docs.cloud.google.com/vertex-ai/generative-ai/docs/multimodal/function-calling
"""

import re
from typing import Any

import orjson

from workers.providers.shared.loose_json import text_of

SIZE_MAX = 16 << 20  # Characters and pieces of one call; the same as the largest event.
_STEP = re.compile(r"\.([^.\[]+)|\['([^']*)'\]|\[(\d{1,6})\]")


class ArgumentsError(Exception):
    """The arguments cannot be used. The message says why."""


class _GrowingString:
    """A string that may grow. It is joined once, at the end."""

    def __init__(self, text: str) -> None:
        self.pieces = [text]


class ArgumentsSoFar:
    def __init__(self, arguments: dict[str, Any]) -> None:
        self._arguments = arguments
        self._size = 0

    def add(self, piece: dict[str, Any]) -> None:
        """Add one of ``partialArgs``. A piece with an impossible path is ignored.

        Raises:
            ArgumentsError: there are too many.
        """
        json_path, text = text_of(piece.get("jsonPath")), text_of(piece.get("stringValue"))
        self._size += 1 + len(json_path) + len(text)
        if self._size > SIZE_MAX:
            raise ArgumentsError("the arguments of a call have no end")
        path = [key or quoted or int(number or 0) for key, quoted, number in _STEP.findall(json_path)]
        if "stringValue" in piece:
            _put(self._arguments, path, _GrowingString(text))
        elif "numberValue" in piece or "boolValue" in piece:
            _put(self._arguments, path, piece.get("numberValue", piece.get("boolValue")))
        elif "nullValue" in piece:
            _put(self._arguments, path, None)

    def text(self) -> str:
        """Return the JSON text.

        Raises:
            ArgumentsError: they are nested too deeply to be written.
        """
        try:
            return orjson.dumps(self._arguments, default=_join).decode()
        except orjson.JSONEncodeError as error:
            raise ArgumentsError("the arguments of a call are nested too deeply") from error


def _put(holder: Any, path: list[str | int], value: object) -> None:
    for depth, step in enumerate(path):
        if isinstance(step, int) and isinstance(holder, list) and step <= len(holder):
            if step == len(holder):
                holder.append(None)
        elif not (isinstance(step, str) and isinstance(holder, dict)):
            return
        current = holder[step] if isinstance(step, int) else holder.get(step)
        if depth < len(path) - 1:
            if current is None:
                current = holder[step] = [] if isinstance(path[depth + 1], int) else {}
            holder = current
        elif isinstance(current, _GrowingString) and isinstance(value, _GrowingString):
            current.pieces += value.pieces
        else:
            holder[step] = value


def _join(value: object) -> str:
    assert isinstance(value, _GrowingString)
    return "".join(value.pieces)
