"""In which order a route's deployments are called."""

import random
from collections import Counter

import pytest

from common.config.settings import Settings
from workers.providers.base import Deployment
from workers.quota.health import name_of
from workers.routing.order import Router
from workers.routing.traffic import DECAY_S, NAMES_MAX, SLOW_S, Traffic

PROVIDERS = {name: {"base_url": "http://127.0.0.1:9"} for name in ("a", "b", "c")}
A, B, C = (Deployment(name, "http://x", "k", "m", key_id=f"{name}:1") for name in "abc")
A2 = Deployment("a", "http://x", "k2", "m", key_id="a:2")


class Lab:
    def __init__(self, targets=("a/m", "b/m", "c/m"), seed=1, prices=None, **route) -> None:
        self.now = 0.0
        self.traffic = Traffic(lambda: self.now)
        routes = {"fast": {"targets": list(targets), **route}}
        self.settings = Settings(providers=PROVIDERS, routes=routes, prices=prices or {})
        self.router = Router(self.settings, self.traffic, random.Random(seed).random)

    def order(self, *deployments, model="fast", conversation=""):
        return self.router.order(model, conversation, list(deployments or (A, B, C)))

    def firsts(self, times=2000, **arguments):
        return Counter(self.order(**arguments)[0].provider for _ in range(times))


def test_a_route_is_an_alias_with_more():
    lab = Lab()
    assert lab.settings.aliases == {"fast": ["a/m", "b/m", "c/m"]}
    assert lab.order() == [A, B, C]
    assert lab.order(C, A, model="another") == [C, A], "other names stay as they are"


def test_lower_priorities_come_first_whatever_the_strategy():
    targets = [
        {"model": "a/m", "priority": 2},
        {"model": "b/m", "priority": 1},
        {"model": "c/m", "priority": 2},
    ]
    for strategy in ("priority", "weighted", "least_busy", "fastest", "cheapest"):
        assert Lab(targets, strategy=strategy).order()[0] is B
    assert Lab(targets, affinity=True).order(conversation="x")[0] is B


def test_weights_are_shares_of_the_requests():
    targets = [{"model": "a/m", "weight": 7}, {"model": "b/m", "weight": 2}, {"model": "c/m", "weight": 1}]
    firsts = Lab(targets, strategy="weighted").firsts()
    assert [round(firsts[name] / 2000, 1) for name in "abc"] == [0.7, 0.2, 0.1]


def test_a_target_s_weight_is_divided_among_its_keys():
    lab = Lab(["a/m", "b/m"], strategy="weighted")
    firsts = Counter(lab.order(A, A2, B)[0].key_id for _ in range(3000))
    assert all(abs(firsts[key] / 3000 - share) < 0.05 for key, share in (("a:1", 0.25), ("a:2", 0.25), ("b:1", 0.5)))


def test_the_least_busy_comes_first_and_weights_count():
    lab = Lab([{"model": "a/m", "weight": 4}, "b/m", "c/m"], strategy="least_busy")
    for deployment, running in ((A, 3), (B, 1), (C, 2)):
        for _ in range(running):
            lab.traffic.begin(name_of(deployment))
    assert lab.order() == [A, B, C]
    lab.traffic.end(name_of(B))
    assert lab.order() == [B, A, C]


@pytest.mark.parametrize("strategy", ["least_busy", "fastest"])
def test_equal_ones_get_equal_shares(strategy):
    firsts = Lab(strategy=strategy).firsts()
    assert all(abs(firsts[name] / 2000 - 1 / 3) < 0.06 for name in "abc")


def test_a_call_that_ends_twice_makes_nothing_idler_than_idle():
    lab = Lab(["a/m", "b/m"], strategy="least_busy")
    for _ in range(3):
        lab.traffic.begin(name_of(A))
        lab.traffic.end(name_of(A))
        lab.traffic.end(name_of(A))
    assert lab.traffic.load(name_of(A)) == 0


def test_the_fastest_of_two_comes_first_and_the_slowest_never():
    lab = Lab(strategy="fastest")
    for deployment, seconds in ((A, 0.1), (B, 0.5), (C, 2.0)):
        lab.traffic.record_ttft(name_of(deployment), seconds)
    firsts = lab.firsts()
    assert firsts["a"] > firsts["b"] > 0 == firsts["c"]
    for _ in range(30):
        lab.traffic.begin(name_of(A))
    assert lab.firsts()["a"] == 0, "its running calls count"


def test_an_unknown_deployment_is_tried():
    lab = Lab(strategy="fastest")
    lab.traffic.record_ttft(name_of(A), 0.1)
    lab.traffic.record_ttft(name_of(B), 0.1)
    assert lab.firsts()["c"] > 0


def test_the_cheapest_comes_first_and_an_unknown_price_last():
    price = {"output_usd_per_mtok": 1}
    lab = Lab(
        strategy="cheapest", prices={"b/m": {"input_usd_per_mtok": 2, **price}, "c/m": {"input_usd_per_mtok": 1, **price}}
    )
    assert lab.order() == [C, B, A]


