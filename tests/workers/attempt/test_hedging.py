"""Two calls for one request, in any order of output, errors, ends and silence: one answers, and both are paid for."""

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import Literal

from hypothesis import given, settings
from hypothesis import strategies as st

from common.canonical.errors import ErrorKind, GatewayError
from common.canonical.events import Usage
from common.metering.attempt_cost import Attempt
from workers.attempt.hedging import TwoCalls, call_twice
from workers.outcome import Total
from workers.providers.base import Deployment
from workers.routing.hedge_budget import HEDGES_SAVED_MAX, HedgeBudget

Ending = Literal["end", "fail", "stall"]


@dataclass
class Leg:
    """A call that goes one step on whenever it is told to: tokens, then its ending."""

    name: str
    tokens: int
    ending: Ending
    gate: asyncio.Queue[None] = field(default_factory=asyncio.Queue)
    has_begun: bool = False
    is_over: bool = False

    async def run(self, calls: TwoCalls, total: Total, log: list[str]) -> None:
        result = total.begin_call(Deployment(self.name, "", "", "m"))
        self.has_begun = True

        def charge() -> None:
            result.attempt = Attempt(self.name, "m", Usage(1, 1))

        result.charge = charge
        calls.enter(result)
        try:
            for _ in range(self.tokens):
                await self.gate.get()
                calls.claim(result)
                log.append(self.name)
            await (asyncio.Event().wait() if self.ending == "stall" else self.gate.get())
            if self.ending == "fail":
                raise GatewayError(ErrorKind.UPSTREAM_UNAVAILABLE, self.name)
            calls.claim(result)
            log.append(self.name)
        finally:
            self.is_over = True
            if not calls.is_lost(result):
                charge()
                total.add(result)


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


@dataclass
class Outcome:
    log: list[str]
    total: Total
    decided: tuple[int, BaseException | None] | None  # None: both are silent, and the request was cancelled.
    early: list[int]
    legs: list[Leg]


async def race(legs: list[Leg], schedule: list[int]) -> Outcome:
    """``schedule``: which call goes on, 0 or 1; 2: the patience is over."""
    total, log, early, patience = Total(), [], [], asyncio.Event()
    calls = TwoCalls(total)

    def second() -> Awaitable[None]:
        return legs[1].run(calls, total, log)

    def record_early(number: int, error: BaseException) -> None:
        assert isinstance(error, GatewayError)
        early.append(number)

    task = asyncio.create_task(call_twice(legs[0].run(calls, total, log), second, patience.wait(), calls, record_early))
    await settle()
    for step in [*schedule, *range(3), *range(3), *range(3), *range(3), *range(3)]:
        patience.set() if step == 2 else legs[step].gate.put_nowait(None)
        await settle()
    if not task.done():
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return Outcome(log, total, None, early, legs)
    return Outcome(log, total, task.result(), early, legs)


endings = st.sampled_from(["end", "fail", "stall"])
legs = st.tuples(st.integers(0, 3), endings)


@settings(deadline=None, max_examples=300)
@given(legs, legs, st.lists(st.integers(0, 2), max_size=12))
def test_exactly_one_call_answers_and_each_is_paid_for_once(first, second, schedule):
    async def run() -> Outcome:
        return await race([Leg("a", *first), Leg("b", *second)], schedule)

    done = asyncio.run(run())

    assert len(set(done.log)) <= 1, "tokens of both calls are mixed"
    begun = [leg for leg in done.legs if leg.has_begun]
    assert sorted(attempt.provider for attempt in done.total.attempts) == [leg.name for leg in begun]
    assert done.total.running == []
    assert all(leg.is_over for leg in begun), "a call goes on"
    if done.decided is None:
        assert any(leg.ending == "stall" for leg in begun)
        return
    number, failure = done.decided
    if done.log:
        assert done.log[0] == done.legs[number].name
        assert done.total.provider == done.legs[number].name
    if failure is None:
        assert done.legs[number].ending == "end"
        assert len(done.log) == done.legs[number].tokens + 1
    else:
        assert done.legs[number].ending == "fail"
        # Without output from either, an error decides only after the other call has failed too.
        assert done.log or set(done.early) | {number} == {index for index, leg in enumerate(done.legs) if leg.has_begun}


async def test_no_second_call_is_made_if_the_first_has_output_or_an_end_in_time():
    quick = await race([Leg("a", 1, "end"), Leg("b", 1, "end")], [0, 2])
    failed = await race([Leg("a", 0, "fail"), Leg("b", 1, "end")], [0, 2])
    assert not quick.legs[1].has_begun
    assert not failed.legs[1].has_begun


async def test_the_second_call_waits_for_the_patience_only():
    slow = await race([Leg("a", 1, "stall"), Leg("b", 1, "end")], [2, 1, 1])
    assert (slow.log, slow.decided) == (["b", "b"], (1, None))


def test_a_tenth_of_a_route_s_calls_may_be_made_twice():
    budget = HedgeBudget()
    made = 0
    for _ in range(200):
        budget.record_call("r")
        made += budget.try_acquire("r")
    assert made == 21, "one at once, and one for each ten calls"
    assert budget.try_acquire("another")

    for _ in range(1_000):
        budget.record_call("r")
    assert [budget.try_acquire("r") for _ in range(HEDGES_SAVED_MAX + 1)] == [True] * HEDGES_SAVED_MAX + [False]
