"""Do any schedules of identical requests break single flight, exactness, or the walls between principals?

hypothesis makes the schedules: requests of two tenants on two replicas, in two dialects, streamed and whole, with several
disconnect policies, of which some leave, are stopped, come back, or are sent again. Nothing is killed here: see test_join.py.
"""

import asyncio
import itertools
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import aiohttp
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.support.clients.identical import PATHS, body, is_complete, without_ids
from tests.support.clients.ledger_rows import rows
from tests.support.fleet import CHAT, KEY, MESSAGES, OTHER_KEY, WAIT_S, Fleet, fleet, headers_of, until

TOKENS, PACE_MS = 25, 20
_numbers = itertools.count()


@pytest.fixture(scope="module")
def replicas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    settings_ = {
        "SLUICE_SECRET": "a secret of these tests, 32 bytes or more",
        "SLUICE_CACHE_TTL_S": "600",
        "SLUICE_CACHE_POLICY": "all",
        "SLUICE_HEARTBEAT_S": "0.2",
    }
    with fleet(tmp_path_factory.mktemp("schedules"), apis=2, **settings_) as found:
        yield found


@dataclass(frozen=True)
class Plan:
    """One client. ``then``: what it does after its first bytes, at the other replica than ``replica``."""

    at_ms: int
    replica: int
    key: str
    dialect: str
    stream: bool
    policy: str
    retries: bool
    then: str


@dataclass
class Client:
    plan: Plan
    status: int = 0
    cache: str = ""
    generation_id: str = ""
    received: bytes = b""
    again: list[bytes] = field(default_factory=list)  # The whole answer, by other ways.


PLANS = st.builds(
    Plan,
    at_ms=st.sampled_from((0, 0, 100, 300, 500, 900)),
    replica=st.integers(0, 1),
    key=st.sampled_from((KEY, KEY, OTHER_KEY)),
    dialect=st.sampled_from((CHAT, CHAT, MESSAGES)),
    stream=st.sampled_from((True, True, False)),
    policy=st.sampled_from(("", "", "grace=30", "detach")),
    retries=st.booleans(),
    then=st.sampled_from(("read", "read", "read", "leave", "stop", "come back")),
)


async def _live(client: Client, number: int, found: Fleet, session: aiohttp.ClientSession, name: str) -> None:
    plan = client.plan
    await asyncio.sleep(plan.at_ms / 1000)
    urls = [f"http://127.0.0.1:{found.ports[(plan.replica + more) % 2]}" for more in (0, 1)]
    headers = headers_of(plan.key) | ({"x-disconnect": plan.policy} if plan.policy else {})
    if plan.retries:
        headers["idempotency-key"] = f"{name}-{number}"
    content = body(plan.dialect, name, stream=plan.stream)
    sent = {"json": content, "headers": headers}
    is_left = False
    async with session.post(urls[0] + PATHS[plan.dialect], **sent) as response:
        client.status, client.generation_id = response.status, response.headers["x-generation-id"]
        client.cache = response.headers.get("x-sluice-cache", "")
        async for piece in response.content.iter_any():
            client.received += piece
            if client.received.count(b"data: ") < 3 or plan.then == "read" or not plan.stream or is_left:
                continue
            is_left = True
            if plan.then == "stop":
                async with session.delete(f"{urls[1]}/v1/generations/{client.generation_id}", headers=headers) as stopped:
                    assert stopped.status == 200 or client.cache == "hit"  # Such a one has no log that could be stopped.
                continue
            response.close()
            break
    if plan.then == "come back" and plan.policy and plan.stream and client.status == 200:
        ids = re.findall(rb"(?m)^id: (.+)$", client.received[: client.received.rfind(b"\n\n") + 2])
        await _come_back(client, urls[1], ids[-1].decode(), session)
    if plan.retries and plan.then == "read" and client.status == 200:
        async with session.post(urls[1] + PATHS[plan.dialect], **sent) as response:
            assert response.headers["x-generation-id"] == client.generation_id
            client.again.append(await response.read())


