"""What does an API process count?"""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from common.canonical.errors import ErrorKind, Failed
from common.canonical.job import Job
from common.live.metrics import ConfigMetrics
from common.process.loop_lag import LAG_BUCKETS_S
from common.queue.jobs import JobClass

DURATION_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 1800)

# The limit that each code of a refusal names.
_LIMIT_OF = {
    "queue_full": "waiting",
    "tenant_queue_full": "waiting_per_tenant",
    "overloaded": "load",
    "request_too_large": "body",
    "bodies_full": "bodies",
    "json_too_deep": "json_depth",
    "json_too_many_values": "json_values",
    "headers_too_large": "headers",
    "request_timeout": "read_timeout",
    "requests_limit": "requests",
    "tokens_limit": "tokens",
    "concurrency_limit": "concurrent",
    "budget_exceeded": "budget",
}


class ApiMetrics:
    """All metrics of an API process, in one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.requests = Counter("sluice_requests", "HTTP requests", ["method", "route", "status"], registry=registry)
        self.duration = Histogram(
            "sluice_request_duration_seconds",
            "From the first byte of a request to the last of its response",
            ["method", "route"],
            buckets=DURATION_BUCKETS_S,
            registry=registry,
        )
        self.accepted = Counter(
            "sluice_generations_accepted", "Generations enqueued, by dialect", ["dialect"], registry=registry
        )
        self.classes = Counter("sluice_generations_by_class", "Generations enqueued, by class", ["class"], registry=registry)
        self.refusals = Counter("sluice_refusals", "Requests refused by a limit", ["limit"], registry=registry)
        self.errors = Counter("sluice_errors", "Failures by kind, before anything was enqueued", ["kind"], registry=registry)
        self.refused_credentials = Counter(
            "sluice_refused_credentials", "Requests refused for their credentials", ["reason"], registry=registry
        )
        self.guardrails = Counter(
            "sluice_guardrails",
            "Texts in which a guardrail matched something; side is input or output",
            ["guardrail", "mode", "side"],
            registry=registry,
        )
        self.cache = Counter(
            "sluice_cache_requests",
            "Requests by what the cache did for them: hit, join, miss or bypass",
            ["result", "dialect"],
            registry=registry,
        )
        # Requests that would start a generation, checked before they are read: docs/overload.md.
        self.admitted = Counter("sluice_admitted", "Requests admitted", registry=registry)
        self.shed = Counter("sluice_shed", "Requests refused because this API is overloaded", ["reason"], registry=registry)
        self.admission_limit = Gauge(
            "sluice_admission_limit_per_second", "The most requests that this API admits; 0: no limit now", registry=registry
        )
        self.estimated_wait = Gauge(
            "sluice_estimated_wait_seconds", "How long a new interactive job would wait for a worker", registry=registry
        )
        self.viewers = Gauge("sluice_open_viewers", "Responses that relay a generation now", registry=registry)
        self.subscriptions = Gauge("sluice_subscriptions", "Generations that this process listens to", registry=registry)
        self.waiting = Gauge("sluice_waiting_jobs", "Jobs that wait for a worker, all replicas", registry=registry)
        self.running = Gauge("sluice_running_jobs", "Jobs that a worker holds, all replicas", registry=registry)
        self.tasks = Gauge("sluice_tasks", "Tasks of this process", registry=registry)
        self.open_files = Gauge("sluice_open_files", "Files and sockets that this process has open", registry=registry)
        self.loop_lag = Histogram(
            "sluice_loop_lag_seconds",
            "How late the event loop is, measured 20 times a second",
            buckets=LAG_BUCKETS_S,
            registry=registry,
        )
        self.body_bytes = Gauge("sluice_body_bytes", "Bytes of large request bodies that are held now", registry=registry)
        self.redis_up = Gauge("sluice_redis_up", "Whether Redis answers, and accepts all commands", registry=registry)
        self.workers = Gauge("sluice_workers_alive", "Workers that take jobs, all replicas", registry=registry)
        self.config = ConfigMetrics(registry)

    def record_refusal(self, failed: Failed) -> None:
        self.errors.labels(failed.kind).inc()
        limit = _LIMIT_OF.get(failed.code or "")
        if limit:
            self.refusals.labels(limit).inc()
        elif failed.kind is ErrorKind.OVERLOADED:
            self.refusals.labels("store").inc()

    def record_cache(self, result: str, dialect: str) -> None:
        self.cache.labels(result, dialect).inc()

    def record_accepted(self, job: Job, job_class: JobClass) -> None:
        self.accepted.labels(job.dialect).inc()
        self.classes.labels(job_class).inc()
