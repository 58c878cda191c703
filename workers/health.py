"""What does a worker tell those who watch it? A small HTTP server of its own, for liveness, readiness and metrics."""

import socket
from collections.abc import Callable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from workers.metrics import Metrics


async def serve_health(
    sock: socket.socket, metrics: Metrics, collect: Callable[[], None], unready: Callable[[], str | None]
) -> web.AppRunner:
    """Serve until the runner is cleaned up. ``collect`` sets the gauges before they are read."""

    async def livez(_: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def readyz(_: web.Request) -> web.Response:
        problem = unready()
        return web.json_response({"status": problem or "ok"}, status=503 if problem else 200)

    async def read_metrics(_: web.Request) -> web.Response:
        collect()
        return web.Response(body=generate_latest(metrics.registry), headers={"content-type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.add_routes(
        [web.get("/livez", livez), web.get("/readyz", readyz), web.get("/health", readyz), web.get("/metrics", read_metrics)]
    )
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.SockSite(runner, sock).start()
    return runner
