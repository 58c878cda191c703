"""Which parts is a worker process made of, and how does it start and stop? The worker's composition root."""

import asyncio
import contextlib
import secrets
import socket
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import structlog
import uvloop
from prometheus_client import CollectorRegistry

from common.cache.store import CacheStore
from common.channel.redis import RedisChannel
from common.config.custom_guardrail import load_custom_guardrails
from common.config.foreign_effect import log_foreign
from common.config.proxies import ProxyUnusable
from common.config.setting_doubts import log_doubts
from common.config.setting_sources import Inputs
from common.config.settings import Settings, environment
from common.config.start_log import log_sources
from common.guardrails.custom import PluginError
from common.limits.charges import Settlement
from common.live.live_settings import LiveSettings, Load
from common.live.reloads import Reloads
from common.metering import pricing
from common.process.event_loop import Loop
from common.process.listening import bound_address
from common.process.logging import configure_logging
from common.process.loop_lag import loop_lag
from common.process.manager import report_ready
from common.process.metrics_page import MetricsPage
from common.process.process import collect_garbage_less_often, raise_file_limit, return_freed_memory, shorten_thread_switches
from common.process.redaction import Redactor
from common.queue.jobs import ClaimedJob, JobQueue
from common.queue.worker import LeasedWorker
from common.redis.client import connect
from common.redis.probe import Probe
from common.redis.pulse import Pulse
from common.responses import ResponseStore
from workers.generate import run_generation
from workers.health import WorkerState, serve_health
from workers.ledger.bookkeeper import Bookkeeper
from workers.metrics import Metrics
from workers.publish.linger import Linger
from workers.publish.publisher import Publisher
from workers.quota.gate import Quota
from workers.quota.provider_budgets import ProviderBudgets
from workers.routing.active_probes import ActiveProbes
from workers.services import Services
from workers.transcode.output_guardrails import OutputGuards
from workers.upstream.http_client import Upstream
from workers.upstream.webhook import poster

log = structlog.get_logger()


def run(settings: Settings, load: Load, inputs: Inputs, sock: socket.socket, metrics_socket: Path | None = None) -> None:
    """Run a worker until it is stopped.

    ``load`` reads the settings again, ``inputs`` are what it read at first. ``sock`` is bound, and serves
    health and metrics. On ``metrics_socket`` it shows its metrics to processes that share it.
    """
    redactor = Redactor.from_settings(settings)
    configure_logging("worker", settings.log_level, redactor)
    log_sources(settings)
    log_foreign(environment(), settings)
    log_doubts(settings)
    raise_file_limit()
    return_freed_memory()
    shorten_thread_switches()
    uvloop.run(_run(LiveSettings(settings, redactor, load, inputs), sock, metrics_socket), loop_factory=Loop)


async def _run(live: LiveSettings, sock: socket.socket, metrics_socket: Path | None) -> None:
    settings = live.current
    name = secrets.token_hex(4)
    try:
        custom_guardrail = load_custom_guardrails(settings, poster)
    except PluginError as error:
        sys.exit(f"SLUICE_GUARDRAIL_PLUGIN: {error}")
    except ProxyUnusable as error:
        sys.exit(f"SLUICE_GUARDRAIL_WEBHOOK_URL: {error}")
    redis = connect(settings.redis_url)
    cache_redis = connect(settings.cache_redis_url) if settings.cache_redis_url else redis
    pulse = Pulse(redis)
    channel = RedisChannel(redis, settings.tombstone_s)
    linger = Linger(settings.publish_linger_ms)
    publisher = Publisher(channel, pulse, settings, linger)
    metrics = Metrics(CollectorRegistry())
    loop_lag().observe(metrics.loop_lag.observe)
    quota = Quota(redis, pulse, settings, metrics)
    guards = OutputGuards(settings, custom_guardrail, metrics)
    responses = ResponseStore(redis, settings)
    upstream = Upstream(settings, linger, lambda provider: metrics.replaced_connections.labels(provider).inc())
    services = Services(
        settings, channel, publisher, upstream, metrics, responses, quota, guards, CacheStore(cache_redis, settings)
    )

    active_probes = ActiveProbes(redis, quota.health, upstream, settings, metrics)
    bookkeeper = Bookkeeper(redis, pulse, channel, settings, metrics)

    async def handle(job: ClaimedJob) -> Settlement:
        return await run_generation(job, services)

    queue = JobQueue(redis, pulse, settings)
    worker = LeasedWorker(redis, queue, pulse, settings, handle, name)
    probe = Probe(redis, pulse)

    worker.on_takeover = metrics.takeovers.inc
    worker.on_budget_mark = partial(_log_budget_mark, metrics)

    def prepare(settings: Settings) -> Callable[[], None]:
        """Build what depends on settings that may change. The function that is returned puts it into use."""
        guards = OutputGuards(settings, custom_guardrail, metrics)
        router, budgets = services.router_for(settings), ProviderBudgets(settings)

        def commit() -> None:
            services.replace_settings(settings, guards, router)
            quota.use_settings(settings, budgets)
            bookkeeper.use_settings(settings)
            active_probes.use_settings(settings)

        return commit

    live.prepare = prepare
    reloads = Reloads(live, redis, pulse, metrics.config, f"worker-{name}")
    services.refresh = reloads.refresh
    state = WorkerState(worker, services, queue, probe, bookkeeper, live)
    # First of all: a worker that cannot work must still answer its health check, and say why.
    metrics_page = MetricsPage(state.collect, metrics_socket)
    await metrics_page.start()
    health = await serve_health(sock, state, metrics_page)
    log.info("starting", worker=name, health_port=bound_address(sock)[1], slots=settings.worker_slots)
    try:
        await pulse.start()
        probe.start()
        publisher.start()
        quota.start()
        active_probes.start()
        # Before the first job: both take some CPU time, and would delay its stream.
        await asyncio.gather(bookkeeper.start(), asyncio.to_thread(pricing.load))
        collect_garbage_less_often()
        await reloads.start()
        reloads.listen_for_signal()
        state.has_started = True
        report_ready()
        with contextlib.suppress(asyncio.CancelledError):  # arq's signal handler cancels its main task once the drain is over.
            await worker.async_run()
        log.info("stopping", worker=name)
    finally:
        await worker.close()
        await reloads.stop()
        await health.cleanup()
        await metrics_page.stop()
        await bookkeeper.stop()
        await publisher.stop()
        await active_probes.stop()
        await quota.stop()
        await probe.stop()
        await services.upstream.close()
        if custom_guardrail:
            await custom_guardrail.close()
        await pulse.stop()
        await redis.aclose()
        if cache_redis is not redis:
            await cache_redis.aclose()


def _log_budget_mark(metrics: Metrics, counter: str, percent: str) -> None:
    scope, _, rest = counter.partition(":")
    name, _, period = rest.rpartition(":")
    log.warning("budget_mark_passed", scope=scope, name=name, period=period, percent=int(percent))
    metrics.budget_marks.labels(scope, percent).inc()
