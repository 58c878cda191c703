from dataclasses import replace

import pytest

from common.canonical.errors import ErrorKind, Failed
from workers.attempt.retries import AttemptPlan
from workers.providers.base import Deployment
from workers.providers.shared.errors import UNREADABLE

RATE_LIMITED, UNAVAILABLE = ErrorKind.UPSTREAM_RATE_LIMITED, ErrorKind.UPSTREAM_UNAVAILABLE
TIMEOUT, CREDENTIALS = ErrorKind.UPSTREAM_TIMEOUT, ErrorKind.UPSTREAM_CREDENTIALS


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def plan(count: int = 1, clock: Clock | None = None) -> AttemptPlan:
    places = [Deployment(f"p{n}", "http://x", "k", "m") for n in range(count)]
    return AttemptPlan(places, 30, random_unit=lambda: 0.5, clock=clock or Clock())


def waits(plan: AttemptPlan, failed: Failed, clock: Clock | None = None) -> list[tuple[float, str]]:
    """Each wait with the deployment that is called after it, until there is none."""
    found: list[tuple[float, str]] = []
    plan.record_call()
    while (wait := plan.delay_after_failure(failed)) is not None:
        found.append((wait, plan.deployment.provider))
        if clock:
            clock.now += wait
        plan.record_call()
    return found


def refusals(plan: AttemptPlan, clock: Clock, wait_s: float, earliest_s: float | None = None) -> list[tuple[float, str]]:
    """The same where every call is refused before it is made."""
    found: list[tuple[float, str]] = []
    while (wait := plan.delay_after_refusal(wait_s, wait_s if earliest_s is None else earliest_s)) is not None:
        found.append((round(wait, 3), plan.deployment.provider))
        clock.now += wait
    return found


@pytest.mark.parametrize("kind", [RATE_LIMITED, UNAVAILABLE])
def test_a_deployment_is_tried_three_times_at_once_after_one_second_after_two(kind):
    assert waits(plan(), Failed(kind, "")) == [(1.0, "p0"), (2.0, "p0")]


def test_then_the_next_deployment_is_tried_at_once():
    assert waits(plan(2), Failed(UNAVAILABLE, "")) == [(1.0, "p0"), (2.0, "p0"), (0.0, "p1"), (1.0, "p1"), (2.0, "p1")]


def test_retry_after_is_obeyed_within_its_cap():
    for retry_after_s, expected in ((10, [10, 10]), (30, [30, 30]), (0.1, [1.0, 2.0])):
        found = waits(plan(clock=(clock := Clock())), Failed(RATE_LIMITED, "", retry_after_s=retry_after_s), clock)

        assert found == [(wait, "p0") for wait in expected]


@pytest.mark.parametrize("kind", [RATE_LIMITED, UNAVAILABLE])
def test_what_asks_for_more_than_the_cap_is_not_waited_for(kind):
    clock = Clock()
    one, both = plan(clock=clock), plan(2, clock=clock)

    assert waits(one, Failed(kind, "", retry_after_s=86_400), clock) == []
    assert waits(both, Failed(kind, "", retry_after_s=86_400), clock) == [(0.0, "p1")]
    assert both.soonest_s == 86_400


@pytest.mark.parametrize("kind", [RATE_LIMITED, UNAVAILABLE])
def test_while_one_deployment_asks_to_be_left_alone_the_next_is_called(kind):
    both = plan(2)
    both.record_call()

    assert both.delay_after_failure(Failed(kind, "", retry_after_s=10)) == 0.0
    assert both.deployment.provider == "p1"


def test_what_its_vendor_promises_for_later_than_the_cap_is_left_out():
    clock = Clock()
    both = plan(2, clock=clock)
    assert both.delay_after_refusal(86_400, 20) == 0.0
    both.record_call()

    assert both.delay_after_failure(Failed(CREDENTIALS, "")) is None
    assert both.soonest_s == 86_400


# A status instead of a wait


