"""Which deployments are called last, and when one of them is tried again."""

import pytest

from common.canonical.errors import ErrorKind, Failed, StoreUnavailable
from common.redis import keyspace
from workers.providers.base import Deployment
from workers.quota.gate import scripts_of
from workers.quota.health import (
    FAILURES_MIN,
    KEPT_S,
    KEY_REST_S,
    NAMES_MAX,
    PROBE_S,
    REST_S,
    SENT_S,
    WINDOW_S,
    Health,
    name_of,
)

A, B, C = (Deployment(provider, "http://x", "k", "m", key_id=f"{provider}:1") for provider in "abc")
DOWN = Failed(ErrorKind.UPSTREAM_UNAVAILABLE, "down")
SILENT = Failed(ErrorKind.UPSTREAM_TIMEOUT, "silent")
REFUSED_KEY = Failed(ErrorKind.UPSTREAM_CREDENTIALS, "key")


class Lab:
    def __init__(self) -> None:
        self.now = 1000.0
        self.claims: list[str] = []
        self.may_probe = True
        self.health = Health(lambda: self.now, self._claim)

    async def _claim(self, name: str) -> bool:
        self.claims.append(name)
        return self.may_probe

    def fail(self, deployment=A, failed=DOWN, times=FAILURES_MIN):
        for _ in range(times):
            self.health.record_failure(deployment, failed)

    async def order(self, *deployments):
        return (await self.health.order(deployments or (A, B)))[0]


@pytest.fixture
def lab() -> Lab:
    return Lab()


async def test_nothing_is_known_at_first(lab):
    assert await lab.health.order([A, B]) == ([A, B], [])


async def test_one_that_fails_most_calls_is_called_last_and_once(lab):
    lab.fail(times=FAILURES_MIN - 1)
    assert await lab.order() == [A, B]
    lab.fail(times=1)

    assert await lab.health.order([A, B, C]) == ([B, C, A], [A])


async def test_some_failures_among_many_successes_are_no_illness(lab):
    lab.fail(times=1)
    for _ in range(FAILURES_MIN * 3):
        lab.health.record_success(A)
        lab.health.record_success(A)
        lab.fail(times=1)
    assert await lab.order() == [A, B]


async def test_failures_of_long_ago_do_not_count(lab):
    lab.fail(times=FAILURES_MIN - 1)
    lab.now += WINDOW_S + 1
    lab.fail(times=FAILURES_MIN - 1)
    assert await lab.order() == [A, B]


async def test_two_silent_calls_in_a_row_are_enough(lab):
    lab.fail(failed=SILENT, times=1)
    lab.health.record_begun(A)
    lab.fail(failed=SILENT, times=1)
    assert await lab.order() == [A, B]
    lab.fail(failed=SILENT, times=1)
    assert await lab.order() == [B, A]


async def test_a_timeout_that_the_upstream_itself_reports_is_not_silence(lab):
    lab.fail(failed=Failed(ErrorKind.UPSTREAM_TIMEOUT, "504", status=504), times=2)
    assert await lab.order() == [A, B]


async def test_a_refused_key_is_enough_and_rests_longer(lab):
    lab.fail(failed=REFUSED_KEY, times=1)
    assert await lab.order() == [B, A]
    lab.now += KEY_REST_S - 1
    assert await lab.order() == [B, A]


@pytest.mark.parametrize(
    "kind",
    [
        ErrorKind.INVALID_REQUEST,
        ErrorKind.UPSTREAM_REJECTED,
        ErrorKind.CONTEXT_LENGTH_EXCEEDED,
        ErrorKind.CONTENT_POLICY_VIOLATION,
        ErrorKind.UPSTREAM_MODEL_NOT_FOUND,
    ],
)
async def test_clients_errors_are_no_illness(lab, kind):
    lab.fail(failed=Failed(kind, "no"), times=50)
    assert await lab.order() == [A, B]


async def test_a_rate_limit_is_an_illness_only_if_nobody_knows_for_how_long_it_lasts(lab):
    lab.fail(failed=Failed(ErrorKind.UPSTREAM_RATE_LIMITED, "slow down", retry_after_s=1), times=50)
    assert await lab.order() == [A, B]
    lab.fail(failed=Failed(ErrorKind.UPSTREAM_RATE_LIMITED, "slow down"))
    assert await lab.order() == [B, A]


