"""Which of an operator's expressions can be used as guardrails, and how are they compiled?

They are Python regular expressions, run by the ``regex`` package. Unusable ones are refused when the settings are read.
``patterns.py`` searches with them.
"""

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import regex

# A lone surrogate: never part of UTF-8 text. A pattern followed by it can never match fully. So a partial match is exactly the
# text that could be the beginning of a match, or a match that could become longer.
IMPOSSIBLE_CHAR = "\ud800"
PATTERNS_MAX = 50
PATTERN_CHARS_MAX = 1_000
# CPU time of the process. A well-behaved expression takes microseconds for a piece of a stream, and for long texts a few
# tenths of this.
SEARCH_TIMEOUT_S, SEARCH_TIMEOUT_S_PER_CHAR = 0.1, 1e-6
_ASSERTIONS = "bB"


@dataclass(frozen=True, slots=True)
class Pattern:
    """One expression in two forms: ``full`` matches it, ``beginning`` matches text that could become a match."""

    full: regex.Pattern[str]
    beginning: regex.Pattern[str]


def compile_patterns(sources: Sequence[str]) -> tuple[Pattern, ...]:
    """Compile the expressions.

    Raises:
        ValueError: one of them is invalid, or matches everywhere. The message numbers them from 1 and says what to do.
    """
    if len(sources) > PATTERNS_MAX:
        raise ValueError(f"there are {len(sources)} patterns, but at most {PATTERNS_MAX} are allowed: join some with |")
    return tuple(_compile(source, f"pattern {number}") for number, source in enumerate(sources, 1))


def _compile(source: str, name: str) -> Pattern:
    if len(source) > PATTERN_CHARS_MAX:
        raise ValueError(f"{name} has {len(source)} characters, but at most {PATTERN_CHARS_MAX} are allowed")
    try:
        with warnings.catch_warnings(action="error"):
            as_python = re.compile(source)  # Refuse syntax that only ``regex`` has (fuzzy matches, recursion).
            relaxed = _without_boundaries(source)
            full = regex.compile(source)
            end = "\n" if as_python.flags & re.VERBOSE else ""  # A verbose expression may end in a comment.
            beginning = regex.compile(f"(?:{relaxed}{end}){IMPOSSIBLE_CHAR}")
            matches_nothing = full.search("", timeout=SEARCH_TIMEOUT_S)
    except (re.error, regex.error, Warning, OverflowError, RecursionError, TimeoutError) as error:
        raise ValueError(f"{name} is not a usable regular expression: {error}") from error
    if matches_nothing:
        raise ValueError(f"{name} matches an empty text, so it would match everywhere: make it require at least one character")
    return Pattern(full, beginning)


def _without_boundaries(source: str) -> str:
    r"""Return an expression without its ``\b`` and ``\B``: at the end of an incomplete text, it is unknown whether they match.

    Raises:
        re.error: a brace that is not a repetition count; ``regex`` would read it differently.
    """
    pieces, i, in_set = [], 0, False
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
            if source[i + size : i + size + 1] == "]":  # A leading "]" is a member of the set.
                size, piece = size + 1, piece + "]"
        elif char == "]":
            in_set = False
        elif char == "{" and not in_set and not re.match(r"\{\d*,?\d*\}", source[i:]):
            raise re.error("a brace that is not a repetition count must be written as \\{", source, i)
        pieces.append(piece)
        i += size
    return "".join(pieces)
