"""Which services does a worker need to run generations? There is one set per process."""

import asyncio
import time
from dataclasses import dataclass, field

from common.cache.store import CacheStore
from common.channel.base import Channel
from common.config.settings import Settings
from common.responses import ResponseStore
from workers.metrics import Metrics
from workers.publish.publisher import Publisher
from workers.quota.gate import Quota
from workers.routing.order import Router
from workers.routing.traffic import Traffic
from workers.transcode.output_guardrails import OutputGuards
from workers.upstream.http_client import Upstream
from workers.upstream.refused_summaries import RefusedSummaries

MEASURED_MAX = 2  # Logs that are read back at the same time: when an API process dies, all of its clients leave at once.


@dataclass(slots=True)
class Services:
    """What is needed to run generations; one per process.

    A reload replaces ``settings``, ``guards`` and ``router`` together, between two turns of the event loop.
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
    router: Router = field(init=False)

    def __post_init__(self) -> None:
        self.router = self.router_for(self.settings)

    def router_for(self, settings: Settings) -> Router:
        return Router(settings, self.traffic)
