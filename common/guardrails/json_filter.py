"""Which part of JSON that is still arriving can be passed on?

The same as ``holding``, for text that may be JSON: a tool call's arguments, an answer in JSON mode. Strings are searched in
decoded form, so an escape hides nothing, and encoded again; JSON inside a string likewise. A number with a match becomes a
string, so that the result is still JSON. Anything that turns out not to be JSON is treated as text from there on.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence

import regex

from common.guardrails.finding import Finder, Match
from common.guardrails.holding import TextFilter
from common.guardrails.json_values import EMBEDDED_LEVELS_MAX, number_text

NUMBER_CHARS_MAX = 400  # Longer than any real number: 1.7e308 has 309 digits.

# Outside a string: the characters between values; then a complete value, which the next character confirms.
_BETWEEN = regex.compile(r"[\s{}\[\]:,]++")
_VALUE = regex.compile(rf"(?:-?\d[0-9.eE+-]{{0,{NUMBER_CHARS_MAX}}}+|true|false|null)(?=\s{{0,{NUMBER_CHARS_MAX}}}+[,\]}}])")
# Inside a string: everything up to its end, except an incomplete escape.
_PIECE = regex.compile(
    r"""(?: [^"\\]++ | \\ (?: ["\\/bfnrt] | u (?: (?! [dD][89abAB] ) [0-9a-fA-F]{4}
        | [dD][89abAB][0-9a-fA-F]{2} \\u [dD][c-fC-F][0-9a-fA-F]{2} ) ) )*+""",
    regex.VERBOSE,
)
_ESCAPE = regex.compile(r'\\(?:["\\/bfnrt]|u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|u[0-9a-fA-F]{4})')


class JsonFilter:
    """Has the interface of ``TextFilter``. ``finders`` creates the finders for one text."""

    blocking_match: Match | None = None  # Always None: matches in JSON are replaced.
    # Always empty: the operator's expressions search the text as the model writes it, with ``TextFilter``.
    slow: Sequence[int] = ()

    def __init__(self, finders: Callable[[], list[Finder]], level: int = 0) -> None:
        self._finders = finders
        self._level = level
        self._held = ""  # An incomplete value outside a string, or an incomplete escape inside one.
        self._string: JsonFilter | None = None  # Filters the decoded content of the open string.
        self._text: TextFilter | None = None  # Filters everything after the point where the text is not JSON.
        self._has_begun = False
        self.counts: Counter[str] = Counter()

    def feed(self, text: str) -> str:
        """Add text, and return what can be passed on now."""
        # Hot path: runs once per delta.
        if self._text:
            return self._text.feed(text)
        self._held += text
        if not self._has_begun:
            first_char = self._held.lstrip()[:1]
            if not first_char:
                return ""
            self._has_begun = True
            if first_char not in ("{", "[") or self._level > EMBEDDED_LEVELS_MAX:
                self._text, held, self._held = self._new_text_filter(), self._held, ""
                return self._text.feed(held)
        held, position = self._held, 0
        pieces: list[str] = []
        while position < len(held) and self._text is None:
            size = self._step(held, position, pieces)
            if not size:
                break
            position += size
        if self._text:
            return "".join(pieces) + self._text.feed(held[position:])
        self._held = held[position:]
        return "".join(pieces)

    def flush(self) -> str:
        """Search once more and return the held text: the text ends here, or continues after a seam."""
        if self._text:
            return self._text.flush()
        string_end = _escape(self._string.flush()) if self._string else ""
        held, self._held = self._held, ""
        return string_end + (held if self._string else self._filter_value(held))

    def resume(self, passed_text: str) -> None:
        """Continue after what another filter has passed on, as plain text: the position in the JSON is not known."""
        self._text = self._new_text_filter()
        self._text.resume(passed_text)

    def _step(self, held: str, at: int, pieces: list[str]) -> int:
        """Process the next piece of the held text. Return its size; 0 if it is incomplete, or not JSON."""
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
            pieces.append(self._filter_value(value[0]))
            return len(value[0])
        if not _VALUE.match(held, at, partial=True):
            self._text = self._new_text_filter()
        return 0

    def _step_inside(self, string: "JsonFilter", held: str, at: int, pieces: list[str]) -> int:
        match = _PIECE.match(held, at)
        end = match.end() if match else at
        if end > at:
            pieces.append(_escape(string.feed(json.loads(f'"{held[at:end]}"', strict=False))))
        if held[end : end + 1] == '"':
            pieces.append(_escape(string.flush()) + '"')
            self._string, end = None, end + 1
        elif end < len(held) and not _ESCAPE.fullmatch(held, end, partial=True):
            pieces.append(_escape(string.flush()))
            self._text = self._new_text_filter()
        return end - at

    def _filter_value(self, held: str) -> str:
        """Return a value that is not a string, or its last part: unchanged, or as a string if a match was replaced."""
        try:
            text = number_text(json.loads(held))
        except (ValueError, TypeError):
            text = held
        text_filter = self._new_text_filter()
        filtered = text_filter.feed(text) + text_filter.flush()
        return held if filtered == text else json.dumps(filtered, ensure_ascii=False)

    def _new_text_filter(self) -> TextFilter:
        text_filter = TextFilter(self._finders())
        text_filter.counts = self.counts
        return text_filter


def _escape(text: str) -> str:
    """Return text as the content of a JSON string. Lone surrogates, which are not valid text, are written as escapes."""
    if text.isprintable() and '"' not in text and "\\" not in text:
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(text)[1:-1]
    return json.dumps(text, ensure_ascii=False)[1:-1]
