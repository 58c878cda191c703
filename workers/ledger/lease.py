"""Which worker does the bookkeeping?

One at a time: it holds a lease in Redis and renews it. If it dies, another worker gets the lease within ``LEASE_S``. Two
workers that both believe for a moment that they have it do no harm, because all of this work can be done twice. The lease only
saves work; it does not protect anything.
"""

import asyncio
import contextlib
import secrets
from pathlib import Path

from redis.exceptions import RedisError

from common.canonical.errors import StoreUnavailable
from common.process.process import supervised
from common.process.rhythm import next_turn
from common.queue.jobs import BOOKKEEPER_PREFIX
from common.redis import keyspace
from common.redis.client import Client
from common.redis.pulse import Pulse
from common.redis.scripts import Scripts

LEASE_S = 5.0
RENEW_S = 1.0
_LEASE_MS = int(LEASE_S * 1000)


class Lease:
    """The bookkeeping lease. ``is_held`` is the result of the last renewal. A task renews it each second."""

    def __init__(self, redis: Client, pulse: Pulse) -> None:
        self._pulse = pulse
        self._scripts = Scripts(redis, Path(__file__).parent)
        self._token = BOOKKEEPER_PREFIX + secrets.token_hex(8)
        self._task: asyncio.Task[None] | None = None
        self.is_held = False

    def start(self) -> None:
        self._task = supervised(self._run, "bookkeeping lease")

    async def stop(self) -> None:
        """Stop renewing, and release the lease, so that another worker gets it at once."""
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self.is_held and self._pulse.is_up:
            with contextlib.suppress(StoreUnavailable, RedisError):
                await self._scripts.run("release", [keyspace.BOOKKEEPER], [self._token])
        self.is_held = False

    async def renew(self) -> bool:
        """Take or renew the lease. Return whether we have it."""
        try:
            self.is_held = await self._scripts.run("hold", [keyspace.BOOKKEEPER], [self._token, _LEASE_MS]) == 1
        except (StoreUnavailable, RedisError):
            self.is_held = False
        return self.is_held

    async def _run(self) -> None:
        while True:
            if self._pulse.is_up:
                await self.renew()
            else:
                self.is_held = False
            await next_turn(RENEW_S)
