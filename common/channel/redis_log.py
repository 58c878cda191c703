"""How are logs read when many ask at once?

All readers of a process share one connection, which is not the one that appends go over (see ``common.redis.client.Client``).
What is asked for while a batch is on its way makes the next batch, and who asks for the same gets the same answer: a thousand
readers of one answer cost Redis as much as one does. A batch is bounded, and the loop has a turn for everybody else after
each, so a herd is read to in turn and holds up no stream.
"""

import asyncio
from typing import Any

import hiredis

from common.canonical.errors import StoreUnavailable
from common.channel.base import Frame, FrameId, FrameKind
from common.redis import keyspace
from common.redis.client import Client
from common.redis.errors import REDIS_ERRORS, as_unavailable

READS_AT_ONCE = 16  # Whoever reads bounds each in bytes; the first ten frames may be of any size.

_Asked = tuple[str, FrameId, int]  # Generation, after which frame, how many.

_KINDS = {kind.value.encode(): kind for kind in FrameKind}


class LogReader:
    """The reads of one process."""

    def __init__(self, redis: Client) -> None:
        self._redis = redis
        self._waiting: dict[_Asked, list[asyncio.Future[list[Frame]]]] = {}  # Not sent yet: their answers will be of then.
        self._task: asyncio.Task[None] | None = None

    async def read(self, generation_id: str, after: FrameId, count: int) -> list[Frame]:
        """As ``Channel.read``. The list is shared: nobody may change it."""
        answered: asyncio.Future[list[Frame]] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault((generation_id, after, count), []).append(answered)
        if self._task is None:
            self._task = asyncio.create_task(self._read_all())
        return await answered

    async def _read_all(self) -> None:
        try:
            while self._waiting:
                batch = {asked: self._waiting.pop(asked) for asked in list(self._waiting)[:READS_AT_ONCE]}
                await self._read_batch(batch)
        finally:
            self._task = None

    async def _read_batch(self, batch: dict[_Asked, list["asyncio.Future[list[Frame]]"]]) -> None:
        try:
            answers = await self._redis.reads.run([_packed(*asked) for asked in batch])
        except REDIS_ERRORS as error:
            answers = [error] * len(batch)
        except BaseException:  # The process ends, or the fault is ours: nobody waits for ever.
            for waiting in batch.values():
                _settle(waiting, StoreUnavailable("the read was given up"))
            raise
        for waiting, answer in zip(batch.values(), answers, strict=True):
            _settle(waiting, _frames(answer))


def _packed(generation_id: str, after: FrameId, count: int) -> bytes:
    command: tuple[Any, ...] = ("XRANGE", keyspace.log(generation_id), f"({after}", "+", "COUNT", count)
    return bytes(hiredis.pack_command(command))


def _frames(answer: Any) -> list[Frame] | Exception:
    """Return what Redis says of one log; an error of this log alone, which is no log of ours, is another's business."""
    if isinstance(answer, Exception):
        return as_unavailable(answer) or answer
    try:
        return [_frame(entry_id, fields) for entry_id, fields in answer]
    except Exception as error:
        return error


def _frame(entry_id: bytes, fields: list[bytes]) -> Frame:
    found = dict(zip(fields[::2], fields[1::2], strict=True))
    return Frame(FrameId.of(entry_id), _KINDS[found[b"k"]], found[b"d"])


def _settle(waiting: list["asyncio.Future[list[Frame]]"], found: list[Frame] | Exception) -> None:
    for answered in waiting:
        if answered.done():  # Whoever waited may have been cancelled.
            continue
        if isinstance(found, Exception):
            answered.set_exception(found)
        else:
            answered.set_result(found)
