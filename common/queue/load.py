"""How much work waits for workers, and how fast do they take it?

Every API reads this twice a second and estimates from it how long a new interactive job would wait. Tenants take turns, so
each tenant has its own estimate: a tenant without waiting jobs waits for one turn of the other tenants, however many jobs
they have in line.
"""

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from common.canonical.errors import StoreUnavailable
from common.process.process import supervised
from common.process.rhythm import next_turn
from common.queue.jobs import JobQueue

READ_INTERVAL_S = 0.5
TENANTS_MAX = 256  # Tenants that one reading counts. Further tenants are assumed to have as many jobs in line on average.
RATE_WINDOW_S = 30.0  # A rate below one job per window cannot be distinguished from a standstill.
RATE_JOBS = 20  # Enough jobs to measure a rate: the measurement goes back only as far as it takes to see these.
SLOTS_DEFAULT = 2_000  # For a worker of the previous version, which does not report its slots: the default setting.
FREE_SHARE = 0.25  # Of all slots. Where so many are free, waiting jobs do not wait for slots.


@dataclass(frozen=True, slots=True)
class Reading:
    """The state of the queue at one moment. ``waiting`` and ``by_tenant`` count interactive jobs only."""

    at_ms: int
    drained: int = 0  # Jobs that workers have taken from the line so far. Only differences of it mean something.
    waiting: int = 0
    tenants: int = 0
    by_tenant: Mapping[str, int] = field(default_factory=dict)
    running: int = 0
    slots: int = 0

    @property
    def has_free_slots(self) -> bool:
        return self.running < self.slots * (1 - FREE_SHARE)


def parse_reading(answer: Sequence[Any]) -> Reading:
    """Return the reading in the answer of load.lua."""
    at_ms, in_line, waiting, running, tenants, counts, workers = answer
    by_tenant = {name.decode(): count for name, count in zip(counts[::2], counts[1::2], strict=True)}
    looked_at = sum(by_tenant.values())
    return Reading(
        at_ms=at_ms,
        drained=in_line - waiting,
        waiting=round(looked_at * tenants / max(1, len(by_tenant))),
        tenants=tenants,
        by_tenant=by_tenant,
        running=running,
        slots=sum(_parse_slots(worker) for worker in workers),
    )


def _parse_slots(worker: bytes) -> int:
    _, _, slots = worker.rpartition(b" ")
    return int(slots) if slots.isdigit() else SLOTS_DEFAULT


class _Drained(NamedTuple):
    at_ms: int
    jobs: int


class QueueLoad:
    """The last reading, and the rate over the last readings. Unknown values never lead to a refusal."""

    def __init__(self, queue: JobQueue) -> None:
        self._queue = queue
        self._drained: deque[_Drained] = deque(maxlen=int(RATE_WINDOW_S / READ_INTERVAL_S) + 1)
        self._task: asyncio.Task[None] | None = None
        self.reading = Reading(0)
        self.has_free_slots = False  # True after two readings with free slots: a single one may fall between two claims.

    def start(self) -> None:
        self._task = supervised(self._read_for_ever, "queue load")

    async def stop(self) -> None:
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def wait_s(self, tenant: str) -> float | None:
        """Return how long a new interactive job of a tenant would wait. None where that is not known."""
        reading = self.reading
        if reading.waiting == 0:
            return 0.0
        if reading.slots == 0:
            return None  # The rate is that of workers that are gone. Others may come.
        per_s = self._drained_per_s()
        if not per_s:
            return None
        return min(reading.waiting, (reading.by_tenant.get(tenant, 0) + 1) * reading.tenants) / per_s

    def record(self, reading: Reading) -> None:
        """Record a new reading."""
        if self._drained and (reading.drained < self._drained[-1].jobs or reading.at_ms <= self._drained[-1].at_ms):
            self._drained.clear()  # It is another Redis, or Redis has lost data.
        self._drained.append(_Drained(reading.at_ms, reading.drained))
        self.has_free_slots = reading.has_free_slots and self.reading.has_free_slots
        self.reading = reading

    def forget(self) -> None:
        self._drained.clear()
        self.reading, self.has_free_slots = Reading(0), False

    def _drained_per_s(self) -> float | None:
        if len(self._drained) < 2:
            return None
        last = self._drained[-1]
        first = next(
            (drained for drained in reversed(self._drained) if last.jobs - drained.jobs >= RATE_JOBS), self._drained[0]
        )
        return (last.jobs - first.jobs) / (last.at_ms - first.at_ms) * 1000

    async def _read_for_ever(self) -> None:
        while True:
            try:
                self.record(parse_reading(await self._queue.load(TENANTS_MAX)))
            except StoreUnavailable:
                self.forget()
            await next_turn(READ_INTERVAL_S)
