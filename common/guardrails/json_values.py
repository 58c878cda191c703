"""Where in JSON is text, and how is it replaced so that what is left is JSON?

Text is every string, every number as it is written in digits, and every name of a member; of JSON inside a string, to
some depth, what stands in it. Who knows which fields of a document hold no text says so (``Reader.is_skipped``).
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

EMBEDDED_DEPTH_MAX = 64  # As a body's own by default; what is deeper is a text like any other.
EMBEDDED_LEVELS_MAX = 8  # JSON in JSON in JSON…: each level doubles its backslashes.
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{64,}={0,2}")
_DATA_URL = re.compile(r"data:[\w.+-]+/[\w.+-]+(?:;[\w=-]+)*;base64,[A-Za-z0-9+/=_\s-]*")
_DATA_FIELDS = frozenset({"data", "b64_json", "file_data", "image", "images", "bytes"})


@dataclass(slots=True)
class _Text:
    container: Any  # A dict or a list.
    key: Any
    index: int  # Of its text.


@dataclass(slots=True)
class _Names:
    container: dict[str, Any]
    names: list[tuple[str, int]] = field(default_factory=list)


@dataclass(slots=True)
class _Embedded:
    """JSON in a string: where the string is, and what it holds. The places up to ``end`` are in it."""

    container: Any
    key: Any
    value: Any
    end: int = 0


@dataclass(slots=True)
class Item:
    """A value that is to be read. ``field`` is the name that it has, in a list the list's; ``is_free``: no field is skipped."""

    container: Any
    key: Any
    value: Any
    field: str
    role: str
    is_free: bool
    level: int = 0


class JsonTexts:
    """The texts of a value, in their order. ``roles`` says whose each is; ``quoted`` are strings that hold JSON, as a whole."""

    def __init__(self, value: Any) -> None:
        self.texts: list[str] = []
        self.roles: list[str] = []
        self.quoted: list[tuple[str, str]] = []
        self.has_changed = False
        self._root = [value]
        self._places: list[_Text | _Names | _Embedded] = []

    @property
    def value(self) -> Any:
        return self._root[0]

    def read(self) -> None:
        self._read([Item(self._root, 0, self._root[0], "", "", is_free=True)])

    # What a document's own reader says of it

    def is_skipped(self, item: Item) -> bool:
        """Whether a field, of one that is not free, holds no text that anybody wrote."""
        return False

    def enter(self, item: Item, name: str, value: Any) -> tuple[str, bool]:
        """Return the role and the freedom of a member of an object."""
        return item.role, item.is_free

    def role_of(self, item: Item) -> str:
        """Return the role of an object."""
        return item.role

    def is_text(self, item: Item, name: str) -> bool:
        """Whether a member's name is text."""
        return True

    # Reading

    def _read(self, stack: list[Item | _Embedded]) -> None:
        """Read what is on a stack, the last first. No recursion: what embeds what is the client's to say."""
        while stack:
            item = stack.pop()
            if isinstance(item, _Embedded):
                item.end = len(self._places)
                continue
            value = item.value
            if value is None or isinstance(value, bool) or (not item.is_free and self.is_skipped(item)):
                continue
            if isinstance(value, dict):
                stack += self._members(item, value)
            elif isinstance(value, list):
                stack += [
                    Item(value, index, each, item.field, item.role, item.is_free, item.level)
                    for index, each in reversed(list(enumerate(value)))
                ]
            elif isinstance(value, str):
                stack += self._string(item, value)
            elif item.is_free or abs(value) >= 10**7:  # A shorter one is an option's.
                self._add(item, number_text(value))

    def _members(self, item: Item, members: dict[str, Any]) -> list[Item | _Embedded]:
        role = item.role if item.is_free else self.role_of(item)
        inside = Item(item.container, item.key, members, item.field, role, item.is_free, item.level)
        names = _Names(members)
        for name in members:
            if name and (item.is_free or self.is_text(inside, name)):
                names.names.append((name, len(self.texts)))
                self.texts.append(name)
                self.roles.append(role)
        if names.names:
            self._places.append(names)
        found: list[Item | _Embedded] = []
        for name, value in members.items():
            its_role, is_free = (role, True) if item.is_free else self.enter(inside, name, value)
            found.append(Item(members, name, value, name, its_role, is_free, item.level))
        return found[::-1]

    def _string(self, item: Item, text: str) -> list[Item | _Embedded]:
        if not text or (item.field in _DATA_FIELDS and _BASE64.fullmatch(text)):
            return []
        if text.startswith("data:") and _DATA_URL.fullmatch(text):
            return []
        value = _embedded(text) if item.level < EMBEDDED_LEVELS_MAX else None
        if value is None:
            self._add(item, text)
            return []
        self.quoted.append((text, item.role))
        holder = [value]
        embedded = _Embedded(item.container, item.key, holder)
        self._places.append(embedded)
        return [embedded, Item(holder, 0, value, "", item.role, is_free=True, level=item.level + 1)]

    def _add(self, item: Item, text: str) -> None:
        self._places.append(_Text(item.container, item.key, len(self.texts)))
        self.texts.append(text)
        self.roles.append(item.role)

    # Replacing

    def replace(self, texts: Sequence[str]) -> None:
        """Put other texts in the place of these, one for each; all else stays as it is. Once."""
        first_changed = len(self._places) + 1
        # From the last: what is in a thing is done before the thing, and an object's names after its members.
        for at in range(len(self._places) - 1, -1, -1):
            match self._places[at]:
                case _Text() as place:
                    if (new := texts[place.index]) != self.texts[place.index]:
                        place.container[place.key] = new
                        self.on_changed(place.container, place.key)
                        first_changed = at
                case _Names() as place:
                    renamed = {name: texts[index] for name, index in place.names if texts[index] != name}
                    if renamed:
                        _rename(place.container, renamed)
                        first_changed = at
                case _Embedded() as place if first_changed < place.end:
                    place.container[place.key] = json.dumps(place.value[0], ensure_ascii=False, separators=(",", ":"))
                    first_changed = at
        self.texts = list(texts)
        self.has_changed = self.has_changed or first_changed < len(self._places)

    def on_changed(self, container: Any, key: Any) -> None:
        """Called for each string or number that was replaced."""


def number_text(value: float) -> str:
    """Return a number in digits, as a person would write it: no exponent where it is whole.

    >>> number_text(4.111111111111111e15)
    '4111111111111111'
    """
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e22:
        return f"{value:.0f}"
    return repr(value)


def _embedded(text: str) -> Any:
    """Return the object or list that a string holds as JSON; None where it holds none, or one that is too deep."""
    if text.lstrip()[:1] not in ("{", "["):
        return None
    try:
        orjson.loads(text)  # The stricter of both: what it takes can be written again.
        value = json.loads(text)  # The more exact of both: it keeps every integer.
    except (ValueError, RecursionError):
        return None
    return None if _is_deep(value) else value


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(EMBEDDED_DEPTH_MAX):
        level = [
            child
            for node in level
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, dict | list)
        ]
        if not level:
            return False
    return True


def _rename(members: dict[str, Any], renamed: dict[str, str]) -> None:
    """Give members other names, in their order. Two that would have one name then are told apart by a number."""
    taken = set(members) - set(renamed)
    changed = {}
    for name, value in members.items():
        new, number = renamed.get(name, name), 2
        while name in renamed and new in taken:
            new, number = f"{renamed[name]} {number}", number + 1
        taken.add(new)
        changed[new] = value
    members.clear()
    members.update(changed)
