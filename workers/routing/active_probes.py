"""Is an unwell deployment reached again, and does it take its key? The gateway asks, so that no client's request has to.

Off unless ``health_probes_per_hour`` is set. Shortly before the end of a rest, one worker of all asks the provider for its list
of models, which costs nothing anywhere. If that fails, the deployment rests on, for twice as long, and no client's request is
used to find out. If it is answered, the rest is over: the list does not show that the model answers, so one request tries that,
as always (``health``). The worker that saw the deployment become unwell asks, because it has its address and key. If it is
gone, or the budget of probes is spent, clients' requests try it as without probes.
"""

import asyncio

from common.canonical.errors import GatewayError, StoreUnavailable
from common.config.settings import Settings
from common.process.process import supervised
from common.process.rhythm import next_turn
from common.redis import keyspace
from common.redis.client import Client, ms
from workers.metrics import Metrics
from workers.providers.base import Deployment
from workers.quota.gate import scripts_of
from workers.quota.health import Health, name_of
from workers.upstream.http_client import Upstream
from workers.upstream.model_list import model_list_request

CHECK_INTERVAL_S = 0.5  # How often a worker checks for rests that end soon.
LEAD_S = 2.0  # So long before the end of a rest, so that no client's request comes first.
PROBE_TIMEOUT_S = 10.0
HOLD_S = PROBE_TIMEOUT_S + LEAD_S  # Nobody else tries the deployment meanwhile.
# And all from 500 on. Any other status shows that somebody is there. A 403 too: a key may have no right to list models.
_DOWN = (401, 402)


class ActiveProbes:
    """One worker's probes."""

    def __init__(self, redis: Client, health: Health, upstream: Upstream, settings: Settings, metrics: Metrics) -> None:
        self._scripts = scripts_of(redis)
        self._health = health
        self._upstream = upstream
        self._settings = settings
        self._metrics = metrics
        self._task: asyncio.Task[None] | None = None

    def use_settings(self, settings: Settings) -> None:
        """Replace the settings. What was unwell may have another address or key now, so requests try it."""
        self._settings = settings
        self._health.leave_to_requests()

    def start(self) -> None:
        self._task = supervised(self._probe_for_ever, "active_probes")

    async def stop(self) -> None:
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _probe_for_ever(self) -> None:
        while True:
            await next_turn(CHECK_INTERVAL_S)
            if self._settings.health_probes_per_hour:
                await self.probe_due()

    async def probe_due(self) -> None:
        """Probe the deployments of which this worker knows that their rest ends soon."""
        await asyncio.gather(*(self._probe(deployment) for deployment in self._health.due(LEAD_S)))

    async def _probe(self, deployment: Deployment) -> None:
        is_direct = not self._settings.is_behind_gateway(deployment.provider)  # An AI gateway has no list of its own.
        if not (is_direct and await self._claim(deployment)):
            self._health.leave_to_requests(deployment)
            return
        self._health.hold(deployment, HOLD_S)
        is_reached = await self._is_reached(deployment)
        self._metrics.probes.labels(deployment.provider, "reached" if is_reached else "down").inc()
        self._health.record_probe(deployment, is_reached=is_reached)

    async def _claim(self, deployment: Deployment) -> bool:
        keys = [keyspace.UNWELL, keyspace.limit("probes", deployment.provider, "requests")]
        args = [name_of(deployment), ms(LEAD_S), ms(HOLD_S), self._settings.health_probes_per_hour]
        try:
            return bool(await self._scripts.run("active_probe", keys, args))
        except StoreUnavailable:
            return False  # The budget is not known.

    async def _is_reached(self, deployment: Deployment) -> bool:
        try:
            async with (
                asyncio.timeout(PROBE_TIMEOUT_S),
                self._upstream.open(model_list_request(deployment), deployment.provider, is_stream=False) as answer,
            ):
                return answer.status < 500 and answer.status not in _DOWN
        except (GatewayError, TimeoutError):
            return False
