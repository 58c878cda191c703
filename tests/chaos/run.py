"""How does one run go, from the first process to the verdict?"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import aiohttp
from redis import Redis

from chaos.checker import Auditor, judge
from chaos.client import Client, History, Outcome
from chaos.faults import Faults
from chaos.fleet import Fleet, fleet
from chaos.plan import APIS, WORKERS, Ask, FaultKind, asks, faults
from chaos.report import Report

AT_ONCE_MAX = 800  # Clients; who comes while there are so many waits.
IDLE_S = 40.0  # By then everything has returned to its idle numbers.
LAG_EVERY_S = 0.1


async def run(folder: Path, seed: int, duration_s: float, per_s: float, every_s: float, tell: Callable[[str], None]) -> Report:
    """Return what came of a run, and ``tell`` of it as it goes. The processes' logs are in ``folder``."""
    report = Report(seed, duration_s)
    async with fleet(folder) as found:
        tell("all processes are ready")
        run_ = _Run(found, report, seed, tell)
        await run_.clients_and_faults(duration_s, per_s, every_s)
        await run_.settle()
        report.wrong += await found.drain_all()
        run_.read_process_logs()
    return report


class _Run:
    def __init__(self, found: Fleet, report: Report, seed: int, tell: Callable[[str], None]) -> None:
        self._fleet = found
        self._report = report
        self._seed = seed
        self._tell = tell
        self._room = asyncio.Semaphore(AT_ONCE_MAX)
        self._auditor = Auditor(found.redis_server.url)

    async def clients_and_faults(self, duration_s: float, per_s: float, every_s: float) -> None:
        breaking = Faults(self._fleet, faults(self._seed, duration_s, every_s), self._seed, self._tell)
        self._report.happened = breaking.happened
        lag = asyncio.create_task(self._watch_lag())
        # One connection per request: a client that meets a connection cut between two requests would test only itself.
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        timeout = aiohttp.ClientTimeout(total=None)
        try:
            async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session, asyncio.TaskGroup() as group:
                group.create_task(breaking.run())
                began_at = time.monotonic()
                for ask in asks(self._seed, duration_s, per_s):
                    await asyncio.sleep(max(0.0, began_at + ask.at_s - time.monotonic()))
                    await self._room.acquire()
                    group.create_task(self._live(ask, session))
                self._tell("all clients have come")
        finally:
            lag.cancel()
            await self._auditor.close()
        self._report.audited = self._auditor.audited
        self._report.wrong += [h.problem for h in breaking.happened if h.problem]

    async def _live(self, ask: Ask, session: aiohttp.ClientSession) -> None:
        try:
            history = await Client(ask, session, self._fleet.url).live()
        finally:
            self._room.release()
        self._report.histories.append(history)
        wrong = judge(history, self._report.happened)
        wrong += await self._auditor.audit(history)
        for what in wrong:
            self._say(history, what)
        if history.outcome == Outcome.LEFT:
            self._note_closing(history)
        history.stream, history.body, history.text = None, b"", ""  # Judged: a long run keeps no text.

    def _say(self, history: History, what: str) -> None:
        ask = history.ask
        line = f"client {ask.number} ({ask.manner}, {ask.dialect} on {ask.provider}, {history.generation_id}): {what}"
        self._report.wrong.append(line)
        self._tell(f"WRONG {line}")

    def _note_closing(self, history: History) -> None:
        for worker in WORKERS:
            left_at = self._fleet.links[f"{worker}-upstream"].left_at.get(history.ask.number)
            if left_at and history.gone_at and left_at > history.gone_at:
                self._report.closings_s.append((history.gone_at, left_at - history.gone_at, worker))

    async def _watch_lag(self) -> None:
        while True:
            asked_at = time.monotonic()
            await asyncio.sleep(LAG_EVERY_S)
            self._report.loop_lag_ms.append((time.monotonic() - asked_at - LAG_EVERY_S) * 1000)

    # Afterwards

    async def settle(self) -> None:
        """Wait until nothing is left of all this; what is left after a while is wrong."""
        deadline = time.monotonic() + IDLE_S
        while left := await self._left():
            if time.monotonic() > deadline:
                self._report.wrong += [f"still there {IDLE_S:.0f} s after the last client: {what}" for what in left]
                return
            await asyncio.sleep(0.5)

    async def _left(self) -> list[str]:
        left = []
        for name in (*APIS, *WORKERS):
            try:
                metrics = await self._fleet.metrics(name)
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                left.append(f"{name} does not answer: {error!r}")
                continue
            samples = _IDLE_AT_ZERO[name in APIS]
            left += [f"{name} {sample} {metrics[sample]:g}" for sample in samples if metrics.get(sample)]
        if is_open := (await self._fleet.demo_stats())["open"]:
            left.append(f"{is_open} upstream calls")
        return left + await asyncio.to_thread(self._left_in_redis)

    def _left_in_redis(self) -> list[str]:
        left = []
        with Redis.from_url(self._fleet.redis_server.url, socket_timeout=5) as redis:
            for key in redis.scan_iter(count=1000):
                name = key.decode()
                if name.startswith(_KEYS_THAT_GO) or (redis.ttl(key) == -1 and name not in _KEYS_THAT_STAY):
                    left.append(f"the key {name}")
                # A state without a log was opened by an API that was then cut off: nobody ever heard of it.
                elif name.endswith("}:log") and redis.hget(name.replace("}:log", "}:state"), "ended") != b"1":
                    left.append(f"{name} without an end")
        return left

    def read_process_logs(self) -> None:
        """What only the workers know: takeovers, and that each generation is reported once."""
        reported: Counter[str] = Counter()
        said: Counter[str] = Counter()
        taken_over: dict[str, list[float]] = {}
        client_of = {h.generation_id: h.ask.number for h in self._report.histories if h.generation_id}
        for name in (*APIS, *WORKERS):
            for line in self._fleet.processes[name].lines():
                match line.get("event"):
                    case "generation_ended":
                        reported[line["generation_id"]] += 1
                        client_of.setdefault(line["generation_id"], int(line["model"].rpartition("-c")[2]))
                    case "job_taken_over":
                        at_s = datetime.fromisoformat(line["timestamp"]).timestamp()
                        taken_over.setdefault(line["generation_id"], []).append(at_s)
                if line.get("level") in ("error", "critical"):
                    cause = line.get("exception", "").rpartition("\n")[2]
                    said[f"{name} logged {line['event'].strip()}: {cause}"] += 1
        self._report.wrong += [f"{what} ({times} times)" for what, times in said.items()]
        self._report.wrong += [f"{id_} was reported {count} times" for id_, count in reported.items() if count > 1]
        self._time_takeovers({client_of[id_]: times for id_, times in taken_over.items() if id_ in client_of})

    def _time_takeovers(self, taken_over: dict[int, list[float]]) -> None:
        """Match each takeover with the last kill of a worker that worked for that client."""
        kills = [h for h in self._report.happened if h.fault.kind is FaultKind.KILLED and h.fault.target in WORKERS]
        for number, times in taken_over.items():
            for at_s in times:
                before = [h for h in kills if number in h.clients and h.began_wall_s < at_s]
                if before and at_s - before[-1].began_wall_s < IDLE_S:
                    self._report.takeovers_s.append((before[-1].began_at, at_s - before[-1].began_wall_s))


_KEYS_THAT_STAY = ("sluice:q:turn", "sluice:q:bell")
_KEYS_THAT_GO = tuple(f"sluice:q:{name}" for name in ("job:", "running", "enqueued", "delayed", "waiting:", "rotation:"))
_IDLE_AT_ZERO = {
    True: ("sluice_open_viewers", "sluice_subscriptions", "sluice_waiting_jobs", "sluice_running_jobs"),
    False: ("sluice_running_generations", "sluice_upstream_connections", "sluice_publisher_buffered_bytes"),
}
