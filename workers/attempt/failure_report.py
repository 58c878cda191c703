"""What do the log and the metrics say about an attempt that failed?

They say enough to act on: the provider, the model, the key, and the cause, including the transport's own error text. They never
repeat a provider's own text, because it may quote the prompt. The model is not a metric label, because clients choose it
freely.
"""

import structlog

from common.canonical.errors import ErrorKind, Failed, GatewayError
from workers.metrics import Metrics
from workers.providers.base import Deployment
from workers.upstream.errors import UpstreamFailure

log = structlog.get_logger()


def report_failure(
    error: GatewayError, failed: Failed, deployment: Deployment, attempt_number: int, wait_s: float | None, metrics: Metrics
) -> None:
    """Log and count a failed attempt.

    Args:
        failed: What the client may see.
        wait_s: Seconds until the next attempt; None: this was the last attempt.
    """
    cause, detail = _cause_and_detail(error)
    metrics.errors.labels(failed.kind).inc()
    metrics.attempt_failures.labels(deployment.provider, failed.kind, cause).inc()
    # Only the operator can replace a refused key, so it is a warning.
    log_event = log.warning if failed.kind is ErrorKind.UPSTREAM_CREDENTIALS else log.info
    log_event(
        "try_failed",
        provider=deployment.provider,
        model=deployment.model,
        key=deployment.key_label,
        kind=failed.kind,
        status=failed.status,
        code=failed.logged_code,
        cause=cause,
        detail=detail,
        tries=attempt_number,
        wait_s=wait_s,
    )


def _cause_and_detail(error: GatewayError) -> tuple[str, str]:
    """Return the cause as one word, and details for the log."""
    if isinstance(error, UpstreamFailure):
        return error.cause, error.detail
    # For UPSTREAM_PROTOCOL the message is our own text. Other messages may be the provider's.
    return "answer", error.failed.message if error.failed.kind is ErrorKind.UPSTREAM_PROTOCOL else ""
