"""What does each process report about its settings, and how is every process asked to reload them?

A request to reload is a random text in Redis, which each process reads with its pulse. The reports are short-lived keys, one
per process, that the process renews: what does not exist any more reports nothing. They contain no value of a setting, only
digests, by which ``sluice config check`` sees which settings differ.
"""

import secrets
from collections.abc import Sequence

import orjson
from pydantic import BaseModel, ConfigDict, ValidationError

from common.process.loop_lag import lag_aware_timeout
from common.redis import keyspace
from common.redis.client import COMMAND_TIMEOUT_S, Client
from common.redis.errors import redis_errors

REPORT_S, RENEWED_S = 30, 10.0  # How long a report is kept, and how often it is written again.
ASKED_S = 60  # For how long a request to reload stands.
PROBLEMS_MAX, PROBLEM_CHARS_MAX = 20, 500
SCAN_COUNT = 1_000


class Report(BaseModel):
    """``asked``: the request to reload that this process has answered last. ``digests``: of the settings that it runs with.

    ``files``: the paths of those without which it refuses to reload.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    pid: int
    host: str
    revision: str
    asked: str = ""
    problems: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    needs_restart: tuple[str, ...] = ()
    digests: dict[str, str] = {}
    files: tuple[str, ...] = ()


class Reports:
    """
    Raises (all methods):
        StoreUnavailable
    """

    def __init__(self, redis: Client) -> None:
        self._redis = redis

    async def write(self, report: Report) -> None:
        problems = tuple(problem[:PROBLEM_CHARS_MAX] for problem in report.problems[:PROBLEMS_MAX])
        packed = report.model_copy(update={"problems": problems}).model_dump_json()
        with redis_errors():
            async with lag_aware_timeout(COMMAND_TIMEOUT_S):
                await self._redis.set(keyspace.config_process(report.name), packed, ex=REPORT_S)

    async def remove(self, name: str) -> None:
        with redis_errors():
            async with lag_aware_timeout(COMMAND_TIMEOUT_S):
                await self._redis.unlink(keyspace.config_process(name))

    async def request_reload(self) -> str:
        """Ask all processes to reload. Returns the request's text, which their reports name."""
        text = secrets.token_hex(8)
        with redis_errors():
            async with lag_aware_timeout(COMMAND_TIMEOUT_S):
                await self._redis.set(keyspace.CONFIG_RELOAD, text, ex=ASKED_S)
        return text

    async def last_request(self) -> bytes | None:
        """Return the last request to reload."""
        with redis_errors():
            async with lag_aware_timeout(COMMAND_TIMEOUT_S):
                answer: bytes | None = await self._redis.get(keyspace.CONFIG_RELOAD)
                return answer

    async def names(self) -> list[str]:
        """Return the processes that report. It reads the names of all keys, so it is for commands only."""
        prefix = keyspace.config_process("")
        with redis_errors():
            found = [key async for key in self._redis.scan_iter(match=f"{prefix}*", count=SCAN_COUNT)]
        return sorted(key.decode(errors="replace").removeprefix(prefix) for key in found)

    async def read(self, names: Sequence[str]) -> dict[str, Report]:
        """Return the reports that can be read, by name."""
        if not names:
            return {}
        with redis_errors():
            async with lag_aware_timeout(COMMAND_TIMEOUT_S):
                packed = await self._redis.mget([keyspace.config_process(name) for name in names])
        return {name: report for name, text in zip(names, packed, strict=True) if text and (report := _parse(text))}


def _parse(packed: bytes) -> Report | None:
    try:
        return Report.model_validate(orjson.loads(packed))
    except (ValueError, ValidationError):  # Another version of Sluice wrote it.
        return None
