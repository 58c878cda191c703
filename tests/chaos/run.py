"""How does one run go, from the first process to the verdict?"""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp
from redis.exceptions import RedisError

from common.ledger import set_aside
from common.redis import keyspace
from tests.chaos.books import check_rows, check_tokens, read_rows
from tests.chaos.checker import DIFFERS, Auditor, judge
from tests.chaos.client import KEY, Client, History, Outcome
from tests.chaos.faults import Faults, Happened
from tests.chaos.fleet import Fleet, fleet
from tests.chaos.plan import APIS, WORKERS, Ask, FaultKind, asks, faults, viewers_come_s
from tests.chaos.report import Report

AT_ONCE_MAX = 800  # Clients; who comes while there are so many waits.
IDLE_S = 40.0  # By then everything has returned to its idle numbers.
LAG_EVERY_S = 0.1
LEASE_S = 6.0  # A worker without word of itself for so long has lost its jobs,
TAKEN_S = 8.0  # and so long later at most somebody has them.


@dataclass(frozen=True, slots=True)
class Length:
    """How long a run is, how much of everything is in it, and what it breaks; see ``plan``."""

    duration_s: float
    streams_per_s: float
    fault_every_s: float
    viewers: int = 0
    only: str = ""


async def run(folder: Path, redis: str, seed: int, length: Length, tell: Callable[[str], None]) -> Report:
    """Return what came of a run, and ``tell`` of it as it goes. The processes' logs are in ``folder``."""
    report = Report(redis, seed, length.duration_s)
    async with fleet(folder, redis, length.only) as found:
        tell("all processes are ready")
        run_ = _Run(found, report, seed, tell, length.viewers)
        await run_.clients_and_faults(length)
        await run_.settle()
        await run_.read_books()
        report.wrong += await found.drain_all()
        run_.read_process_logs()
    return report


