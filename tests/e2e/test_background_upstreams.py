"""Answers that a provider runs in the background: nothing that happens between us and it is seen by a client."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo_provider.script import answer
from tests.support.clients.streams import DIALECTS, DialectStream
from tests.support.fleet import CHAT, QUICK_LEASE, Fleet, RawClient, body_of, fleet, until

REATTACHED = {"SLUICE_PROVIDERS": json.dumps({"openai": {"continuation": "reattach"}})}


@pytest.fixture
def found(tmp_path: Path) -> Iterator[Fleet]:
    with fleet(tmp_path, workers=1, **QUICK_LEASE, **REATTACHED) as made:
        yield made


def streams(found: Fleet, model: str) -> list[DialectStream]:
    """One stream per dialect."""
    return [DialectStream(found, dialect, "openai", model.replace("demo", f"demo-{i}")) for i, dialect in enumerate(DIALECTS)]


def asked(found: Fleet) -> dict[str, int]:
    return found.stats()["by_wire"]


def check_exact(made: list[DialectStream], tokens: int) -> None:
    for each in made:
        seen = each.finished().read(each.body)
        assert (seen.text, seen.output_tokens) == (answer(tokens), tokens), each.name


def test_a_killed_worker_s_answers_are_read_again(found: Fleet):
    reserve = found.start_reserve()
    made = streams(found, "demo-n250-d20")
    for each in made:
        until(lambda each=each: each.body.count(b"\n\n") > 10, f"{each.name} flows")

    found.workers[0].kill()
    reserve.send(signal.SIGCONT)

    check_exact(made, 250)
    assert asked(found) == {"responses": len(made), "responses/read": len(made)}
    assert found.stats()["completed"] == len(made)


def test_a_reset_connection_s_answers_are_read_again(found: Fleet):
    made = streams(found, "demo-n60-d20-cut20x1")

    check_exact(made, 60)
    assert asked(found) == {"responses": len(made), "responses/read": len(made)}
    assert found.stats()["completed"] == len(made)


def test_a_client_that_leaves_ends_what_runs_there(found: Fleet):
    with RawClient(found.ports[0]) as client:
        client.post(CHAT, body_of(CHAT, "openai/demo-n100000-d20", stream=True))
        client.read_until(b'"content":" ')

    until(lambda: found.stats()["aborted"] == 1 and found.stats()["open"] == 0, "the answer is cancelled")
    assert asked(found) == {"responses": 1, "responses/cancel": 1}


def test_a_stop_while_no_worker_has_it_ends_what_runs_there(found: Fleet):
    with RawClient(found.ports[0]) as client:
        client.post(CHAT, body_of(CHAT, "openai/demo-n100000-d20", stream=True))
        client.read_until(b'"content":" ')
        found.workers[0].kill()
        assert found.stats()["open"] == 1
    found.start_worker()

    until(lambda: found.stats()["open"] == 0, "the answer is cancelled")
    assert asked(found)["responses"] == 1


def test_the_answer_of_another_sluice_is_read_again_as_a_response(tmp_path: Path):
    (tmp_path / "upper").mkdir()
    (tmp_path / "lower").mkdir()
    with fleet(tmp_path / "upper") as upper:
        provider = {
            "base_url": f"{upper.url}/v1",
            "api_keys": "sk-test",
            "wire": "openai-responses",
            "continuation": "reattach",
        }
        settings = {"SLUICE_PROVIDERS": json.dumps({"upper": provider}), **QUICK_LEASE}
        with fleet(tmp_path / "lower", workers=1, **settings) as found:
            reserve = found.start_reserve()
            made = [DialectStream(found, dialect, "upper", "openai/demo-n250-d20") for dialect in DIALECTS]
            for each in made:
                until(lambda each=each: each.body.count(b"\n\n") > 10, f"{each.name} flows")

            found.workers[0].kill()
            reserve.send(signal.SIGCONT)

            check_exact(made, 250)
            assert upper.stats()["requests"] == len(made)
