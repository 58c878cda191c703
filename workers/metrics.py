"""What does a worker count?"""

from bisect import bisect_left
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector

from common.live.metrics import ConfigMetrics
from common.process.loop_lag import LAG_BUCKETS_S

WAIT_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
GAP_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class GapHistogram(Collector):
    """Time between two upstream reads of a generation. prometheus_client's own histogram costs more than a token does."""

    def __init__(self, name: str, documentation: str, registry: CollectorRegistry) -> None:
        self._name, self._documentation = name, documentation
        self._counts = [0] * (len(GAP_BUCKETS_S) + 1)
        self._sum = 0.0
        registry.register(self)

    def observe(self, seconds: float) -> None:
        # Hot path: once per upstream read.
        self._counts[bisect_left(GAP_BUCKETS_S, seconds)] += 1
        self._sum += seconds

    def collect(self) -> Iterator[HistogramMetricFamily]:
        buckets, total = [], 0
        for edge, count in zip((*map(str, GAP_BUCKETS_S), "+Inf"), self._counts, strict=True):
            total += count
            buckets.append((edge, total))
        yield HistogramMetricFamily(self._name, self._documentation, buckets=buckets, sum_value=self._sum)


class Metrics:
    """All of a worker's metrics, in one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self._count_generations(registry)
        self._count_upstreams(registry)
        self._count_usage(registry)
        self._count_ledger(registry)
        self._count_process(registry)
        self.config = ConfigMetrics(registry)

    def _count_generations(self, registry: CollectorRegistry) -> None:
        self.generations = Counter(
            "sluice_generations",
            "Generations ended by this worker; outcome is completed or the kind of failure",
            ["dialect", "provider", "outcome"],
            registry=registry,
        )
        self.running = Gauge("sluice_running_generations", "Generations that this worker runs", registry=registry)
        self.slots = Gauge("sluice_slots", "Generations that this worker can run at a time", registry=registry)
        self.queue_wait = Histogram(
            "sluice_queue_wait_seconds", "From acceptance to claim", buckets=WAIT_BUCKETS_S, registry=registry
        )
        self.cache_stored = Counter(
            "sluice_cache_answers",
            "Answers of cacheable requests: stored, incomplete, fallback, too_large, or not_stored",
            ["result"],
            registry=registry,
        )
        self.takeovers = Counter("sluice_takeovers", "Jobs claimed from a worker that was lost", registry=registry)
        self.continuations = Counter(
            "sluice_continuations",
            "Answers that broke off and were continued, by the kind of failure",
            ["kind"],
            registry=registry,
        )
        self.errors = Counter("sluice_errors", "Failures by kind, retried ones too", ["kind"], registry=registry)
        self.guardrails = Counter(
            "sluice_guardrails",
            "Texts in which a guardrail matched; side is input or output",
            ["guardrail", "mode", "side"],
            registry=registry,
        )

    def _count_upstreams(self, registry: CollectorRegistry) -> None:
        self.upstream_calls = Counter(
            "sluice_upstream_calls",
            "Answers of upstreams by HTTP status; status 0: no answer",
            ["provider", "status"],
            registry=registry,
        )
        self.retries = Counter("sluice_retries", "Upstream calls that repeated a failed one", ["provider"], registry=registry)
        self.attempt_failures = Counter(
            "sluice_attempt_failures",
            "Failed attempts; cause is answer if the provider reported the failure, otherwise the transport's problem",
            ["provider", "kind", "cause"],
            registry=registry,
        )
        self.replaced_connections = Counter(
            "sluice_upstream_connections_replaced",
            "Idle connections that were dead when they were used again, and were replaced at once",
            ["provider"],
            registry=registry,
        )
        self.ttft = Histogram(
            "sluice_time_to_first_token_seconds",
            "From the request's acceptance to its first output",
            ["provider"],
            buckets=WAIT_BUCKETS_S,
            registry=registry,
        )
        self.token_gap = GapHistogram("sluice_inter_token_seconds", "Between two reads of one upstream answer", registry)
        self.connections = Gauge("sluice_upstream_connections", "Upstream connections in use", registry=registry)
        self.connections_max = Gauge("sluice_upstream_connections_max", "Upstream connections allowed", registry=registry)
        self.unwell = Gauge(
            "sluice_upstream_unwell",
            "Keys of a provider, each for one model, that are called last because most calls failed",
            ["provider"],
            registry=registry,
        )
        self.probes = Counter(
            "sluice_upstream_probes",
            "Lists of models that were asked for to see whether an unwell key is reached again; outcome is reached or down",
            ["provider", "outcome"],
            registry=registry,
        )
        self.paused = Gauge(
            "sluice_upstream_paused",
            "Keys that their vendor told us not to call for now, each for one model",
            ["provider"],
            registry=registry,
        )
        self.route_calls = Counter(
            "sluice_route_calls",
            "Calls for routes; reason is the strategy, affinity, retry, failover, hedge, or that of a fallback",
            ["route", "target", "reason"],
            registry=registry,
        )
        self.route_skips = Counter(
            "sluice_route_skips",
            "Fallbacks that could not take the request; misfit is window, tools, schema, media or request",
            ["route", "target", "misfit"],
            registry=registry,
        )
        self.quota_refusals = Counter(
            "sluice_upstream_quota_refusals",
            "Calls that a quota prevented; limit is requests, tokens, concurrent, the same with route_, paused or redis_away",
            ["provider", "limit"],
            registry=registry,
        )

    def _count_usage(self, registry: CollectorRegistry) -> None:
        self.tokens = Counter("sluice_tokens", "Tokens as the upstreams report them", ["provider", "kind"], registry=registry)
        self.budget_marks = Counter(
            "sluice_budget_marks",
            "Budgets that passed 80 or 100 percent; the log says whose",
            ["scope", "percent"],
            registry=registry,
        )
        self.unpriced = Counter(
            "sluice_unpriced_generations",
            "Generations with tokens whose price is not known: their cost counts as 0",
            ["provider"],
            registry=registry,
        )
        self.absurd_usage = Counter(
            "sluice_absurd_usage",
            "Upstream calls whose reported usage was not believable, and was estimated",
            ["provider"],
            registry=registry,
        )

    def _count_ledger(self, registry: CollectorRegistry) -> None:
        self.uncollected = Gauge(
            "sluice_ledger_uncollected",
            "Ended generations that the database does not have yet, of all workers",
            registry=registry,
        )
        self.oldest_uncollected = Gauge(
            "sluice_ledger_oldest_seconds", "How long the oldest uncollected generation has waited", registry=registry
        )
        self.collected = Counter(
            "sluice_ledger_collected", "Generations that this worker has put into the database", registry=registry
        )
        self.unreadable = Counter(
            "sluice_ledger_unreadable", "Records that the ledger could not store, and set aside", registry=registry
        )
        self.set_aside = Gauge(
            "sluice_set_aside", "Jobs and records that could not be processed; `sluice records` lists them", registry=registry
        )

    def _count_process(self, registry: CollectorRegistry) -> None:
        self.buffered = Gauge("sluice_publisher_buffered_bytes", "Bytes that Redis has not acknowledged", registry=registry)
        self.large_bytes = Gauge(
            "sluice_large_answers_bytes",
            "Bytes of this worker's large answers in Redis, at most",
            registry=registry,
        )
        self.tasks = Gauge("sluice_tasks", "Tasks of this process", registry=registry)
        self.open_files = Gauge("sluice_open_files", "Files and sockets that this process has open", registry=registry)
        self.loop_lag = Histogram(
            "sluice_loop_lag_seconds",
            "How late the event loop is, measured 20 times a second",
            buckets=LAG_BUCKETS_S,
            registry=registry,
        )
        self.redis_up = Gauge("sluice_redis_up", "Whether Redis answers, and executes all commands", registry=registry)
        self.workers = Gauge("sluice_workers_alive", "Workers that take jobs, of all replicas", registry=registry)
