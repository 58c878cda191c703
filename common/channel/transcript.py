"""What does a log tell that is read back?

A stream's tries follow each other: what the first has said stays said, and each further one begins with a head of its own. A
whole answer is begun anew by each try, and by each claim, and nobody has seen the one before. That rule stands here alone: the
next claim, the estimate of what a broken answer took, the audit log and the records all read through it.
"""

from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field

from common.channel.base import START, Channel, Frame, FrameId, FrameKind
from common.channel.said_text import said_in_stream, said_in_whole
from common.records.head import Head

PAGE_FRAMES = 500  # Of one read, at most.


async def pages(channel: Channel, generation_id: str, after: FrameId = START) -> AsyncIterator[list[Frame]]:
    """Yield a log's frames behind ``after``, page by page, as far as it goes now.

    Raises:
        StoreUnavailable: Redis is away.
    """
    while page := await channel.read(generation_id, after, PAGE_FRAMES):
        yield page
        after = page[-1].id


async def read_log(channel: Channel, generation_id: str) -> list[Frame]:
    """Return the whole log; raises as ``pages``."""
    return [frame async for page in pages(channel, generation_id) for frame in page]


@dataclass(slots=True)
class Try:
    """What one upstream call has written: its head, and the client's bytes as they lie in the frames."""

    head: Head
    data: list[bytes] = field(default_factory=list)


@dataclass(slots=True)
class Transcript:
    """``tries`` are those that count for the client: of a whole answer the last alone."""

    dialect: str
    is_stream: bool
    tries: list[Try]

    @classmethod
    def of(cls, frames: Iterable[Frame], dialect: str, *, is_stream: bool) -> "Transcript":
        """Return what a log's frames tell.

        Raises:
            ValueError: a head cannot be read.
        """
        tries: list[Try] = []
        for frame in frames:
            if frame.kind is FrameKind.HEAD:
                tries.append(Try(Head.unpack(frame.data)))
            elif frame.kind is FrameKind.DATA and tries:
                tries[-1].data.append(frame.data)
        return cls(dialect, is_stream, tries if is_stream else tries[-1:])

    def data(self) -> list[bytes]:
        """Return the client's bytes."""
        return [piece for each in self.tries for piece in each.data]

    def said(self, tries: Sequence[Try]) -> str:
        """Return the text that some of the tries have said. A stream is looked at piece by piece, each whole events: a large
        answer is not to be there several times."""
        pieces = [piece for each in tries for piece in each.data]
        if self.is_stream:
            return "".join(said_in_stream(self.dialect, piece) for piece in pieces)
        return said_in_whole(self.dialect, b"".join(pieces))


async def said_so_far(channel: Channel, generation_id: str, dialect: str, *, is_stream: bool) -> str:
    """Return the answer's text as far as its log goes. Of a JSON body there is none until it is whole.

    Raises:
        StoreUnavailable: Redis is away.
    """
    said, body = [], b""
    async for page in pages(channel, generation_id):
        for frame in page:
            if frame.kind is FrameKind.FENCE:
                body = b""
            elif frame.kind is FrameKind.DATA and is_stream:
                said.append(said_in_stream(dialect, frame.data))
            elif frame.kind is FrameKind.DATA:
                body += frame.data
    return "".join(said) if is_stream else said_in_whole(dialect, body)
