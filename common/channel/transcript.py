"""What did a generation's attempts write, as its log shows?

In a stream the attempts follow each other: the text of an earlier attempt stays, and each further attempt begins with its own
head. A JSON body is started again by each attempt and each claim, and no client has seen the earlier one. Only this module
knows that rule. The next claim, the usage estimate of a broken answer, the audit log and the records read logs through it.
"""

from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field

from common.channel.answer_text import text_in_body, text_in_stream
from common.channel.base import START, Channel, Frame, FrameId, FrameKind
from common.records.head import Head

PAGE_FRAMES = 500  # Maximum of one read.


async def pages(channel: Channel, generation_id: str, after: FrameId = START) -> AsyncIterator[list[Frame]]:
    """Yield a log's present frames after ``after``, page by page.

    Raises:
        StoreUnavailable: Redis is away.
    """
    while page := await channel.read(generation_id, after, PAGE_FRAMES):
        yield page
        after = page[-1].id


async def read_log(channel: Channel, generation_id: str) -> list[Frame]:
    """Return the whole log. Raises as ``pages`` does."""
    return [frame async for page in pages(channel, generation_id) for frame in page]


@dataclass(slots=True)
class LoggedAttempt:
    """What one upstream call has written: its head, and the client's bytes, one item per frame."""

    head: Head
    data: list[bytes] = field(default_factory=list)


@dataclass(slots=True)
class Transcript:
    """``attempts`` are those that count for the client: of a JSON body only the last."""

    dialect: str
    is_stream: bool
    attempts: list[LoggedAttempt]

    @classmethod
    def from_frames(cls, frames: Iterable[Frame], dialect: str, *, is_stream: bool) -> "Transcript":
        """Return the transcript of a log's frames.

        Raises:
            ValueError: a head cannot be read.
        """
        attempts: list[LoggedAttempt] = []
        for frame in frames:
            if frame.kind is FrameKind.HEAD:
                attempts.append(LoggedAttempt(Head.unpack(frame.data)))
            elif frame.kind is FrameKind.DATA and attempts:
                attempts[-1].data.append(frame.data)
        return cls(dialect, is_stream, attempts if is_stream else attempts[-1:])

    def data(self) -> list[bytes]:
        """Return the client's bytes."""
        return [piece for attempt in self.attempts for piece in attempt.data]

    def text(self, attempts: Sequence[LoggedAttempt]) -> str:
        """Return the text of some attempts. A stream is read piece by piece (each holds whole events), to save memory."""
        pieces = [piece for attempt in attempts for piece in attempt.data]
        if self.is_stream:
            return "".join(text_in_stream(self.dialect, piece) for piece in pieces)
        return text_in_body(self.dialect, b"".join(pieces))


async def read_answer_text(channel: Channel, generation_id: str, dialect: str, *, is_stream: bool) -> str:
    """Return the answer's text so far. The text of a JSON body is empty until the body is complete.

    Raises:
        StoreUnavailable: Redis is away.
    """
    texts, body = [], b""
    async for page in pages(channel, generation_id):
        for frame in page:
            if frame.kind is FrameKind.FENCE:
                body = b""
            elif frame.kind is FrameKind.DATA and is_stream:
                texts.append(text_in_stream(dialect, frame.data))
            elif frame.kind is FrameKind.DATA:
                body += frame.data
    return "".join(texts) if is_stream else text_in_body(dialect, body)
