"""Which parts does an API process consist of, and how does it start and stop? The composition root of the API."""

import asyncio
import contextlib
import secrets
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from types import FrameType
from typing import cast

import structlog
import uvicorn
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.routing import APIRoute
from prometheus_client import CollectorRegistry
from starlette.exceptions import HTTPException
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.routing import Match

from api.auth.authenticator import Authenticator, is_open
from api.auth.key_cache import KeyCache, KeyRings
from api.auth.startup_checks import log_if_open, refuse_to_start
from api.cache.plan import CachePlanner
from api.guardrails.input_guard import InputGuard
from api.guardrails.webhook import poster
from api.metrics import ApiMetrics
from api.overload.accepting import Acceptor
from api.overload.answers import RefusalResponses
from api.overload.gate import Gate
from api.relay.hub import Hub
from api.routes import admin, admin_cache, admin_config, dialects, generations, models, pages, responses, usage
from api.routes.direct_route import DirectPaths
from api.routes.openapi import describe
from api.server.answer_headers import EXPOSED_HEADERS
from api.server.body_budget import BodyBudget
from api.server.connection import Connection
from api.server.cors import Cors
from api.server.http_errors import intended_path, not_served
from api.server.middleware import Front
from api.server.request_bounds import bounded_protocol
from api.services import ApiServices
from common.cache.inventory import Inventory
from common.cache.store import CacheStore
from common.channel.redis import RedisChannel, RedisFeed
from common.config.custom_guardrail import load_custom_guardrails
from common.config.foreign_effect import log_foreign
from common.config.proxies import ProxyUnusable
from common.config.setting_doubts import log_doubts
from common.config.setting_sources import Inputs
from common.config.settings import Settings, environment
from common.config.start_log import log_sources
from common.database.lazy import LazyDatabase
from common.guardrails.custom import PluginError
from common.live.live_settings import LiveSettings, Load, SettingsRefused
from common.live.reloads import Reloads
from common.metering import pricing
from common.process.listening import bound_address
from common.process.logging import configure_logging
from common.process.loop_lag import lag_aware_timeout, loop_lag
from common.process.manager import report_ready
from common.process.metrics_page import MetricsPage
from common.process.process import collect_garbage_less_often, raise_file_limit, return_freed_memory, shorten_thread_switches
from common.process.redaction import Redactor
from common.process.rhythm import until_turn_s
from common.queue.jobs import JobQueue
from common.queue.load import QueueLoad
from common.redis import keyspace
from common.redis.client import COMMAND_TIMEOUT_S, connect
from common.redis.errors import REDIS_ERRORS
from common.redis.probe import Probe
from common.redis.pulse import Pulse
from common.responses import ResponseStore
from common.version import VERSION

log = structlog.get_logger()

# If a client sends a request at the moment when its idle connection is closed, the request is lost, and a POST is not sent
# again. So idle connections stay open longer than the clients' pools keep them (90 s in Go and Rust, 60 to 600 s in load
# balancers).
KEEP_ALIVE_S = 620

DRAIN_MARGIN_S = 1.0  # Between the last error event and the end of the server.


