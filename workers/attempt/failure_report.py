"""What do log and metrics say of an attempt that failed?

Enough to act upon without trying it out: which provider, model and key, and the cause down to the transport's own words.
Nothing that a provider says itself: it may quote the prompt. The model is no label of a metric: clients choose it.
"""

import structlog

from common.canonical.errors import ErrorKind, Failed, GatewayError
from workers.metrics import Metrics
from workers.providers.base import Deployment
from workers.upstream.errors import UpstreamFailure

log = structlog.get_logger()


def report(
    error: GatewayError, failed: Failed, deployment: Deployment, attempt: int, wait_s: float | None, metrics: Metrics
) -> None:
    """Log and count a failed attempt. ``failed`` is what the client may be told; ``wait_s`` None: it was the last attempt."""
    cause, detail = _cause(error)
    metrics.errors.labels(failed.kind).inc()
    metrics.attempt_failures.labels(deployment.provider, failed.kind, cause).inc()
    # A key that is refused is its operator's to mend, and nobody else can.
    tell = log.warning if failed.kind is ErrorKind.UPSTREAM_CREDENTIALS else log.info
    tell(
        "try_failed",
        provider=deployment.provider,
        model=deployment.model,
        key=deployment.key_label,
        kind=failed.kind,
        status=failed.status,
        code=failed.logged_code,
        cause=cause,
        detail=detail,
        tries=attempt,
        wait_s=wait_s,
    )


def _cause(error: GatewayError) -> tuple[str, str]:
    """Return the cause in a word, and what else is known of it."""
    if isinstance(error, UpstreamFailure):
        return error.cause, error.detail
    # Of an answer that is nonsense the message is ours.
    return "answer", error.failed.message if error.failed.kind is ErrorKind.UPSTREAM_PROTOCOL else ""