class _Run:
    def __init__(self, found: Fleet, report: Report, seed: int, tell: Callable[[str], None], viewers: int) -> None:
        self._fleet = found
        self._report = report
        self._seed = seed
        self._tell = tell
        self._room = asyncio.Semaphore(AT_ONCE_MAX + viewers)
        self._redis = found.store.client()
        self._auditor = Auditor(found.store.client(), report.happened, self._ask)

    async def clients_and_faults(self, length: Length) -> None:
        schedule = faults(
            self._seed,
            length.duration_s,
            length.fault_every_s,
            has_replica=self._fleet.store.may_lose_writes,
            only=length.only,
            after_s=viewers_come_s(length.viewers),
        )
        breaking = Faults(self._fleet, schedule, self._report.happened, self._seed, self._tell, is_one_by_one=bool(length.only))
        lag = asyncio.create_task(self._watch_lag())
        # One connection per request: a client that meets a connection cut between two requests would test only itself.
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        timeout = aiohttp.ClientTimeout(total=None)
        try:
            async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session, asyncio.TaskGroup() as group:
                group.create_task(breaking.run())
                began_at = time.monotonic()
                for ask in asks(self._seed, length.duration_s, length.streams_per_s, length.viewers):
                    await asyncio.sleep(max(0.0, began_at + ask.at_s - time.monotonic()))
                    await self._room.acquire()
                    group.create_task(self._live(ask, session))
                self._tell("all clients have come")
        finally:
            lag.cancel()
            await self._auditor.close()
        self._report.audited, self._report.forgotten = self._auditor.audited, len(self._auditor.forgotten)
        self._report.wrong += [h.problem for h in breaking.happened if h.problem]

    async def _live(self, ask: Ask, session: aiohttp.ClientSession) -> None:
        try:
            history = await Client(ask, session, self._fleet.url).live()
        finally:
            self._room.release()
        self._report.histories.append(history)
        wrong = judge(history, self._report.happened)
        self._report.broken_texts += any(DIFFERS in what for what in wrong)
        wrong += await self._auditor.audit(history)
        for what in wrong:
            self._say(history, what)
        if history.outcome == Outcome.LEFT and not history.ask.twins:
            self._note_closing(history)
        history.stream, history.body, history.text = None, b"", ""  # Judged: a long run keeps no text.

    async def _ask(self, generation_id: str) -> None:
        """Have a look at a generation, as anybody might."""
        url, headers = f"{self._fleet.url}/v1/generations/{generation_id}", {"authorization": f"Bearer {KEY}"}
        timeout = aiohttp.ClientTimeout(total=5)
        with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
            async with aiohttp.ClientSession(timeout=timeout) as session, session.get(url, headers=headers) as response:
                await response.read()

    def _say(self, history: History, what: str) -> None:
        ask = history.ask
        line = f"client {ask.number} ({ask.manner}, {ask.dialect} on {ask.provider}, {history.generation_id}): {what}"
        self._report.wrong.append(line)
        self._tell(f"WRONG {line}")

    def _note_closing(self, history: History) -> None:
        for worker in WORKERS:
            left_at = self._fleet.upstream(worker).left_at.get(history.ask.number)
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
        try:
            return left + await self._left_in_redis()
        except (RedisError, OSError) as error:
            return [*left, f"Redis does not answer: {error!r}"]

    async def _left_in_redis(self) -> list[str]:
        left = []
        now_s, _ = await self._redis.time()
        async for key in self._redis.scan_iter(count=1000):
            name = key.decode()
            if name.startswith(_KEYS_THAT_GO) or (await self._redis.ttl(key) == -1 and name not in keyspace.PERMANENT):
                left.append(f"the key {name}")
            elif name.startswith(_SLOTS) and (places := await self._redis.zrangebyscore(key, now_s * 1000, "+inf")):
                left.append(f"{len(places)} places of {name}: {', '.join(place.decode() for place in places[:5])}")
            # A state without a log was opened by an API that was then cut off: nobody ever heard of it.
            elif name.endswith("}:log") and await self._redis.hget(name.replace("}:log", "}:state"), "ended") != b"1":
                frames = [fields.get(b"k", b"?").decode() for _, fields in await self._redis.xrange(key)]
                if not frames:
                    continue  # Both have expired since the scan.
                left.append(f"{name} without an end: {frames} {await self._redis.hgetall(name.replace('}:log', '}:state'))}")
                if self._fleet.store.may_lose_writes:
                    await self._ask(name[1:].partition("}")[0])
        return left

    async def read_books(self) -> None:
        """The ledger and the limits, once everything has been collected and settled."""
        report, ends = self._report, self._auditor.ends
        rows = self._rows = await asyncio.to_thread(read_rows, self._fleet.database)
        report.recorded = len(rows)
        aside = [set_aside.unpack(raw) for raw in await self._redis.lrange(keyspace.UNREADABLE, 0, -1)]
        poison = {entry.id for entry in aside if "workers were lost" in entry.reason}
        sharers = {id_ for entry in aside if entry.id in poison for id_ in entry.sharers}
        report.wrong += check_rows(rows, report.histories, ends, report.happened, poison | sharers)
        if not any(h.loses_writes for h in report.happened):
            report.wrong += check_tokens(await self._counted_tokens(), rows, ends, len(poison))
        report.wrong += [f"{entry.id} was set aside: {entry.reason}" for entry in aside if entry.id not in poison]
        await self._redis.aclose()

    async def _counted_tokens(self) -> int:
        counted = 0
        async for key in self._redis.scan_iter(match=f"{keyspace.QUEUE_PREFIX}limit:key:*:tokens", count=1000):
            counted += sum(int(amount) for amount in await self._redis.hvals(key))
        return counted

    def read_process_logs(self) -> None:
        """What only the workers know: takeovers, and that each generation is reported once, and recorded."""
        reported: Counter[str] = Counter()
        said: Counter[str] = Counter()
        taken_over: dict[str, list[float]] = {}
        ended_s: dict[str, float] = {}
        client_of = {h.generation_id: h.ask.number for h in self._report.histories if h.generation_id}
        for name in (*APIS, *WORKERS):
            for line in self._fleet.processes[name].lines():
                match line.get("event"):
                    case "generation_ended":
                        reported[line["generation_id"]] += 1
                        first_s = ended_s.get(line["generation_id"], float("inf"))
                        ended_s[line["generation_id"]] = min(first_s, _wall_s(line))
                        client_of.setdefault(line["generation_id"], int(line["model"].rpartition("-c")[2]))
                    case "job_taken_over":
                        taken_over.setdefault(line["generation_id"], []).append(_wall_s(line))
                is_poison = "workers were lost" in str(line.get("reason"))  # Checked by what its clients were told.
                if line.get("level") in ("error", "critical") and not (is_poison or self._is_locked_out(line)):
                    cause = line.get("exception", "").rpartition("\n")[2]
                    said[f"{name} logged {line['event'].strip()}: {cause}"] += 1
        wrong = self._report.wrong
        wrong += [f"{what} ({times} times)" for what, times in said.items()]
        if not any(h.loses_writes for h in self._report.happened):
            recorded = {row.id for row in self._rows}
            wrong += [f"{id_} was reported {count} times" for id_, count in reported.items() if count > 1]
            # Those who send the same request have generations of their own beside the one that is reported.
            twins = {h.ask.twins for h in self._report.histories}
            told = [id_ for id_ in reported if client_of[id_] not in twins]
            wrong += [f"{id_} was reported, and is not in the ledger" for id_ in told if id_ not in recorded]
        times_of = {client_of[id_]: times for id_, times in taken_over.items() if id_ in client_of}
        self._time_takeovers(times_of)
        if self._fleet.store.may_lose_writes:
            # Of a job that was done, and whose end a failover took back, nobody renews the lease.
            for id_, times in taken_over.items():
                times[:] = [at_s for at_s in times if at_s < ended_s.get(id_, float("inf"))]
        self._check_takeovers(times_of)

    def _is_locked_out(self, line: dict[str, Any]) -> bool:
        """Whether a line tells of a database that a worker has locked who was then frozen: SQLite has one writer."""
        if line["event"] != "database_away":
            return False
        at_s = _wall_s(line)
        frozen = [h for h in self._report.happened if h.fault.kind is FaultKind.FROZEN and h.fault.target in WORKERS]
        return any(h.began_wall_s <= at_s <= h.began_wall_s + h.fault.for_s + TAKEN_S for h in frozen)

    def _time_takeovers(self, taken_over: dict[int, list[float]]) -> None:
        """Match each takeover with the last kill of a worker that worked for that client."""
        kills = [h for h in self._report.happened if h.fault.kind is FaultKind.KILLED and h.fault.target in WORKERS]
        for number, times in taken_over.items():
            for at_s in times:
                before = [h for h in kills if number in h.clients and h.began_wall_s < at_s]
                if before and at_s - before[-1].began_wall_s < IDLE_S:
                    self._report.takeovers_s.append((before[-1].began_at, at_s - before[-1].began_wall_s))

    def _check_takeovers(self, taken_over: dict[int, list[float]]) -> None:
        """A job is taken from a worker whom something befell, and never because Redis was away for ten seconds."""
        to_monotonic = time.monotonic() - time.time()
        twins = {h.ask.twins for h in self._report.histories}
        for number, times in taken_over.items():
            called = [(self._fleet.upstream(worker).called_at.get(number), worker) for worker in WORKERS]
            for at_s in times:
                at = at_s + to_monotonic
                before = [(called_at, worker) for called_at, worker in called if called_at is not None and called_at < at]
                if not before:
                    continue  # It was taken over before anybody had called for it: by whom it was held, nobody knows.
                # Identical requests with other policies are jobs of their own, and their calls look the same.
                holders = tuple(worker for _, worker in (before if number in twins else [max(before)]))
                why = self._what_led_to(at)
                if not any(h.fault.target.startswith(holders) or _is_long(h) for h in why):
                    said = f"client {number}'s job was taken from {' or '.join(holders)}, which nothing had befallen"
                    self._report.wrong.append(said)

    def _what_led_to(self, at: float) -> list[Happened]:
        """The faults for which a job may be taken over at a moment; while Redis is away, nobody takes any."""
        happened, since = self._report.happened, at - LEASE_S - TAKEN_S
        away = [h.began_at for h in happened if h.takes_redis and h.overlaps(since, at)]
        since = min([since, *(began_at - LEASE_S - TAKEN_S for began_at in away)])
        return [h for h in happened if h.overlaps(since, at)]


def _is_long(happened: Happened) -> bool:
    """An outage of Redis that its workers' leases and buffers are not made for."""
    return happened.takes_redis and happened.fault.for_s > 2 * LEASE_S


def _wall_s(line: dict[str, Any]) -> float:
    return datetime.fromisoformat(line["timestamp"]).timestamp()


_SLOTS = f"{keyspace.QUEUE_PREFIX}slots:"
_KEYS_THAT_GO = tuple(
    f"{keyspace.QUEUE_PREFIX}{name}"
    for name in ("job:", "running", "enqueued", "delayed", "waiting:", "rotation:", "ended", "sharers:")
)
_IDLE_AT_ZERO = {
    True: ("sluice_open_viewers", "sluice_subscriptions", "sluice_waiting_jobs", "sluice_running_jobs"),
    False: ("sluice_running_generations", "sluice_upstream_connections", "sluice_publisher_buffered_bytes"),
}
