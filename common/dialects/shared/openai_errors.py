"""How do OpenAI's dialects say a failure?"""

from typing import Any

from common.canonical.errors import ErrorKind, Failed

# As recorded: an unknown model and a wrong key are an "invalid_request_error" that its code tells apart.
_ERROR_TYPE = {
    ErrorKind.PERMISSION_DENIED: "permission_error",
    ErrorKind.RATE_LIMITED: "requests",
    ErrorKind.BUDGET_EXCEEDED: "insufficient_quota",
    ErrorKind.UPSTREAM_RATE_LIMITED: "requests",
}
_ERROR_CODE = {
    ErrorKind.UNAUTHENTICATED: "invalid_api_key",
    ErrorKind.RATE_LIMITED: "rate_limit_exceeded",
    ErrorKind.UPSTREAM_RATE_LIMITED: "rate_limit_exceeded",
}
# Words for an error's type that only Anthropic has; its other words mean the same here.
_FOREIGN_TYPES = {"api_error", "billing_error", "overloaded_error", "request_too_large", "timeout_error"}


def error_body(failed: Failed) -> dict[str, Any]:
    """Return the JSON body, which is also what a stream of chat completions says."""
    type_ = failed.type if failed.type and failed.type not in _FOREIGN_TYPES else None
    return {
        "error": {
            "message": failed.message,
            "type": type_ or _ERROR_TYPE.get(failed.kind) or _type_of_status(failed.http_status),
            "param": failed.param,
            "code": failed.code or _ERROR_CODE.get(failed.kind, failed.kind.value),
        }
    }


def _type_of_status(status: int) -> str:
    return "server_error" if status >= 500 else "invalid_request_error"