async def test_an_account_without_credit_rests_like_a_refused_key(lab):
    lab.fail(failed=Failed(ErrorKind.UPSTREAM_QUOTA_SPENT, "no credit"), times=1)
    lab.now += KEY_REST_S - 1
    assert await lab.order() == [B, A]


async def test_a_trial_that_begins_and_breaks_off_makes_nothing_well(lab):
    lab.fail()
    lab.now += REST_S + 0.1
    assert await lab.order() == [A, B]
    lab.health.record_begun(A)
    assert await lab.order() == [B, A]
    lab.fail(times=1)
    lab.now += 2 * REST_S - 0.5
    assert await lab.order() == [B, A]


async def test_a_trial_that_says_nothing_is_made_again_by_the_next_request(lab):
    lab.fail()
    lab.now += REST_S + 0.1
    assert await lab.order() == [A, B]
    lab.fail(failed=Failed(ErrorKind.CONTEXT_LENGTH_EXCEEDED, "too long"), times=1)

    assert [change[1] for change in lab.health.pop_changes()] == [1], "other workers may make it too"
    assert await lab.order() == [A, B]
    assert await lab.order() == [B, A]


async def test_a_trial_whose_client_leaves_is_made_again_by_the_next_request(lab):
    lab.health.abandon_trial(A)
    lab.fail()
    lab.health.abandon_trial(A)
    assert await lab.order() == [B, A], "it was no trial"
    lab.now += REST_S + 0.1
    assert await lab.order() == [A, B]
    lab.health.abandon_trial(A)
    assert await lab.order() == [A, B]


async def test_only_the_first_choice_is_tried_again(lab):
    lab.fail(B)
    lab.now += REST_S + 0.1

    assert await lab.health.order([A, B, C]) == ([A, C, B], [B])
    assert lab.claims == [], "its trial is left to a request that makes it"
    assert await lab.order(B, A) == [B, A]


async def test_one_rests_until_it_is_time_to_try_it_again(lab):
    assert not lab.health.rests(A)
    lab.fail()
    assert lab.health.rests(A) and not lab.health.rests(B)
    lab.now += REST_S + 0.1
    assert not lab.health.rests(A)


async def test_a_client_s_own_key_says_nothing_of_ours(lab):
    own = Deployment("a", "http://x", "k", "m", key_id="a:1", client_pays=True)
    lab.fail(own, REFUSED_KEY)
    assert await lab.order() == [A, B]


async def test_a_route_never_has_fewer_deployments(lab):
    lab.fail(A)
    assert await lab.health.order([A]) == ([A], []), "one deployment alone keeps all its attempts"
    lab.fail(B)
    assert await lab.health.order([A, B]) == ([A, B], []), "and so do all if all are unwell"


async def test_after_its_rest_one_request_tries_it_again_and_success_makes_it_well(lab):
    lab.fail()
    lab.now += REST_S + 0.1
    assert await lab.order() == [A, B]
    assert await lab.order() == [B, A], "the others do not"
    assert lab.claims == [name_of(A)]

    lab.health.record_success(A)
    assert await lab.order() == [A, B]


async def test_another_worker_tries_it_and_ours_does_not(lab):
    lab.may_probe = False
    lab.fail()
    lab.now += REST_S + 0.1
    assert await lab.order() == [B, A]


async def test_a_failed_trial_doubles_the_rest(lab):
    lab.fail()
    lab.now += REST_S + 0.1
    assert await lab.order() == [A, B]
    lab.fail(times=1)

    lab.now += 2 * REST_S - 0.5
    assert await lab.order() == [B, A]
    lab.now += 1
    assert await lab.order() == [A, B]


async def test_failures_of_calls_that_began_before_the_rest_do_not_lengthen_it(lab):
    lab.fail(times=500)
    lab.now += REST_S + 0.1
    assert await lab.order() == [A, B]


async def test_the_vendor_s_own_wait_counts_up_to_a_limit(lab):
    lab.fail(failed=Failed(ErrorKind.UPSTREAM_UNAVAILABLE, "down", retry_after_s=20))
    lab.now += 19
    assert await lab.order() == [B, A]
    lab.fail(C, Failed(ErrorKind.UPSTREAM_UNAVAILABLE, "down", retry_after_s=10**9))
    lab.now += 61
    assert await lab.order(C, B) == [C, B]


