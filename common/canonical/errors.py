"""How can a generation fail, and what does each failure mean to the client?

``ErrorKind`` is the whole vocabulary: a kind exists because a client, a retry rule or an alert acts differently on it.
A failure is data (``Failed``, the last event of a stream); where Python must unwind, ``GatewayError`` carries it.
Kinds become HTTP statuses here, and bodies in each dialect; nothing else in the project decides either.
"""

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class ErrorKind(StrEnum):
    INVALID_REQUEST = "invalid_request"
    UNAUTHENTICATED = "unauthenticated"
    PERMISSION_DENIED = "permission_denied"
    MODEL_NOT_FOUND = "model_not_found"
    NOT_FOUND = "not_found"
    EXPIRED = "expired"
    REQUEST_TOO_LARGE = "request_too_large"
    UNSUPPORTED_MEDIA_TYPE = "unsupported_media_type"
    RATE_LIMITED = "rate_limited"
    BUDGET_EXCEEDED = "budget_exceeded"
    OVERLOADED = "overloaded"
    UPSTREAM_RATE_LIMITED = "upstream_rate_limited"
    UPSTREAM_UNAVAILABLE = "upstream_unavailable"
    UPSTREAM_TIMEOUT = "upstream_timeout"
    UPSTREAM_CREDENTIALS = "upstream_credentials"
    UPSTREAM_REJECTED = "upstream_rejected"
    UPSTREAM_PROTOCOL = "upstream_protocol"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    WORKER_LOST = "worker_lost"
    CANCELLED = "cancelled"
    INTERNAL = "internal"


STATUS_OF: dict[ErrorKind, int] = {
    ErrorKind.INVALID_REQUEST: 400,
    ErrorKind.UNAUTHENTICATED: 401,
    ErrorKind.PERMISSION_DENIED: 403,
    ErrorKind.MODEL_NOT_FOUND: 404,
    ErrorKind.NOT_FOUND: 404,
    ErrorKind.EXPIRED: 410,
    ErrorKind.REQUEST_TOO_LARGE: 413,
    ErrorKind.UNSUPPORTED_MEDIA_TYPE: 415,
    ErrorKind.RATE_LIMITED: 429,
    ErrorKind.BUDGET_EXCEEDED: 402,
    ErrorKind.OVERLOADED: 503,
    ErrorKind.UPSTREAM_RATE_LIMITED: 429,
    ErrorKind.UPSTREAM_UNAVAILABLE: 502,
    ErrorKind.UPSTREAM_TIMEOUT: 504,
    ErrorKind.UPSTREAM_CREDENTIALS: 502,
    ErrorKind.UPSTREAM_REJECTED: 400,
    ErrorKind.UPSTREAM_PROTOCOL: 502,
    ErrorKind.DEADLINE_EXCEEDED: 504,
    ErrorKind.WORKER_LOST: 503,
    ErrorKind.CANCELLED: 499,
    ErrorKind.INTERNAL: 500,
}


@dataclass(slots=True)
class Failed:
    """The terminal event of a stream that did not complete.

    ``message`` is public: safe for any client by construction, and says what to do next.
    ``status`` is the upstream's own HTTP status where it had one. ``type``, ``code`` and ``param`` are the upstream's
    own words, or ours where a dialect has a field for them; a dialect that has no such field leaves them out.
    """

    kind: ErrorKind
    message: str
    status: int | None = None
    type: str | None = None
    code: str | None = None
    param: str | None = None
    retry_after_s: float | None = None
    faults: dict[str, str] | None = None  # All fields at fault, for the one dialect that tells more than the first.

    @property
    def http_status(self) -> int:
        return self.status or STATUS_OF[self.kind]

    @property
    def logged_code(self) -> str | None:
        """The code as it may be kept where no prompt may stand."""
        return one_word(self.code)

    def to_dict(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if value is not None}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "Failed":
        return cls(**{**fields, "kind": ErrorKind(fields["kind"])})


def one_word(code: object) -> str | None:
    """Return a code if it is one word. An upstream may put a whole sentence there, and quote the prompt in it."""
    if isinstance(code, str) and 0 < len(code) <= 64 and all(char.isalnum() or char in "._-" for char in code):
        return code
    return None


class StoreUnavailable(Exception):
    """The store of jobs, channels and keys (Redis) did not answer in time, or answered that it cannot serve now."""


class StoreRefuses(StoreUnavailable):
    """It answered, and refused: it is full, read-only, loading, or does not let us. The message is its own words."""


class GatewayError(Exception):
    """A ``Failed`` on its way up the stack; ``str()`` of it is the public message."""

    def __init__(self, kind: ErrorKind, message: str, **fields: Any) -> None:
        super().__init__(message)
        self.failed = Failed(kind, message, **fields)

    @classmethod
    def of(cls, failed: Failed) -> "GatewayError":
        error = cls(failed.kind, failed.message)
        error.failed = failed
        return error
