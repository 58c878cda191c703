"""What does a person see, and what do machines ask about this process?"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from api.describing import serving
from api.generate import Services
from api.http_errors import json_response
from api.security_headers import page_policy
from common.process import open_files
from common.routes import available

_PLAYGROUND = (Path(__file__).parent.parent / "static" / "playground.html").read_bytes()
_PAGE_HEADERS = {"content-security-policy": page_policy(_PLAYGROUND)}


_STATUS = {"type": "object", "required": ["status"], "properties": {"status": {"type": "string"}}}


def _told_of_health() -> dict[str, Any]:
    told = serving({"application/json": _STATUS}, is_open=True)
    told["responses"][503] = {**told["responses"][200], "description": "It is not; the status says why."}
    return told


def router(services: Services, count_jobs: Callable[[], Awaitable[tuple[int, int] | None]]) -> APIRouter:
    """``count_jobs`` returns how many jobs wait and how many run; None where Redis does not say."""
    routes = APIRouter(tags=["operations"])
    began_at = time.monotonic()

    @routes.get("/", **serving({"application/json": _STATUS, "text/html": {"type": "string"}}, is_open=True))
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
        checks = {
            "redis": services.pulse.is_up,
            "feed": services.feed.is_connected,
            "providers": bool(available(services.settings)),
        }
        is_healthy = all(checks.values())
        return json_response(
            {
                "status": "healthy" if is_healthy else "degraded",
                "uptime_seconds": round(time.monotonic() - began_at),
                "checks": checks,
                "open_viewers": services.hub.open_viewers,
            },
            200 if is_healthy else 503,
        )

    @routes.get("/metrics", **serving({"text/plain": {"type": "string"}}, is_open=True))
    async def metrics() -> Response:
        gauges = services.metrics
        gauges.viewers.set(services.hub.open_viewers)
        gauges.subscriptions.set(services.feed.subscriptions)
        gauges.redis_up.set(services.pulse.is_up)
        gauges.tasks.set(len(asyncio.all_tasks()))
        gauges.open_files.set(open_files())
        if services.pulse.is_up and (counted := await count_jobs()):
            waiting, running = counted
            gauges.waiting.set(waiting)
            gauges.running.set(running)
        return Response(generate_latest(gauges.registry), headers={"content-type": CONTENT_TYPE_LATEST})

    return routes


def unready(services: Services) -> str | None:
    """Return why this process should get no requests."""
    if services.is_draining:
        return "draining"
    if services.pulse.is_up and not services.feed.is_connected:
        return "deaf"
    return None
