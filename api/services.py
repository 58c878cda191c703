"""What does serving a request need? One set of services per process, and the place where an error becomes a response."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from starlette.requests import Request
from starlette.responses import Response

from api.auth.authenticator import Authenticator
from api.cache.plan import CachePlanner
from api.guardrails.input_guard import InputGuard
from api.metrics import ApiMetrics
from api.overload.gate import Gate
from api.relay.hub import Hub
from api.relay.response import Relay, RelayTimeouts
from api.server.body_budget import BodyBudget
from api.server.draining import WAVE_S, waves
from api.server.http_errors import error_response, headers_of, request_id_of
from api.server.store_errors import redis_failed
from common.cache.store import CacheStore
from common.canonical.errors import GatewayError, StoreUnavailable
from common.channel.base import Channel
from common.channel.redis import RedisFeed
from common.config.settings import Settings
from common.dialects.base import Dialect
from common.queue.jobs import JobQueue
from common.redis.probe import Probe
from common.redis.pulse import Pulse
from common.responses import ResponseStore


@dataclass(slots=True)
class ApiServices:
    """What serving requests needs. One per process.

    A reload replaces ``settings``, ``authenticator``, ``guard`` and ``planner`` together, between two turns of the event loop.
    A request that needs several of them takes them in one turn, so that it never works with half of two configurations.
    """

    settings: Settings
    authenticator: Authenticator
    channel: Channel
    feed: RedisFeed
    hub: Hub
    queue: JobQueue
    pulse: Pulse
    probe: Probe
    metrics: ApiMetrics
    responses: ResponseStore
    guard: InputGuard
    gate: Gate
    bodies: BodyBudget
    planner: CachePlanner
    cache: CacheStore
    problems_of_settings: Callable[[], list[str]] = list
    relays: set[Relay] = field(default_factory=set)
    is_draining: bool = False
    _is_grace_over: bool | None = field(default=None, init=False)  # None: not draining.

    def relay_timeouts(self) -> RelayTimeouts:
        return RelayTimeouts(self.settings.status_hold_s, self.settings.keep_alive_s)

    def add_relay(self, relay: Relay) -> Relay:
        """Add a relay, so that it ends when the process drains. Returns it."""
        self.relays.add(relay)
        if self._is_grace_over is not None:
            relay.drain(is_over=self._is_grace_over)
        return relay

    def drain(self, *, is_over: bool, within_s: float = 0) -> None:
        """End the relays that clients can resume elsewhere; all of them if the grace period ``is_over``. New relays end too.

        ``within_s``: end the resumable ones in waves, so that their clients do not reach the other replicas all at once.
        """
        self._is_grace_over = is_over
        first, *later = waves([relay for relay in self.relays if is_over or relay.is_resumable], 0 if is_over else within_s)
        _drain_all(first, is_over)
        for number, wave in enumerate(later, start=1):
            asyncio.get_running_loop().call_later(number * WAVE_S, _drain_all, wave, is_over)


def _drain_all(relays: Sequence[Relay], is_over: bool) -> None:
    for relay in relays:
        relay.drain(is_over=is_over)


async def answer_or_error(dialect: Dialect, request: Request, services: ApiServices, answer: Awaitable[Response]) -> Response:
    """Return an answer, or the error that it raises, in the dialect's own format."""
    has_failed = True
    try:
        response = await answer
        has_failed = False
        return response
    except GatewayError as error:
        failed, headers = error.failed, headers_of(error)
    except StoreUnavailable as error:
        gateway_error = redis_failed(error, services.pulse)
        failed, headers = gateway_error.failed, headers_of(gateway_error)
    finally:
        services.bodies.release(request.scope, has_failed=has_failed)
    services.metrics.record_refusal(failed)
    return error_response(dialect, failed, request_id_of(request), headers)