def with_status(count: int, clock: Clock, status_deadline: float = 1004.75) -> AttemptPlan:
    return AttemptPlan(
        [Deployment(f"p{n}", "http://x", "k", "m") for n in range(count)],
        30,
        status_deadline,
        random_unit=lambda: 0.5,
        clock=clock,
    )


def test_a_status_is_worth_more_than_a_wait_that_would_end_after_it():
    one = with_status(1, Clock())
    one.record_call()

    assert one.delay_after_failure(Failed(RATE_LIMITED, "", retry_after_s=8)) is None
    assert one.resumes_in_s == 8.0


def test_a_slow_failure_leaves_no_time_for_a_backoff():
    one = with_status(1, clock := Clock())
    one.record_call()
    clock.now += 4.2

    assert one.delay_after_failure(Failed(UNAVAILABLE, "")) is None
    assert one.resumes_in_s == 1.0


def test_another_deployment_is_called_before_a_status_is_given():
    both = with_status(2, clock := Clock())
    both.record_call()
    clock.now += 4.2
    assert (both.delay_after_failure(Failed(UNAVAILABLE, "")), both.deployment.provider) == (0.0, "p1")
    both.record_call()
    clock.now += 0.3

    assert both.delay_after_failure(Failed(UNAVAILABLE, "")) is None
    assert both.resumes_in_s == pytest.approx(0.7)


def test_what_is_waited_for_within_the_hold_is_waited_for():
    one = with_status(1, clock := Clock())

    assert waits(one, Failed(UNAVAILABLE, ""), clock) == [(1.0, "p0"), (2.0, "p0")]
    assert one.resumes_in_s is None


@pytest.mark.parametrize(
    ("deadline", "wait_s"),
    [
        (1_000.0, 20.0),  # It is over now: there is no status to be had.
        (1_000.25, None),
        (1_019.75, None),
        (1_020.0, 20.0),  # The next call is made in time.
    ],
)
def test_a_status_is_given_only_where_it_can_be_had_now_and_not_after_the_wait(deadline, wait_s):
    one = with_status(1, Clock(), status_deadline=deadline)
    one.record_call()

    assert one.delay_after_failure(Failed(RATE_LIMITED, "", retry_after_s=20)) == wait_s


def test_where_the_status_is_out_already_the_wait_is_worth_more():
    clock = Clock()
    late = with_status(1, clock, status_deadline=999.0)

    assert waits(late, Failed(RATE_LIMITED, "", retry_after_s=20), clock) == [(20.0, "p0")] * 2


def test_a_quota_of_ours_that_is_free_only_after_the_hold_is_a_status_too():
    one = with_status(1, Clock())

    assert one.delay_after_refusal(8.0, 8.0) is None
    assert one.soonest_s == 8.0
    assert with_status(1, Clock()).delay_after_refusal(20.0, 1.0) == 1.125  # It may be free sooner.


def test_a_key_that_is_to_be_left_alone_is_passed_over_at_once_and_comes_back_when_its_time_is_over():
    clock = Clock()
    found = waits(plan(2, clock), Failed(RATE_LIMITED, "", retry_after_s=10), clock)

    assert found == [(0.0, "p1"), (10, "p0"), (0.0, "p1"), (10, "p0"), (0.0, "p1")]


def test_what_has_its_time_of_rest_behind_it_is_better_than_giving_up():
    clock = Clock()
    both = plan(2, clock)
    both.record_call()
    assert both.delay_after_failure(Failed(RATE_LIMITED, "", retry_after_s=10)) == 0.0
    both.record_call()

    assert (both.delay_after_failure(Failed(CREDENTIALS, "")), both.deployment.provider) == (10.0, "p0")


def test_a_place_that_refuses_is_passed_over_and_nothing_is_counted():
    clock = Clock()
    both = plan(2, clock)

    assert (both.delay_after_refusal(5.0, 5.0), both.deployment.provider) == (0.0, "p1")
    both.record_call()

    assert both.attempt_count == 1
    assert (both.delay_after_failure(Failed(UNAVAILABLE, "")), both.deployment.provider) == (1.0, "p1")


