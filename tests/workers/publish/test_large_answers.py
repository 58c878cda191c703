"""The room of large answers: those that run, and those that have ended, until they must give way."""

import pytest

from common.canonical.errors import ErrorKind, GatewayError, StoreUnavailable
from common.config.settings import MIB, Settings
from workers.publish.large_answers import KEPT_S, LARGE_BYTES, STEP_BYTES, LargeAnswers

SETTINGS = Settings().model_copy(update={"answer_bytes_max": 64 * MIB, "large_answers_bytes_max": 100 * MIB})


class Lab:
    """Logs that are evicted as told; ``kept`` are those that cannot be."""

    def __init__(self) -> None:
        self.now, self.evicted, self.kept = 1000.0, [], set()
        self.is_away = False
        self.answers = LargeAnswers(self, SETTINGS, lambda: self.now)  # type: ignore[arg-type]  # All that it uses of a channel.

    async def evict(self, generation_id: str) -> bool:
        if self.is_away:
            raise StoreUnavailable("away")
        if generation_id in self.kept:
            return False
        self.evicted.append(generation_id)
        return True

    async def run(self, name: str, size: int) -> None:
        """One answer, from its first byte to its end."""
        self.answers.end(name, await self.answers.reserve(0, size - STEP_BYTES), size)


@pytest.fixture
def lab() -> Lab:
    return Lab()


async def test_an_ordinary_answer_holds_nothing(lab):
    assert await lab.answers.reserve(0, LARGE_BYTES) == 0
    assert lab.answers.bytes_held == 0


async def test_a_growing_answer_is_counted_once(lab):
    held = 0
    for size in range(LARGE_BYTES + 1, 40 * MIB, STEP_BYTES):
        held = await lab.answers.reserve(held, size)

    assert held == lab.answers.bytes_held == size + STEP_BYTES


async def test_what_failed_before_it_was_written_takes_no_room(lab):
    held = await lab.answers.reserve(0, 40 * MIB)
    lab.answers.end("gathered only", held, 300)
    assert lab.answers.bytes_held == 0

    held = await lab.answers.reserve(0, 40 * MIB)
    lab.answers.end("written in part", held, 20 * MIB)
    assert lab.answers.bytes_held == 20 * MIB + STEP_BYTES


async def test_one_that_is_larger_than_an_answer_may_be_is_refused(lab):
    with pytest.raises(GatewayError) as refused:
        await lab.answers.reserve(0, 64 * MIB + 1)

    assert (refused.value.failed.kind, refused.value.failed.code) == (ErrorKind.REQUEST_TOO_LARGE, "answer_too_large")


async def test_the_oldest_that_have_ended_give_way_after_their_time(lab):
    for name in ("first", "second", "third"):
        await lab.run(name, 30 * MIB)
        lab.now += 1
    lab.now += KEPT_S

    await lab.run("fourth", 30 * MIB)

    assert lab.evicted == ["first"]
    assert lab.answers.bytes_held == 90 * MIB


async def test_within_their_time_none_gives_way_and_the_running_one_is_refused(lab):
    for name in ("first", "second", "third"):
        await lab.run(name, 30 * MIB)
    lab.now += KEPT_S - 1

    with pytest.raises(GatewayError) as refused:
        await lab.run("fourth", 30 * MIB)

    assert (refused.value.failed.kind, refused.value.failed.code) == (ErrorKind.OVERLOADED, "answers_full")
    assert (lab.evicted, lab.answers.bytes_held) == ([], 90 * MIB)


@pytest.mark.parametrize("is_away", [True, False])
async def test_what_cannot_be_evicted_keeps_its_place_and_is_tried_again_later(lab, is_away):
    await lab.run("first", 60 * MIB)
    lab.now += KEPT_S
    lab.is_away = is_away
    lab.kept = {"first"}
    with pytest.raises(GatewayError):
        await lab.run("second", 60 * MIB)
    lab.is_away, lab.kept = False, set()
    lab.now += KEPT_S

    await lab.run("third", 60 * MIB)

    assert lab.evicted == ["first"]


async def test_one_answer_always_fits_whatever_is_set():
    answers = LargeAnswers(Lab(), SETTINGS.model_copy(update={"large_answers_bytes_max": MIB}))  # type: ignore[arg-type]

    assert await answers.reserve(0, 63 * MIB) == 64 * MIB
