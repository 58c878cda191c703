"""How does a failure become an HTTP response?

A kind has its status (``common/canonical/errors.py``), a dialect its own status and body for it; here both become a response.
"""

import math
import re
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from api.server.retry_after import retry_after_s
from common.canonical.errors import ErrorKind, Failed, GatewayError
from common.dialects import DIALECTS
from common.dialects.base import Dialect
from common.limits.charges import LimitReached

PLAIN = DIALECTS["openai-chat"]  # The shape of errors where no dialect is spoken: unknown paths, /v1/models…
_REFUSAL = "refusal"  # In a scope's state: why the connection reads no more of the request.

_BASE = re.compile(r"^(/(v1|v1beta|api|openai|anthropic))+(?=/)")  # What people put at the end of base URLs.


def restarting() -> Failed:
    """Return what those are told whom a stopping process cannot serve to the end; each is to come back at its own moment."""
    return Failed(
        ErrorKind.OVERLOADED,
        "The gateway is restarting. Send the request again.",
        code="gateway_restarting",
        retry_after_s=retry_after_s(),
    )


def dialect_at(path: str) -> Dialect:
    """Return the dialect of a path that no route of a dialect serves: its clients know one shape of error."""
    if path.startswith("/v1/messages"):
        return DIALECTS["anthropic-messages"]
    if path.startswith("/v1/responses"):
        return DIALECTS["openai-responses"]
    if path.startswith("/api/"):
        return DIALECTS["agentary"]
    return DIALECTS["unified"] if path == "/v1/chat" else PLAIN


def intended_path(path: str) -> str:
    """Return the path that a client means whose base URL lacks ``/v1``, or has more than that before it."""
    return "/v1" + _BASE.sub("", re.sub("/+", "/", f"/{path}").rstrip("/"))


def base_url_hint(path: str) -> str:
    """Return what to set as a client's base URL, so that it asks for a path of ours."""
    if dialect_at(path).name == "anthropic-messages":
        return "Clients of Anthropic's take this gateway's address as base URL, without /v1"
    return "The base URL of most clients is this gateway's address and /v1"


def error_response(dialect: Dialect, failed: Failed, request_id: str, headers: dict[str, str] | None = None) -> Response:
    """Return the response for a failure before the first byte."""
    extra = dict(headers or {})
    if failed.retry_after_s is not None:
        extra["retry-after"] = str(math.ceil(failed.retry_after_s))  # Whole seconds: not every client reads fractions.
    body = dialect.error_body(failed, request_id)
    return Response(body, dialect.status(failed), extra, media_type="application/json")


def not_served(scope: Scope, status: int = 404, headers: dict[str, str] | None = None, meant: str | None = None) -> Response:
    """Return the response where no route serves a path, or not with this method; ``meant`` is the path that a wrong base URL
    has led away from.
    """
    path = scope["raw_path"].decode("latin-1")  # As it came: nothing in it ends a line.
    mend = f"It is at {meant[:200]}. {base_url_hint(meant)}." if meant else "See GET /openapi.json for what is."
    message = f"{scope['method']} {path[:200]} is not served here. {mend}"
    failed = Failed(ErrorKind.NOT_FOUND, message, status=status, code="unknown_path")
    return error_response(dialect_at(meant or scope["path"]), failed, scope["state"]["request_id"], headers)


def refuse_in(state: dict[str, Any], failed: Failed) -> None:
    """Have the request with this state refused, by whoever reads its body next, or before anything else."""
    state[_REFUSAL] = failed


def refusal_in(scope: Scope) -> Failed | None:
    found: Failed | None = scope["state"].get(_REFUSAL)
    return found


def headers_of(error: GatewayError) -> dict[str, str]:
    """Return what a refusal's response says besides: where the limits stand."""
    return error.headers if isinstance(error, LimitReached) else {}


def request_id_of(request: Request) -> str:
    return str(request.scope.get("state", {}).get("request_id", ""))


def json_response(content: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(content), status, headers, media_type="application/json")
