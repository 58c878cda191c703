"""Our own lag is not the other side's silence."""

import asyncio
import time

import pytest

from common.process.loop_lag import CREDIT_S, TICK_S, lag_aware_timeout, loop_lag


async def test_a_loop_that_is_held_up_is_late_and_its_clock_stands_still():
    lag = loop_lag()
    await asyncio.sleep(2 * TICK_S)
    before_s = lag.unblocked_s

    time.sleep(1)

    assert lag.now_s > 0.8
    assert lag.unblocked_s - before_s <= CREDIT_S
    seen: list[float] = []
    lag.observe(seen.append)
    await asyncio.sleep(3 * TICK_S)
    assert max(seen) > 0.8


async def test_the_time_in_which_the_loop_could_not_read_does_not_count():
    answered = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_later(1.2, answered.set_result, None)

    async with lag_aware_timeout(1):  # It has been able to read for about 0.3 s when the answer is there.
        await asyncio.sleep(TICK_S)
        time.sleep(1.1)
        await answered


async def test_what_does_not_answer_a_loop_that_reads_is_given_up_on():
    with pytest.raises(TimeoutError):
        async with lag_aware_timeout(0.2):
            await asyncio.get_running_loop().create_future()


async def test_each_loop_has_one():
    assert loop_lag() is loop_lag()
