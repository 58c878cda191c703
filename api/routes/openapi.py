"""What does ``/openapi.json`` say about a route: what it accepts, and every answer that it may give?

Nothing here runs during a request. A dialect's body is described by the shape that parses it, so that the two cannot diverge.
Parts that the vendor's own documents describe at length (the parts of a message, the fields of an answer) are only named.
The tests in tests/security send what the schema allows and what it forbids, and compare the answers with the schema.
"""

from collections.abc import Iterable
from typing import Any, Literal

from fastapi import FastAPI, Response
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from api.cache.wishes import MODES
from common.canonical.errors import ErrorKind
from common.dialects.agentary import request as agentary_request
from common.dialects.anthropic_messages import request as anthropic_messages_request
from common.dialects.openai_chat import request as openai_chat_request
from common.dialects.openai_responses import request as openai_responses_request
from common.dialects.shared.anthropic_words import OVERLOADED_STATUS
from common.queue.jobs import JobClass

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
NULLABLE_TEXT: Schema = {"type": ["string", "null"]}


def object_of(required: Iterable[str] = (), **properties: Schema) -> Schema:
    return {"type": "object", "required": list(required), "properties": properties}


def list_of(items: Schema) -> Schema:
    return {"type": "array", "items": items}


# Errors, by dialect

_OPENAI_ERROR = object_of(
    ["error"],
    error=object_of(
        ["message", "type", "param", "code"], message=TEXT, type=NULLABLE_TEXT, param=NULLABLE_TEXT, code=NULLABLE_TEXT
    ),
)
_ERRORS: dict[str, Schema] = {
    "openai-chat": _OPENAI_ERROR,
    "openai-responses": _OPENAI_ERROR,
    "anthropic-messages": object_of(
        ["type", "error", "request_id"],
        type={"const": "error"},
        error=object_of(["type", "message"], type=TEXT, message=TEXT),
        request_id=TEXT,
    ),
    "agentary": object_of(["error", "type", "message", "code"], error=TEXT, type=TEXT, message=TEXT, code=TEXT),
    "unified": object_of(["error"], error=TEXT, type=TEXT, code=TEXT, details={"type": "object"}),
}
_ERRORS["any"] = {"anyOf": list(_ERRORS.values())}  # For routes where the client names its dialect.
_MEANING = {
    400: "Something in the request is not valid; the message says what.",
    401: "No key was sent, or one that is not valid.",
    402: "A budget is used up.",
    403: "The key may not do this.",
    404: "There is no such thing, or it is not yours.",
    408: "The request did not arrive in time.",
    410: "It existed, and has expired.",
    413: "The body is too large.",
    415: "The body is not JSON, or is compressed.",
    422: "The idempotency-key was used before, with another request.",
    429: "A limit is reached, the gateway's or the provider's; `retry-after` says how long to wait.",
    431: "The headers are too large.",
    499: "It was stopped, or its client left.",
    500: "The gateway failed.",
    502: "The provider failed.",
    503: "The gateway or the provider is overloaded; `retry-after` says how long to wait.",
    504: "There was no answer in time.",
    OVERLOADED_STATUS: "Overloaded, as this dialect reports it.",
}
_ANYWHERE = (408, 431, 500)  # Possible before a route is reached.
_WITH_A_KEY = (401, 403, 429, 503)
# Every kind of failure except EXPIRED, which is about an earlier generation. 422: an idempotency-key of another request.
_WHEN_GENERATING = (422, *(kind.status for kind in ErrorKind if kind is not ErrorKind.EXPIRED))

# Bodies, by dialect: the shape that parses it, an example, and the schemas of single fields

