"""How large are the parts of a gateway now, and what may they have grown by?"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import redis

from common.redis import keyspace

MIB = 2**20
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
# What a run may leave behind. A worker that kept 1.7 kB of each action was found by its 1.2 MB a minute.
RSS_MB_MAX = 24.0  # Caches that fill, the allocator's own.
RSS_MB_PER_1000_MAX = 0.6  # Actions.
TASKS_MAX = 6
FILES_MAX = 64  # The pool of connections to Redis keeps what its busiest moment made.
KEYS_MAX = 30
REDIS_MB_MAX = 10.0
SERIES_SHARE_MAX = 0.03  # Of the half-time's, for words that come late.
LOG_BYTES_PER_ACTION_MAX = 3_000
# One for each principal and of a bounded size; they live for a day.
_OF_PRINCIPALS = (keyspace.RECENT.encode(),)


@dataclass(frozen=True)
class Part:
    """One process: resident megabytes, files, tasks and series of its metrics, bytes of its log."""

    rss_mb: float
    files: int
    tasks: int
    series: int
    log_bytes: int

    def line(self) -> str:
        counts = f"{self.files:4d} files {self.tasks:4d} tasks {self.series:5d} series"
        return f"{self.rss_mb:6.1f} MB {counts} {self.log_bytes / MIB:6.1f} MB log"


@dataclass(frozen=True)
class Sample:
    """All parts at one moment, after so many ``actions``. ``lasting`` are keys without an expiry that nothing accounts for."""

    actions: int
    api: Part
    worker: Part
    redis_mb: float
    keys: int
    lasting: tuple[str, ...]

    def line(self) -> str:
        redis = f"redis {self.redis_mb:6.1f} MB {self.keys:6d} keys"
        return f"{self.actions:8d} | api {self.api.line()} | worker {self.worker.line()} | {redis}"


def part_of(pid: int, log: Path, metrics: Mapping[str, float]) -> Part:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    files, tasks = len(os.listdir(f"/proc/{pid}/fd")), int(metrics["sluice_tasks"])
    return Part(pages * PAGE_BYTES / MIB, files, tasks, len(metrics), log.stat().st_size)


def redis_of(client: "redis.Redis") -> tuple[float, int, tuple[str, ...]]:
    """Return its megabytes, how many keys there are but for those of principals, and which last without a reason."""
    names = [name for name in client.scan_iter(count=1000) if not name.startswith(_OF_PRINCIPALS)]
    pipeline = client.pipeline(transaction=False)
    for name in names:
        pipeline.pttl(name)
    lasting = [name.decode() for name, ttl in zip(names, pipeline.execute(), strict=True) if ttl == -1]
    known = {*keyspace.PERMANENT, keyspace.ENDED, keyspace.ENQUEUED, keyspace.RUNNING, keyspace.DELAYED, keyspace.WORKERS}
    found = tuple(sorted(name for name in lasting if name not in known and not name.endswith(":record")))
    return client.info("memory")["used_memory"] / MIB, len(names), found


def grown(start: Sample, half: Sample, end: Sample, after: Sample) -> list[str]:
    """Return what has grown beyond its bound. ``after`` is when all retentions are over."""
    wrong = []

    def hold(what: str, value: float, most: float) -> None:
        if value > most:
            wrong.append(f"{what}: {value:.1f}, at most {most:.1f}")

    actions = end.actions - start.actions
    for name, was, mid, is_, now in (
        ("api", start.api, half.api, end.api, after.api),
        ("worker", start.worker, half.worker, end.worker, after.worker),
    ):
        hold(f"{name}: resident MB more than at the start", now.rss_mb - was.rss_mb, RSS_MB_MAX)
        hold(f"{name}: resident MB more in the second half", is_.rss_mb - mid.rss_mb, _rss_max(end.actions - half.actions))
        hold(f"{name}: tasks", now.tasks, was.tasks + TASKS_MAX)
        hold(f"{name}: files", now.files, was.files + FILES_MAX)
        hold(f"{name}: series of metrics", is_.series, mid.series * (1 + SERIES_SHARE_MAX))
        hold(f"{name}: bytes of log for an action", (is_.log_bytes - was.log_bytes) / max(1, actions), LOG_BYTES_PER_ACTION_MAX)
    hold("redis: keys", after.keys, start.keys + KEYS_MAX)
    hold("redis: MB", after.redis_mb, start.redis_mb + REDIS_MB_MAX)
    if after.lasting:
        wrong.append(f"redis: keys without an expiry: {', '.join(after.lasting[:10])}")
    return wrong


def _rss_max(actions: int) -> float:
    return 4.0 + RSS_MB_PER_1000_MAX * actions / 1000
