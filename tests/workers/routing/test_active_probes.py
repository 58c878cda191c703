"""When the gateway itself asks whether an unwell deployment is back, and what follows from the answer."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from prometheus_client import CollectorRegistry

from cli.dev.embedded_redis import free_port
from common.canonical.errors import ErrorKind, Failed
from common.config.settings import Settings
from common.redis import keyspace
from common.redis.pulse import Pulse
from demo_provider.server import running
from workers.metrics import Metrics
from workers.providers.base import Deployment
from workers.publish.linger import Linger
from workers.quota.gate import Quota
from workers.quota.health import FAILURES_MIN, REQUEST_TRIES_EVERY, REST_S, name_of
from workers.routing.active_probes import ActiveProbes
from workers.upstream.http_client import Upstream

DOWN = Failed(ErrorKind.UPSTREAM_UNAVAILABLE, "down")
KEY_REFUSED = Failed(ErrorKind.UPSTREAM_CREDENTIALS, "key")


class Lab:
    """Workers with a clock of their own, on one Redis. Its own time goes on: rests there end by the tests' word."""

    def __init__(self, redis, per_hour: int) -> None:
        self.redis, self.now = redis, 1000.0
        self.settings = Settings(_env_file=None, health_probes_per_hour=per_hour)
        self.upstream = Upstream(self.settings, Linger(0))
        self.registry = CollectorRegistry()
        self.metrics = Metrics(self.registry)

    def worker(self) -> tuple[Quota, ActiveProbes]:
        quota = Quota(self.redis, Pulse(self.redis), self.settings, self.metrics)
        quota.health._clock = lambda: self.now
        return quota, ActiveProbes(self.redis, quota.health, self.upstream, self.settings, self.metrics)

    async def end_rest(self, deployment: Deployment) -> None:
        """Let a rest be over in a moment, here and in Redis."""
        self.now += 60
        await self.redis.hset(keyspace.UNWELL, name_of(deployment), 1)

    def probes(self, outcome: str) -> float:
        labels = {"provider": "lab", "outcome": outcome}
        return self.registry.get_sample_value("sluice_upstream_probes_total", labels) or 0.0


@asynccontextmanager
async def lab_of(redis, per_hour: int = 10) -> AsyncIterator[Lab]:
    lab = Lab(redis, per_hour)
    try:
        yield lab
    finally:
        await lab.upstream.close()


def at(base_url: str, key: str = "k") -> Deployment:
    return Deployment("lab", base_url, key, "m", "openai-chat", key_id="lab:1")


OTHER = Deployment("other", "http://x", "k", "m", key_id="other:1")


async def make_unwell(quota: Quota, deployment: Deployment, failed: Failed = DOWN) -> None:
    for _ in range(FAILURES_MIN):
        quota.health.record_failure(deployment, failed)
    await quota.flush()


async def first_choice(quota: Quota, deployment: Deployment) -> bool:
    return (await quota.health.order([deployment, OTHER]))[0][0] is deployment


async def test_one_that_is_reached_is_tried_by_one_request_and_one_that_is_not_rests_on(redis):
    async with lab_of(redis) as lab, running() as address:
        quota, probes = lab.worker()
        up, down = at(f"{address}/v1"), at(f"http://127.0.0.1:{free_port()}/v1")
        await make_unwell(quota, down)
        await lab.end_rest(down)

        await probes.probe_due()
        await quota.flush()
        assert (lab.probes("down"), await first_choice(quota, down)) == (1, False)
        assert await redis.hget(keyspace.UNWELL, f"{name_of(down)} times") == b"2", "it rests for twice as long"

        quota.health._rests[name_of(down)].deployment = up
        await lab.end_rest(up)
        await probes.probe_due()
        await quota.flush()
        assert lab.probes("reached") == 1
        await asyncio.sleep(0.01)  # The end of the rest, by the clock of Redis.
        assert [await first_choice(quota, up) for _ in range(2)] == [True, False], "one request tries it"


@pytest.mark.parametrize(("key", "outcome"), [("bad-key", "down"), ("k", "reached")])
async def test_a_key_that_is_still_refused_costs_no_request(redis, key, outcome):
    async with lab_of(redis) as lab, running() as address:
        quota, probes = lab.worker()
        await make_unwell(quota, at(f"{address}/v1", key), KEY_REFUSED)
        await lab.end_rest(at(address))

        await probes.probe_due()

        assert lab.probes(outcome) == 1


async def test_a_list_that_is_refused_for_ever_does_not_keep_a_deployment_away_for_ever(redis):
    async with lab_of(redis) as lab:
        quota, probes = lab.worker()
        down = at(f"http://127.0.0.1:{free_port()}/v1")
        await make_unwell(quota, down)
        for _ in range(REQUEST_TRIES_EVERY - 1):
            await lab.end_rest(down)
            assert not lab.probes("reached")
            await probes.probe_due()
            await quota.flush()
        await lab.end_rest(down)
        await probes.probe_due()

        assert lab.probes("down") == REQUEST_TRIES_EVERY - 1
        assert await first_choice(quota, down)


async def test_after_a_reload_requests_try_what_may_have_another_address(redis):
    async with lab_of(redis) as lab:
        quota, probes = lab.worker()
        await make_unwell(quota, at("http://127.0.0.1:9"))
        await lab.end_rest(at(""))
        probes.use_settings(lab.settings)
        await probes.probe_due()

        assert lab.probes("down") == 0
        assert await first_choice(quota, at("http://127.0.0.1:10"))


async def test_nothing_is_asked_before_a_rest_ends(redis):
    async with lab_of(redis) as lab:
        quota, probes = lab.worker()
        await make_unwell(quota, at("http://127.0.0.1:9"))
        lab.now += REST_S / 2
        await probes.probe_due()
        assert lab.probes("down") == 0


async def test_one_worker_of_all_asks(redis):
    async with lab_of(redis) as lab, running() as address:
        workers = [lab.worker() for _ in range(3)]
        for quota, _ in workers:
            await make_unwell(quota, at(f"{address}/v1"))
        await lab.end_rest(at(address))

        await asyncio.gather(*(probes.probe_due() for _, probes in workers))

        assert lab.probes("reached") == 1


async def test_the_budget_is_for_all_workers_and_without_it_requests_try(redis):
    async with lab_of(redis, per_hour=2) as lab:
        quota, probes = lab.worker()
        down = at(f"http://127.0.0.1:{free_port()}/v1")
        await make_unwell(quota, down)
        for _ in range(3):
            await lab.end_rest(down)
            await probes.probe_due()
            await quota.flush()

        assert lab.probes("down") == 2
        assert await first_choice(quota, down)
        assert await redis.pttl(keyspace.limit("probes", "lab", "requests")) > 0
