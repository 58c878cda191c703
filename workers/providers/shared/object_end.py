"""Where does the JSON text of a call's arguments end?

Servers that write calls wrongly send more behind it, or end an answer before it. The text comes in pieces, and is not parsed
again with each of them.
"""

import re

_MARKS = re.compile(r'["\\{}\[\]]')


class ObjectEnd:
    """Follows one JSON object, or list, through its pieces.

    ``is_open``: it has begun and not ended. ``is_reached``: it has ended.
    """

    def __init__(self) -> None:
        self.is_reached = False
        self._depth = 0
        self._is_in_string = False
        self._ends_in_escape = False

    @property
    def is_open(self) -> bool:
        return self._depth > 0

    def split(self, text: str) -> tuple[str, str]:
        """Return what of the next piece belongs to the object, and what follows its end."""
        # Hot path: once per piece of a call.
        escaped_at, self._ends_in_escape = 0 if self._ends_in_escape else -1, False
        for match in _MARKS.finditer(text):
            at, mark = match.start(), match[0]
            if at == escaped_at:
                continue
            if self._is_in_string:
                if mark == "\\":
                    escaped_at = at + 1
                elif mark == '"':
                    self._is_in_string = False
            elif mark == '"':
                self._is_in_string = True
            elif mark in "{[":
                self._depth += 1
            elif mark in "}]" and self._depth:
                self._depth -= 1
                if not self._depth:
                    self.is_reached = True
                    return text[: at + 1], text[at + 1 :]
        self._ends_in_escape = escaped_at == len(text)
        return text, ""
