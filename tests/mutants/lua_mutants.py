"""Which faults can be put into a Lua script?

A comparison or an arithmetic operator becomes its neighbour, a number one more or less, ``and`` becomes ``or``, ``true``
becomes ``false``; a clause or a ``not`` is dropped, a condition is negated, a string says something else, and a line that is a
whole statement is dropped. Comments and local declarations stay.
"""

import re
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from typing import NamedTuple

from tests.mutants.mutant import Mutant, one_line

_TOKEN = re.compile(
    r"""(?P<comment>--[^\n]*)
      | (?P<string>'(?:\\.|[^'\\\n])*'|"(?:\\.|[^"\\\n])*")
      | (?P<number>\d+(?:\.\d+)?)
      | (?P<word>[A-Za-z_]\w*)
      | (?P<sign>==|~=|<=|>=|\.\.\.|\.\.|[^\s\w])""",
    re.VERBOSE,
)
_INSTEAD = {
    "==": "~=", "~=": "==", "<": "<=", "<=": "<", ">": ">=", ">=": ">", "+": "-", "-": "+", "*": "/", "/": "*", "%": "*",
    "and": "or", "or": "and", "true": "false", "false": "true", "not": "",
}  # fmt: skip
_OPENING, _CLOSING = ("(", "[", "{"), (")", "]", "}")
# What a clause of a condition lies between, where no bracket and no end of a line does.
_EDGES = {"if", "elseif", "while", "until", "return", "then", "do", "and", "or", "else", "end", "=", ",", ";"}
_BEFORE_A_SIGN = {*_EDGES, *_OPENING, "==", "~=", "<", "<=", ">", ">=", "..", "+", "-", "*", "/", "%"}  # `-` is one there.
_CANNOT_BE_DROPPED = {"local", "function", "for", "while", "repeat", "until", "else", "elseif", "end"}


class _Token(NamedTuple):
    kind: str
    text: str
    begin: int
    end: int
    is_first_of_line: bool


def mutants_of(path: str, source: str) -> list[Mutant]:
    """Return all mutants of a Lua file, in the order of its text."""
    tokens, lines = _tokens(source), source.splitlines()
    mutants = []
    for begin, end, text in sorted({*_words(tokens), *_dropped_clauses(tokens), *_negations(source, tokens), *_drops(source)}):
        line = source.count("\n", 0, begin) + 1
        change = f"{one_line(source[begin:end])} → {one_line(text) or 'nothing'}"
        mutated = source[:begin] + text + source[end:]
        last = source.count("\n", 0, end) + 1
        mutants.append(Mutant(path, range(line, last + 1), line, lines[line - 1].strip(), change, partial(str, mutated)))
    return mutants


def _tokens(source: str) -> list[_Token]:
    """Return the words of a script, without its comments."""
    matches = _TOKEN.finditer(source)
    return [
        _Token(str(m.lastgroup), m.group(), m.start(), m.end(), not source[: m.start()].rpartition("\n")[2].strip())
        for m in matches
        if m.lastgroup != "comment"
    ]


def _words(tokens: list[_Token]) -> Iterator[tuple[int, int, str]]:
    for before, (kind, text, begin, end, _) in pairwise(tokens):
        if kind == "number":
            yield begin, end, str(int(text) + 1)
            yield begin, end, str(int(text) - 1)
        elif kind == "string":
            yield begin, end, f"{text[0]}XX{text[1:]}"
        elif text == "-" and before.text in _BEFORE_A_SIGN:
            yield begin, end, ""
        elif text in _INSTEAD:
            yield begin, end, _INSTEAD[text]


def _dropped_clauses(tokens: list[_Token]) -> Iterator[tuple[int, int, str]]:
    """``a and b`` becomes ``a``, and ``b``."""
    for index, token in enumerate(tokens):
        if token.text in ("and", "or"):
            yield _first_of_clause(tokens, index).begin, tokens[index + 1].begin, ""
            yield tokens[index - 1].end, _last_of_clause(tokens, index).end, ""


def _first_of_clause(tokens: list[_Token], index: int) -> _Token:
    depth = 0
    for before, token in zip(tokens[index - 2 :: -1], tokens[index - 1 : 0 : -1], strict=True):
        depth += (token.text in _CLOSING) - (token.text in _OPENING)
        if depth == 0 and before.text in {*_EDGES, *_OPENING}:
            return token
    raise ValueError("a script cannot begin with a clause")


def _last_of_clause(tokens: list[_Token], index: int) -> _Token:
    depth = 0
    for token, after in zip(tokens[index + 1 :], tokens[index + 2 :], strict=False):
        depth += (token.text in _OPENING) - (token.text in _CLOSING)
        if depth == 0 and (after.text in {*_EDGES, *_CLOSING} or after.is_first_of_line):
            return token
    return tokens[-1]


def _negations(source: str, tokens: list[_Token]) -> Iterator[tuple[int, int, str]]:
    """The condition of an ``if`` or a ``while``."""
    for index, token in enumerate(tokens):
        if token.text in ("if", "elseif", "while"):
            until = next(later for later in tokens[index:] if later.text in ("then", "do")).begin
            yield token.end, until, f" not ({source[token.end : until].strip()}) "


def _drops(source: str) -> Iterator[tuple[int, int, str]]:
    """A line that is a whole statement."""
    begin = 0
    for line in source.splitlines(keepends=True):
        tokens = _tokens(line)
        if tokens and tokens[0].kind == "word" and tokens[0].text not in _CANNOT_BE_DROPPED and _is_whole(tokens):
            yield begin + tokens[0].begin, begin + tokens[-1].end, ""
        begin += len(line)


def _is_whole(tokens: list[_Token]) -> bool:
    texts = [token.text for token in tokens]
    has_its_brackets = sum((text in _OPENING) - (text in _CLOSING) for text in texts) == 0
    has_its_ends = sum(text in ("if", "for", "while", "function") for text in texts) == texts.count("end")
    return has_its_brackets and has_its_ends and texts[-1] not in {*_BEFORE_A_SIGN, "then", "do"} - {"end"}
