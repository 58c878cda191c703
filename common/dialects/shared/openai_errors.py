"""How do OpenAI's dialects report a failure?"""

from typing import Any

from common.canonical.errors import ErrorKind, Failed
from common.dialects.shared.anthropic_words import OWN_ERROR_TYPES

# As recorded: an unknown model and a wrong key are both "invalid_request_error"; only the code differs.
ERROR_TYPE = {
    ErrorKind.PERMISSION_DENIED: "permission_error",
    ErrorKind.RATE_LIMITED: "requests",
    ErrorKind.BUDGET_EXCEEDED: "insufficient_quota",
    ErrorKind.UPSTREAM_RATE_LIMITED: "requests",
    ErrorKind.UPSTREAM_QUOTA_SPENT: "insufficient_quota",
}
ERROR_CODE = {
    ErrorKind.UNAUTHENTICATED: "invalid_api_key",
    ErrorKind.RATE_LIMITED: "rate_limit_exceeded",
    ErrorKind.UPSTREAM_RATE_LIMITED: "rate_limit_exceeded",
    ErrorKind.UPSTREAM_MODEL_NOT_FOUND: "model_not_found",
    ErrorKind.UPSTREAM_QUOTA_SPENT: "insufficient_quota",
}
# The status that each of OpenAI's words stands for, for readers of errors that have no status.
STATUS_OF_WORD = {
    **{word: kind.status for kind, word in (*ERROR_TYPE.items(), *ERROR_CODE.items())},
    "model_not_found": 404,
    "tokens": 429,  # Like "requests": the limit that was reached.
    "insufficient_quota": 429,  # OpenAI's own status for it.
}


def error_body(failed: Failed) -> dict[str, Any]:
    """Return the JSON body; a stream of chat completions sends the same object."""
    type_ = failed.type if failed.type and failed.type not in OWN_ERROR_TYPES else None
    return {
        "error": {
            "message": failed.message,
            "type": type_ or ERROR_TYPE.get(failed.kind) or _type_of_status(failed.http_status),
            "param": failed.param,
            "code": failed.code or error_code(failed.kind),
        }
    }


def error_code(kind: ErrorKind) -> str:
    return ERROR_CODE.get(kind, kind.value)


def _type_of_status(status: int) -> str:
    return "server_error" if status >= 500 else "invalid_request_error"