_ROLES = {"type": "string", "enum": ["system", "developer", "user", "assistant", "tool"]}
_MESSAGE = object_of(["role"], role=_ROLES, content={"anyOf": [TEXT, list_of({"type": "object"}), {"type": "null"}]})
_HELLO = [{"role": "user", "content": "Hello"}]
_BODIES: dict[str, tuple[type, Schema, Schema]] = {
    "openai-chat": (openai_chat_request.Body, {"model": "demo", "messages": _HELLO}, {"messages": _MESSAGE}),
    "openai-responses": (
        openai_responses_request.Body,
        {"model": "demo", "input": "Hello"},
        {"input": {"anyOf": [{"type": "string", "minLength": 1}, {**list_of({"type": "object"}), "minItems": 1}]}},
    ),
    "anthropic-messages": (
        anthropic_messages_request.Body,
        {"model": "demo", "max_tokens": 1024, "messages": _HELLO},
        {
            "messages": object_of(
                ["role", "content"],
                role={"type": "string", "enum": ["user", "assistant", "system"]},
                content={"anyOf": [TEXT, list_of({"type": "object"})]},
            )
        },
    ),
    "agentary": (agentary_request.Body, {"model": "demo", "messages": _HELLO}, {"messages": _MESSAGE}),
    "unified": (
        openai_chat_request.Body,
        {"provider": "demo", "model": "demo", "messages": _HELLO},
        {"provider": TEXT, "messages": _MESSAGE},
    ),
}
_ANSWERS: dict[str, Schema] = {
    "openai-chat": object_of(
        ["id", "object", "created", "model", "choices"],
        id=TEXT,
        object={"const": "chat.completion"},
        created={"type": "integer"},
        model=TEXT,
        choices=list_of(object_of(["index", "message"], index={"type": "integer"}, message={"type": "object"})),
    ),
    "openai-responses": object_of(
        ["id", "object", "status", "output"], id=TEXT, object={"const": "response"}, status=TEXT, output=list_of({})
    ),
    "anthropic-messages": object_of(
        ["id", "type", "role", "model", "content", "stop_reason", "usage"],
        id=TEXT,
        type={"const": "message"},
        role={"const": "assistant"},
        model=TEXT,
        content=list_of({"type": "object"}),
        stop_reason=NULLABLE_TEXT,
        usage={"type": "object"},
    ),
    "agentary": object_of(["token", "content", "usage"], token=TEXT, content=TEXT, usage={"type": "object"}),
    "unified": {"type": "object"},
}

RESPONSE = _ANSWERS["openai-responses"]

# Headers and parameters

_IDS = {name: {"description": "For support; also in the logs.", "schema": TEXT} for name in ("x-request-id", "request-id")}
_KEYED: list[Schema] = [{"bearer": []}, {"key": []}]  # One of the two.
_SECURITY_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "A key of this gateway, or a JSON web token."},
    "key": {
        "type": "apiKey",
        "in": "header",
        "name": "x-api-key",
        "description": "The same key, as Anthropic's clients send it.",
    },
}


def header(name: str, description: str, **schema: Any) -> Schema:
    return _parameter(name, "header", description, schema)


def query(name: str, description: str, **schema: Any) -> Schema:
    return _parameter(name, "query", description, schema)


def _parameter(name: str, place: str, description: str, schema: Schema) -> Schema:
    described = {"description": description} if description else {}
    return {"name": name, "in": place, **described, "schema": {"type": "string", **schema}}


X_DISCONNECT = header(
    "x-disconnect", "What happens to the generation when its client leaves.", pattern=r"^(stop|detach|grace=[0-9]{1,3})$"
)
_DIRECTIVE = "(no-cache|no-store|only-if-cached|max-age=[0-9]{1,8})"
_GENERATING_HEADERS = (
    X_DISCONNECT,
    header("x-sluice-class", "Whether somebody waits for the answer.", enum=[choice.value for choice in JobClass]),
    header("x-sluice-cache", "Whether the cache serves the request; refresh: it only stores the answer.", enum=list(MODES)),
    header("cache-control", "What the cache may do for the request.", pattern=f"^{_DIRECTIVE}(, {_DIRECTIVE})*$"),
    header("idempotency-key", "A retry with the same key gets the same answer.", pattern=r"^[A-Za-z0-9_-]{1,255}$"),
)


def error_responses(dialect: str, *statuses: int) -> dict[int | str, Schema]:
    """Return the errors of a route: those with ``statuses``, and those that any route may answer with."""
    all_statuses = sorted({*statuses, *_ANYWHERE, *((OVERLOADED_STATUS,) if dialect in ("anthropic-messages", "any") else ())})
    return {status: _answer(_MEANING[status], {"application/json": _ERRORS[dialect]}) for status in all_statuses}


def _upstream_rejection(dialect: str) -> Schema:
    return _answer("The provider's own status, if the provider rejected the request.", {"application/json": _ERRORS[dialect]})


def generating(
    dialect: str, *, accepted: Schema | None = None, body_schema: Schema | None = None, parameters: Iterable[Schema] = ()
) -> dict[str, Any]:
    """Return the description of a route that generates, as arguments for FastAPI.

    ``accepted``: the body of its answer with 202 instead of 200. ``body_schema``: replaces the dialect's own JSON answer.
    """
    error_dialect = "any" if accepted else dialect
    answers = error_responses(error_dialect, *_WHEN_GENERATING)
    answers["4XX"] = _upstream_rejection(error_dialect)
    if accepted:
        answers[202] = _answer("The generation has been started.", {"application/json": accepted})
    else:
        media = {"application/json": body_schema or _ANSWERS[dialect]}
        if not body_schema:
            media["text/event-stream"] = {}  # The vendor defines its events.
        answers[200] = _answer("The answer, as a stream if the request asks for one.", media)
    return {
        **_common(answers),
        "openapi_extra": {
            "security": _KEYED,
            "parameters": [*_GENERATING_HEADERS, *parameters],
            "requestBody": {"required": True, "content": {"application/json": _body(dialect)}},
        },
    }