class ApiProcess:
    """One API process: its services, and the background tasks beside the requests.

    ``settings`` are those that it started with: of these, only what needs a restart is used. ``live`` has the present ones.
    """

    def __init__(self, settings: Settings, live: LiveSettings | None = None, metrics_socket: Path | None = None) -> None:
        self.settings = settings
        self.live = live or LiveSettings(settings, Redactor.from_settings(settings))
        self.live.prepare = self._prepare
        self.redis = connect(settings.redis_url, connections_max=256)
        self.cache_redis = connect(settings.cache_redis_url) if settings.cache_redis_url else self.redis
        pulse = Pulse(self.redis)
        channel = RedisChannel(self.redis, settings.tombstone_s)
        feed = RedisFeed(self.redis)
        queue = JobQueue(self.redis, pulse, settings)
        metrics = ApiMetrics(CollectorRegistry())
        self.load = QueueLoad(queue)
        self.database = LazyDatabase(settings.database_url)
        self.key_rings = KeyRings(self.database, self.redis, settings)
        self.key_cache = KeyCache(self.redis, pulse, self.key_rings)
        self.custom_guardrail = load_custom_guardrails(settings, poster)
        self.services = ApiServices(
            settings=settings,
            authenticator=Authenticator(
                settings, self.key_cache, on_refused=lambda reason: metrics.refused_credentials.labels(reason).inc()
            ),
            channel=channel,
            feed=feed,
            hub=Hub(channel, feed, queue, settings),
            queue=queue,
            pulse=pulse,
            probe=Probe(self.redis, pulse),
            metrics=metrics,
            responses=ResponseStore(self.redis, settings),
            guard=InputGuard(settings, self.custom_guardrail, metrics),
            gate=Gate(settings, self.load, metrics, RefusalResponses(EXPOSED_HEADERS)),
            bodies=BodyBudget(settings),
            planner=CachePlanner(settings),
            cache=CacheStore(self.cache_redis, settings),
            problems_of_settings=self.live.public_problems,
        )
        self.metrics_page = MetricsPage(partial(pages.collect_metrics, self.services, self.count_jobs), metrics_socket)
        self.reloads = Reloads(self.live, self.redis, pulse, metrics.config, f"api-{secrets.token_hex(4)}")

    def _prepare(self, settings: Settings) -> Callable[[], None]:
        """Build what depends on settings that may change. The function that is returned puts it into use."""
        services = self.services
        if is_open(settings) and not is_open(services.settings):
            raise SettingsRefused(["No keys for clients are left: anybody could use the gateway. Restart it if you mean that."])
        if reason := refuse_to_start(settings):
            raise SettingsRefused([reason])
        if settings.budget_unknown_price == "refuse":
            pricing.load()
        authenticator = services.authenticator.with_settings(settings)
        guard = InputGuard(settings, self.custom_guardrail, services.metrics)
        planner = CachePlanner(settings)

        def commit() -> None:
            services.settings, services.authenticator = settings, authenticator
            services.guard, services.planner = guard, planner

        return commit

    async def start(self) -> None:
        loop_lag().observe(self.services.metrics.loop_lag.observe)
        if self.settings.budget_unknown_price == "refuse":
            await asyncio.to_thread(pricing.load)
        await self.services.pulse.start()
        await self.services.feed.start()
        self.services.probe.start()
        self.services.hub.start()
        self.load.start()
        self.services.gate.start()
        await self.metrics_page.start()
        await self.reloads.start()

    async def stop(self) -> None:
        await self.metrics_page.stop()
        await self.reloads.stop()
        await self.load.stop()
        await self.services.hub.stop()
        await self.services.feed.stop()
        await self.services.probe.stop()
        await self.services.pulse.stop()
        await self.database.close()
        await self.redis.aclose()
        if self.cache_redis is not self.redis:
            await self.cache_redis.aclose()
        if self.custom_guardrail:
            await self.custom_guardrail.close()

    def begin_drain(self) -> None:
        """End now the responses that clients can resume elsewhere. End the others when the grace period is over."""
        log.info("draining", open_responses=len(self.services.relays))
        grace_s = max(0.0, self.settings.api_drain_s - DRAIN_MARGIN_S)
        self.services.drain(is_over=False, within_s=grace_s)
        asyncio.get_running_loop().call_later(grace_s, lambda: self.services.drain(is_over=True))

    async def count_jobs(self) -> tuple[int, int] | None:
        """Return how many jobs wait and how many run, over all replicas; None if Redis does not answer."""
        with contextlib.suppress(*REDIS_ERRORS):  # Without Redis, the other metrics of this process matter even more.
            async with lag_aware_timeout(COMMAND_TIMEOUT_S):
                return await self.redis.zcard(keyspace.ENQUEUED), await self.redis.zcard(keyspace.RUNNING)
        return None


