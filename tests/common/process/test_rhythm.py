"""Do the loops of a process wake it together?"""

import random

import pytest

from common.process.rhythm import until_turn_s


@pytest.mark.parametrize("now_s", [random.Random(1).uniform(0, 1e6) for _ in range(50)])
def test_loops_that_began_at_any_time_have_the_same_turns(now_s: float):
    turn_s = now_s + until_turn_s(0.5, now_s)

    assert turn_s + until_turn_s(0.5, turn_s) == pytest.approx(turn_s + 0.5)
    for period_s in (0.25, 0.5, 1.0, 2.0):
        late_s = now_s + period_s / 3
        moments = late_s + until_turn_s(period_s, late_s) - turn_s
        assert moments == pytest.approx(round(moments / 0.25) * 0.25, abs=1e-6)


@pytest.mark.parametrize("early_s", [-0.001, 0.0, 0.001, 0.04, 0.06, 0.3, 0.499])
def test_a_turn_comes_within_its_period_and_not_at_once(early_s: float):
    turn_s = 1000 + until_turn_s(0.5, 1000)

    wait_s = until_turn_s(0.5, turn_s - early_s)

    assert 0.05 - 1e-6 <= wait_s <= 0.55 + 1e-6
    assert (wait_s - early_s) % 0.5 == pytest.approx(0, abs=1e-6) or (wait_s - early_s) % 0.5 == pytest.approx(0.5, abs=1e-6)
