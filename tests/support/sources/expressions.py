"""Which regular expressions are in the code, and which text could make each of them hang?

As a program, it runs each expression on such texts, with a limit on CPU time that the system enforces: an expression that
backtracks without bound never returns, so nothing inside the process could stop it. It prints the name of each expression
before it runs it.
"""

import dataclasses
import importlib
import itertools
import pkgutil
import re
import resource
from collections.abc import Iterable, Iterator, Mapping
from re import _constants as sre  # type: ignore[attr-defined]
from re import _parser  # type: ignore[attr-defined]
from typing import Any

import regex

LENGTH = 1 << 18  # Squared, this is an hour.
PAIR_LENGTH = 1 << 15  # There are many pairs; squared, this is still far beyond the limit.
REGEX_LENGTH = 1 << 15  # `regex` is slower per character, and guardrails use it, in a thread.
CPU_S = 10  # Per text. A good expression takes a few tenths of a second at most, a quadratic one minutes.
PACKAGES = ("api", "workers", "common")
# Used only with match or fullmatch; they would take longer if they had to begin at every position.
ONLY_FROM_THE_START = ("_DATA_URL", "._PUBLIC_NAME", "._SERVICE_LINK")
ENDS = ("", "\x00")  # A character that no expression expects, so a match up to there must fail.


def expressions() -> dict[str, Any]:
    """Return every compiled expression of the modules, also inside their tables, by its place in the code."""
    patterns: dict[str, Any] = {}
    for package in PACKAGES:
        for module in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
            if ".migrations" not in module.name:
                loaded = importlib.import_module(module.name)
                for name, value in vars(loaded).items():
                    for path, pattern in _inside(value, f"{module.name}.{name}", 0):
                        patterns.setdefault(path, pattern)
    unique = {}  # A pattern that several modules import is tried once, under its first name.
    for path, pattern in patterns.items():
        if pattern not in unique.values():
            unique[path] = pattern
    return unique


def _inside(value: Any, path: str, depth: int) -> Iterator[tuple[str, Any]]:
    if isinstance(value, re.Pattern | regex.Pattern):
        yield path, value
    elif depth > 4:
        return
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _inside(item, f"{path}[{key!r}]", depth + 1)
    elif isinstance(value, list | tuple | set | frozenset):
        for index, item in enumerate(value):
            yield from _inside(item, f"{path}[{index}]", depth + 1)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from _inside(getattr(value, field.name, None), f"{path}.{field.name}", depth + 1)


# Texts that are made for an expression


def hostile(pattern: str, flags: int, length: int) -> Iterator[str]:
    """Yield texts that match an expression's beginning again and again, and then have a wrong end."""
    tree = _parser.parse(pattern, flags)
    letters = sorted(_letters(tree)) or ["a"]
    example, places = _example(tree)
    units = {example, *(example[:cut] for cut in range(1, len(example), max(1, len(example) // 8)))} - {""}
    is_short = length < LENGTH
    for text, end in itertools.product([*letters, *sorted(units)], ENDS[1:2] if is_short else ENDS):
        yield _filled(text, length) + end
    for head, unit in places:
        yield head + _filled(unit, length) + "\x00"
        yield _filled(head + unit * 50, PAIR_LENGTH) + "\x00"
    for pair in itertools.islice(itertools.permutations(letters, 2), 10 if is_short else 20):
        yield _filled("".join(pair), PAIR_LENGTH) + "\x00"


def _filled(unit: str, length: int) -> str:
    return unit * (length // len(unit) + 1)


def _letters(tree: Iterable[Any]) -> set[str]:
    """Return a letter for each position of an expression, 24 at most."""
    letters: set[str] = set()
    for op, argument in tree:
        if op in (sre.LITERAL, sre.NOT_LITERAL, sre.IN, sre.ANY, sre.CATEGORY):
            letters.add(_letter(op, argument))
        for part in _parts(op, argument):
            letters |= _letters(part)
    return set(sorted(letters)[:24])


def _letter(op: Any, argument: Any) -> str:
    if op is sre.LITERAL:
        return chr(argument)
    if op is sre.NOT_LITERAL:
        return "a" if argument != ord("a") else "b"
    if op is sre.ANY:
        return "a"
    if op is sre.CATEGORY:
        return {sre.CATEGORY_DIGIT: "1", sre.CATEGORY_SPACE: " ", sre.CATEGORY_WORD: "w"}.get(argument, "-")
    if argument[0][0] is sre.NEGATE:
        banned = {chr(code) for kind, code in argument if kind is sre.LITERAL}
        return next(char for char in "a1 -xyz" if char not in banned)
    kind, first = argument[0]
    return chr(first[0]) if kind is sre.RANGE else _letter(kind, first)


def _parts(op: Any, argument: Any) -> list[Any]:
    if op is sre.BRANCH:
        return list(argument[1])
    if op is sre.SUBPATTERN:
        return [argument[3]]
    if op in (sre.MAX_REPEAT, sre.MIN_REPEAT, sre.POSSESSIVE_REPEAT):
        return [argument[2]]
    return [argument] if op is sre.ATOMIC_GROUP else []


def _example(tree: Iterable[Any]) -> tuple[str, list[tuple[str, str]]]:
    """Return a text similar to a match, and for each repetition in it the text before it and the repeated text."""
    text, places = "", []
    for op, argument in tree:
        if op in (sre.LITERAL, sre.NOT_LITERAL, sre.IN, sre.ANY, sre.CATEGORY):
            text += _letter(op, argument)
            continue
        for part in _parts(op, argument)[:1]:
            inner, inside = _example(part)
            places += [(text + head, unit) for head, unit in inside]
            if op in (sre.MAX_REPEAT, sre.MIN_REPEAT, sre.POSSESSIVE_REPEAT):
                low, high, _ = argument
                if inner and high > 8:
                    places.append((text, inner))
                text += inner * min(max(low, 1), 50)
            else:
                text += inner
    return text, places


# Running the expressions


def try_one(name: str, pattern: Any) -> None:
    is_bytes = isinstance(pattern.pattern, bytes)
    source = pattern.pattern.decode("latin-1") if is_bytes else pattern.pattern
    # `regex` supports sets of characters by property, and `re` does not. A letter replaces each set.
    source = re.sub(r"\\p\{[^}]*\}", "a", source)
    flags = pattern.flags & (re.IGNORECASE | re.VERBOSE | re.DOTALL | re.MULTILINE)
    for text in hostile(source, flags, LENGTH if isinstance(pattern, re.Pattern) else REGEX_LENGTH):
        subject = text.encode("latin-1", "replace") if is_bytes else text
        limit_cpu()
        pattern.fullmatch(subject)
        pattern.match(subject)
        if not name.endswith(ONLY_FROM_THE_START):
            for _ in pattern.finditer(subject):
                pass


def limit_cpu() -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + 1 + CPU_S, resource.RLIM_INFINITY))


def main() -> None:
    for name, pattern in expressions().items():
        print(name, flush=True)
        try_one(name, pattern)


if __name__ == "__main__":
    main()
