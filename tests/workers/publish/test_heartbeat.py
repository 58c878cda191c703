"""Which generations get a heartbeat, and what its answer does."""

import time
from types import SimpleNamespace
from typing import Any

import pytest

from common.canonical.errors import StoreUnavailable
from common.channel.base import Claim, FrameId, Stop, WriteResult, WriteStatus
from workers.publish.heartbeat import Heartbeats

HEARTBEAT_S = 2.0


class Writer:
    """What a heartbeat needs of a writer."""

    def __init__(self, name: str, *, quiet_s: float = 3 * HEARTBEAT_S, attempts: bytes = b"", is_busy: bool = False) -> None:
        self.claim = Claim(name, 1, "t")
        self.sent_at = time.monotonic() - quiet_s
        self.lost: WriteStatus | None = None
        self.is_busy = is_busy
        self.packed_attempts, self.sent_attempts = attempts, b""
        self.answers: list[WriteResult] = []

    def handle_answer(self, answer: WriteResult, now: float) -> None:
        self.answers.append(answer)
        self.sent_at = now


class Channel:
    def __init__(self) -> None:
        self.beats: list[tuple[list[str], list[bytes]]] = []
        self.on_beat: Any = lambda: None

    async def heartbeat(self, claims: list[Claim], notes: list[bytes]) -> list[WriteResult]:
        self.beats.append(([claim.generation_id for claim in claims], notes))
        self.on_beat()
        return [WriteResult(WriteStatus.OK, FrameId(1, n), Stop.NO, 1) for n, _ in enumerate(claims)]


class Lab:
    def __init__(self) -> None:
        self.channel, self.pulse, self.writers = Channel(), SimpleNamespace(is_up=True), []
        self.heartbeats = Heartbeats(self.channel, self.pulse, HEARTBEAT_S, self.writers)  # type: ignore[arg-type]

    def add(self, name: str, **more: Any) -> Writer:
        writer = Writer(name, **more)
        self.writers.append(writer)
        return writer

    async def beat(self, monkeypatch: pytest.MonkeyPatch) -> list[float]:
        """Let one look pass; return the waits before it and behind it."""
        waits: list[float] = []

        async def sleep(seconds: float) -> None:
            waits.append(seconds)
            if len(waits) > 1:
                raise InterruptedError

        monkeypatch.setattr("workers.publish.heartbeat.asyncio", SimpleNamespace(sleep=sleep))
        with pytest.raises(InterruptedError):
            await self.heartbeats.run()
        return waits


@pytest.fixture
def lab() -> Lab:
    return Lab()


async def test_all_that_are_quiet_get_one_in_one_step(lab, monkeypatch):
    quiet, other = lab.add("quiet"), lab.add("other", attempts=b"so far")
    lab.add("spoke", quiet_s=HEARTBEAT_S / 2)
    lab.add("waits for an answer", is_busy=True)
    lab.add("lost").lost = WriteStatus.FENCED

    waits = await lab.beat(monkeypatch)

    assert lab.channel.beats == [(["quiet", "other"], [b"", b"so far"])]
    assert [[answer.last.n for answer in writer.answers] for writer in (quiet, other)] == [[0], [1]]
    assert len(waits) == 2
    assert max(waits) <= 1.1 * HEARTBEAT_S / 4


async def test_where_all_speak_none_is_sent(lab, monkeypatch):
    lab.add("spoke", quiet_s=HEARTBEAT_S / 2)

    await lab.beat(monkeypatch)

    assert lab.channel.beats == []


async def test_while_redis_is_away_none_is_sent(lab, monkeypatch):
    lab.add("quiet")
    lab.pulse.is_up = False

    await lab.beat(monkeypatch)

    assert lab.channel.beats == []


async def test_news_for_the_next_claim_go_at_once_and_only_once(lab, monkeypatch):
    writer = lab.add("spoke", quiet_s=0, attempts=b"one")
    await lab.beat(monkeypatch)
    await lab.beat(monkeypatch)
    writer.packed_attempts = b"two"
    await lab.beat(monkeypatch)

    assert [notes for _, notes in lab.channel.beats] == [[b"one"], [b"two"]]


async def test_an_answer_that_frames_have_overtaken_is_old_news(lab, monkeypatch):
    sent, waits = lab.add("sent meanwhile"), lab.add("waits for an answer")

    def meanwhile() -> None:
        sent.sent_at = time.monotonic()
        waits.is_busy = True

    lab.channel.on_beat = meanwhile
    await lab.beat(monkeypatch)

    assert sent.answers == waits.answers == []


async def test_a_redis_that_does_not_answer_is_asked_again_the_next_time(lab, monkeypatch):
    writer = lab.add("quiet")

    def fail() -> None:
        raise StoreUnavailable("away")

    lab.channel.on_beat = fail
    await lab.beat(monkeypatch)
    lab.channel.on_beat = lambda: None
    await lab.beat(monkeypatch)

    assert len(writer.answers) == 1


async def test_attempts_that_the_log_has_by_now_are_no_news(lab, monkeypatch):
    writer = lab.add("gen_1", attempts=b"")
    writer.sent_attempts, writer.sent_at = b"earlier ones", time.monotonic()

    await lab.beat(monkeypatch)

    assert lab.channel.beats == []
