"""Does an API under too much serve what it can, and the rest not at all? On a model of a loop, whose time is counted."""

import heapq
import random
from dataclasses import dataclass, field

import pytest

from api.overload.limit import OVER_S, PER_TURN, AdmissionLimit
from common.process.loop_lag import TICK_S

LAG_S, CLAIM_S = 0.05, 0.3
REFUSAL_S, START_S, FRAME_S, FRAMES, ANSWER_S = 0.00015, 0.0009, 0.00006, 10, 0.4
CAPACITY_PER_S = 1 / (REFUSAL_S + START_S + FRAMES * FRAME_S)


@dataclass
class Loop:
    """One event loop that answers requests: each turn does all that was there when it began.

    ``slowness`` multiplies what everything costs; ``stalls`` is the share of turns in which a neighbour has the processor for
    some 15 ms. ``worker_s`` is what a job costs a worker that runs beside it.
    """

    slowness: float = 1.0
    stalls: float = 0.0
    worker_s: float = 0.0
    now: float = 0.0
    served: list[tuple[float, float]] = field(default_factory=list)  # When it came, and its time to first token.
    refused: list[tuple[float, float]] = field(default_factory=list)

    def run(self, phases: list[tuple[float, float]]) -> None:
        """Go through phases of so many requests a second for so many seconds."""
        dice = random.Random(1)
        limit = AdmissionLimit(LAG_S, CLAIM_S, lambda: self.now)
        arrivals = self._arrivals(phases, dice)
        frames: list[tuple[float, int, float]] = []
        unclaimed: list[tuple[float, float]] = []
        admitted: list[float] = []
        ticked_at = free_at = 0.0
        claimed = 0
        while arrivals or frames or admitted:
            began_at = self.now
            limit.turn()
            if began_at - ticked_at >= TICK_S:
                before, unclaimed = len(unclaimed), [each for each in unclaimed if each[1] > began_at]
                claimed += before - len(unclaimed)
                oldest_s = began_at - unclaimed[0][0] if unclaimed else 0.0
                limit.tick(began_at - ticked_at - TICK_S, oldest_s, len(unclaimed) + len(admitted), claimed)
                ticked_at = began_at
            starting, admitted = admitted, []
            for came_at in starting:
                self.now += START_S * self.slowness
                free_at = max(free_at, self.now) + self.worker_s * self.slowness
                unclaimed.append((self.now, free_at))
                for number in range(FRAMES):
                    heapq.heappush(frames, (free_at + ANSWER_S * number / FRAMES, number, came_at))
            while frames and frames[0][0] <= began_at:
                _, number, came_at = heapq.heappop(frames)
                self.now += FRAME_S * self.slowness
                if number == 0:
                    self.served.append((came_at, self.now - came_at))
            while arrivals and arrivals[-1] <= began_at:
                came_at = arrivals.pop()
                self.now += REFUSAL_S * self.slowness
                if limit.admit("all"):
                    admitted.append(came_at)
                else:
                    self.refused.append((came_at, self.now - came_at))
            if dice.random() < self.stalls:
                self.now += dice.expovariate(1 / 0.015)
            if self.now == began_at:
                due = [ticked_at + TICK_S, *arrivals[-1:], *(frame[0] for frame in frames[:1])]
                self.now = max(self.now + 1e-5, min(due))

    def _arrivals(self, phases: list[tuple[float, float]], dice: random.Random) -> list[float]:
        found, began_at = [], 0.0
        for per_s, seconds in phases:
            at = began_at
            while (at := at + dice.expovariate(per_s)) < began_at + seconds:
                found.append(at)
            began_at += seconds
        return found[::-1]


def served_per_s(loop: Loop, start: float, end: float) -> float:
    return sum(start <= came_at < end for came_at, _ in loop.served) / (end - start)


def p99(times: list[tuple[float, float]], start: float, end: float = float("inf")) -> float:
    found = sorted(time for came_at, time in times if start <= came_at < end)
    return found[int(0.99 * len(found))]


@pytest.mark.parametrize("factor", [1.5, 2, 3])
@pytest.mark.parametrize("slowness", [1, 2.5])
def test_past_its_capacity_a_loop_goes_on_serving_what_it_can_and_in_time(factor: float, slowness: float):
    loop, capacity_per_s = Loop(slowness), CAPACITY_PER_S / slowness
    loop.run([(30, 2), (factor * capacity_per_s, 10), (30, 3)])

    left_for_serving = 1 - (factor - 1) * capacity_per_s * REFUSAL_S * slowness
    assert served_per_s(loop, 2, 12) > 0.9 * capacity_per_s * left_for_serving
    assert p99(loop.served, 2, 12) < 2
    assert p99(loop.served, 12) < 0.5  # Who comes behind the flood does not wait for it.
    assert not [came_at for came_at, _ in loop.refused if came_at > 13]