def test_a_conversation_stays_where_it_is_when_others_come_and_go():
    lab = Lab(affinity=True)
    homes = {number: lab.order(conversation=str(number))[0] for number in range(300)}
    assert {home.provider for home in homes.values()} == {"a", "b", "c"}
    for number, home in homes.items():
        assert lab.order(conversation=str(number))[0] is home
        left = [deployment for deployment in (A, B, C) if deployment is not home]
        assert lab.order(home, left[0], conversation=str(number))[0] is home


def test_a_conversation_stays_at_its_key():
    lab = Lab(["a/m"], affinity=True)
    homes = {number: lab.order(A, A2, conversation=str(number))[0] for number in range(50)}
    assert {home.key_id for home in homes.values()} == {"a:1", "a:2"}
    assert all(lab.order(A2, A, conversation=str(number))[0] is home for number, home in homes.items())


def test_weights_are_shares_of_the_conversations():
    lab = Lab([{"model": "a/m", "weight": 3}, "b/m"], affinity=True)
    firsts = Counter(lab.order(A, B, conversation=str(number))[0].provider for number in range(2000))
    assert abs(firsts["a"] / 2000 - 0.75) < 0.05


def test_without_a_conversation_the_strategy_decides():
    assert Lab(affinity=True).order() == [A, B, C]


def test_a_slow_answer_counts_at_once_and_is_forgotten_slowly():
    lab = Lab()
    lab.traffic.record_ttft("a", 0.1)
    lab.traffic.record_ttft("a", 5.0)
    assert lab.traffic.expected_s("a") == 5.0
    lab.now += DECAY_S
    lab.traffic.record_ttft("a", 0.1)
    assert 1.5 < lab.traffic.expected_s("a") < 2.5


def test_a_deployment_that_was_slow_is_tried_again_some_time_later():
    lab = Lab(["a/m", "b/m"], strategy="fastest")
    lab.traffic.record_ttft(name_of(A), 20.0)
    lab.traffic.record_ttft(name_of(B), 0.1)
    assert lab.order(A, B)[0] is B
    for _ in range(10):
        lab.now += DECAY_S
        lab.traffic.record_ttft(name_of(B), 0.1)
    assert lab.order(A, B)[0] is A


def test_one_request_tries_an_unknown_deployment_and_others_do_not_follow_it():
    lab = Lab(["a/m", "b/m"], strategy="fastest")
    lab.traffic.record_ttft(name_of(A), 0.5)
    assert lab.order(A, B)[0] is B
    lab.traffic.begin(name_of(B))
    assert lab.order(A, B)[0] is A


@pytest.mark.parametrize("strategy", ["least_busy", "fastest"])
def test_a_deployment_that_fails_at_once_is_not_first_for_being_idle(strategy):
    lab = Lab(["a/m", "b/m"], strategy=strategy)
    lab.traffic.record_ttft(name_of(B), SLOW_S / 10)
    for _ in range(3):
        lab.traffic.begin(name_of(B))
        lab.traffic.begin(name_of(A))
        lab.traffic.end(name_of(A))
        lab.traffic.record_failure(name_of(A))
    lab.traffic.end(name_of(B))
    assert lab.order(A, B)[0] is B
    lab.now += 5 * DECAY_S
    lab.traffic.record_ttft(name_of(B), SLOW_S / 10)
    assert lab.order(A, B)[0] is A, "failures fade"


def test_names_that_clients_invent_are_bounded():
    traffic = Traffic(lambda: 0.0)
    for number in range(NAMES_MAX + 20):
        traffic.record_ttft(f"m{number}", 1)
        traffic.record_failure(f"m{number}")
        traffic.begin(f"m{number}")
        traffic.end(f"m{number}")
    assert len(traffic._ttft_s) == len(traffic._failed) == NAMES_MAX
    assert not traffic._running


@pytest.mark.parametrize(
    ("routes", "words"),
    [
        ({"fast": {"targets": []}}, "targets"),
        ({"fast": {"targets": [{"model": "a/m", "weight": 0}]}}, "weight"),
        ({"fast": {"targets": ["a/m"], "strategy": "best"}}, "strategy"),
        ({"fast": {"targets": ["a/m"], "unknown": 1}}, "unknown"),
        ({"fast": {"targets": [{"model": "a/m", "tags": ["No Blank"]}]}}, "tags"),
    ],
)
def test_a_wrong_route_is_refused(routes, words):
    with pytest.raises(ValueError, match=words):
        Settings(providers=PROVIDERS, routes=routes)


def test_a_name_is_a_route_or_an_alias():
    with pytest.raises(ValueError, match="fast"):
        Settings(providers=PROVIDERS, routes={"fast": {"targets": ["a/m"]}}, aliases={"fast": ["b/m"]})


def test_weights_that_nothing_uses_are_refused():
    with pytest.raises(ValueError, match="weights have no effect"):
        Lab([{"model": "a/m", "weight": 2}, "b/m"])
