"""When does a process reload its settings, and who learns what came of it?

It reloads when it gets SIGHUP, and when ``sluice config reload`` asks all processes. The log, the metrics, the health page and
the report in Redis say what came of it.
"""

import asyncio
import os
import signal
import socket
from contextlib import suppress

import structlog

from common.canonical.errors import StoreUnavailable
from common.live.live_settings import LiveSettings, Outcome
from common.live.metrics import ConfigMetrics
from common.live.reloadable import digests_of
from common.live.reports import RENEWED_S, Report, Reports
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
        self._asked: str | None = None  # The request to reload that this process knows. None: it has not looked yet.
        self._is_asked = False
        self._last = Outcome()
        self._wake = asyncio.Event()
        self._working = asyncio.Lock()
        self._looking: asyncio.Task[None] | None = None
        self._task: asyncio.Task[None] | None = None
        metrics.show(live)
        pulse.watch(("GET", keyspace.CONFIG_RELOAD), self._read_request)

    def start(self) -> None:
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
                self.ask()

        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload_or_stop)

    def ask(self) -> None:
        """Reload soon."""
        self._is_asked = True
        self._wake.set()

    def _read_request(self, answer: bytes | None) -> None:
        text = answer.decode(errors="replace") if answer else ""
        if self._asked is not None and text and text != self._asked:
            self.ask()
        self._asked = text or self._asked or ""

    async def refresh(self) -> None:
        """Look now whether the configuration has changed elsewhere, and use what has. All who ask meanwhile share one look."""
        if self._looking is None:
            self._looking = asyncio.create_task(self._look())
            self._looking.add_done_callback(self._end_look)
        await asyncio.shield(self._looking)

    async def _look(self) -> None:
        with suppress(StoreUnavailable):
            self._read_request(await self._reports.asked())
        await self._work()

    def _end_look(self, task: "asyncio.Task[None]") -> None:
        self._looking = None
        if not task.cancelled() and (error := task.exception()):
            log.error("settings_not_refreshed", exc_info=error)

    async def _work(self) -> None:
        async with self._working:
            if self._is_asked:
                self._is_asked = False
                self._last = await self.live.reload()

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
            asked=self._asked or "",
            problems=tuple(self.live.problems()),
            changed=self._last.difference.changed,
            needs_restart=self.live.needs_restart,
            digests=digests_of(self.live.current),
        )
        with suppress(StoreUnavailable):  # The pulse reports it.
            await self._reports.write(report)
