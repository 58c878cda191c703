"""How much work waits for workers, and how fast do they take it?

An API reads it twice a second, whatever it is asked meanwhile, and tells from it how long a new interactive job would wait.
Tenants take turns, so that is not the same for all: one that has nothing in line waits for one turn of the others, whatever
one of these has put there.
"""

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from common.canonical.errors import StoreUnavailable
from common.process.process import supervised
from common.queue.jobs import JobQueue

READ_INTERVAL_S = 0.5
TENANTS_MAX = 256  # That one reading looks at. Of more, the others are taken to have as much in line as these.
RATE_WINDOW_S = 30.0  # A slower rate than one job in so long is not told from a standstill.
RATE_JOBS = 20  # Enough jobs for a rate: the window is as short as holds these.
SLOTS_UNSAID = 2_000  # Of a worker of the version before, which does not say how many it has: the usual number.
FREE_SHARE = 0.25  # Of all slots. A queue beside so many free ones does not wait for slots.


@dataclass(frozen=True, slots=True)
class Reading:
    """What the queue held at one moment; ``waiting`` and ``by_tenant`` are interactive jobs."""

    at_ms: int
    drained: int = 0  # Jobs that workers have taken from the line so far, from a start that means nothing.
    waiting: int = 0
    tenants: int = 0
    by_tenant: Mapping[str, int] = field(default_factory=dict)
    running: int = 0
    slots: int = 0

    @property
    def has_free_slots(self) -> bool:
        return self.running < self.slots * (1 - FREE_SHARE)


def reading_of(answer: Sequence[Any]) -> Reading:
    """Return what the script's answer means."""
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
        slots=sum(_slots_of(worker) for worker in workers),
    )


def _slots_of(worker: bytes) -> int:
    _, _, slots = worker.rpartition(b" ")
    return int(slots) if slots.isdigit() else SLOTS_UNSAID


class _Drained(NamedTuple):
    at_ms: int
    jobs: int


class QueueLoad:
    """The last reading, and the rate over the last ones. What is not known is no reason to refuse anything."""

    def __init__(self, queue: JobQueue) -> None:
        self._queue = queue
        self._drained: deque[_Drained] = deque(maxlen=int(RATE_WINDOW_S / READ_INTERVAL_S) + 1)
        self._task: asyncio.Task[None] | None = None
        self.reading = Reading(0)
        self.has_free_slots = False  # By the last two readings: one may fall between two claims.

    def start(self) -> None:
        self._task = supervised(self._read_for_ever, "queue load")

    async def stop(self) -> None:
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def wait_s(self, tenant: str) -> float | None:
        """Return how long an interactive job of a tenant would wait if it came now; None where that is not known."""
        now = self.reading
        if now.waiting == 0:
            return 0.0
        if now.slots == 0:
            return None  # The rate was that of workers that are gone; others may come.
        per_s = self._drained_per_s()
        if not per_s:
            return None
        return min(now.waiting, (now.by_tenant.get(tenant, 0) + 1) * now.tenants) / per_s

    def take(self, reading: Reading) -> None:
        """Take a new reading in."""
        if self._drained and (reading.drained < self._drained[-1].jobs or reading.at_ms <= self._drained[-1].at_ms):
            self._drained.clear()  # Another Redis, or one that has lost something.
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
        since = next((each for each in reversed(self._drained) if last.jobs - each.jobs >= RATE_JOBS), self._drained[0])
        return (last.jobs - since.jobs) / (last.at_ms - since.at_ms) * 1000

    async def _read_for_ever(self) -> None:
        while True:
            try:
                self.take(reading_of(await self._queue.load(TENANTS_MAX)))
            except StoreUnavailable:
                self.forget()
            await asyncio.sleep(READ_INTERVAL_S)