def test_where_every_place_refuses_the_one_that_is_free_first_is_waited_for():
    clock = Clock()
    both = plan(2, clock)
    both.delay_after_refusal(8.0, 8.0)

    # A little later, so that not all of them come at the same moment.
    assert (both.delay_after_refusal(4.0, 4.0), both.deployment.provider) == (4.125, "p1")


def test_refusals_take_up_no_more_waiting_than_one_retry_after():
    clock = Clock()
    found = refusals(plan(clock=clock), clock, 8.0)

    assert found == [(8.125, "p0")] * 3
    assert clock.now < 1030


def test_what_is_not_free_soon_enough_is_not_waited_for():
    clock = Clock()
    one = plan(clock=clock)

    assert one.delay_after_refusal(31.0, 1.0) is None
    assert (one.soonest_s, one.attempt_count) == (31.0, 0)


def test_what_may_be_free_before_its_time_is_looked_at_meanwhile():
    clock = Clock()
    one = plan(clock=clock)

    assert one.delay_after_refusal(20.0, 1.0) == 1.125


def test_a_dead_key_goes_to_the_next_at_once():
    assert waits(plan(3), Failed(CREDENTIALS, "")) == [(0.0, "p1"), (0.0, "p2")]


@pytest.mark.parametrize(
    "kind", [ErrorKind.UPSTREAM_REJECTED, ErrorKind.INVALID_REQUEST, ErrorKind.OVERLOADED, ErrorKind.INTERNAL]
)
def test_what_another_try_cannot_mend_is_not_tried_again(kind):
    assert waits(plan(2), Failed(kind, "")) == []


def test_an_upstream_that_said_504_is_asked_again_one_that_said_nothing_is_not():
    assert waits(plan(), Failed(TIMEOUT, "", status=504)) == [(1.0, "p0"), (2.0, "p0")]
    assert waits(plan(2), Failed(TIMEOUT, "")) == [(0.0, "p1")]


def test_nonsense_on_the_wire_is_tried_once_more():
    assert waits(plan(), Failed(ErrorKind.UPSTREAM_PROTOCOL, "")) == [(1.0, "p0")]


def test_waits_are_jittered_both_ways():
    low, high = (AttemptPlan([Deployment("p", "x", "k", "m")], 30, random_unit=lambda c=c: c) for c in (0.0, 1.0))
    low.record_call()
    high.record_call()

    assert (low.delay_after_failure(Failed(UNAVAILABLE, "")), high.delay_after_failure(Failed(UNAVAILABLE, ""))) == (0.75, 1.25)


def test_calls_are_counted_over_deployments():
    both = plan(2)
    waits(both, Failed(UNAVAILABLE, ""))

    assert both.attempt_count == 6


def test_an_answer_that_cannot_be_read_is_asked_for_once_at_each_deployment():
    assert waits(plan(2), Failed(ErrorKind.UPSTREAM_PROTOCOL, "", code=UNREADABLE)) == [(0.0, "p1")]


def test_how_often_and_after_which_waits_is_set():
    plan = AttemptPlan(
        [Deployment("p", "x", "k", "m")], 30, attempts_max=5, backoff_s=0.5, random_unit=lambda: 0.5, clock=Clock()
    )
    waits = []
    for _ in range(5):
        plan.record_call()
        waits.append(plan.delay_after_failure(Failed(ErrorKind.UPSTREAM_UNAVAILABLE, "gone", status=503)))

    assert waits == [0.5, 1, 2, 4, None]


def test_one_attempt_is_no_retry():
    plan = AttemptPlan([Deployment(name, "x", "k", "m") for name in ("p", "q")], 30, attempts_max=1, clock=Clock())
    plan.record_call()

    assert plan.delay_after_failure(Failed(ErrorKind.UPSTREAM_UNAVAILABLE, "gone", status=503)) == 0
    assert plan.deployment.provider == "q"


