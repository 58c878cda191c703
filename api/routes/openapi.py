"""What does ``/openapi.json`` say of a route: what it takes, and all that it may answer?

Nothing here runs when a request does. A dialect's body is described by the shape that it is read with, so the two cannot
drift apart; what its vendor's own documents tell at length (the parts of a message, the fields of an answer) is named only.
The tests in tests/security send what this allows and what it forbids, and compare the answers with what it promises.
"""

from collections.abc import Iterable
from typing import Any, Literal

from fastapi import FastAPI, Response
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from common.canonical.errors import ErrorKind
from common.dialects.agentary import request as agentary_request
from common.dialects.anthropic_messages import request as anthropic_messages_request
from common.dialects.openai_chat import request as openai_chat_request
from common.dialects.openai_responses import request as openai_responses_request
from common.dialects.shared.anthropic_words import OVERLOADED_STATUS
from common.queue.jobs import JobClass

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
MAYBE_TEXT: Schema = {"type": ["string", "null"]}


def object_of(required: Iterable[str] = (), **properties: Schema) -> Schema:
    return {"type": "object", "required": list(required), "properties": properties}


def list_of(items: Schema) -> Schema:
    return {"type": "array", "items": items}


# Errors, by dialect

_OPENAI_ERROR = object_of(
    ["error"],
    error=object_of(["message", "type", "param", "code"], message=TEXT, type=MAYBE_TEXT, param=MAYBE_TEXT, code=MAYBE_TEXT),
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
_ERRORS["any"] = {"anyOf": list(_ERRORS.values())}  # Where the client says which dialect it speaks.
_MEANING = {
    400: "Something in the request cannot be; the message says what.",
    401: "No key, or one that is not valid.",
    402: "A budget is spent.",
    403: "The key may not do this.",
    404: "There is no such thing, or none of yours.",
    408: "The request did not arrive in time.",
    410: "It was there, and has expired.",
    413: "The body is too large.",
    415: "The body is not JSON, or is compressed.",
    422: "The idempotency-key came before, with another request.",
    429: "A limit is reached, ours or the provider's; `retry-after` tells for how long.",
    431: "The headers are too large.",
    499: "It was stopped, or its client left.",
    500: "A fault of the gateway.",
    502: "The provider failed.",
    503: "The gateway or the provider is overloaded; `retry-after` tells for how long.",
    504: "Nobody answered in time.",
    OVERLOADED_STATUS: "Overloaded, in the words of this dialect.",
}
_ANYWHERE = (408, 431, 500)  # What may be answered before a route has a say.
_WITH_A_KEY = (401, 403, 429, 503)
# Whatever can go wrong, but for what was there before; 422: an idempotency-key of another request.
_WHEN_GENERATING = (422, *(kind.status for kind in ErrorKind if kind is not ErrorKind.EXPIRED))

# Bodies, by dialect: what is read, an example, and what is listed in it

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
        stop_reason=MAYBE_TEXT,
        usage={"type": "object"},
    ),
    "agentary": object_of(["token", "content", "usage"], token=TEXT, content=TEXT, usage={"type": "object"}),
    "unified": {"type": "object"},
}

RESPONSE = _ANSWERS["openai-responses"]

# Headers and parameters

_IDS = {name: {"description": "For support; also in the logs.", "schema": TEXT} for name in ("x-request-id", "request-id")}
_KEYED: list[Schema] = [{"bearer": []}, {"key": []}]  # Either.
_SECURITY_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "A key of this gateway, or a JSON web token."},
    "key": {
        "type": "apiKey",
        "in": "header",
        "name": "x-api-key",
        "description": "The same key, as Anthropic has it.",
    },
}


def header(name: str, description: str, **schema: Any) -> Schema:
    return _parameter(name, "header", description, schema)


def query(name: str, description: str, **schema: Any) -> Schema:
    return _parameter(name, "query", description, schema)


def _parameter(name: str, place: str, description: str, schema: Schema) -> Schema:
    told = {"description": description} if description else {}
    return {"name": name, "in": place, **told, "schema": {"type": "string", **schema}}


X_DISCONNECT = header(
    "x-disconnect", "What becomes of the generation when its client leaves.", pattern=r"^(stop|detach|grace=[0-9]{1,3})$"
)
_GENERATING_HEADERS = (
    X_DISCONNECT,
    header("x-sluice-class", "Whether somebody waits for it.", enum=[each.value for each in JobClass]),
    header("idempotency-key", "A retry with the same key gets the same answer.", pattern=r"^[A-Za-z0-9_-]{1,255}$"),
)


def answered(dialect: str, *statuses: int) -> dict[int | str, Schema]:
    """Return the errors of a route: those with ``statuses``, and those that any route may answer with."""
    told = sorted({*statuses, *_ANYWHERE, *((OVERLOADED_STATUS,) if dialect in ("anthropic-messages", "any") else ())})
    return {status: _answer(_MEANING[status], {"application/json": _ERRORS[dialect]}) for status in told}


