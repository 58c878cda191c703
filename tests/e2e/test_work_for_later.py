"""Can a request of any dialect be work for later, and does such work wait for its upstream without holding a worker's slot?"""

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

from common.redis import keyspace
from demo_provider.script import answer
from tests.support.clients.generations_client import JSON, read_record, start_generation, url, wait_until_ended
from tests.support.clients.routes import ROUTES
from tests.support.fleet import CHAT, ROOT, Fleet, body_of, fleet, headers_of, until


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """One worker with one slot, for which an interactive request waits only shortly."""
    settings = {
        "SLUICE_SECRET": "s3cret-of-enough-length-for-everybody",
        "SLUICE_WORKER_SLOTS": "1",
        "SLUICE_QUEUE_WAIT_S": "0.5",
        "SLUICE_STATUS_HOLD_S": "0.5",
    }
    with fleet(tmp_path_factory.mktemp("narrow"), **settings) as found:
        yield found


@pytest.fixture
def busy(narrow: Fleet) -> Iterator[Fleet]:
    """The same, and its slot is taken until the test is over."""
    generation_id = start_generation(narrow, CHAT, "n100000-d10").json()["id"]
    until(lambda: read_record(narrow, generation_id)["status"] == "running", "the slot is taken")
    yield narrow
    narrow.client.delete(f"{narrow.url}/v1/generations/{generation_id}", headers=headers_of())
    until(lambda: narrow.waiting() + narrow.running() == 0, "the slot is free")


@pytest.mark.parametrize("name", ROUTES)
def test_each_class_has_its_own_deadline_in_every_dialect(busy: Fleet, name: str):
    route = ROUTES[name]
    address = busy.url + route.path.replace("{provider}", "openai")
    body = {"model": "openai/demo-n3" if route.provider_in == "model" else "demo-n3", "stream": True, **route.fields}
    body |= {"provider": "openai"} if route.provider_in == "body" else {}
    for headers, job_class, wait_s in (({}, "interactive", 0.5), ({"x_sluice_class": "background"}, "background", 86_400)):
        with busy.client.stream("POST", address, json=body, headers=headers_of(**headers)) as response:
            generation_id = response.headers["x-generation-id"]
            job = {field.decode(): value.decode() for field, value in busy.redis.hgetall(keyspace.JOB + generation_id).items()}
            record = read_record(busy, generation_id)

        assert (response.status_code, job["class"], record["class"]) == (200, job_class, job_class)
        assert int(job["claim_by_ms"]) - int(job["enqueued_ms"]) == wait_s * 1000


@pytest.mark.parametrize("name", ROUTES)
def test_a_class_that_is_none_is_refused_in_the_dialects_shape(narrow: Fleet, name: str):
    response = narrow.client.post(
        narrow.url + ROUTES[name].path.replace("{provider}", "openai"),
        json={"model": "openai/demo-n3", "provider": "openai", **ROUTES[name].fields},
        headers=headers_of(x_sluice_class="urgent"),
    )

    assert response.status_code == 400
    assert "x-sluice-class" in response.text


@pytest.mark.parametrize(("headers", "job_class"), [({}, "background"), ({"x_sluice_class": "interactive"}, "interactive")])
@pytest.mark.parametrize("dialect", ["openai-chat", "openai-responses", "anthropic-messages"])
def test_what_is_started_for_later_is_background_unless_it_says_otherwise(narrow: Fleet, dialect, headers, job_class):
    generation_id = start_generation(narrow, dialect, "n3-d0", **headers).json()["id"]

    record = wait_until_ended(narrow, generation_id)

    assert (record["status"], record["class"]) == ("completed", job_class)


def test_a_response_in_the_background_may_be_interactive_all_the_same(narrow: Fleet):
    for headers, job_class in (({}, "background"), ({"x_sluice_class": "interactive"}, "interactive")):
        body = {"model": "openai/demo-n3-d0", "input": "hi", "background": True}
        response = narrow.client.post(f"{narrow.url}/v1/responses", json=body, headers=headers_of(**headers))

        assert read_record(narrow, response.headers["x-generation-id"])["class"] == job_class


def test_a_key_for_background_work(narrow: Fleet):
    made = subprocess.run(
        [sys.executable, "-m", "cli.main", "keys", "create", "--class", "background", "--json"],
        env={**narrow.env(), "PATH": ""},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    key = json.loads(made.stdout)["key"]
    unsaid = narrow.post(CHAT, body_of(CHAT, "openai/demo-n3-d0"), key=key)
    above = narrow.post(CHAT, body_of(CHAT, "openai/demo-n3-d0"), key=key, x_sluice_class="interactive")

    read = narrow.client.get(url(narrow, unsaid.headers["x-generation-id"]), headers=headers_of(key) | JSON)
    assert (unsaid.status_code, read.json()["class"]) == (200, "background")
    assert (above.status_code, above.json()["error"]["code"]) == (403, "class_not_allowed")


def test_background_work_waits_for_its_upstream_without_a_slot(narrow: Fleet):
    narrow.reset_demo()
    generation_id = start_generation(narrow, CHAT, "n3-d0-e429x1-ra2").json()["id"]
    until(lambda: narrow.stats()["requests"] == 1 and narrow.running() == 0, "it has given back its slot")

    # Another model, whose quota is its own, has the slot meanwhile.
    assert narrow.post(CHAT, body_of(CHAT, "openai/demo-n2-d0")).status_code == 200
    assert read_record(narrow, generation_id)["status"] == "running"

    record = wait_until_ended(narrow, generation_id, include="text")
    assert (record["status"], record["text"], record["tries"], record["takeovers"]) == ("completed", answer(3), 2, 0)


def test_a_streaming_client_is_given_the_true_status_while_there_is_time(narrow: Fleet):
    response = narrow.post(CHAT, {**body_of(CHAT, "openai/demo-n4-d0-e429-ra3"), "stream": True})

    assert (response.status_code, response.headers["retry-after"]) == (429, "3")
