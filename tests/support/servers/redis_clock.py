"""A clock of Redis' scripts that a test sets, to the millisecond."""

from pathlib import Path

import pytest
from redis.asyncio import Redis

import common.redis.scripts

_KEY = "sluice:test:now"
_PRELUDE = Path(common.redis.scripts.__file__).parent / "prelude.lua"


class RedisClock:
    """``set`` sets it. Only scripts whose ``Scripts`` are made afterwards read it; Redis' own expiries do not."""

    def __init__(self, redis: Redis, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self._redis = redis
        prelude = folder / "prelude.lua"
        clock = f"local function now_ms() return tonumber(redis.call('GET', '{_KEY}')) end\n"
        prelude.write_text(f"{_PRELUDE.read_text()}\n{clock}")
        monkeypatch.setattr(common.redis.scripts, "_PRELUDE", prelude)
        self.now_ms = 0

    async def set(self, now_ms: int) -> None:
        self.now_ms = now_ms
        await self._redis.set(_KEY, now_ms)