def _upstreams_own(dialect: str) -> Schema:
    return _answer("The provider's own, where it found fault with the request.", {"application/json": _ERRORS[dialect]})


def generating(
    dialect: str, *, accepted: Schema | None = None, whole: Schema | None = None, parameters: Iterable[Schema] = ()
) -> dict[str, Any]:
    """Return what a route that generates says of itself, as arguments for FastAPI.

    ``accepted``: what it answers with 202 instead of an answer; ``whole``: instead of the dialect's own whole answer.
    """
    error_of = "any" if accepted else dialect
    answers = answered(error_of, *_WHEN_GENERATING)
    answers["4XX"] = _upstreams_own(error_of)
    if accepted:
        answers[202] = _answer("It has been started.", {"application/json": accepted})
    else:
        media = {"application/json": whole or _ANSWERS[dialect]}
        if not whole:
            media["text/event-stream"] = {}  # Its events are the vendor's own.
        answers[200] = _answer("The answer, as a stream if one was asked for.", media)
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
    """Return what a route says of itself that answers 200 with ``content``, by media type.

    ``is_open``: it needs no key. ``relays``: it answers as a generation did, so also with its failure, in its dialect.
    """
    answers = answered("any" if relays else "openai-chat", *statuses, *(() if is_open else _WITH_A_KEY))
    if relays:
        answers |= {**answered("any", *_WHEN_GENERATING), "4XX": _upstreams_own("any")}
    answers[200] = _answer("What was asked for.", content)
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
    """Return what a route of the administration says of itself: its bodies are models, and all its errors are alike."""
    extra: Schema = {"parameters": list(parameters)} if parameters else {}
    if body:
        extra["requestBody"] = {
            "required": is_body_needed,
            "content": _content({"application/json": _whole(body, "validation")}),
        }
    answers: dict[int | str, Schema] = {
        status: {"description": summary, "content": _json(_whole(answer, "serialization"))},
        "default": {"description": "What is wrong, and what to do.", "content": _json(_OPENAI_ERROR)},
    }
    return {"summary": summary, "status_code": status, **_common(answers), "openapi_extra": extra}


def nothing_more(description: str) -> Schema:
    """Return an answer without a body."""
    return {"description": description, "headers": _IDS}


def _common(answers: dict[int | str, Schema]) -> dict[str, Any]:
    return {"responses": answers, "response_class": Response}  # FastAPI would else promise JSON of its own.


def _answer(description: str, content: dict[str, Schema]) -> Schema:
    return {"description": description, "headers": _IDS, "content": _content(content)}


def _content(schemas: dict[str, Schema]) -> Schema:
    return {media: {"schema": schema} for media, schema in schemas.items()}


def _json(schema: Schema) -> Schema:
    return _content({"application/json": schema})


def _whole(model: type[BaseModel], mode: Literal["validation", "serialization"]) -> Schema:
    """Return a model's schema in one piece: what it refers to by name stands nowhere else."""
    schema = model.model_json_schema(mode=mode)
    parts = schema.pop("$defs", {})

    def whole(node: Any) -> Any:
        if isinstance(node, list):
            return [whole(each) for each in node]
        if not isinstance(node, dict):
            return node
        if "$ref" in node:
            return whole({**parts[node["$ref"].rpartition("/")[2]], **{k: v for k, v in node.items() if k != "$ref"}})
        return {name: whole(value) for name, value in node.items()}

    found: Schema = whole(schema)
    return found


def _body(dialect: str) -> Schema:
    shape, example, listed = _BODIES[dialect]
    schema: Schema = shape.model_json_schema()  # type: ignore[attr-defined]  # All are shapes.
    properties = schema["properties"]
    properties.pop("provider", None)  # It is in the path, where it is not named just below.
    for name, described in listed.items():
        properties[name] = {**properties[name], "items": described} if name == "messages" and name in properties else described
    required = [*schema.get("required", ()), *(["provider"] if dialect == "unified" else [])]
    schema |= {"title": f"Body ({dialect})", "additionalProperties": True, "required": required}
    return {"schema": schema, "example": example}


def describe(app: FastAPI) -> None:
    """Have ``/openapi.json`` say what keys are sent as, beside what each route says of itself."""

    def openapi() -> Schema:
        if app.openapi_schema is None:
            schema = get_openapi(title=app.title, version=app.version, openapi_version=app.openapi_version, routes=app.routes)
            schema.setdefault("components", {}).setdefault("securitySchemes", {}).update(_SECURITY_SCHEMES)
            _drop_what_is_never_answered(schema)
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's own way, see its documents on extending OpenAPI.


def _drop_what_is_never_answered(schema: Schema) -> None:
    """FastAPI promises an error of its own for each path that has a parameter; ours are texts, of which any will do."""
    for operations in schema["paths"].values():
        for operation in operations.values():
            if "HTTPValidationError" in str(operation["responses"].get("422", "")):
                del operation["responses"]["422"]
    for name in ("HTTPValidationError", "ValidationError"):
        schema["components"].get("schemas", {}).pop(name, None)