def create_app(process: ApiProcess) -> FastAPI:
    """Return the ASGI application of one API process."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await process.start()
        try:
            yield
        finally:
            await process.stop()

    settings, services = process.settings, process.services
    # No redirects: behind TLS they would name http, and a client would send its key and prompt over plain HTTP.
    app = FastAPI(title="Sluice", version=VERSION, lifespan=lifespan, docs_url=None, redoc_url=None, redirect_slashes=False)
    routers = [
        dialects.router(services),
        responses.router(services),
        models.router(services),
        generations.router(services),
        usage.router(services, process.database),
        *(_admin_routers(process) if settings.admin_keys else []),
        pages.router(services, process.metrics_page),
    ]
    for router in routers:
        app.router.routes.extend(router.routes)  # Flat: an included router would match each request a second time.
    _serve_head(app)
    describe(app)
    app.add_exception_handler(HTTPException, _plain_error)
    cors = Cors(
        listed=lambda: listed_origins(services.settings),
        key_origins=process.key_cache.origins,
        exposed=EXPOSED_HEADERS,
        on_allowed=services.gate.remember_origin,
    )
    # Without Starlette's outermost layer: it answers unexpected errors, which ours does, and wraps the sending of each token.
    stack = app.build_middleware_stack()
    assert isinstance(stack, ServerErrorMiddleware)
    paths = DirectPaths(app.routes, stack.app)
    app.middleware_stack = Front(paths, services.metrics, settings.header_bytes_max, lambda: services.is_draining, cors)
    return app


def listed_origins(settings: Settings) -> Iterator[str]:
    """Yield the browser origins that the settings allow, for all or for a tenant."""
    yield from settings.cors_origins
    for access in settings.tenants.values():
        yield from access.cors_origins or ()


def _admin_routers(process: ApiProcess) -> list[APIRouter]:
    inventory = Inventory(process.cache_redis, process.settings, lambda: process.live.current)
    return [
        admin.router(process.services, process.key_cache, process.key_rings),
        admin_cache.router(process.services, inventory, process.database),
        admin_config.router(process.services, process.live, process.database, process.redis),
    ]


def _serve_head(app: FastAPI) -> None:
    """Answer HEAD on every path that answers GET. The server leaves the body out."""
    for route in list(app.routes):
        if isinstance(route, APIRoute) and "GET" in (route.methods or ()):
            app.add_api_route(route.path, route.endpoint, methods=["HEAD"], include_in_schema=False)


async def _plain_error(request: Request, error: Exception) -> Response:
    """Return the error for an unknown path or method. All other errors have a dialect."""
    assert isinstance(error, HTTPException)
    path = request.url.path
    intended = intended_path(path) if error.status_code == 404 and _methods_at(request, intended_path(path)) else None
    methods = _methods_at(request, path) if error.status_code == 405 else []  # Starlette names only those of the first route.
    return not_served(request.scope, methods, intended)


def _methods_at(request: Request, path: str) -> list[str]:
    def is_served(method: str) -> bool:
        scope = {**request.scope, "method": method, "path": path}
        return any(route.matches(scope)[0] is Match.FULL for route in request.app.routes)

    return [method for method in ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT") if is_served(method)]


class ApiServer(uvicorn.Server):
    """uvicorn's server, with our acceptor and our order of stopping."""

    def __init__(self, config: uvicorn.Config, process: ApiProcess) -> None:
        super().__init__(config)
        self._process = process
        self._is_ending = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start as uvicorn does, but accept connections with ``Acceptor``."""
        await super().startup([])
        self.servers = [self._acceptor(sock) for sock in sockets or ()]  # type: ignore[misc]  # uvicorn only closes them.
        self._process.reloads.listen_for_signal()
        report_ready()

    async def main_loop(self) -> None:
        """Wait as uvicorn does, which wakes up ten times a second. Only the header ``date`` needs it, once a second."""
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(until_turn_s(1.0)):
                    await self._is_ending.wait()

    def _acceptor(self, sock: socket.socket) -> Acceptor:
        protocol_class = cast(type[Connection], self.config.http_protocol_class)
        protocol = partial(protocol_class, self.config, self.server_state, self.lifespan.state)
        sock.listen(self.config.backlog)
        return Acceptor(sock, protocol, self._process.services.gate)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handle a signal as uvicorn does, but do not raise it again at the end: a drained process exits with status 0."""
        if sig == signal.SIGINT:
            self.force_exit = self.should_exit  # A second Ctrl-C stops at once.
        if self.started and not self._process.services.is_draining:
            self._process.services.is_draining = True  # Unready first: the load balancer still sends requests until it notices.
            asyncio.get_running_loop().call_soon_threadsafe(self._stop_later, sig)
        elif not self.started or sig == signal.SIGINT:
            self.should_exit = True
            asyncio.get_running_loop().call_soon_threadsafe(self._is_ending.set)

    def _stop_later(self, sig: int) -> None:
        wait_s = self._process.settings.api_unready_s if sig == signal.SIGTERM else 0
        asyncio.get_running_loop().call_later(wait_s, self._stop)

    def _stop(self) -> None:
        self._process.begin_drain()
        self.should_exit = True
        self._is_ending.set()


def run(settings: Settings, load: Load, inputs: Inputs, sock: socket.socket, metrics_socket: Path | None = None) -> None:
    """Serve until a signal stops the process.

    ``load`` reads the settings again, ``inputs`` are what it read at first. ``sock`` is bound. On
    ``metrics_socket`` it shows its metrics to processes that share it.
    """
    redactor = Redactor.from_settings(settings)
    configure_logging("api", settings.log_level, redactor)
    live = LiveSettings(settings, redactor, load, inputs)
    log_sources(settings)
    log_foreign(environment(), settings)
    log_doubts(settings)
    log_if_open(settings)
    raise_file_limit()
    return_freed_memory()
    collect_garbage_less_often()
    shorten_thread_switches()
    try:
        process = ApiProcess(settings, live, metrics_socket)
    except PluginError as error:
        sys.exit(f"SLUICE_GUARDRAIL_PLUGIN: {error}")
    except ProxyUnusable as error:
        sys.exit(f"SLUICE_GUARDRAIL_WEBHOOK_URL: {error}")
    protocol = bounded_protocol(settings)
    protocol.gate = process.services.gate
    config = uvicorn.Config(
        create_app(process),
        loop="common.process.event_loop:Loop",
        http=protocol,
        ws="none",  # There is no WebSocket here: a request for an upgrade is ignored.
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=bool(settings.trusted_proxies),  # Not by default: anybody can send X-Forwarded-For.
        forwarded_allow_ips=list(settings.trusted_proxies),
        backlog=4096,
        timeout_keep_alive=KEEP_ALIVE_S,
        # Our own drain ends the responses first. What is left are viewers that report their leave to a Redis that may be away.
        timeout_graceful_shutdown=int(settings.api_drain_s + COMMAND_TIMEOUT_S),
    )
    host, port = bound_address(sock)
    log.info("starting", host=host, port=port)
    ApiServer(config, process).run([sock])