def test_one_that_cannot_be_reached_is_not_called_again_while_another_address_is_left():
    near, far = Deployment("a", "http://a", "k", "m"), Deployment("b", "http://b", "k", "m")
    unreachable = Failed(ErrorKind.UPSTREAM_UNAVAILABLE, "refused")

    plan = AttemptPlan([near, far], 30.0)
    plan.record_call()
    assert (plan.delay_after_failure(unreachable), plan.deployment) == (0.0, far)
    plan.record_call()
    assert plan.delay_after_failure(unreachable) > 0, "the last one is called again"
    assert plan.deployment is far

    plan = AttemptPlan([near, replace(near, api_key="k2")], 30.0)
    plan.record_call()
    assert plan.delay_after_failure(unreachable) > 0, "another key leads to the same address"


def test_the_other_keys_of_an_address_that_says_nothing_come_after_other_addresses():
    near, far = Deployment("a", "http://a", "k", "m"), Deployment("b", "http://b", "k", "m")
    second_key = replace(near, api_key="k2")
    for failed in (Failed(ErrorKind.UPSTREAM_UNAVAILABLE, "refused"), Failed(TIMEOUT, "silent")):
        plan = AttemptPlan([near, second_key, far], 30.0)
        plan.record_call()
        assert (plan.delay_after_failure(failed), plan.deployment) == (0.0, far)


def test_one_that_becomes_unwell_meanwhile_is_not_called_again_while_a_well_one_is_left():
    one, two, three = (Deployment(name, f"http://{name}", "k", "m") for name in "abc")
    unwell: list[Deployment] = []
    failed = Failed(UNAVAILABLE, "down", status=500)
    plan = AttemptPlan([one, two, three], 30.0, is_unwell=unwell.__contains__)
    plan.record_call()
    assert (plan.delay_after_failure(failed) > 0, plan.deployment) == (True, one)

    unwell += [one, two]
    plan.record_call()
    assert (plan.delay_after_failure(failed), plan.deployment) == (0.0, three)
    unwell += [three]
    plan.record_call()
    assert (plan.delay_after_failure(failed) > 0, plan.deployment) == (True, three), "all are unwell: it is as good as any"


# Two calls at the same time


def test_a_call_beside_another_is_made_at_the_next_deployment_that_is_free_well_and_unused():
    clock, places = Clock(), [Deployment(f"p{n}", "http://x", "k", "m") for n in range(3)]
    pair = AttemptPlan(places, 30, is_unwell=lambda one: one is places[1], clock=clock)
    pair.record_call()
    assert pair.next_for_hedge() is places[2]
    pair.record_call(places[2])
    assert (pair.attempt_count, pair.deployment, pair.next_for_hedge()) == (2, places[0], None)


def test_a_deployment_that_must_wait_is_not_called_beside_another():
    two = plan(2)
    two.record_call()
    assert two.delay_after_failure(Failed(RATE_LIMITED, "", retry_after_s=5)) == 0
    assert two.deployment.provider == "p1"
    assert two.next_for_hedge() is None


def test_after_both_have_failed_each_is_called_again_as_if_it_had_been_called_alone():
    clock = Clock()
    two = plan(2, clock)
    first, second = two.deployment, two.next_for_hedge()
    assert second is not None
    two.record_call()
    two.record_call(second)

    two.record_failure_beside(second, Failed(UNAVAILABLE, "", status=503))
    assert two.deployment is first, "the other call decides"
    two.select(first)
    assert two.delay_after_failure(Failed(UNAVAILABLE, "", status=503)) == 1.0
    assert two.deployment is first

    assert two.delay_after_failure(Failed(CREDENTIALS, "")) == 1.0, "the second one waits for its own pause"
    assert two.deployment is second


@pytest.mark.parametrize("kind", [ErrorKind.UPSTREAM_REJECTED, CREDENTIALS])
def test_one_that_failed_for_good_beside_another_is_not_called_again(kind):
    two = plan(2)
    first, second = two.deployment, two.next_for_hedge()
    assert second is not None
    two.record_call()
    two.record_call(second)
    two.record_failure_beside(first, Failed(kind, ""))
    two.select(second)
    assert two.delay_after_failure(Failed(CREDENTIALS, "")) is None


def test_one_that_is_skipped_is_left_out():
    two = plan(2)
    assert (two.skip(), two.deployment.provider) == (0.0, "p1")
    assert two.skip() is None
