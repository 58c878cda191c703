"""Where in JSON is text, and how can it be replaced so that the result is still JSON?

Text is every string, every number (in digits), and every member name. If a string contains JSON, the texts inside it are read,
to some depth. A subclass that knows which fields contain no text excludes them (``JsonTexts.is_skipped``).
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

EMBEDDED_DEPTH_MAX = 64  # The same as a body's default limit. JSON that is deeper is treated as one text.
EMBEDDED_LEVELS_MAX = 8  # JSON in JSON in JSON…: each level doubles the backslashes.
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{64,}={0,2}")
_DATA_URL = re.compile(r"data:[\w.+-]+/[\w.+-]+(?:;[\w=-]+)*;base64,[A-Za-z0-9+/=_\s-]*")
_DATA_FIELDS = frozenset({"data", "b64_json", "file_data", "image", "images", "bytes"})


@dataclass(slots=True)
class _Text:
    container: Any  # A dict or a list.
    key: Any
    index: int  # Index of its text.


@dataclass(slots=True)
class _Names:
    container: dict[str, Any]
    names: list[tuple[str, int]] = field(default_factory=list)


@dataclass(slots=True)
class _Embedded:
    """A string that contains JSON: where it is, and its decoded value. The places up to index ``end`` are inside it."""

    container: Any
    key: Any
    value: Any
    end: int = 0


@dataclass(slots=True)
class Item:
    """A value to read. ``field`` is its name; list items have the list's name. ``is_free``: no field is skipped inside it."""

    container: Any
    key: Any
    value: Any
    field: str
    role: str
    is_free: bool
    level: int = 0


class JsonTexts:
    """The texts of a value, in order, with their ``roles``. ``quoted``: complete strings that contain JSON, with their role."""

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

    # What a subclass knows about its documents

    def is_skipped(self, item: Item) -> bool:
        """Whether a field contains no text that a person wrote. Not called inside free-form objects."""
        return False

    def member_context(self, item: Item, name: str, value: Any) -> tuple[str, bool]:
        """Return ``role`` and ``is_free`` for a member of an object."""
        return item.role, item.is_free

    def object_role(self, item: Item) -> str:
        """Return the role of an object."""
        return item.role

    def is_text_name(self, item: Item, name: str) -> bool:
        """Whether a member's name is text."""
        return True

    # Reading

    def _read(self, stack: list[Item | _Embedded]) -> None:
        """Read the items on a stack, last first. Not recursive, because the client controls the depth."""
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
                    Item(value, index, element, item.field, item.role, item.is_free, item.level)
                    for index, element in reversed(list(enumerate(value)))
                ]
            elif isinstance(value, str):
                stack += self._string(item, value)
            elif item.is_free or abs(value) >= 10**7:  # Shorter numbers are options, such as a limit.
                self._add(item, number_text(value))

    def _members(self, item: Item, members: dict[str, Any]) -> list[Item | _Embedded]:
        role = item.role if item.is_free else self.object_role(item)
        inside = Item(item.container, item.key, members, item.field, role, item.is_free, item.level)
        names = _Names(members)
        for name in members:
            if name and (item.is_free or self.is_text_name(inside, name)):
                names.names.append((name, len(self.texts)))
                self.texts.append(name)
                self.roles.append(role)
        if names.names:
            self._places.append(names)
        items: list[Item | _Embedded] = []
        for name, value in members.items():
            member_role, is_free = (role, True) if item.is_free else self.member_context(inside, name, value)
            items.append(Item(members, name, value, name, member_role, is_free, item.level))
        return items[::-1]

    def _string(self, item: Item, text: str) -> list[Item | _Embedded]:
        if not text or (item.field in _DATA_FIELDS and _BASE64.fullmatch(text)):
            return []
        if text.startswith("data:") and _DATA_URL.fullmatch(text):
            return []
        value = _parse_embedded(text) if item.level < EMBEDDED_LEVELS_MAX else None
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
        """Replace the texts, one for each; everything else stays as it is. Call it only once."""
        first_changed = len(self._places) + 1
        # In reverse order: inner values before the strings that contain them, and an object's names after its members.
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
    """Return a number in digits, as a person would write it: without exponent if it is an integer.

    >>> number_text(4.111111111111111e15)
    '4111111111111111'
    """
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e22:
        return f"{value:.0f}"
    return repr(value)


def _parse_embedded(text: str) -> Any:
    """Return the object or list that a string contains as JSON; None if there is none, or if it is too deep."""
    if text.lstrip()[:1] not in ("{", "["):
        return None
    try:
        orjson.loads(text)  # orjson is stricter: what it accepts can be encoded again.
        value = json.loads(text)  # json is more exact: it keeps every integer.
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
    """Rename members and keep their order. A name that is in use already gets a number."""
    used_names = set(members) - set(renamed)
    changed = {}
    for name, value in members.items():
        new, number = renamed.get(name, name), 2
        while name in renamed and new in used_names:
            new, number = f"{renamed[name]} {number}", number + 1
        used_names.add(new)
        changed[new] = value
    members.clear()
    members.update(changed)
