"""How does a failure become an HTTP response?

Kinds become statuses and bodies in the client's own dialect, and nowhere else but here.
"""

import math
import re

import orjson
from starlette.requests import Request
from starlette.responses import Response

from common.admission import LimitReached
from common.dialects import DIALECTS
from common.dialects.base import Dialect
from common.errors import Failed, GatewayError

PLAIN = DIALECTS["openai-chat"]  # The shape of errors where no dialect is spoken: unknown paths, /v1/models…

_BASE = re.compile(r"^(/(v1|v1beta|api|openai|anthropic))+(?=/)")  # What people put at the end of base URLs.


def dialect_at(path: str) -> Dialect:
    """Return the dialect of a path that no route of a dialect serves: its clients know one shape of error."""
    if path.startswith("/v1/messages"):
        return DIALECTS["anthropic-messages"]
    if path.startswith("/v1/responses"):
        return DIALECTS["openai-responses"]
    if path.startswith("/api/"):
        return DIALECTS["agentary"]
    return DIALECTS["unified"] if path == "/v1/chat" else PLAIN


def meant_path(path: str) -> str:
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


def headers_of(error: GatewayError) -> dict[str, str]:
    """Return what a refusal's response says besides: where the limits stand."""
    return error.headers if isinstance(error, LimitReached) else {}


def request_id_of(request: Request) -> str:
    return str(request.scope.get("state", {}).get("request_id", ""))


def json_response(content: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(content), status, headers, media_type="application/json")
