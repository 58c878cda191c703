"""How can a generation fail, and what does each failure mean to the client?

``ErrorKind`` is the whole vocabulary: a kind exists because a client, a retry rule or an alert acts differently on it.
A failure is data (``Failed``, the last event of a stream); where Python must unwind, ``GatewayError`` carries it.

To add a kind: its row here, its row in docs/errors.md, and a dialect's word for it where that dialect has one
(``common/dialects/shared/openai_errors.py``; Anthropic's goes by the status).
"""

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class Remedy(StrEnum):
    """What a worker does about a failed attempt while its client has seen nothing of it; see ``workers.attempt.retries``."""

    NONE = "none"  # The failure is the answer.
    SAME = "same"  # The same deployment again, after a pause.
    SAME_IF_IT_ANSWERED = "same if it answered"  # One that says that it was late is there; one that said nothing is not.
    SAME_ONCE = "same once"
    NEXT = "next"  # Another deployment at once.


class ErrorKind(StrEnum):
    """A row for each: its name, the HTTP status where the failure brings none of its own, what is tried before the first byte,
    and whether it takes an answer away that the upstream was willing to give: another call may go on with it then.
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
    UPSTREAM_PROTOCOL = "upstream_protocol", 502, Remedy.SAME_ONCE, True
    DEADLINE_EXCEEDED = "deadline_exceeded", 504
    WORKER_LOST = "worker_lost", 503, Remedy.NONE, True
    CANCELLED = "cancelled", 499
    INTERNAL = "internal", 500


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
        return self.status or self.kind.status

    @property
    def logged_code(self) -> str | None:
        """The code as it may be kept where no prompt may stand."""
        return single_word_code(self.code)

    def to_dict(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if value is not None}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "Failed":
        return cls(**{**fields, "kind": ErrorKind(fields["kind"])})  # type: ignore[call-arg]  # By its value.


def single_word_code(code: object) -> str | None:
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
    def from_failed(cls, failed: Failed) -> "GatewayError":
        error = cls(failed.kind, failed.message)
        error.failed = failed
        return error
