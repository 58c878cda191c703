"""What does a scrape see if several processes share one port?

Any of them may get the request. So each process also shows its own metrics on a socket in a private folder of their
supervisor, and whoever is asked collects all of them: one page, with the label ``process`` on each sample. Nothing is added up:
a sum of gauges that describe the whole queue would be wrong, and Prometheus can sum the others. Nothing is stored either, so a
dead process leaves no figures behind.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path

READ_TIMEOUT_S = 2.0  # A process that is this late is missing on the page, as one that is down.
SUFFIX = ".metrics"


class MetricsPage:
    """``collect`` returns the metrics of this process. ``path`` is its socket; None: it has no siblings."""

    def __init__(self, collect: Callable[[], Awaitable[bytes]], path: Path | None) -> None:
        self._collect, self._path = collect, path
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        if self._path:
            self._server = await asyncio.start_unix_server(self._show, self._path)

    async def stop(self) -> None:
        if self._server:
            self._server.close()

    async def read(self) -> bytes:
        """Return the page of this process and its siblings."""
        if not self._path:
            return await self._collect()
        paths = sorted(self._path.parent.glob(f"*{SUFFIX}"))
        pages = await asyncio.gather(*map(_read, paths))
        return merge({path.stem: page for path, page in zip(paths, pages, strict=True) if page})

    async def _show(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):  # The reader has left.
            writer.write(await self._collect())
            await writer.drain()
        writer.close()


async def _read(path: Path) -> bytes:
    """Return what one process shows; nothing if it does not answer."""
    try:
        async with asyncio.timeout(READ_TIMEOUT_S):
            reader, writer = await asyncio.open_unix_connection(path)
            try:
                return await reader.read()
            finally:
                writer.close()
    except OSError:  # A TimeoutError is one too.
        return b""


def merge(pages: dict[str, bytes]) -> bytes:
    """Return one page in Prometheus' text format from the pages of several processes, by name of the process."""
    families: dict[bytes, list[bytes]] = {}  # All lines of a metric must stand together.
    for process, page in pages.items():
        family: list[bytes] = []
        is_new = False
        for line in page.splitlines(keepends=True):
            if line.startswith(b"# HELP "):
                name = line.split(b" ", 3)[2]
                is_new = name not in families
                family = families.setdefault(name, [])
            if not line.startswith(b"#"):
                family.append(_labelled(line, process.encode()))
            elif is_new:
                family.append(line)
    return b"".join(line for family in families.values() for line in family)


def _labelled(sample: bytes, process: bytes) -> bytes:
    label = b'process="%b"' % process
    name, brace, rest = sample.partition(b"{")
    if brace and b" " not in name:  # Otherwise the brace is not the one behind the name.
        return b"%b{%b,%b" % (name, label, rest)
    name, _, value = sample.partition(b" ")
    return b"%b{%b} %b" % (name, label, value)
