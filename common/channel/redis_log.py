"""How are logs read when many readers need them at once?

All readers of a process share one connection, which appends do not use (see ``common.redis.client.Client``). Reads that are
requested while a batch is in flight form the next batch. Equal reads get the same answer: a thousand readers of one log cost
Redis as much as one. A batch is bounded, and other tasks run between batches, so many readers do not delay streams.
"""

import asyncio
from typing import Any

import hiredis

from common.canonical.errors import StoreUnavailable
from common.channel.base import Frame, FrameId, FrameKind
from common.redis import keyspace
from common.redis.client import Client
from common.redis.errors import REDIS_ERRORS, as_unavailable

READS_AT_ONCE = 16  # The callers bound each read in bytes, except for the first ten frames.

_Read = tuple[str, FrameId, int]  # Generation, after which frame, how many.

_KINDS = {kind.value.encode(): kind for kind in FrameKind}


class LogReader:
    """The reads of one process."""

    def __init__(self, redis: Client) -> None:
        self._redis = redis
        self._waiting: dict[_Read, list[asyncio.Future[list[Frame]]]] = {}  # Not sent yet.
        self._task: asyncio.Task[None] | None = None

    async def read(self, generation_id: str, after: FrameId, count: int) -> list[Frame]:
        """Do the same as ``Channel.read``. The returned list is shared: callers must not change it."""
        answered: asyncio.Future[list[Frame]] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault((generation_id, after, count), []).append(answered)
        if self._task is None:
            self._task = asyncio.create_task(self._read_all())
        return await answered

    async def _read_all(self) -> None:
        try:
            while self._waiting:
                batch = {read: self._waiting.pop(read) for read in list(self._waiting)[:READS_AT_ONCE]}
                await self._read_batch(batch)
        finally:
            self._task = None

    async def _read_batch(self, batch: dict[_Read, list["asyncio.Future[list[Frame]]"]]) -> None:
        try:
            answers = await self._redis.reads.run([_packed(*read) for read in batch])
        except REDIS_ERRORS as error:
            answers = [error] * len(batch)
        except BaseException:  # The process ends, or it is a bug of ours: no reader must wait for ever.
            for waiting in batch.values():
                _resolve(waiting, StoreUnavailable("the read was given up"))
            raise
        for waiting, answer in zip(batch.values(), answers, strict=True):
            _resolve(waiting, _frames(answer))


def _packed(generation_id: str, after: FrameId, count: int) -> bytes:
    command: tuple[Any, ...] = ("XRANGE", keyspace.log(generation_id), f"({after}", "+", "COUNT", count)
    return bytes(hiredis.pack_command(command))


def _frames(answer: Any) -> list[Frame] | Exception:
    """Return the frames in one answer, or its error. A key that is not one of our logs does not affect other reads."""
    if isinstance(answer, Exception):
        return as_unavailable(answer) or answer
    try:
        return [_frame(entry_id, fields) for entry_id, fields in answer]
    except Exception as error:
        return error


def _frame(entry_id: bytes, fields: list[bytes]) -> Frame:
    values = dict(zip(fields[::2], fields[1::2], strict=True))
    return Frame(FrameId.from_text(entry_id), _KINDS[values[b"k"]], values[b"d"])


def _resolve(waiting: list["asyncio.Future[list[Frame]]"], frames: list[Frame] | Exception) -> None:
    for answered in waiting:
        if answered.done():  # The reader may have been cancelled.
            continue
        if isinstance(frames, Exception):
            answered.set_exception(frames)
        else:
            answered.set_result(frames)
