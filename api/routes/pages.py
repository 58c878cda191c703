"""What does a person see, and what do machines ask about this process?"""

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
from common.process.process import open_files

_PLAYGROUND = (Path(__file__).parent.parent / "static" / "playground.html").read_bytes()
_PAGE_HEADERS = {"content-security-policy": page_policy(_PLAYGROUND)}


_STATUS = object_of(["status"], status=TEXT)


def _told_of_health() -> dict[str, Any]:
    told = serving({"application/json": _STATUS}, is_open=True)
    told["responses"][503] = {**told["responses"][200], "description": "It is not; the status says why."}
    return told


def router(services: ApiServices, count_jobs: Callable[[], Awaitable[tuple[int, int] | None]]) -> APIRouter:
    """``count_jobs`` returns how many jobs wait and how many run; None where Redis does not say."""
    routes = APIRouter(tags=["operations"])
    began_at = time.monotonic()

    @routes.get("/", **serving({"application/json": _STATUS, "text/html": TEXT}, is_open=True))
    async def root(request: Request) -> Response:
        if "text/html" in request.headers.get("accept", ""):
            return Response(_PLAYGROUND, media_type="text/html; charset=utf-8", headers=_PAGE_HEADERS)
        return json_response({"status": "ok", "service": "AI Proxy"})

    @routes.get("/livez", **serving({"application/json": _STATUS}, is_open=True))
    async def livez() -> Response:
        """Say that the process runs."""
        return json_response({"status": "ok"})

    @routes.get("/readyz", **_told_of_health())
    async def readyz() -> Response:
        """Say whether this process should get requests: not while it stops, nor while it is deaf to a Redis that answers."""
        problem = unready(services)
        return json_response({"status": problem or "ok"}, 503 if problem else 200)

    @routes.get("/health", **_told_of_health())
    async def health() -> Response:
        """Say how the gateway is, the parts that it shares with others included."""
        problems = problems_of(services)
        return json_response(
            {
                "status": "degraded" if problems else "healthy",
                "timestamp": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
                "uptime_seconds": round(time.monotonic() - began_at),
                "checks": checks_of(services),
                "problems": problems,
                "workers_alive": services.queue.workers_alive,
                "open_viewers": services.hub.open_viewers,
                "loop_lag_ms": lag_figures(),
                "load": services.gate.state(),
            },
            503 if problems else 200,
        )

    @routes.get("/metrics", **serving({"text/plain": TEXT}, is_open=True))
    async def metrics() -> Response:
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
        return Response(generate_latest(gauges.registry), headers={"content-type": CONTENT_TYPE_LATEST})

    return routes


def checks_of(services: ApiServices) -> dict[str, bool]:
    """Return the parts that work. The last three are the names that claude-code-proxy gave them."""
    settings = services.settings
    on = available(settings)
    is_redis_well = not services.probe.problems()
    return {
        "redis": is_redis_well,
        "feed": services.feed.is_connected,
        "providers": bool(on),
        "workers": services.queue.workers_alive > 0,
        "claude_api": any(
            "anthropic-messages" in settings.vendors[provider].wires for provider in on
        ),  # Not asked, as each costs.
        "rate_limiter": is_redis_well,
        "auth": is_redis_well or settings.secret is None,  # Managed keys are looked up there.
    }


def problems_of(services: ApiServices) -> list[str]:
    """Return what keeps requests from being answered, in the words of who refuses; empty where nothing does."""
    found = [f"Redis: {problem}" for problem in services.probe.problems()]
    if services.pulse.is_up and not services.feed.is_connected:
        found.append(f"This process is deaf: {services.feed.refusal or 'its subscription is down'}")
    if not available(services.settings):
        found.append("No provider is configured")
    if services.pulse.is_up and not services.queue.workers_alive:
        found.append("No worker takes jobs: start one with `sluice worker`")
    return found


def unready(services: ApiServices) -> str | None:
    """Return why this process should get no requests."""
    if services.is_draining:
        return "draining"
    if services.pulse.is_up and not services.feed.is_connected:
        return "deaf"
    return None
