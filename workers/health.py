"""How does monitoring see a worker? Through a small HTTP server for liveness, readiness, health and metrics."""

import asyncio
import socket
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from common.live.live_settings import LiveSettings
from common.process.loop_lag import lag_figures
from common.process.metrics_page import MetricsPage
from common.process.process import open_files
from common.queue.jobs import JobQueue
from common.queue.worker import LeasedWorker
from common.redis.probe import Probe
from workers.ledger.bookkeeper import Bookkeeper
from workers.services import Services


@dataclass(slots=True)
class WorkerState:
    """The parts of a worker process that its health server reports on."""

    worker: LeasedWorker
    services: Services
    queue: JobQueue
    probe: Probe
    bookkeeper: Bookkeeper
    live: LiveSettings
    has_started: bool = False
    began_at: float = field(default_factory=time.monotonic)

    def unready(self) -> str | None:
        """Return why this process should get no jobs; None: it is ready. ``health`` has problems with Redis or database."""
        if not self.worker.allow_pick_jobs:
            return "draining"
        return None if self.has_started else "starting"

    def health(self) -> dict[str, Any]:
        """Return this worker's status, and its problems if it has any.

        Settings that were refused are reported, but do not degrade it: it works with the ones from before.
        """
        problems = [f"Redis: {problem}" for problem in self.probe.problems()]
        problems += filter(None, [self.worker.problem, self.bookkeeper.problem])
        status = self.unready() or ("degraded" if problems else "healthy")
        return {
            "status": status,
            "timestamp": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "uptime_seconds": round(time.monotonic() - self.began_at),
            "checks": {"redis": not self.probe.problems(), "database": self.bookkeeper.problem is None},
            "problems": problems + self.live.problems(),
            "workers_alive": self.queue.workers_alive,
            "loop_lag_ms": lag_figures(),
        }

    async def collect(self) -> bytes:
        """Return the metrics, after setting the gauges that are only read on demand."""
        metrics, settings = self.services.metrics, self.services.settings
        metrics.running.set(settings.worker_slots - self.worker.free_slots)
        metrics.slots.set(settings.worker_slots)
        metrics.connections.set(self.services.upstream.connections)
        metrics.connections_max.set(settings.upstream_connections_max)
        metrics.buffered.set(self.services.publisher.buffered_bytes)
        metrics.large_bytes.set(self.services.publisher.large.bytes_held)
        metrics.redis_up.set(not self.probe.problems())
        metrics.workers.set(self.queue.workers_alive)
        self.services.quota.collect()
        metrics.tasks.set(len(asyncio.all_tasks()))
        metrics.open_files.set(open_files())
        return generate_latest(metrics.registry)


async def serve_health(sock: socket.socket, state: WorkerState, metrics_page: MetricsPage) -> web.AppRunner:
    """Serve until the runner is cleaned up."""

    async def livez(_: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def readyz(_: web.Request) -> web.Response:
        problem = state.unready()
        return web.json_response({"status": problem or "ok"}, status=503 if problem else 200)

    async def health(_: web.Request) -> web.Response:
        report = state.health()
        return web.json_response(report, status=200 if report["status"] == "healthy" else 503)

    async def read_metrics(_: web.Request) -> web.Response:
        return web.Response(body=await metrics_page.read(), headers={"content-type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.add_routes(
        [web.get("/livez", livez), web.get("/readyz", readyz), web.get("/health", health), web.get("/metrics", read_metrics)]
    )
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.SockSite(runner, sock).start()
    return runner
