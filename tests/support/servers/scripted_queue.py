"""A leased worker whose queue is scripted. Redis only serves its bells."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from typing import Any

from common.config.settings import Settings
from common.limits.charges import Settlement
from common.queue.jobs import ClaimedJob, ClaimResult
from common.queue.worker import LeasedWorker
from common.redis.client import Client

SETTLEMENT = Settlement(cost_nano_usd=7)
JOB = ClaimedJob("gen_0", 3)

Handler = Callable[[ClaimedJob], Awaitable[Settlement]]


class Pulse:
    def __init__(self) -> None:
        self.is_up, self.whole_s = True, 1000.0

    def healthy_s(self) -> float:
        return self.whole_s


class Queue:
    """Answers claims in their order, then with nothing. ``calls`` are all other calls, ``errors`` what some of them raise."""

    def __init__(self) -> None:
        self.claims: deque[ClaimResult] = deque()
        self.asked: list[dict[str, Any]] = []
        self.calls: list[tuple[Any, ...]] = []
        self.errors: dict[str, Exception] = {}
        self.crossed: list[str] = []
        self.answers = asyncio.Event()  # Until it is set, no job is taken back.
        self.answers.set()
        self.lost: list[str] = []

    async def claim(
        self, room: int, *, background_max: int, lapsed_max: int, excluded_ids: Collection[str], fences: bool
    ) -> ClaimResult:
        assert fences
        self.asked.append({"room": room, "background": background_max, "lapsed": lapsed_max, "excluded": sorted(excluded_ids)})
        return self.claims.popleft() if self.claims else ClaimResult([], 0, 0)

    def _called(self, *call: Any) -> None:
        self.calls.append(call)
        if call[0] in self.errors:
            raise self.errors[call[0]]

    async def finish(self, job: ClaimedJob, settlement: Settlement) -> list[str]:
        self._called("finish", job, settlement)
        await self.answers.wait()
        return self.crossed

    async def release(self, job: ClaimedJob, *, delay_s: float, is_handover: bool, has_failed: bool) -> None:
        self._called("release", job, delay_s, is_handover, has_failed)
        await self.answers.wait()

    async def postpone(self, job: ClaimedJob, *, delay_s: float, attempts: int) -> None:
        self._called("postpone", job, delay_s, attempts)
        await self.answers.wait()

    async def drop(self, job: ClaimedJob, reason: str, *, with_record: bool) -> None:
        self._called("drop", job, reason, with_record)
        await self.answers.wait()

    async def renew(self, epochs: dict[str, int]) -> list[str]:
        self._called("renew", epochs)
        return self.lost

    async def report_alive(self, worker: str, *, takes_jobs: bool) -> None:
        self._called("report_alive", worker, takes_jobs)

    def of(self, *names: str) -> list[tuple[Any, ...]]:
        return [call for call in self.calls if call[0] in names]


class Lab:
    def __init__(self, redis: Client) -> None:
        self.redis, self.queue, self.pulse = redis, Queue(), Pulse()

    def worker(self, handler: Handler, **settings: Any) -> LeasedWorker:
        chosen = Settings().model_copy(update=settings)
        return LeasedWorker(self.redis, self.queue, self.pulse, chosen, handler, "one")  # type: ignore[arg-type]

    @asynccontextmanager
    async def running(self, handler: Handler, **settings: Any) -> AsyncIterator[LeasedWorker]:
        worker = self.worker(handler, **settings)
        task = asyncio.create_task(worker.async_run())
        try:
            yield worker
        finally:
            worker.allow_pick_jobs = False
            for job in worker.tasks.values():
                job.cancel()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await worker.close()


async def eventually(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not holds():
            await asyncio.sleep(0.005)


async def settles(job: ClaimedJob) -> Settlement:
    return SETTLEMENT


async def waits(job: ClaimedJob) -> Settlement:
    await asyncio.Event().wait()
    return SETTLEMENT


def raising(error: Exception) -> Handler:
    async def handler(job: ClaimedJob) -> Settlement:
        raise error

    return handler
