"""Which pages does a person see, and what can machines ask about this process?"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from api.routes.openapi import TEXT, object_of, serving
from api.server.answer_headers import page_policy
from api.server.http_errors import json_response
from api.services import ApiServices
from common.config.model_routes import available
from common.process.loop_lag import lag_figures
from common.process.metrics_page import MetricsPage
from common.process.process import open_files

_PLAYGROUND = (Path(__file__).parent.parent / "static" / "playground.html").read_bytes()
_PAGE_HEADERS = {"content-security-policy": page_policy(_PLAYGROUND)}


_STATUS = object_of(["status"], status=TEXT)


def _health_docs() -> dict[str, Any]:
    docs = serving({"application/json": _STATUS}, is_open=True)
    docs["responses"][503] = {**docs["responses"][200], "description": "It is not ready or healthy; the status says why."}
    return docs


def router(services: ApiServices, metrics_page: MetricsPage) -> APIRouter:
    routes = APIRouter(tags=["operations"])
    started_at = time.monotonic()

    @routes.get("/", **serving({"application/json": _STATUS, "text/html": TEXT}, is_open=True))
    async def root(request: Request) -> Response:
        if "text/html" in request.headers.get("accept", ""):
            return Response(_PLAYGROUND, media_type="text/html; charset=utf-8", headers=_PAGE_HEADERS)
        return json_response({"status": "ok", "service": "AI Proxy"})

    @routes.get("/livez", **serving({"application/json": _STATUS}, is_open=True))
    async def livez() -> Response:
        """Report that the process runs."""
        return json_response({"status": "ok"})

    @routes.get("/readyz", **_health_docs())
    async def readyz() -> Response:
        """Report whether this process should get requests: not while it stops, nor while it cannot hear Redis."""
        problem = unready(services)
        return json_response({"status": problem or "ok"}, 503 if problem else 200)

    @routes.get("/health", **_health_docs())
    async def health() -> Response:
        """Report the state of the gateway, including the parts that all processes share.

        Settings that were refused are reported, but do not degrade it: it serves with the ones from before.
        """
        problems = problems_of(services)
        return json_response(
            {
                "status": "degraded" if problems else "healthy",
                "timestamp": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
                "uptime_seconds": round(time.monotonic() - started_at),
                "checks": checks_of(services),
                "problems": problems + services.problems_of_settings(),
                "workers_alive": services.queue.workers_alive,
                "open_viewers": services.hub.open_viewers,
                "loop_lag_ms": lag_figures(),
                "load": services.gate.state(),
            },
            503 if problems else 200,
        )

    @routes.get("/metrics", **serving({"text/plain": TEXT}, is_open=True))
    async def metrics() -> Response:
        return Response(await metrics_page.read(), headers={"content-type": CONTENT_TYPE_LATEST})

    return routes


async def collect_metrics(services: ApiServices, count_jobs: Callable[[], Awaitable[tuple[int, int] | None]]) -> bytes:
    """Return the metrics of this process. ``count_jobs`` returns how many jobs wait and run; None if Redis does not answer."""
    gauges = services.metrics
    gauges.viewers.set(services.hub.open_viewers)
    gauges.subscriptions.set(services.feed.subscriptions)
    gauges.redis_up.set(not services.probe.problems())
    gauges.workers.set(services.queue.workers_alive)
    gauges.admission_limit.set(services.gate.limit_per_s() or 0)
    gauges.estimated_wait.set(services.gate.estimated_wait_s() or 0)
    gauges.tasks.set(len(asyncio.all_tasks()))
    gauges.open_files.set(open_files())
    gauges.body_bytes.set(services.bodies.bytes_held)
    if services.pulse.is_up and (counted := await count_jobs()):
        waiting, running = counted
        gauges.waiting.set(waiting)
        gauges.running.set(running)
    return generate_latest(gauges.registry)


def checks_of(services: ApiServices) -> dict[str, bool]:
    """Return which parts work. The last three names come from claude-code-proxy, whose clients may read them."""
    settings = services.settings
    providers = available(settings)
    is_redis_healthy = not services.probe.problems()
    return {
        "redis": is_redis_healthy,
        "feed": services.feed.is_connected,
        "providers": bool(providers),
        "workers": services.queue.workers_alive > 0,
        # The provider is not asked, since each call costs money.
        "claude_api": any("anthropic-messages" in settings.vendors[provider].wires for provider in providers),
        "rate_limiter": is_redis_healthy,
        "auth": is_redis_healthy or settings.secret is None,  # Managed keys are looked up in Redis.
    }


def problems_of(services: ApiServices) -> list[str]:
    """Return what is wrong with the gateway, in the words of the part that fails; empty if nothing is."""
    problems = [f"Redis: {problem}" for problem in services.probe.problems()]
    if services.pulse.is_up and not services.feed.is_connected:
        problems.append(f"This process is deaf: {services.feed.refusal or 'its subscription is down'}")
    if not available(services.settings):
        problems.append("No provider is configured")
    if services.pulse.is_up and not services.queue.workers_alive:
        problems.append("No worker takes jobs: start one with `sluice worker`")
    return problems


def unready(services: ApiServices) -> str | None:
    """Return why this process should get no requests; None if it should."""
    if services.is_draining:
        return "draining"
    if services.pulse.is_up and not services.feed.is_connected:
        return "deaf"
    return None
