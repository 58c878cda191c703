"""Which part of JSON that is still being said can be passed on?

What ``holding`` is for text, for text that may be JSON: a tool call's arguments, an answer in JSON mode. Strings are
looked through as what they stand for, so an escape hides nothing, and written again; JSON in a string in the same way. A
number in which something is found becomes a string, so that JSON stays JSON. Whatever turns out to be no JSON is text
from there on.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence

import regex

from common.guardrails.finding import Finder, Match
from common.guardrails.holding import TextFilter
from common.guardrails.json_values import EMBEDDED_LEVELS_MAX, number_text

NUMBER_CHARS_MAX = 400  # No number that anybody means is longer: 1.7e308 in digits.

# Outside a string: what stands between values; then a value that is whole, as what follows it shows.
_BETWEEN = regex.compile(r"[\s{}\[\]:,]++")
_VALUE = regex.compile(rf"(?:-?\d[0-9.eE+-]{{0,{NUMBER_CHARS_MAX}}}+|true|false|null)(?=\s{{0,{NUMBER_CHARS_MAX}}}+[,\]}}])")
# Inside one: all up to its end, but for an escape that is not whole.
_PIECE = regex.compile(
    r"""(?: [^"\\]++ | \\ (?: ["\\/bfnrt] | u (?: (?! [dD][89abAB] ) [0-9a-fA-F]{4}
        | [dD][89abAB][0-9a-fA-F]{2} \\u [dD][c-fC-F][0-9a-fA-F]{2} ) ) )*+""",
    regex.VERBOSE,
)
_ESCAPE = regex.compile(r'\\(?:["\\/bfnrt]|u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|u[0-9a-fA-F]{4})')


class JsonFilter:
    """See ``TextFilter``, whose face it has; ``finders`` makes those for one text."""

    blocking_match: Match | None = None  # What is found here is replaced.
    slow: Sequence[int] = ()  # The operator's expressions look for text as the model writes it, JSON or not.

    def __init__(self, finders: Callable[[], list[Finder]], level: int = 0) -> None:
        self._finders = finders
        self._level = level
        self._held = ""  # Outside of a string, or an escape in one, that is not whole.
        self._string: JsonFilter | None = None  # What the open string stands for.
        self._text: TextFilter | None = None  # Of what is no JSON.
        self._has_begun = False
        self.counts: Counter[str] = Counter()

    def feed(self, text: str) -> str:
        """Return what can be passed on now that ``text`` has come."""
        # Hot path: once per delta.
        if self._text:
            return self._text.feed(text)
        self._held += text
        if not self._has_begun:
            begin = self._held.lstrip()[:1]
            if not begin:
                return ""
            self._has_begun = True
            if begin not in ("{", "[") or self._level > EMBEDDED_LEVELS_MAX:
                self._text, held, self._held = self._plain(), self._held, ""
                return self._text.feed(held)
        held, at = self._held, 0
        pieces: list[str] = []
        while at < len(held) and self._text is None:
            size = self._step(held, at, pieces)
            if not size:
                break
            at += size
        if self._text:
            return "".join(pieces) + self._text.feed(held[at:])
        self._held = held[at:]
        return "".join(pieces)

    def flush(self) -> str:
        """Return what is held, after a last look: the text ends here, or goes on behind a seam."""
        if self._text:
            return self._text.flush()
        said = _written(self._string.flush()) if self._string else ""
        held, self._held = self._held, ""
        return said + (held if self._string else self._value(held))

    def resume(self, said: str) -> None:
        """Go on behind what somebody else has passed on of the same text, as text: where in JSON that was is not known."""
        self._text = self._plain()
        self._text.resume(said)

    def _step(self, held: str, at: int, pieces: list[str]) -> int:
        """Take the next piece of what is held; returns its size, 0 where it is not whole, or no JSON."""
        if self._string:
            return self._step_inside(self._string, held, at, pieces)
        if between := _BETWEEN.match(held, at):
            pieces.append(between[0])
            return len(between[0])
        if held[at] == '"':
            self._string = JsonFilter(self._finders, self._level + 1)
            self._string.counts = self.counts
            pieces.append('"')
            return 1
        if value := _VALUE.match(held, at):
            pieces.append(self._value(value[0]))
            return len(value[0])
        if not _VALUE.match(held, at, partial=True):
            self._text = self._plain()
        return 0

    def _step_inside(self, string: "JsonFilter", held: str, at: int, pieces: list[str]) -> int:
        match = _PIECE.match(held, at)
        end = match.end() if match else at
        if end > at:
            pieces.append(_written(string.feed(json.loads(f'"{held[at:end]}"', strict=False))))
        if held[end : end + 1] == '"':
            pieces.append(_written(string.flush()) + '"')
            self._string, end = None, end + 1
        elif end < len(held) and not _ESCAPE.fullmatch(held, end, partial=True):
            pieces.append(_written(string.flush()))
            self._text = self._plain()
        return end - at

    def _value(self, held: str) -> str:
        """Return a value that is no string, or a part of one at the end: as it is, or as a string with what is replaced."""
        try:
            text = number_text(json.loads(held))
        except (ValueError, TypeError):
            text = held
        plain = self._plain()
        said = plain.feed(text) + plain.flush()
        return held if said == text else json.dumps(said, ensure_ascii=False)

    def _plain(self) -> TextFilter:
        plain = TextFilter(self._finders())
        plain.counts = self.counts
        return plain


def _written(text: str) -> str:
    """Return text as it is written in a JSON string; what is no text at all, in escapes."""
    if text.isprintable() and '"' not in text and "\\" not in text:
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(text)[1:-1]
    return json.dumps(text, ensure_ascii=False)[1:-1]
