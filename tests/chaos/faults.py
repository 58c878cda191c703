"""How is a scheduled fault brought about, and what came of it?"""

import asyncio
import random
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from tests.chaos.fleet import DRAIN_EXTRA_S, Fleet
from tests.chaos.plan import APIS, CLIENTS_LINK, DRAIN_S, REDIS, WORKERS, Fault, FaultKind

_HEAD = b"HTTP/1.1 %s\r\ncontent-type: application/json\r\nconnection: close\r\n%scontent-length: 2\r\n\r\n{}"
# What a target of a route sends instead of an answer. Nothing: it resets the connection.
_OWN_ANSWERS = {
    FaultKind.RESETTING: b"",
    FaultKind.FAILING: _HEAD % (b"500 Internal Server Error", b""),
    FaultKind.LIMITING: _HEAD % (b"429 Too Many Requests", b""),
}


@dataclass(slots=True)
class Happened:
    """One fault as it was, in ``time.monotonic()``; ``ended_at`` is when all was well again. ``clients``: whom a killed
    worker was working for. ``loses_writes``: Redis may have forgotten what it had acknowledged."""

    fault: Fault
    began_at: float
    began_wall_s: float
    ended_at: float = float("inf")
    clients: set[int] = field(default_factory=set)
    problem: str | None = None
    loses_writes: bool = False

    def overlaps(self, begin: float, end: float) -> bool:
        return self.began_at <= end and begin <= self.ended_at

    @property
    def takes_redis(self) -> bool:
        return self.fault.target == REDIS

    @property
    def cuts_clients(self) -> bool:
        """Whether a client's connection may break by it."""
        return self.fault.target in (CLIENTS_LINK, *APIS)


class Faults:
    """Carries out a schedule, and adds each fault to ``happened``."""

    def __init__(
        self,
        fleet: Fleet,
        schedule: list[Fault],
        happened: list[Happened],
        seed: int,
        tell: Callable[[str], None],
        *,
        is_one_by_one: bool = False,
    ) -> None:
        self.happened = happened
        self._fleet = fleet
        self._schedule = schedule
        self._chance = random.Random(f"cuts {seed}")
        self._tell = tell
        self._redis_breaks = asyncio.Lock()
        self._is_one_by_one = is_one_by_one

    async def run(self) -> None:
        """Return once the last fault is mended."""
        began_at = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for fault in self._schedule:
                await asyncio.sleep(max(0.0, began_at + fault.at_s - time.monotonic()))
                self._tell(str(fault))
                happened = Happened(fault, time.monotonic(), time.time())
                happened.loses_writes = happened.takes_redis and self._fleet.store.may_lose_writes
                self.happened.append(happened)
                carried_out = group.create_task(self._carry_out(happened))
                if self._is_one_by_one:
                    await carried_out  # On a busy machine a process starts for longer than the schedule knows.

    async def _carry_out(self, happened: Happened) -> None:
        fault = happened.fault
        await (self._break_redis if fault.target == REDIS else self._act(fault.kind))(happened)
        happened.ended_at = time.monotonic()

    def _act(self, kind: FaultKind) -> Callable[[Happened], Awaitable[None]]:
        if kind in _OWN_ANSWERS:
            return self._answer_instead
        return {
            FaultKind.REFUSING: self._refuse,
            FaultKind.STALLING: self._pause,
            FaultKind.KILLED: self._kill,
            FaultKind.FROZEN: self._freeze,
            FaultKind.DRAINED: self._drain,
            FaultKind.CUT: self._cut,
            FaultKind.PAUSED: self._pause,
            FaultKind.SLOWED: self._slow,
        }[kind]

    async def _kill(self, happened: Happened) -> None:
        name = happened.fault.target
        if name in WORKERS:
            happened.clients = self._fleet.upstream(name).clients()
        self._fleet.processes[name].kill()
        await asyncio.sleep(happened.fault.for_s)
        await self._start(name)

    async def _freeze(self, happened: Happened) -> None:
        process = self._fleet.processes[happened.fault.target]
        process.send(signal.SIGSTOP)
        try:
            await asyncio.sleep(happened.fault.for_s)
        finally:
            process.send(signal.SIGCONT)

    async def _drain(self, happened: Happened) -> None:
        name = happened.fault.target
        # One that has just been started, or waits for Redis before it begins, does not know the signal yet.
        in_order = (0,) if await self._fleet.ready(name) else (0, -signal.SIGTERM)
        self._fleet.processes[name].send(signal.SIGTERM)
        code = await self._fleet.gone(name, DRAIN_S + DRAIN_EXTRA_S)
        if code not in in_order:
            happened.problem = f"{name}, told to stop, ended with {code}" if code else f"{name} was told to stop and did not"
            self._fleet.processes[name].kill()
        await asyncio.sleep(happened.fault.for_s)
        await self._start(name)

    async def _start(self, name: str) -> None:
        self._fleet.spawn(name)
        await self._fleet.ready(name)

    async def _break_redis(self, happened: Happened) -> None:
        async with self._redis_breaks:  # One after the other: a group that is not whole again has nobody to fail over to.
            happened.problem = await self._fleet.store.bring_about(happened.fault)

    async def _cut(self, happened: Happened) -> None:
        for link in self._fleet.links[happened.fault.target]:
            link.cut(happened.fault.share, self._chance)

    async def _pause(self, happened: Happened) -> None:
        links = self._fleet.links[happened.fault.target]
        for link in links:
            link.pause()
        try:
            await asyncio.sleep(happened.fault.for_s)
        finally:
            for link in links:
                link.resume()

    async def _refuse(self, happened: Happened) -> None:
        (link,) = self._fleet.links[happened.fault.target]
        link.refuse()
        link.cut(1.0, self._chance)
        try:
            await asyncio.sleep(happened.fault.for_s)
        finally:
            await link.start()

    async def _answer_instead(self, happened: Happened) -> None:
        (link,) = self._fleet.links[happened.fault.target]
        link.own_answer = _OWN_ANSWERS[happened.fault.kind]
        link.cut(1.0, self._chance)
        try:
            await asyncio.sleep(happened.fault.for_s)
        finally:
            link.own_answer = None

    async def _slow(self, happened: Happened) -> None:
        links = self._fleet.links[happened.fault.target]
        for link in links:
            link.delay_s = 0.2
        try:
            await asyncio.sleep(happened.fault.for_s)
        finally:
            for link in links:
                link.delay_s = 0.0
