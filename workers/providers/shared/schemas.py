"""How is a JSON schema written so that a vendor accepts it?

A tool's schema is an object with properties. Some vendors refuse alternatives at its root; then the root offers what any of
them takes, and the tool itself checks the rest. In an answer's schema, a description says what the vendor has no keyword for,
as the vendors' own SDKs do.

Sources: https://platform.openai.com/docs/guides/structured-outputs#supported-schemas,
https://platform.claude.com/docs/en/build-with-claude/structured-outputs, https://github.com/langchain-ai/langchainjs/issues/9804
"""

from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from common.vendors.models import ModelFacts

_COMBINING = ("allOf", "anyOf", "oneOf")
_REFERENCES_MAX = 16  # Of one root, one after the other.
# Keywords whose value is a schema, a list of schemas, or a map of names to schemas.
_SCHEMA_WORDS = frozenset({"items", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames"})
_LIST_WORDS = frozenset({*_COMBINING, "prefixItems"})
_MAP_WORDS = frozenset({"properties", "patternProperties", "dependentSchemas", "$defs", "definitions"})


# Tools


def tool_schema(schema: Mapping[str, Any], facts: ModelFacts) -> dict[str, Any]:
    """Return the schema of a tool's parameters as an object with properties, even if it has none."""
    if facts.tool_root_refuses & schema.keys():
        schema = _without_alternatives(schema, facts.tool_root_refuses)
    elif schema.keys() & {"$ref", *_COMBINING}:
        return dict(schema)
    if schema.get("type") == "object" and isinstance(schema.get("properties"), dict):
        return dict(schema)
    # Some MCP servers write null for what they do not need.
    stated = {name: value for name, value in schema.items() if value is not None}
    return {**stated, "type": "object", "properties": stated.get("properties") or {}}


def _without_alternatives(schema: Mapping[str, Any], refused: frozenset[str]) -> dict[str, Any]:
    """Return a root that takes all that its alternatives take: their properties together, required where all require them."""
    root = _referenced(schema, schema)
    flat = {name: value for name, value in root.items() if name not in refused}
    properties, required = dict(root.get("properties") or {}), list(root.get("required") or [])
    for word in refused.intersection(_COMBINING) & root.keys():
        branches = list(_branches(root[word], schema, refused))
        for branch in branches:
            properties = {**(branch.get("properties") or {}), **properties}
        needed = [set(branch.get("required") or []) for branch in branches]
        if needed:
            common = set.union(*needed) if word == "allOf" else set.intersection(*needed)
            required += sorted(common.difference(required))
    flat["properties"] = properties
    if required:
        flat["required"] = required
    return flat


def _branches(value: object, root: Mapping[str, Any], refused: frozenset[str]) -> Iterator[dict[str, Any]]:
    for branch in value if isinstance(value, list) else []:
        if isinstance(branch, dict):
            # The branch's own references point into the root.
            resolved = _referenced(branch, root)
            yield _without_alternatives(resolved, refused) if resolved.keys() & refused else resolved


def _referenced(node: Mapping[str, Any], root: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema with what its local reference points to, such as ``#/$defs/Query``."""
    resolved = dict(node)
    for _ in range(_REFERENCES_MAX):
        reference = resolved.get("$ref")
        if not isinstance(reference, str) or not reference.startswith("#/"):
            break
        target: Any = root
        for step in reference[2:].split("/"):
            target = target.get(step) if isinstance(target, Mapping) else None
        if not isinstance(target, Mapping):
            break
        del resolved["$ref"]
        resolved = {**target, **resolved}
    return resolved


# Answers


def answer_schema(schema: dict[str, Any], facts: ModelFacts) -> dict[str, Any] | None:
    """Return the schema of an answer as the vendor accepts it; None: it says no more than that the answer is an object."""
    if not (facts.schema_objects_closed or facts.schema_required_needed or facts.schema_refuses):
        return schema
    says_more = bool(schema.keys() & {"properties", "$ref", "enum", "const", *_COMBINING})
    needs_more = facts.schema_objects_closed or facts.schema_required_needed
    if needs_more and not says_more and schema.get("type", "object") == "object":
        return None  # Closed, such an object could only be empty.
    fitted: dict[str, Any] = _fit(schema, facts)
    return fitted


def _fit(node: Any, facts: ModelFacts) -> Any:
    if not isinstance(node, dict):
        return node
    fitted: dict[str, Any] = {}
    moved: dict[str, Any] = {}
    for word, value in node.items():
        if word in facts.schema_refuses:
            moved[word] = value
        elif word in _MAP_WORDS and isinstance(value, dict):
            fitted[word] = {name: _fit(inner, facts) for name, inner in value.items()}
        elif word in _LIST_WORDS | {"items"} and isinstance(value, list):
            fitted[word] = [_fit(inner, facts) for inner in value]
        else:
            fitted[word] = _fit(value, facts) if word in _SCHEMA_WORDS else value
    if facts.schema_objects_closed and _is_object(node) and node.get("additionalProperties") is not False:
        if isinstance(node.get("additionalProperties"), dict):
            moved["additionalProperties"] = node["additionalProperties"]
        fitted["additionalProperties"] = False
    if facts.schema_required_needed and isinstance(node.get("properties"), dict) and not node.get("required"):
        fitted["required"] = list(node["properties"])[:1]
    if moved:
        words = ", ".join(f"{word}: {orjson.dumps(value).decode()}" for word, value in moved.items())
        fitted["description"] = "\n\n".join(filter(None, [node.get("description"), f"{{{words}}}"]))
    return fitted


def _is_object(node: dict[str, Any]) -> bool:
    type_ = node.get("type")
    return type_ == "object" or (isinstance(type_, list) and "object" in type_) or (type_ is None and "properties" in node)
