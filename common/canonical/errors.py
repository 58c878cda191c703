"""How can a generation fail, and what does each failure mean to the client?

``ErrorKind`` is the complete vocabulary. A kind exists because a client, a retry rule or an alert acts differently on it.
A failure is data: ``Failed``, the last event of a stream. Where Python must raise, ``GatewayError`` carries it.

To add a kind: add its row here, its row in docs/errors.md, and a dialect's word for it if that dialect has one
(``common/dialects/shared/openai_errors.py``; Anthropic's word follows from the HTTP status).
"""

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class Remedy(StrEnum):
    """What a worker does after a failed attempt, while the client has seen no output. See ``workers.attempt.retries``."""

    NONE = "none"  # Report the failure to the client.
    SAME = "same"  # Try the same deployment again, after a pause.
    # Again if the upstream itself reported the timeout. One that sent nothing is probably down.
    SAME_IF_IT_ANSWERED = "same if it answered"
    SAME_ONCE = "same once"
    NEXT = "next"  # Try another deployment at once.


class ErrorKind(StrEnum):
    """One row per kind: name, HTTP status (if the failure has none of its own), remedy before the first byte, ``is_loss``.

    ``is_loss``: the upstream was willing to answer and the answer was lost. Another call may then continue it.
    """

    _value_: str
    status: int
    remedy: Remedy
    is_loss: bool

    def __new__(cls, name: str, status: int, remedy: Remedy = Remedy.NONE, is_loss: bool = False) -> "ErrorKind":
        kind = str.__new__(cls, name)
        kind._value_, kind.status, kind.remedy, kind.is_loss = name, status, remedy, is_loss
        return kind

    INVALID_REQUEST = "invalid_request", 400
    UNAUTHENTICATED = "unauthenticated", 401
    PERMISSION_DENIED = "permission_denied", 403
    MODEL_NOT_FOUND = "model_not_found", 404
    NOT_FOUND = "not_found", 404
    EXPIRED = "expired", 410
    REQUEST_TOO_LARGE = "request_too_large", 413
    UNSUPPORTED_MEDIA_TYPE = "unsupported_media_type", 415
    RATE_LIMITED = "rate_limited", 429
    BUDGET_EXCEEDED = "budget_exceeded", 402
    OVERLOADED = "overloaded", 503
    UPSTREAM_RATE_LIMITED = "upstream_rate_limited", 429, Remedy.SAME
    UPSTREAM_UNAVAILABLE = "upstream_unavailable", 502, Remedy.SAME, True
    UPSTREAM_TIMEOUT = "upstream_timeout", 504, Remedy.SAME_IF_IT_ANSWERED, True
    UPSTREAM_CREDENTIALS = "upstream_credentials", 502, Remedy.NEXT
    UPSTREAM_REJECTED = "upstream_rejected", 400
    CONTEXT_LENGTH_EXCEEDED = "context_length_exceeded", 400
    CONTENT_POLICY_VIOLATION = "content_policy_violation", 400
    UPSTREAM_MODEL_NOT_FOUND = "upstream_model_not_found", 404
    UPSTREAM_QUOTA_SPENT = "upstream_quota_spent", 429, Remedy.NEXT
    UPSTREAM_PROTOCOL = "upstream_protocol", 502, Remedy.SAME_ONCE, True
    DEADLINE_EXCEEDED = "deadline_exceeded", 504
    WORKER_LOST = "worker_lost", 503, Remedy.NONE, True
    CANCELLED = "cancelled", 499
    INTERNAL = "internal", 500


@dataclass(slots=True)
class Failed:
    """The terminal event of a stream that did not complete.

    ``message`` is public: it is safe for any client, and says what to do next.
    ``status`` is the upstream's own HTTP status, if it had one. ``type``, ``code`` and ``param`` are the upstream's
    words, or ours. A dialect that has no field for them leaves them out.
    """

    kind: ErrorKind
    message: str
    status: int | None = None
    type: str | None = None
    code: str | None = None
    param: str | None = None
    retry_after_s: float | None = None
    faults: dict[str, str] | None = None  # Field to fault, for the one dialect that reports all faults and not only the first.

    @property
    def http_status(self) -> int:
        return self.status or self.kind.status

    @property
    def logged_code(self) -> str | None:
        """The code in a form that is safe for logs and the database, which must not contain prompts."""
        return single_word_code(self.code)

    def to_dict(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if value is not None}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "Failed":
        return cls(**{**fields, "kind": ErrorKind(fields["kind"])})  # type: ignore[call-arg]  # Looked up by value.


def single_word_code(code: object) -> str | None:
    """Return a code if it is a single word, else None. An upstream may send a whole sentence that quotes the prompt."""
    if isinstance(code, str) and 0 < len(code) <= 64 and all(char.isalnum() or char in "._-" for char in code):
        return code
    return None


class StoreUnavailable(Exception):
    """The store of jobs, channels and keys (Redis) did not answer in time, or answered that it cannot serve now."""


class StoreRefused(StoreUnavailable):
    """The store answered and refused: it is full, read-only, loading, or denies permission. The message is its own words."""


class GatewayError(Exception):
    """A ``Failed`` that is raised; ``str()`` returns the public message."""

    def __init__(self, kind: ErrorKind, message: str, **fields: Any) -> None:
        super().__init__(message)
        self.failed = Failed(kind, message, **fields)

    @classmethod
    def from_failed(cls, failed: Failed) -> "GatewayError":
        error = cls(failed.kind, failed.message)
        error.failed = failed
        return error
