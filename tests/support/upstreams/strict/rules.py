"""What is a rule of a vendor, and what do many vendors' rules share?

A rule is a function: it gets a call and returns what the vendor complains about, or None.
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar


@dataclass(frozen=True)
class Call:
    """One request to a vendor. ``path`` has no host and no query; ``headers`` have names in lower case."""

    vendor: str
    path: str
    headers: Mapping[str, str]
    body: Mapping[str, Any]

    @property
    def model(self) -> str:
        """The model's name, without the maker's name before it: Azure and Gemini have it in the path."""
        in_path = re.search(r"/(?:deployments|models)/([^/:]+)", self.path)
        name = str(in_path.group(1) if in_path else self.body.get("model", ""))
        return name.rpartition("/")[2]

    def get(self, *keys: str) -> Any:
        """Return the value at a path of keys; None if it is not there."""
        value: Any = self.body
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value

    def items(self, *keys: str) -> list[dict[str, Any]]:
        """Return the objects in the list at a path of keys."""
        value = self.get(*keys)
        return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


@dataclass(frozen=True)
class Complaint:
    """Why a vendor refuses: the words of its answer, and the fields that they come with."""

    message: str
    param: str | None = None
    code: str | None = None
    status: int = 400


Rule = Callable[[Call], Complaint | None]
Judgement = tuple[int, dict[str, Any]]
_Value = TypeVar("_Value")
ByModel = Sequence[tuple[str, _Value]]  # A regular expression that matches a model's name from its beginning, and a value.


def value_for(model: str, table: ByModel[_Value], default: _Value) -> _Value:
    """Return the value of the first row that matches the model."""
    return next((value for pattern, value in table if re.match(pattern, model)), default)


def first_complaint(rules: Iterable[Rule], call: Call) -> Complaint | None:
    return next((complaint for rule in rules if (complaint := rule(call))), None)


def unknown_field(body: Mapping[str, Any], known: Collection[str]) -> str | None:
    return next((name for name in body if name not in known), None)


def parts_of(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the content of a message as a list of parts."""
    content = message.get("content")
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []


def objects_in(schema: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each schema inside a JSON schema, with the path to it. Names of properties are no keywords."""
    yield from _schemas(schema, ())


def _schemas(node: Any, path: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    if not isinstance(node, dict):
        return
    yield ".".join(path), node
    for key in ("properties", "$defs", "definitions", "patternProperties"):
        if isinstance(node.get(key), dict):
            for name, child in node[key].items():
                yield from _schemas(child, (*path, key, name))
    for key in ("items", "additionalProperties", "not", "if", "then", "else"):
        yield from _schemas(node.get(key), (*path, key))
    for key in ("anyOf", "oneOf", "allOf", "prefixItems"):
        for index, child in enumerate(node[key] if isinstance(node.get(key), list) else []):
            yield from _schemas(child, (*path, key, str(index)))


def allows_type(schema: Mapping[str, Any], name: str) -> bool:
    kind = schema.get("type")
    return kind == name or (isinstance(kind, list) and name in kind)


def not_strict(schema: Any) -> str | None:
    """Return why a schema breaks the rules of strict mode, in OpenAI's words.

    https://developers.openai.com/api/docs/guides/structured-outputs: every object is closed and requires all its properties.
    """
    for path, node in objects_in(schema):
        context = f"In context=({', '.join(repr(step) for step in path.split('.') if step)})"
        if not allows_type(node, "object"):
            continue
        if node.get("additionalProperties") is not False:
            return f"{context}, 'additionalProperties' is required to be supplied and to be false."
        if missing := next((name for name in node.get("properties") or {} if name not in (node.get("required") or [])), None):
            return (
                f"{context}, 'required' is required to be supplied and to be an array including every key in properties."
                f" Missing '{missing}'."
            )
    return None
