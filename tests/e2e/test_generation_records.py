"""What does the gateway tell about a generation, to one who asks for JSON?"""

import asyncio
import itertools
import uuid
from collections.abc import Iterator

import pytest
from starlette.datastructures import Headers
from starlette.requests import HTTPConnection

from api.auth.authenticator import Authenticator
from common.canonical.job import Policy
from common.channel.base import Append, Claim, Frame, FrameId, FrameKind, Opening
from common.channel.redis import RedisChannel
from common.config.settings import Settings
from common.redis import keyspace
from common.redis.client import connect
from demo_provider.script import answer
from tests.support.clients.generations_client import JSON, read_record, start_generation, stop, url, wait_until_ended
from tests.support.fleet import CHAT, DIALECTS, FAMILY_OF, KEY, MESSAGES, OTHER_KEY, Fleet, body_of, fleet, headers_of, until


@pytest.fixture(scope="module")
def replicas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    settings = {
        "SLUICE_SECRET": "a secret of these tests, 32 bytes or more",
        "SLUICE_HEARTBEAT_S": "0.2",
        "SLUICE_RETENTION_STOP_S": "60",
    }
    with fleet(tmp_path_factory.mktemp("replicas"), apis=2, **settings) as found:
        yield found


@pytest.fixture(autouse=True)
def _fresh(replicas: Fleet) -> Iterator[None]:
    replicas.reset_demo()
    yield
    until(lambda: replicas.stats()["open"] == 0, "all upstreams are closed")


# The record


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(("dialect", "provider"), [*itertools.product(DIALECTS, FAMILY_OF.values())])
def test_the_record_tells_what_a_generation_took(replicas: Fleet, dialect: str, provider: str, stream: bool):
    response = replicas.post(dialect, body_of(dialect, f"{provider}/demo-n12-d1", stream=stream))

    said = read_record(replicas, response.headers["x-generation-id"], replica=1, include="text")

    assert said.pop("created_at") > 1_700_000_000
    timings = said.pop("timings")
    assert 0 <= timings["queue_wait_ms"] <= timings["ttft_ms"] <= timings["duration_ms"]
    usage = said.pop("usage")
    assert usage["output_tokens"] == 12
    assert usage["input_tokens"] > 0
    generation_id = response.headers["x-generation-id"]
    assert said == {
        "id": generation_id,
        "object": "generation",
        "status": "completed",
        "dialect": dialect,
        "model": f"{provider}/demo-n12-d1",
        "url": f"/v1/generations/{generation_id}",
        "class": "interactive",
        "stream": stream,
        "provider": provider,
        "tries": 1,
        "takeovers": 0,
        "cost": None,  # The demo's models have no price.
        "finish_reason": "stop",
        "error": None,
        "text": answer(12),
    }


def test_a_price_that_is_known_is_told_as_text(tmp_path):
    prices = '{"openai/demo-n12-d0": {"input_usd_per_mtok": 1, "output_usd_per_mtok": 2.5}}'
    with fleet(tmp_path, SLUICE_PRICES=prices) as found:
        response = found.post(CHAT, body_of(CHAT, "openai/demo-n12-d0", stream=True))
        said = read_record(found, response.headers["x-generation-id"])

    assert said["cost"]["output_usd"] == "0.00003"
    assert float(said["cost"]["total_usd"]) == pytest.approx(said["usage"]["input_tokens"] / 1e6 + 0.00003)


def test_partial_text_grows_while_it_runs(replicas: Fleet):
    generation_id = start_generation(replicas, MESSAGES, "n100000-d5").json()["id"]

    lengths = [len(until(lambda: read_record(replicas, generation_id, include="text")["text"], "text has come"))]
    until(lambda: len(read_record(replicas, generation_id, include="text")["text"]) > lengths[0], "more has come")
    running = read_record(replicas, generation_id)
    stop(replicas, generation_id)
    over = wait_until_ended(replicas, generation_id, include="text")

    assert (running["status"], running["provider"], running["tries"]) == ("running", "openai", 1)
    assert running["timings"]["duration_ms"] is None
    assert "text" not in running
    assert (over["status"], over["error"]["code"]) == ("cancelled", "cancelled")
    assert answer(100_000).startswith(over["text"])
    assert len(over["text"]) > lengths[0]


def test_the_record_of_a_failure_tells_the_tries(replicas: Fleet):
    failed = replicas.post(CHAT, body_of(CHAT, "openai/demo-e400", stream=True))

    said = read_record(replicas, failed.headers["x-generation-id"])

    assert (failed.status_code, said["status"], said["tries"]) == (400, "failed", 1)
    assert said["error"]["kind"] == "upstream_rejected"
    assert said["usage"] is None


def test_asking_about_a_generation_is_not_listening_to_it(replicas: Fleet):
    generation_id = start_generation(replicas, CHAT, "n100000-d10", x_disconnect="grace=1").json()["id"]

    # Asked again and again, it still ends as nobody came.
    assert wait_until_ended(replicas, generation_id)["error"]["message"] == "The generation was stopped: its client left."


