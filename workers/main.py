"""Which parts is a worker process made of, and how does it start and stop? The worker's composition root."""

import asyncio
import contextlib
import secrets
import sys
from functools import partial

import structlog
import uvloop
from prometheus_client import CollectorRegistry

from common import pricing
from common.admission import Settlement
from common.channel.redis import RedisChannel
from common.event_loop import Loop
from common.foreign_variables import log_foreign
from common.guardrails.custom import PluginError, custom_of
from common.process import collect_seldom, open_files, raise_file_limit, switch_soon
from common.proxies import ProxyUnusable
from common.queue.jobs import ClaimedJob, JobQueue
from common.queue.worker import LeasedWorker
from common.redaction import Redactor
from common.redis_client import Pulse, connect
from common.responses import ResponseStore
from common.settings import Settings, environment
from common.telemetry import configure_logging
from workers.bookkeeping.keeper import Bookkeeper
from workers.call import Services
from workers.generate import run_generation
from workers.guarding import OutputGuards
from workers.health import serve_health
from workers.linger import Linger
from workers.metrics import Metrics
from workers.publisher import Publisher
from workers.quota.gate import Quota
from workers.upstream import Upstream
from workers.webhook import poster

log = structlog.get_logger()


def run(settings: Settings) -> None:
    """Work until told to stop."""
    configure_logging("worker", settings.log_level, Redactor.of(settings))
    log_foreign(environment(), settings)
    raise_file_limit()
    switch_soon()
    uvloop.run(_run(settings), loop_factory=Loop)


async def _run(settings: Settings) -> None:
    name = secrets.token_hex(4)
    try:
        custom_guardrail = custom_of(settings, poster)
    except PluginError as error:
        sys.exit(f"SLUICE_GUARDRAIL_PLUGIN: {error}")
    except ProxyUnusable as error:
        sys.exit(f"SLUICE_GUARDRAIL_WEBHOOK_URL: {error}")
    redis = connect(settings.redis_url)
    pulse = Pulse(redis)
    await pulse.start()
    await pulse.until_up()  # A worker may well start before its Redis does.
    channel = RedisChannel(redis, settings.tombstone_s)
    linger = Linger(settings.publish_linger_ms)
    publisher = Publisher(channel, pulse, settings, linger)
    metrics = Metrics(CollectorRegistry())
    quota = Quota(redis, pulse, settings, metrics)
    guards = OutputGuards(settings, custom_guardrail, metrics)
    responses = ResponseStore(redis, settings)
    upstream = Upstream(settings, linger, lambda provider: metrics.replaced_connections.labels(provider).inc())
    services = Services(settings, channel, publisher, upstream, metrics, responses, quota, guards)

    books = Bookkeeper(redis, pulse, channel, settings, metrics)

    async def handle(job: ClaimedJob) -> Settlement:
        return await run_generation(job, services)

    queue = JobQueue(redis, pulse, settings)
    worker = LeasedWorker(redis, queue, pulse, settings, handle, name)

    worker.on_takeover = metrics.takeovers.inc
    worker.on_budget_mark = partial(_note_budget, metrics)
    publisher.start()
    quota.start()
    # Before the first job: both compute for a while, and would hold up its stream.
    await asyncio.gather(books.start(), asyncio.to_thread(pricing.load))
    collect_seldom()
    # Beside the API on one machine it is on loopback too, and in a container on all addresses.
    collect = partial(_collect, worker, services, pulse)
    health, port = await serve_health(settings.host, settings.worker_port or 0, metrics, collect, lambda: _unready(worker))
    log.info("starting", worker=name, health_port=port, slots=settings.worker_slots)
    try:
        with contextlib.suppress(asyncio.CancelledError):  # arq's signal handler cancels its main task once the drain is over.
            await worker.async_run()
        log.info("stopping", worker=name)
    finally:
        await worker.close()
        await health.cleanup()
        await books.stop()
        await publisher.stop()
        await quota.stop()
        await services.upstream.close()
        if custom_guardrail:
            await custom_guardrail.close()
        await pulse.stop()
        await redis.aclose()


def _collect(worker: LeasedWorker, services: Services, pulse: Pulse) -> None:
    """Bring the figures up to date that are only looked at."""
    metrics, settings = services.metrics, services.settings
    metrics.running.set(settings.worker_slots - worker.free_slots)
    metrics.slots.set(settings.worker_slots)
    metrics.connections.set(services.upstream.connections)
    metrics.connections_max.set(settings.upstream_connections_max)
    metrics.buffered.set(services.publisher.buffered_bytes)
    metrics.redis_up.set(pulse.is_up)
    services.quota.collect()
    metrics.tasks.set(len(asyncio.all_tasks()))
    metrics.open_files.set(open_files())


def _note_budget(metrics: Metrics, counter: str, percent: str) -> None:
    scope, _, rest = counter.partition(":")
    name, _, period = rest.rpartition(":")
    log.warning("budget_mark_passed", scope=scope, name=name, period=period, percent=int(percent))
    metrics.budget_marks.labels(scope, percent).inc()


def _unready(worker: LeasedWorker) -> str | None:
    return None if worker.allow_pick_jobs else "draining"
