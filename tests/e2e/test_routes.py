"""Routes with real processes: what is called first, what happens to a target that is down, and what the client is told."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import orjson
import pytest

from cli.dev.embedded_redis import free_port
from tests.support.fleet import CHAT, Fleet, body_of, fleet, until

MODEL = "demo-n3-d0"


@pytest.fixture(scope="module")
def routed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Two workers, and routes to three names of the demo provider, of which ``gone`` has no server."""
    dead = f"http://127.0.0.1:{free_port()}/v1"
    routes = {
        "safe": {"targets": [f"gone/{MODEL}", f"one/{MODEL}", {"model": f"two/{MODEL}", "priority": 2}]},
        "spread": {"strategy": "weighted", "targets": [{"model": f"one/{MODEL}", "weight": 3}, f"two/{MODEL}"]},
        "same": {"affinity": True, "targets": [f"one/{MODEL}", f"two/{MODEL}"]},
        "sticky": {"affinity": True, "targets": [f"one/{MODEL}", f"gone/{MODEL}"]},
        "near": {"targets": [{"model": f"one/{MODEL}", "tags": ["us"]}, {"model": f"two/{MODEL}", "tags": ["eu"]}]},
    }
    with fleet(tmp_path_factory.mktemp("routes"), apis=0, workers=0) as gateway:
        live = {"base_url": f"{gateway.demo_url}/v1"}
        providers = {"one": live, "two": live, "gone": {"base_url": dead}}
        gateway.settings |= {
            "SLUICE_PROVIDERS": orjson.dumps(providers).decode(),
            "SLUICE_ROUTES": orjson.dumps(routes).decode(),
            "SLUICE_RETRY_BACKOFF_S": "0.01",
        }
        yield gateway.start(apis=1, workers=2)


def chosen(gateway: Fleet, model: str, **headers: str) -> tuple[str, int]:
    """Return the target that answered, and the number of calls."""
    response = gateway.post(CHAT, body_of(CHAT, model), **headers)
    assert response.status_code == 200, response.text
    target, _, attempts = response.headers["x-sluice-route"].partition("; attempts=")
    return target.partition("/")[0], int(attempts)


def test_a_target_that_is_down_costs_an_attempt_only_until_that_is_known(routed: Fleet):
    first = chosen(routed, "safe")
    assert (first[0], first[1] > 1) == ("one", True)

    until(lambda: chosen(routed, "safe") == ("one", 1), "the dead target is called last")
    with ThreadPoolExecutor(8) as threads:
        calls = list(threads.map(lambda _: chosen(routed, "safe"), range(60)))

    assert {name for name, _ in calls} == {"one"}
    # One request of all workers tries the dead one again when its rest is over; all others never meet it.
    assert sum(attempts > 1 for _, attempts in calls) <= 2


def test_weights_are_shares_of_the_requests(routed: Fleet):
    with ThreadPoolExecutor(4) as threads:
        names = [name for name, _ in threads.map(lambda _: chosen(routed, "spread"), range(120))]
    assert 65 <= names.count("one") <= 112


def test_a_conversation_stays_at_one_target(routed: Fleet):
    by_session = {number: {chosen(routed, "same", x_session_id=f"s{number}")[0] for _ in range(3)} for number in range(12)}
    assert all(len(names) == 1 for names in by_session.values())
    assert len(set().union(*by_session.values())) == 2


def test_conversations_of_a_dead_target_go_to_another_one(routed: Fleet):
    def ask() -> list[tuple[str, int]]:
        return [chosen(routed, "sticky", x_session_id=f"s{number}") for number in range(12)]

    answers = ask()
    assert {name for name, _ in answers} == {"one"}
    until(lambda: {attempts for _, attempts in ask()} == {1}, "the dead target is not called any more")


def test_tags_choose_the_target(routed: Fleet):
    assert chosen(routed, "near", x_sluice_tags="eu")[0] == "two"
    refused = routed.post(CHAT, body_of(CHAT, "near"), x_sluice_tags="moon")
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "x-sluice-tags")


def test_other_names_say_nothing_of_their_provider(routed: Fleet):
    response = routed.post(CHAT, body_of(CHAT, f"one/{MODEL}"))
    assert "x-sluice-route" not in response.headers
