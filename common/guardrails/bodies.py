"""Where in a request's body is text, whatever its dialect?

In the fields that the dialects have for it, at any depth, and in everything that a tool was called with or answered. Not in
ids, names, tool definitions and schemas, options, data URLs or base64. Of JSON inside a string (a tool call's arguments)
the strings are text, so that nothing hides behind an escape, and what is replaced leaves it valid JSON.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

# Fields whose strings are words for the model.
_TEXT = frozenset(
    {"content", "text", "input", "instructions", "system", "prompt", "output", "arguments", "args", "result", "refusal"}
    | {"reasoning_content", "title", "context", "suffix", "cited_text", "stdout", "stderr", "logs", "code", "query"}
)
# ... and whose objects hold nothing else: what a tool gets or gives, a prompt's variables.
_FREE = frozenset({"input", "arguments", "args", "output", "result", "variables"})
_SKIPPED = frozenset(
    {"tools", "functions", "tool_choice", "response_format", "format", "schema", "json_schema", "metadata", "logit_bias"}
    | {"stop", "stop_sequences", "image_url", "input_audio", "file", "encrypted_content", "signature", "thinking"}
    | {"cache_control"}
)
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{64,}={0,2}")
_SYSTEM = frozenset({"system", "instructions"})
_DATA_URL = re.compile(r"data:[\w.+-]+/[\w.+-]+(?:;[\w=-]+)*;base64,[A-Za-z0-9+/=_\s-]*")
_ROLES = {"system": "system", "developer": "system", "assistant": "assistant", "model": "assistant"}
_MODEL_ITEMS = ("function_call", "reasoning")  # Of the Responses: what the model said, without a role.
_EMBEDDED_DEPTH_MAX = 64  # As a body's own by default; what is deeper is a text like any other.


@dataclass(slots=True)
class _Place:
    container: Any  # A dict or a list.
    key: Any
    role: str


@dataclass(slots=True)
class _Embedded:
    """JSON in a string: where the string is, what it holds, and the places in it."""

    container: Any
    key: Any
    value: Any
    places: range


@dataclass(slots=True)
class BodyTexts:
    """The texts of one body, in their order. ``roles`` says whose each is: system, assistant or other."""

    body: dict[str, Any]
    texts: list[str] = field(default_factory=list)
    has_changed: bool = False
    _places: list[_Place] = field(default_factory=list)
    _embedded: list[_Embedded] = field(default_factory=list)

    @classmethod
    def of(cls, body: dict[str, Any]) -> "BodyTexts":
        found = cls(body)
        for key, value in body.items():
            found._field(body, key, value, "system" if key in _SYSTEM else "other")
        return found

    @property
    def roles(self) -> list[str]:
        return [place.role for place in self._places]

    @property
    def messages(self) -> int:
        turns = self.body.get("messages") or self.body.get("input")
        return len(turns) if isinstance(turns, list) else 1

    def replace(self, texts: Sequence[str]) -> None:
        """Put other texts in the place of these, one for each; the rest of the body stays as it is."""
        changed = set()
        for index, (place, old, new) in enumerate(zip(self._places, self.texts, texts, strict=True)):
            if new != old:
                place.container[place.key] = new
                changed.add(index)
        for json in self._embedded:
            if not changed.isdisjoint(json.places):
                json.container[json.key] = orjson.dumps(json.value).decode()
        self.texts = list(texts)
        self.has_changed = self.has_changed or bool(changed)

    def _object(self, fields: dict[str, Any], role: str) -> None:
        said_by = fields.get("role")
        if isinstance(said_by, str):
            role = _ROLES.get(said_by, "other")
        elif fields.get("type") in _MODEL_ITEMS:
            role = "assistant"
        for key, value in fields.items():
            is_document = key == "data" and fields.get("type") == "text"  # Anthropic's plain text documents.
            self._field(fields, key, value, role, is_text=is_document)

    def _field(self, container: Any, key: str, value: Any, role: str, *, is_text: bool = False) -> None:
        if isinstance(value, str):
            if is_text or key in _TEXT:
                self._string(container, key, value, role, may_be_json=key in ("arguments", "args"))
        elif key in _SKIPPED:
            return
        elif isinstance(value, dict):
            if key in _FREE:
                self._all(value, role)
            else:
                self._object(value, role)
        elif isinstance(value, list):
            self._list(value, role, is_text=key in _TEXT)

    def _list(self, items: list[Any], role: str, *, is_text: bool) -> None:
        for index, item in enumerate(items):
            if isinstance(item, dict):
                self._object(item, role)
            elif isinstance(item, list):
                self._list(item, role, is_text=is_text)
            elif is_text and isinstance(item, str):
                self._string(items, index, item, role)

    def _all(self, node: Any, role: str) -> None:
        """Every string below, whatever it is called there, but for data."""
        pairs = node.items() if isinstance(node, dict) else enumerate(node)
        for key, value in pairs:
            if isinstance(value, str):
                if not (key in ("data", "b64_json") and _BASE64.fullmatch(value)):
                    self._string(node, key, value, role)
            elif isinstance(value, dict | list):
                self._all(value, role)

    def _string(self, container: Any, key: Any, text: str, role: str, *, may_be_json: bool = False) -> None:
        if may_be_json and text.lstrip()[:1] in ("{", "["):
            try:
                value = orjson.loads(text)
            except orjson.JSONDecodeError:
                value = None
            if value is not None and not _is_deep(value):
                first = len(self.texts)
                self._all(value, role)
                self._embedded.append(_Embedded(container, key, value, range(first, len(self.texts))))
                return
        if text and not (text.startswith("data:") and _DATA_URL.fullmatch(text)):
            self.texts.append(text)
            self._places.append(_Place(container, key, role))


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(_EMBEDDED_DEPTH_MAX):
        level = [
            child
            for node in level
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, dict | list)
        ]
        if not level:
            return False
    return True