async def _come_back(client: Client, url: str, last_id: str, session: aiohttp.ClientSession) -> None:
    path = f"{url}/v1/generations/{client.generation_id}"
    events = client.received[: client.received.rfind(b"\n\n") + 2]
    async with session.get(path, headers=headers_of(client.plan.key) | {"last-event-id": last_id}) as response:
        assert response.status in (200, 204)
        client.again.append(events + await response.read())
    async with session.get(path, headers=headers_of(client.plan.key)) as response:
        assert response.status == 200
        client.again.append(await response.read())


async def _run(plans: list[Plan], found: Fleet, name: str) -> list[Client]:
    clients = [Client(plan) for plan in plans]
    timeout, connector = aiohttp.ClientTimeout(total=WAIT_S), aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        await asyncio.gather(*(_live(client, number, found, session, name) for number, client in enumerate(clients)))
    return clients


def _kind(client: Client) -> tuple[str, str, bool]:
    """What may share an answer: nothing of another key, another dialect or another form."""
    return client.plan.key, client.plan.dialect, client.plan.stream


def _may_have_closed(plan: Plan) -> bool:
    """Whether this client's going may have closed the call for all that came later."""
    return plan.stream and plan.then in ("leave", "stop", "come back")


@settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],  # Each example takes a second, and none runs twice alike: to shrink one would take minutes.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(plans=st.lists(PLANS, min_size=3, max_size=14))
def test_every_schedule_is_exact_and_single_flight(replicas: Fleet, plans: list[Plan]):
    name = f"n{TOKENS}-d{PACE_MS}-h{next(_numbers)}"
    replicas.reset_demo()
    clients = asyncio.run(_run(plans, replicas, name))
    until(lambda: not (replicas.running() or replicas.waiting()), "all jobs are over")

    assert {client.status for client in clients} == {200}
    whole: dict[tuple[str, str, bool], set[bytes]] = {}
    for client in clients:
        texts = [*client.again, *([client.received] if client.plan.then == "read" or not client.plan.stream else [])]
        for text in texts:
            if client.plan.then != "stop" or not client.plan.stream:
                assert is_complete(client.plan.dialect, text, TOKENS, stream=client.plan.stream), client.plan
                whole.setdefault(_kind(client), set()).add(without_ids(text))
    misses = [client for client in clients if client.cache == "miss"]
    assert replicas.stats()["requests"] == len(misses)
    for kind, group in itertools.groupby(sorted(clients, key=lambda each: str(_kind(each))), key=_kind):
        members = list(group)
        calls = Counter(client.plan.policy + str(client.plan.retries) for client in members if client.cache == "miss")
        assert calls, f"nobody called for {kind}"
        if not any(_may_have_closed(client.plan) for client in members):
            assert max(calls.values()) == 1, f"more than one call of {kind} with one policy"
            assert len(whole[kind]) <= calls.total()
    answers = list(whole.values())
    assert len(set[bytes]().union(*answers)) == sum(map(len, answers)), "two kinds of requests got one answer"
    _check_ledger(replicas, clients)


def _check_ledger(found: Fleet, clients: list[Client]) -> None:
    ids = [client.generation_id for client in clients]
    assert len(set(ids)) == len(ids)
    until(lambda: set(ids) <= {row["id"] for row in rows(found, "id")}, "all are in the ledger")
    by_id = {row["id"]: row for row in rows(found)}
    model = {row["model"] for row in by_id.values() if row["id"] in ids}
    of_this_run = [row for row in by_id.values() if row["model"] in model]
    assert len(of_this_run) == len(ids), "one row for each request, and none for a log"
    for client in clients:
        row = by_id[client.generation_id]
        assert row["cache"] == client.cache
        assert client.cache == "miss" or (row["cost_nano_usd"] or 0, row["output_tokens"]) == (0, None)
        if row["answered_by"]:
            answered_by = by_id[row["answered_by"]]
            assert (answered_by["cache"], answered_by["owner"], answered_by["dialect"]) == (
                "miss",
                row["owner"],
                row["dialect"],
            )