@pytest.mark.parametrize("factor", [2, 3])
def test_workers_that_are_late_are_sent_what_they_take(factor: float):
    loop = Loop(worker_s=0.004)
    loop.run([(30, 2), (factor * 250, 10), (30, 3)])

    assert served_per_s(loop, 2, 12) > 0.9 * 250
    assert p99(loop.served, 3, 12) < 2 * CLAIM_S
    assert not [came_at for came_at, _ in loop.refused if came_at > 13]


def test_a_neighbour_that_takes_the_processor_now_and_then_is_no_overload():
    loop = Loop(stalls=0.3)
    loop.run([(0.5 * CAPACITY_PER_S, 10)])

    assert loop.refused == []


def test_a_burst_is_taken_whole():
    loop = Loop()
    loop.run([(30, 2), (20 * CAPACITY_PER_S, 0.02), (30, 2)])

    assert loop.refused == []


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def late(clock: Clock, **targets: float) -> AdmissionLimit:
    limit = AdmissionLimit(**{"lag_target_s": LAG_S, "claim_target_s": CLAIM_S, **targets}, clock=clock)
    for _ in range(10):
        clock.now += 2 * TICK_S
        limit.tick(2 * LAG_S, 0)
    return limit


def test_a_late_loop_admits_so_many_a_turn_until_it_has_refused_nothing_for_a_while():
    clock = Clock()
    limit = late(clock)
    limit.turn()
    assert [limit.admit("a") for _ in range(PER_TURN + 1)] == [True] * PER_TURN + [False]
    limit.turn()
    assert limit.admit("a")
    assert limit.reason == "loop"

    clock.now += OVER_S + TICK_S
    limit.tick(0, 0)

    assert limit.reason is None
    assert all(limit.admit("a") for _ in range(1_000))


def test_who_was_there_before_the_loop_was_late_comes_in_in_place_of_who_comes_now():
    clock = Clock()
    limit = late(clock)
    limit.turn()
    assert all(limit.admit("a", is_early=True) for _ in range(2 * PER_TURN))

    for _ in range(2):  # What these turns would have had room for is taken.
        assert not limit.admit("a")
        limit.turn()
    assert limit.admit("a")


def test_while_the_oldest_job_waits_beside_free_slots_nothing_more_comes_in():
    clock = Clock()
    limit = AdmissionLimit(LAG_S, CLAIM_S, clock)
    limit.tick(0, CLAIM_S + 0.1)
    limit.turn()
    assert (limit.admit("a"), limit.reason) == (False, "workers")

    limit.tick(0, CLAIM_S - 0.1)
    limit.turn()
    assert [limit.admit("a") for _ in range(PER_TURN + 1)] == [True] * PER_TURN + [False]  # As many as they take in time.
    clock.now += OVER_S + TICK_S
    limit.tick(0, CLAIM_S - 0.1, PER_TURN)
    assert limit.reason is None


def test_a_target_of_0_is_none():
    clock = Clock()
    limit = late(clock, lag_target_s=0, claim_target_s=0)
    limit.tick(10, 10)

    assert limit.reason is None


@pytest.mark.parametrize("reason", ["loop", "workers"])
def test_one_tenants_flood_does_not_refuse_another_that_asks_for_less_than_its_part(reason: str):
    clock = Clock()
    limit = late(clock)
    admitted: dict[str, list[bool]] = {"flood": [], "single": []}
    for turn in range(500):
        clock.now += 0.02
        limit.turn()
        limit.tick(2 * LAG_S, 2 * CLAIM_S if reason == "workers" else 0)
        admitted["flood"] += [limit.admit("flood") for _ in range(40)]
        if turn % 25 == 0:
            admitted["single"].append(limit.admit("single"))

    assert all(admitted["single"])
    assert sum(admitted["flood"]) <= 500 * PER_TURN


def test_many_tenants_that_are_all_within_their_parts_are_still_too_many():
    clock = Clock()
    limit = late(clock)
    came = admitted = 0
    for _ in range(200):
        clock.now += 0.02
        limit.turn()
        limit.tick(2 * LAG_S, 0)
        for _ in range(100):
            came += 1
            admitted += limit.admit(f"tenant {came}")

    assert admitted < came / 4
