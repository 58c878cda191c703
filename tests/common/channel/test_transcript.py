"""A log that is read back: which tries count, and what they have said."""

import orjson

from common.channel.base import START, Frame, FrameId, FrameKind
from common.channel.transcript import PAGE_FRAMES, Transcript, pages, read_log
from common.records.head import Head


def delta(content: str) -> bytes:
    return b'data: {"choices":[{"index":0,"delta":{"content":%b}}]}\n\n' % orjson.dumps(content)


def log(*items: tuple[FrameKind, bytes]) -> list[Frame]:
    return [Frame(FrameId(1, n), kind, data) for n, (kind, data) in enumerate(items, 1)]


def head(**fields: object) -> tuple[FrameKind, bytes]:
    return FrameKind.HEAD, Head(**fields).pack()


def data(piece: bytes) -> tuple[FrameKind, bytes]:
    return FrameKind.DATA, piece


class Log:
    """A channel of which nothing but its log is there."""

    def __init__(self, frames: list[Frame]) -> None:
        self.frames = frames
        self.asked: list[FrameId] = []

    async def read(self, _: str, after: FrameId, count: int) -> list[Frame]:
        self.asked.append(after)
        return [frame for frame in self.frames if frame.id > after][:count]


def test_a_streams_tries_follow_each_other():
    frames = log(
        head(attempt_count=1),
        data(delta("a ")),
        data(delta("b ")),
        (FrameKind.FENCE, b"1-2"),
        head(attempt_count=3),
        data(delta("c")),
    )

    found = Transcript.from_frames(frames, "openai-chat", is_stream=True)

    assert [each.head.attempt_count for each in found.attempts] == [1, 3]
    assert found.data() == [delta("a "), delta("b "), delta("c")]
    assert (found.text(found.attempts[:1]), found.text(found.attempts)) == ("a b ", "a b c")


def test_of_a_whole_answer_the_last_try_alone_counts():
    body = orjson.dumps({"choices": [{"index": 0, "message": {"content": "hi"}}]})
    frames = log(head(attempt_count=1), data(body[:9]), head(attempt_count=2), data(body[:20]), data(body[20:]))

    found = Transcript.from_frames(frames, "openai-chat", is_stream=False)

    assert [each.head.attempt_count for each in found.attempts] == [2]
    assert (b"".join(found.data()), found.text(found.attempts)) == (body, "hi")


def test_before_its_head_nothing_was_answered():
    assert Transcript.from_frames(log((FrameKind.FENCE, b"0-0")), "openai-chat", is_stream=True).attempts == []


async def test_a_log_is_read_page_by_page_to_its_end():
    whole = log(*(data(b"%d" % n) for n in range(2 * PAGE_FRAMES + 1)))
    channel = Log(whole)

    assert await read_log(channel, "gen_1") == whole
    assert channel.asked == [START, whole[PAGE_FRAMES - 1].id, whole[2 * PAGE_FRAMES - 1].id, whole[-1].id]
    assert [len(page) async for page in pages(channel, "gen_1", whole[-3].id)] == [2]
