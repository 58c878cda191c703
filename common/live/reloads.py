"""When does a process reload its settings, and who learns what came of it?

It reloads when it gets SIGHUP, and when ``sluice config reload`` asks all processes. It uses what is managed at run time as
soon as Redis has a new revision of it. The log, the metrics, the health page and the report in Redis say what came of it.

A revision that is older than the known one is ignored: a Redis that was restored must not bring a removed key back. A Redis
without any is one that has lost its data, not one whose providers were all removed.
"""

import asyncio
import os
import signal
import socket
import time
from contextlib import suppress

import structlog

from common.canonical.errors import StoreUnavailable
from common.live.live_settings import LiveSettings, Outcome
from common.live.metrics import ConfigMetrics
from common.live.reloadable import digests_of
from common.live.reports import RENEWED_S, Report, Reports
from common.live.stored_copy import StoredCopy, parse_revision
from common.live.stored_records import Record
from common.process.process import has_terminal, supervised
from common.redis import keyspace
from common.redis.client import Client
from common.redis.pulse import Pulse

log = structlog.get_logger()


class Reloads:
    """``name`` is that of this process, for its report."""

    def __init__(self, live: LiveSettings, redis: Client, pulse: Pulse, metrics: ConfigMetrics, name: str) -> None:
        self.live = live
        self._reports = Reports(redis)
        self._pulse = pulse
        self._metrics = metrics
        self._name = name
        self._copy = StoredCopy(redis)
        self._known: dict[tuple[str, str], Record] = {}  # What was last read, by kind and name.
        self._stored_revision = self._wanted_revision = 0  # Of what is used, and of what Redis has.
        self._known_request: str | None = None  # The request to reload that this process knows. None: it has not looked yet.
        self._is_requested = False
        self._last = Outcome()
        self._wake = asyncio.Event()
        self._working = asyncio.Lock()
        self._refreshing: asyncio.Task[None] | None = None
        self._task: asyncio.Task[None] | None = None
        metrics.show(live)
        pulse.watch(("GET", keyspace.CONFIG_RELOAD), self._read_request)
        pulse.watch(("GET", keyspace.STORED_REVISION), self._read_revision)

    async def start(self) -> None:
        """Use what is stored, and follow its changes in the background."""
        await self._work()
        self._task = supervised(self._run, "reloads")

    async def stop(self) -> None:
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            with suppress(StoreUnavailable):
                await self._reports.remove(self._name)

    def listen_for_signal(self) -> None:
        """Reload at SIGHUP. A process that runs in a terminal is stopped by it instead if that terminal is gone."""
        follows_terminal = has_terminal() and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN  # nohup ignores it.

        def reload_or_stop() -> None:
            if follows_terminal and not has_terminal():
                os.kill(os.getpid(), signal.SIGTERM)
            else:
                self.request_reload()

        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload_or_stop)

    def request_reload(self) -> None:
        """Reload soon."""
        self._is_requested = True
        self._wake.set()

    def _read_request(self, answer: bytes | None) -> None:
        text = answer.decode(errors="replace") if answer else ""
        if self._known_request is not None and text and text != self._known_request:
            self.request_reload()
        self._known_request = text or self._known_request or ""

    async def refresh(self) -> None:
        """Check now whether the configuration has changed elsewhere, and use what has. Callers that come meanwhile wait too."""
        if self._refreshing is None:
            self._refreshing = asyncio.create_task(self._refresh_now())
            self._refreshing.add_done_callback(self._end_refresh)
        await asyncio.shield(self._refreshing)

    async def _refresh_now(self) -> None:
        with suppress(StoreUnavailable):
            self._read_request(await self._reports.last_request())
            self._wanted_revision = max(self._wanted_revision, await self._copy.revision())
        await self._work()

    def _end_refresh(self, task: "asyncio.Task[None]") -> None:
        self._refreshing = None
        if not task.cancelled() and (error := task.exception()):
            log.error("settings_not_refreshed", exc_info=error)

    async def _work(self) -> None:
        async with self._working:
            if self._is_requested:
                self._is_requested = False
                self._last = await self.live.reload()
            if self._wanted_revision > self._stored_revision:
                with suppress(StoreUnavailable):  # The next beat of the pulse wants it again.
                    await self._use_stored()

    async def _use_stored(self) -> None:
        document = await self._copy.load()
        if document is None or document.revision <= self._stored_revision:
            return
        secrets = self.live.current.secrets
        opened = [(sealed, await asyncio.to_thread(sealed.open, secrets)) for sealed in document.records]
        problems = [sealed.why_unreadable(secrets) for sealed, record in opened if record is None]
        # What cannot be read stays as it was: somebody has made a mistake, and running requests need it.
        records = [record or self._known.get((sealed.kind, sealed.name)) for sealed, record in opened]
        self._known = {(record.kind, record.name): record for record in records if record}
        now_ms = time.time_ns() // 1_000_000
        entries = [entry for record in self._known.values() if (entry := record.entry(now_ms))]
        await self.live.use_stored(entries, problems)
        self._stored_revision = document.revision

    def _read_revision(self, answer: bytes | None) -> None:
        self._wanted_revision = parse_revision(answer)
        if self._wanted_revision > self._stored_revision:
            self._wake.set()

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            await self._work()
            self._metrics.show(self.live)
            await self._report()
            with suppress(TimeoutError):
                async with asyncio.timeout(RENEWED_S):
                    await self._wake.wait()

    async def _report(self) -> None:
        if not self._pulse.is_up:
            return
        report = Report(
            name=self._name,
            pid=os.getpid(),
            host=socket.gethostname(),
            revision=self.live.revision,
            asked=self._known_request or "",
            problems=tuple(self.live.problems()),
            changed=self._last.difference.changed,
            needs_restart=self.live.needs_restart,
            digests=digests_of(self.live.current),
            files=self.live.files,
        )
        with suppress(StoreUnavailable):  # The pulse reports it.
            await self._reports.write(report)