def serving(
    content: dict[str, Schema],
    *statuses: int,
    parameters: Iterable[Schema] = (),
    is_open: bool = False,
    relays: bool = False,
) -> dict[str, Any]:
    """Return the description of a route that answers 200 with ``content``, by media type.

    ``is_open``: it needs no key. ``relays``: it answers as a generation did, so it may also give that generation's failure.
    """
    answers = error_responses("any" if relays else "openai-chat", *statuses, *(() if is_open else _WITH_A_KEY))
    if relays:
        answers |= {**error_responses("any", *_WHEN_GENERATING), "4XX": _upstream_rejection("any")}
    answers[200] = _answer("The requested data.", content)
    extra: Schema = {"parameters": list(parameters)}
    return {**_common(answers), "openapi_extra": extra if is_open else {"security": _KEYED, **extra}}


def administering(
    summary: str,
    answer: type[BaseModel],
    status: int = 200,
    *,
    body: type[BaseModel] | None = None,
    is_body_needed: bool = True,
    parameters: Iterable[Schema] = (),
) -> dict[str, Any]:
    """Return the description of a route of the admin API. Its bodies are models, and all its errors have one format."""
    extra: Schema = {"parameters": list(parameters)} if parameters else {}
    if body:
        extra["requestBody"] = {
            "required": is_body_needed,
            "content": _content({"application/json": _inline_schema(body, "validation")}),
        }
    answers: dict[int | str, Schema] = {
        status: {"description": summary, "content": _json(_inline_schema(answer, "serialization"))},
        "default": {"description": "What is wrong, and what to do about it.", "content": _json(_OPENAI_ERROR)},
    }
    return {"summary": summary, "status_code": status, **_common(answers), "openapi_extra": extra}


def empty_response(description: str) -> Schema:
    """Return the description of an answer without a body."""
    return {"description": description, "headers": _IDS}


def _common(answers: dict[int | str, Schema]) -> dict[str, Any]:
    return {"responses": answers, "response_class": Response}  # Otherwise FastAPI would describe a JSON answer of its own.


def _answer(description: str, content: dict[str, Schema]) -> Schema:
    return {"description": description, "headers": _IDS, "content": _content(content)}


def _content(schemas: dict[str, Schema]) -> Schema:
    return {media: {"schema": schema} for media, schema in schemas.items()}


def _json(schema: Schema) -> Schema:
    return _content({"application/json": schema})


def _inline_schema(model: type[BaseModel], mode: Literal["validation", "serialization"]) -> Schema:
    """Return a model's schema with all references replaced by what they refer to."""
    schema = model.model_json_schema(mode=mode)
    definitions = schema.pop("$defs", {})

    def inline(node: Any) -> Any:
        if isinstance(node, list):
            return [inline(item) for item in node]
        if not isinstance(node, dict):
            return node
        if "$ref" in node:
            definition = definitions[node["$ref"].rpartition("/")[2]]
            return inline({**definition, **{k: v for k, v in node.items() if k != "$ref"}})
        return {name: inline(value) for name, value in node.items()}

    inlined: Schema = inline(schema)
    return inlined


def _body(dialect: str) -> Schema:
    shape, example, field_schemas = _BODIES[dialect]
    schema: Schema = shape.model_json_schema()  # type: ignore[attr-defined]  # All are shapes.
    properties = schema["properties"]
    properties.pop("provider", None)  # In most dialects it is in the path. ``unified`` adds it again just below.
    for name, field in field_schemas.items():
        properties[name] = {**properties[name], "items": field} if name == "messages" and name in properties else field
    required = [*schema.get("required", ()), *(["provider"] if dialect == "unified" else [])]
    schema |= {"title": f"Body ({dialect})", "additionalProperties": True, "required": required}
    return {"schema": schema, "example": example}


def describe(app: FastAPI) -> None:
    """Make ``/openapi.json`` describe how keys are sent, besides the description of each route."""

    def openapi() -> Schema:
        if app.openapi_schema is None:
            schema = get_openapi(title=app.title, version=app.version, openapi_version=app.openapi_version, routes=app.routes)
            schema.setdefault("components", {}).setdefault("securitySchemes", {}).update(_SECURITY_SCHEMES)
            _drop_validation_errors(schema)
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # The way that FastAPI documents for extending OpenAPI.


def _drop_validation_errors(schema: Schema) -> None:
    """Remove the validation error that FastAPI describes for each path with a parameter. Our parameters accept any text."""
    for operations in schema["paths"].values():
        for operation in operations.values():
            if "HTTPValidationError" in str(operation["responses"].get("422", "")):
                del operation["responses"]["422"]
    for name in ("HTTPValidationError", "ValidationError"):
        schema["components"].get("schemas", {}).pop(name, None)
