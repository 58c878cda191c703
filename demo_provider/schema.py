"""Which small JSON value matches a JSON schema?

Supports enough of JSON schema for typical tool parameters and response formats. The same schema always gives the same value.
Ignored: ``pattern``, ``not``, ``if``, ``multipleOf``, ``uniqueItems``.
"""

from typing import Any

_TEXT_OF_FORMAT = {
    "date": "2025-06-01",
    "date-time": "2025-06-01T12:00:00Z",
    "time": "12:00:00Z",
    "email": "demo@example.com",
    "uri": "https://example.com/",
    "uuid": "00000000-0000-4000-8000-000000000000",
}
_PLACE_HINTS = ("city", "location", "place", "town")
_STEPS_MAX = 400  # Schemas can require endless documents; after this many values the rest is null.
_DEPTH_MAX = 24
_SIZE_MAX = 1000  # Items or characters, whatever the schema requires: the answer must stay small.


def example(schema: Any) -> Any:
    """Return a value that matches the schema; properties that are places get the name of a city.

    Raises:
        ValueError: it is not a valid schema.
    """
    try:
        return _Maker(schema).value(schema)
    except (TypeError, AttributeError, KeyError) as error:
        raise ValueError(f"not a JSON schema: {error}") from error


class _Maker:
    """Builds one document, and counts its steps."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._steps = 0

    def value(self, schema: Any, name: str = "", depth: int = 0) -> Any:
        self._steps += 1
        if not isinstance(schema, dict) or depth > _DEPTH_MAX or self._steps > _STEPS_MAX:
            return None
        schema = self._resolve(schema)
        for key in ("const", "default"):
            if key in schema:
                return schema[key]
        for key in ("enum", "examples"):
            if schema.get(key):
                return schema[key][0]
        for key in ("anyOf", "oneOf"):
            options = [option for option in schema.get(key) or [] if option.get("type") != "null"]
            if options:
                return self.value(options[0], name, depth + 1)
        match _schema_type(schema):
            case "object":
                return self._object(schema, depth)
            case "array":
                count = min(max(1, int(schema.get("minItems", 1))), _SIZE_MAX)
                return [self.value(schema.get("items", {}), name, depth + 1) for _ in range(count)]
            case "string":
                return _text(schema, name)
            case "integer" | "number":
                return _number(schema)
            case "boolean":
                return True
        return None

    def _resolve(self, schema: dict[str, Any]) -> dict[str, Any]:
        """Return the schema with its ``$ref`` and ``allOf`` resolved."""
        self._steps += 1
        if self._steps > _STEPS_MAX:
            return {}
        if "$ref" in schema:
            target = self._root
            for step in filter(None, schema["$ref"].removeprefix("#").split("/")):
                target = target[step]
            return {} if target == schema else self._resolve(target)
        for part in schema.get("allOf", []):
            extra = self._resolve(part)
            properties = {**schema.get("properties", {}), **extra.get("properties", {})}
            required = [*schema.get("required", []), *extra.get("required", [])]
            schema = {**schema, **extra, "properties": properties, "required": required, "allOf": []}
        return schema

    def _object(self, schema: dict[str, Any], depth: int) -> dict[str, Any]:
        properties = schema.get("properties") or {}
        # If a schema lists required properties, only those are filled: an optional one may contain the schema itself.
        names = schema.get("required") or list(properties)
        return {name: self.value(properties.get(name, {}), name, depth + 1) for name in names}


def _schema_type(schema: dict[str, Any]) -> str:
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = next((name for name in kind if name != "null"), "null")
    if isinstance(kind, str):
        return kind
    if "properties" in schema:
        return "object"
    return "array" if "items" in schema else "string"


def _text(schema: dict[str, Any], name: str) -> str:
    is_place = any(hint in name.lower() for hint in _PLACE_HINTS)
    text = _TEXT_OF_FORMAT.get(str(schema.get("format")), "Zürich" if is_place else "demo")
    text = text.ljust(min(int(schema.get("minLength", 0)), _SIZE_MAX), ".")
    return text[: int(schema.get("maxLength", len(text)))]


def _number(schema: dict[str, Any]) -> Any:
    number = max(1, schema.get("minimum", 1), schema.get("exclusiveMinimum", 0) + 1)
    return min(number, schema.get("maximum", number), schema.get("exclusiveMaximum", number + 1) - 1)