async def test_without_redis_each_worker_decides_for_itself(lab):
    async def away(_):
        raise StoreUnavailable("away")

    lab.health = Health(lambda: lab.now, away)
    lab.fail()
    lab.now += REST_S + 0.1
    assert await lab.order() == [A, B]


async def test_what_another_worker_learned_counts_here(lab):
    lab.health.merge({name_of(A).encode(): b"5000", name_of(A).encode() + b" times": b"1"}, redis_ms=1000)
    assert await lab.order() == [B, A]
    assert lab.health.unwell_by_provider() == {"a": 1}
    lab.now += SENT_S + 0.1

    lab.health.merge({}, redis_ms=4000)
    assert await lab.order() == [A, B], "and that it is well again, too"


async def test_rests_in_a_row_are_counted_over_all_workers(lab):
    lab.health.merge({name_of(A).encode(): b"1100", name_of(A).encode() + b" times": b"3"}, redis_ms=1000)
    lab.now += 0.2
    assert await lab.order() == [A, B]
    lab.fail(times=1)

    assert lab.health.pop_changes() == [(name_of(A), 8 * REST_S * 1000, 4)]


async def test_a_rest_that_another_worker_shortened_is_shorter_here(lab):
    lab.may_probe = False
    lab.fail()
    lab.now += REST_S + 0.1
    assert await lab.order() == [B, A], "another worker tries it, for as long as that may last"
    lab.health.pop_changes()
    lab.now += SENT_S + 0.1

    lab.health.merge({name_of(A).encode(): b"2000"}, redis_ms=1000)
    lab.now += 1.1
    lab.may_probe = True
    assert await lab.order() == [A, B]


async def test_news_are_told_once_and_not_undone_by_older_answers(lab):
    lab.fail()
    assert lab.health.pop_changes() == [(name_of(A), REST_S * 1000, 1)]
    assert lab.health.pop_changes() == []
    lab.health.merge({}, redis_ms=1000)
    assert await lab.order() == [B, A]

    lab.health.record_success(A)
    lab.health.merge({name_of(A).encode(): b"9000"}, redis_ms=1000)
    assert await lab.order() == [A, B]
    assert lab.health.pop_changes() == [(name_of(A), 0, 0)]


def test_names_that_clients_invent_are_bounded(lab):
    for number in range(NAMES_MAX + 50):
        lab.fail(Deployment("a", "http://x", "k", f"m{number}", key_id="a:1"), times=1)
    assert len(lab.health._windows) == NAMES_MAX


# The scripts


async def test_rests_are_stored_ended_and_bounded(redis):
    scripts = scripts_of(redis)

    async def store(*changes, names_max=2):
        await scripts.run("rests", [keyspace.UNWELL], [names_max, int(KEPT_S * 1000), *changes])
        names = {name.decode() for name in await redis.hkeys(keyspace.UNWELL)}
        assert {name for name in names if name.endswith(" times")} == {f"{name} times" for name in names if len(name) == 1}
        return {name for name in names if len(name) == 1}

    assert await store("a", 5000, 1, "b", 5000, 1) == {"a", "b"}
    assert await store("c", 5000, 1) == {"a", "b"}
    assert await store("a", 0, 0) == {"b"}
    assert await store("c", 5000, 1, "b", 9000, 2) == {"b", "c"}
    assert await redis.hget(keyspace.UNWELL, "b times") == b"2"
    assert await redis.pttl(keyspace.UNWELL) > KEPT_S * 1000
    await redis.hset(keyspace.UNWELL, "b", 1)
    assert await store("d", 1, 1) == {"c", "d"}, "what nobody has tried for a long time is forgotten"


async def test_one_of_all_workers_may_try(redis):
    scripts = scripts_of(redis)

    async def claim():
        return await scripts.run("probe", [keyspace.UNWELL], ["a", int(PROBE_S * 1000)])

    assert await claim() == 1, "it is well already"
    await redis.hset(keyspace.UNWELL, "a", 1)
    assert [await claim(), await claim()] == [1, 0]
