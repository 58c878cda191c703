"""What is in the cache, and how does an operator remove some of it?"""

import secrets
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import NamedTuple

import orjson

from common.config.model_patterns import guards
from common.config.model_routes import Target
from common.config.settings import Settings
from common.redis import keyspace
from common.redis.client import Client
from common.redis.errors import redis_errors
from common.redis.scripts import Scripts

_DONE = b"0"
_PROBE_MS = 10_000


class Group(NamedTuple):
    """The entries of one tenant and model. ``model`` is the client's name for it, ``target`` is what answered:
    ``provider/model``.
    """

    tenant: str
    model: str
    target: str


class Size(NamedTuple):
    """Of a group. ``bytes`` is what Redis needs for the entries, as far as ``SLUICE_CACHE_BYTES_MAX`` counts it."""

    entries: int
    bytes: int


class Inventory:
    """Counts and removes cached answers.

    Raises (all methods):
        StoreUnavailable
    """

    def __init__(self, redis: Client, settings: Settings, live: Callable[[], Settings] | None = None) -> None:
        self._redis = redis
        self._scripts = Scripts(redis, Path(__file__).parent)
        self._settings = settings
        self._live = live or (lambda: settings)  # What names mean may change while the process runs.

    async def count(self) -> dict[Group, Size]:
        """Return the size of each group that has entries, the largest first."""
        sizes: dict[Group, Size] = {}
        async for batch in self._entries():
            for _, group, size in batch:
                entries, size_before = sizes.get(group, (0, 0))
                sizes[group] = Size(entries + 1, size_before + size)
        return dict(sorted(sizes.items(), key=lambda item: (-item[1].bytes, item[0])))

    async def clear(self, tenant: str | None = None, model: str | None = None) -> int:
        """Remove entries of a tenant and of a model (None: of all). Return how many.

        ``model`` is a pattern as in ``SLUICE_CACHE_MODELS``: it applies to the name that clients use, and to what answered.
        """
        is_chosen: dict[Group, bool] = {}
        removed = 0
        async for batch in self._entries():
            for _, group, _ in batch:
                if group not in is_chosen:
                    is_chosen[group] = tenant in (None, group.tenant) and (model is None or self._matches(model, group))
            if keys := [key for key, group, _ in batch if is_chosen[group]]:
                removed += int(await self._scripts.run("remove", [], keys))
        return removed

    async def try_all(self) -> None:
        """Store, read, list and remove an entry: all that APIs, workers and operators do with the cache."""
        key = f"probe:{secrets.token_hex(8)}"
        await self._scripts.run("put", [], [key, b"{}", _PROBE_MS, self._settings.cache_bytes_max, "", "", "/"])
        with redis_errors():
            await self._redis.get(keyspace.cache_entry(key))
        await self._scripts.run("list", [], [_DONE])
        await self._scripts.run("remove", [], [key])

    def _matches(self, pattern: str, group: Group) -> bool:
        provider, _, upstream_model = group.target.partition("/")
        return guards(pattern, group.model, [Target(provider, upstream_model)], self._live())

    async def _entries(self) -> AsyncIterator[list[tuple[bytes, Group, int]]]:
        """Yield the key, the group and the bytes of all entries, some at a time."""
        place = b""
        while place != _DONE:
            place, batch = await self._scripts.run("list", [], [place or _DONE])
            yield [(key, *_read(about)) for key, about in batch]


def _read(about: bytes) -> tuple[Group, int]:
    size, tenant, model, target, *_ = orjson.loads(about)
    return Group(tenant, model, target), size
