"""Which expressions of an operator's can be used as guardrails, and what are they compile_patterns to?

Python's regular expressions, run by the ``regex`` package. What cannot work is refused when settings are read; searching with
them is ``patterns.py``.
"""

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import regex

# Never in text that is UTF-8 somewhere. Behind a pattern it can never match, so what matches "in part" is exactly what
# could be the beginning of a match, or a match that could grow.
IMPOSSIBLE_CHAR = "\ud800"
PATTERNS_MAX = 50
PATTERN_CHARS_MAX = 1_000
# Of the process's own time. An expression that does not run away takes microseconds for what a stream brings, and for long
# texts a few tenths of this.
SEARCH_TIMEOUT_S, SEARCH_TIMEOUT_S_PER_CHAR = 0.1, 1e-6
_ASSERTIONS = "bB"


@dataclass(frozen=True, slots=True)
class Pattern:
    """One expression, twice: as it is, and as what could be its beginning."""

    full: regex.Pattern[str]
    beginning: regex.Pattern[str]


def compile_patterns(sources: Sequence[str]) -> tuple[Pattern, ...]:
    """Return the expressions, ready to be used.

    Raises:
        ValueError: one of them is none, or matches everywhere; the message counts them from 1 and says what to do.
    """
    if len(sources) > PATTERNS_MAX:
        raise ValueError(f"there are {len(sources)} patterns, and {PATTERNS_MAX} at most are taken: join some with |")
    return tuple(_compile(source, f"pattern {number}") for number, source in enumerate(sources, 1))


def _compile(source: str, name: str) -> Pattern:
    if len(source) > PATTERN_CHARS_MAX:
        raise ValueError(f"{name} has {len(source)} characters, and {PATTERN_CHARS_MAX} at most are taken")
    try:
        with warnings.catch_warnings(action="error"):
            as_python = re.compile(source)  # What only the other package knows (fuzzy matches, recursion) is not offered.
            relaxed = _without_boundaries(source)
            full = regex.compile(source)
            end = "\n" if as_python.flags & re.VERBOSE else ""  # A comment may be open.
            beginning = regex.compile(f"(?:{relaxed}{end}){IMPOSSIBLE_CHAR}")
            matches_nothing = full.search("", timeout=SEARCH_TIMEOUT_S)
    except (re.error, regex.error, Warning, OverflowError, RecursionError, TimeoutError) as error:
        raise ValueError(f"{name} is not a regular expression that can be used: {error}") from error
    if matches_nothing:
        raise ValueError(f"{name} matches an empty text, so it would match everywhere: let it need a character at least")
    return Pattern(full, beginning)


def _without_boundaries(source: str) -> str:
    r"""Return an expression without its ``\b`` and ``\B``: at the end of what has come so far nobody knows whether they hold.

    Raises:
        re.error: a brace that is no count, which means something else to ``regex``.
    """
    kept, i, in_set = [], 0, False
    while i < len(source):
        char = source[i]
        size = 2 if char == "\\" else 1
        piece = source[i : i + size]
        if char == "\\" and piece[1:] == "N":
            size = source.find("}", i) + 1 - i
            piece = source[i : i + size]
        elif char == "\\" and piece[1:] in _ASSERTIONS and not in_set:
            piece = "(?:)"
        elif char == "[" and not in_set:
            in_set = True
            if source[i + 1 : i + 2] == "^":
                size, piece = 2, "[^"
            if source[i + size : i + size + 1] == "]":  # The first one is a member.
                size, piece = size + 1, piece + "]"
        elif char == "]":
            in_set = False
        elif char == "{" and not in_set and not re.match(r"\{\d*,?\d*\}", source[i:]):
            raise re.error("a brace that is no count must be written as \\{", source, i)
        kept.append(piece)
        i += size
    return "".join(kept)