@pytest.mark.parametrize("accept", ["application/json", "application/json; q=1", "application/json, */*"])
def test_json_is_the_record_and_anything_else_the_answer(replicas: Fleet, accept: str):
    generation_id = replicas.post(CHAT, body_of(CHAT, "demo-n3-d0", stream=True)).headers["x-generation-id"]

    def read(wanted: str) -> str:
        headers = headers_of() | {"accept": wanted}
        return replicas.client.get(url(replicas, generation_id), headers=headers).headers["content-type"].partition(";")[0]

    assert read(accept) == "application/json"
    assert [read(each) for each in ("text/event-stream", "*/*", f"text/event-stream, {accept}")] == ["text/event-stream"] * 3


def test_what_cannot_be_told_is_refused(replicas: Fleet):
    generation_id = replicas.post(CHAT, body_of(CHAT, "demo-n3-d0")).headers["x-generation-id"]

    def read(id_: str, key: str | None = None, **params: str) -> tuple[int, str]:
        headers = headers_of(**({} if key is None else {"key": key})) | JSON
        response = replicas.client.get(url(replicas, id_), params=params, headers=headers)
        return response.status_code, response.json()["error"]["param"] or response.json()["error"]["code"]

    assert read(generation_id, include="everything") == (400, "include")
    assert read(generation_id, key=OTHER_KEY) == (404, "generation_not_found")
    assert read("gen_" + "0" * 32) == read("gen_x") == (404, "generation_not_found")
    assert read(generation_id, key="")[0] == 401


# After takeovers


def test_a_takeover_is_told_by_the_record(tmp_path):
    settings = {
        "SLUICE_SECRET": "a secret of these tests, 32 bytes or more",
        "SLUICE_LEASE_S": "2",
        "SLUICE_RENEW_S": "0.5",
        "SLUICE_HEARTBEAT_S": "0.2",
    }
    with fleet(tmp_path, workers=2, **settings) as found:
        generation_id = start_generation(found, MESSAGES, "f3000-n20-d0").json()["id"]

        def busy() -> list[int]:
            alive = [index for index, worker in enumerate(found.workers) if worker.is_alive]
            return [index for index in alive if found.metrics(found.worker_ports[index])["sluice_running_generations"] == 1]

        found.workers[until(busy, "a worker has it")[0]].kill()
        said = wait_until_ended(found, generation_id, include="text")

    assert (said["status"], said["takeovers"], said["text"]) == ("completed", 1, answer(20))


def test_claims_that_added_nothing_to_a_whole_answer_are_nothing_to_come_back_for(replicas: Fleet):
    # Given a log whose last event was followed by claims that only ended it
    generation_id = "gen_" + uuid.uuid4().hex

    async def write() -> None:
        async with connect(replicas.redis_server.url) as redis:
            channel = RedisChannel(redis, 60)
            asking = HTTPConnection({"type": "http", "headers": Headers(headers_of()).raw})
            owner = (await Authenticator(Settings(api_keys=KEY)).authenticate(asking)).id
            await channel.open(generation_id, Opening(owner, CHAT, True, "m", 1, Policy.DETACH, 0, 60, 60, b"{}\n"), "")
            for epoch in range(1, 6):
                claim = Claim(generation_id, epoch, "t")
                await channel.fence(claim, is_handover=False)
                kind, data = (FrameKind.DATA, b"data: [DONE]\n\n") if epoch == 1 else (FrameKind.END, b'{"error":null}')
                if epoch in (1, 5):
                    await channel.append([Append(claim, FrameId(epoch, 0), [Frame(FrameId(epoch, 1), kind, data)])])

    asyncio.run(write())

    assert read_record(replicas, generation_id)["takeovers"] == 4
    assert replicas.client.get(url(replicas, generation_id), headers=headers_of()).text.endswith("data: [DONE]\n\n")
    assert replicas.client.get(url(replicas, generation_id), headers=headers_of(last_event_id="1-1.1")).status_code == 204


def test_a_log_that_lacks_its_end_is_not_taken_for_over_though_its_state_is(replicas: Fleet):
    """Just after a failover a replica may have the state from the old master, and the log from the new one."""
    generation_id = replicas.post(CHAT, body_of(CHAT, "demo-n12-d1", stream=True)).headers["x-generation-id"]
    log = keyspace.log(generation_id)
    entries = replicas.redis.xrange(log)
    seen, data = next((entry_id.decode(), fields[b"d"]) for entry_id, fields in entries if fields[b"k"] == b"data")
    replicas.redis.xdel(log, *(entry_id for entry_id, _ in entries if FrameId.from_text(entry_id) > FrameId.from_text(seen)))

    events = data.count(b"\n\n")
    headers = headers_of(last_event_id=f"{seen}.{events}")
    with replicas.client.stream("GET", url(replicas, generation_id), headers=headers) as response:
        assert response.status_code == 200
