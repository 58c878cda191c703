"""Which services does a worker need to run generations? There is one set per process."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from common.cache.store import CacheStore
from common.channel.base import Channel
from common.config.settings import Settings
from common.responses import ResponseStore
from workers.metrics import Metrics
from workers.publish.publisher import Publisher
from workers.quota.gate import Quota
from workers.routing.hedge_budget import HedgeBudget
from workers.routing.order import Router
from workers.routing.traffic import Traffic
from workers.transcode.output_guardrails import OutputGuards
from workers.upstream.http_client import Upstream
from workers.upstream.refused_summaries import RefusedSummaries

MEASURED_MAX = 2  # Logs that are read back at the same time: when an API process dies, all of its clients leave at once.


class Replaced(NamedTuple):
    """A configuration that another one replaced at ``at_s``, by the wall clock."""

    settings: Settings
    guards: OutputGuards
    router: Router
    at_s: float


async def _nothing_newer() -> None: ...


@dataclass(slots=True)
class Services:
    """What is needed to run generations; one per process.

    A reload replaces ``settings``, ``guards`` and ``router`` together, between two turns of the event loop. It keeps those from
    before: jobs that were accepted with them may have no other way to run. ``refresh`` looks for a newer configuration now.
    """

    settings: Settings
    channel: Channel
    publisher: Publisher
    upstream: Upstream
    metrics: Metrics
    responses: ResponseStore
    quota: Quota
    guards: OutputGuards
    cache: CacheStore
    refused_summaries: RefusedSummaries = field(default_factory=RefusedSummaries)
    measuring: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MEASURED_MAX))
    traffic: Traffic = field(default_factory=lambda: Traffic(time.monotonic))
    refresh: Callable[[], Awaitable[None]] = field(default=_nothing_newer)
    hedges: HedgeBudget = field(default_factory=HedgeBudget)
    router: Router = field(init=False)
    replaced: "Replaced | None" = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.router = self.router_for(self.settings)

    def replace_settings(self, settings: Settings, guards: OutputGuards, router: Router) -> None:
        self.replaced = Replaced(self.settings, self.guards, self.router, time.time())
        self.settings, self.guards, self.router = settings, guards, router

    def router_for(self, settings: Settings) -> Router:
        return Router(settings, self.traffic)
