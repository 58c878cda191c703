"""How does a failure become an HTTP response?

An error kind has a status (``common/canonical/errors.py``). A dialect has its own status and body for it. Here both become a
response.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from api.server.retry_after import retry_after_s
from common.canonical.errors import ErrorKind, Failed, GatewayError
from common.dialects import DIALECTS
from common.dialects.base import Dialect

PLAIN = DIALECTS["openai-chat"]  # The error format where no dialect applies: unknown paths, /v1/models…
_REFUSAL = "refusal"  # A key in a scope's state: why the connection reads no more of the request.

_BASE = re.compile(r"^(/(v1|v1beta|api|openai|anthropic))+(?=/)")  # What people often put at the end of base URLs.


def restarting(resumable_id: str = "") -> Failed:
    """Return the failure for clients that a stopping process cannot serve to the end. Each gets its own moment to come back.

    ``resumable_id``: the generation that continues without this process, and that the client can read on; "" if none does.
    """
    remedy = (
        f"This answer continues: read on at GET /v1/generations/{resumable_id}." if resumable_id else "Send the request again."
    )
    return Failed(
        ErrorKind.OVERLOADED,
        f"The gateway is restarting. {remedy}",
        code="gateway_restarting",
        retry_after_s=retry_after_s(),
    )


def dialect_at(path: str) -> Dialect:
    """Return the dialect for an error at a path that no route serves: the path's clients can read only one error format."""
    if path.startswith("/v1/messages"):
        return DIALECTS["anthropic-messages"]
    if path.startswith("/v1/responses"):
        return DIALECTS["openai-responses"]
    if path.startswith("/api/"):
        return DIALECTS["agentary"]
    return DIALECTS["unified"] if path == "/v1/chat" else PLAIN


def intended_path(path: str) -> str:
    """Return the path that a client intends, if its base URL lacks ``/v1`` or has too much before it."""
    return "/v1" + _BASE.sub("", re.sub("/+", "/", f"/{path}").rstrip("/"))


def base_url_hint(path: str) -> str:
    """Return advice on how to set a client's base URL, so that it calls a path that exists."""
    if dialect_at(path).name == "anthropic-messages":
        return "For Anthropic's clients, the base URL is this gateway's address, without /v1"
    return "For most clients, the base URL is this gateway's address and /v1"


def error_response(dialect: Dialect, failed: Failed, request_id: str, headers: dict[str, str] | None = None) -> Response:
    """Return the response for a failure before the first byte."""
    extra = dict(headers or {})
    if failed.retry_after_s is not None:
        extra["retry-after"] = str(math.ceil(failed.retry_after_s))  # Whole seconds: not every client reads fractions.
    body = dialect.error_body(failed, request_id)
    return Response(body, dialect.status(failed), extra, media_type="application/json")


def not_served(scope: Scope, methods: Sequence[str] = (), intended: str | None = None) -> Response:
    """Return the response if no route serves a path, or only with other ``methods``. ``intended`` is the path that the client
    would call with the right base URL.
    """
    path = scope["raw_path"].decode("latin-1")  # Undecoded, so it contains no line break.
    allowed = ", ".join(methods)
    advice = f"It is at {intended[:200]}. {base_url_hint(intended)}." if intended else "See GET /openapi.json for what is."
    advice = f"This path takes {allowed}. {advice}" if methods else advice
    message = f"{scope['method']} {path[:200]} is not served here. {advice}"
    failed = Failed(ErrorKind.NOT_FOUND, message, status=405 if methods else 404, code="unknown_path")
    headers = {"allow": allowed} if methods else None
    return error_response(dialect_at(intended or scope["path"]), failed, scope["state"]["request_id"], headers)


def refuse_in(state: dict[str, Any], failed: Failed) -> None:
    """Have the request with this state refused, either before anything else or by the code that reads its body next."""
    state[_REFUSAL] = failed


def refusal_in(scope: Scope) -> Failed | None:
    refusal: Failed | None = scope["state"].get(_REFUSAL)
    return refusal


def headers_of(error: GatewayError) -> dict[str, str]:
    """Return the additional headers of an error response, such as the state of the limits."""
    return dict(getattr(error, "headers", {}))


def request_id_of(request: Request) -> str:
    return str(request.scope.get("state", {}).get("request_id", ""))


def json_response(content: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(content), status, headers, media_type="application/json")
