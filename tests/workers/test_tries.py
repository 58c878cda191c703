import pytest

from common.errors import ErrorKind, Failed
from workers.providers.base import Deployment
from workers.tries import Tries

RATE_LIMITED, UNAVAILABLE = ErrorKind.UPSTREAM_RATE_LIMITED, ErrorKind.UPSTREAM_UNAVAILABLE
TIMEOUT, CREDENTIALS = ErrorKind.UPSTREAM_TIMEOUT, ErrorKind.UPSTREAM_CREDENTIALS


def tries(count: int = 1) -> Tries:
    places = [Deployment(f"p{n}", "http://x", "k", "m") for n in range(count)]
    return Tries(places, retry_after_max_s=30, chance=lambda: 0.5)


def waits(tries: Tries, failed: Failed) -> list[tuple[float, str] | None]:
    """Each wait with the deployment that is called after it, until there is none."""
    found: list[tuple[float, str] | None] = []
    while (wait := tries.after(failed)) is not None:
        found.append((wait, tries.deployment.provider))
    return found


@pytest.mark.parametrize("kind", [RATE_LIMITED, UNAVAILABLE])
def test_a_deployment_is_tried_three_times_at_once_after_one_second_after_two(kind):
    assert waits(tries(), Failed(kind, "")) == [(1.0, "p0"), (2.0, "p0")]


def test_then_the_next_deployment_is_tried_at_once():
    assert waits(tries(2), Failed(UNAVAILABLE, "")) == [(1.0, "p0"), (2.0, "p0"), (0.0, "p1"), (1.0, "p1"), (2.0, "p1")]


def test_retry_after_is_obeyed_up_to_its_cap():
    assert waits(tries(), Failed(RATE_LIMITED, "", retry_after_s=10)) == [(10, "p0"), (10, "p0")]
    assert waits(tries(), Failed(RATE_LIMITED, "", retry_after_s=70)) == [(30, "p0"), (30, "p0")]
    assert waits(tries(), Failed(RATE_LIMITED, "", retry_after_s=0.1)) == [(1.0, "p0"), (2.0, "p0")]


def test_a_dead_key_goes_to_the_next_at_once():
    assert waits(tries(3), Failed(CREDENTIALS, "")) == [(0.0, "p1"), (0.0, "p2")]


@pytest.mark.parametrize(
    "kind", [ErrorKind.UPSTREAM_REJECTED, ErrorKind.INVALID_REQUEST, ErrorKind.OVERLOADED, ErrorKind.INTERNAL]
)
def test_what_another_try_cannot_mend_is_not_tried_again(kind):
    assert waits(tries(2), Failed(kind, "")) == []


def test_an_upstream_that_said_504_is_asked_again_one_that_said_nothing_is_not():
    assert waits(tries(), Failed(TIMEOUT, "", status=504)) == [(1.0, "p0"), (2.0, "p0")]
    assert waits(tries(2), Failed(TIMEOUT, "")) == [(0.0, "p1")]


def test_nonsense_on_the_wire_is_tried_once_more():
    assert waits(tries(), Failed(ErrorKind.UPSTREAM_PROTOCOL, "")) == [(1.0, "p0")]


def test_waits_are_jittered_both_ways():
    low, high = (Tries([Deployment("p", "x", "k", "m")], 30, chance=lambda c=c: c) for c in (0.0, 1.0))

    assert (low.after(Failed(UNAVAILABLE, "")), high.after(Failed(UNAVAILABLE, ""))) == (0.75, 1.25)


def test_calls_are_counted_over_deployments():
    both = tries(2)
    waits(both, Failed(UNAVAILABLE, ""))

    assert both.count == 6
