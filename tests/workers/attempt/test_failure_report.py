"""Does the log of a failed attempt say what went wrong, and nothing that a provider said?"""

import structlog
from prometheus_client import CollectorRegistry

from common.canonical.errors import ErrorKind, Failed, GatewayError
from workers.attempt.failure_report import report_failure
from workers.metrics import Metrics
from workers.providers.base import Deployment
from workers.providers.shared.errors import unreadable_answer
from workers.upstream.errors import UpstreamFailure

DEPLOYMENT = Deployment("lab", "http://lab", "sk-secret", "m", key_id="lab:0123456789abcdef")
UNAVAILABLE = ErrorKind.UPSTREAM_UNAVAILABLE


def reported(error: GatewayError) -> tuple[dict[str, object], Metrics]:
    metrics = Metrics(CollectorRegistry())
    with structlog.testing.capture_logs() as lines:
        report_failure(error, error.failed, DEPLOYMENT, 2, 1.5, metrics)
    return lines[0], metrics


def count(metrics: Metrics, kind: ErrorKind, cause: str) -> float | None:
    labels = {"provider": "lab", "kind": kind, "cause": cause}
    return metrics.registry.get_sample_value("sluice_attempt_failures_total", labels)


def test_a_failure_on_the_way_keeps_its_cause_and_the_transports_words():
    line, metrics = reported(UpstreamFailure(UNAVAILABLE, "public", "upstream_unavailable", "refused", "[Errno 111]"))

    assert (line["provider"], line["model"], line["key"]) == ("lab", "m", "cdef")
    assert (line["cause"], line["detail"], line["tries"], line["wait_s"]) == ("refused", "[Errno 111]", 2, 1.5)
    assert count(metrics, UNAVAILABLE, "refused") == 1


def test_what_a_provider_says_is_not_logged_but_its_status_and_code_are():
    failed = Failed(UNAVAILABLE, "Your prompt 'secret plan' is odd.", 503, code="odd_prompt")

    line, metrics = reported(GatewayError.from_failed(failed))

    assert (line["status"], line["code"], line["cause"], line["detail"]) == (503, "odd_prompt", "answer", "")
    assert count(metrics, UNAVAILABLE, "answer") == 1


def test_what_we_say_of_nonsense_is_logged():
    line, _ = reported(GatewayError.from_failed(unreadable_answer("not JSON")))

    assert line["detail"] == "The provider's answer could not be read: not JSON."
