"""What is left of a storm? Nothing: what each process holds is counted before and after."""

import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from common.redis import keyspace
from tests.support.fleet import CHAT, DIALECTS, Fleet, RawClient, body_of, fleet, until

pytestmark = pytest.mark.timeout(600)

QUICK = {
    "SLUICE_LEASE_S": "2",
    "SLUICE_RENEW_S": "0.5",
    "SLUICE_HEARTBEAT_S": "0.5",
    "SLUICE_WORKER_SLOTS": "40",
    "SLUICE_WAITING_MAX": "60",
}
# Connections that are kept for the next request, in pools that are bounded: they come and go without being lost.
POOLED_MAX = 8


def complete(found: Fleet) -> None:
    with ThreadPoolExecutor(20) as pool:
        asked = [body_of(dialect, "demo-n10-d5", stream=True) for dialect in DIALECTS for _ in range(10)]
        answers = list(pool.map(found.post, [dialect for dialect in DIALECTS for _ in range(10)], asked))
    assert [answer.status_code for answer in answers] == [200] * 20


def leave(found: Fleet) -> None:
    """Before the first token, amid the tokens, and while still in the queue."""
    clients = []
    for model in ("demo-f60000", "demo-n10000-d20", "demo-n10000-d20") * 20:
        client = RawClient(found.ports[0])
        client.post(CHAT, body_of(CHAT, model, stream=True))
        clients.append(client)
    until(lambda: found.stats()["open"] >= 40, "the upstreams are called")
    for client in clients:
        client.leave()


def fail(found: Fleet) -> None:
    for model in ("demo-e500", "demo-cut5", "nobody/nothing"):
        found.post(CHAT, body_of(CHAT, model, stream=True))


def lose_redis(found: Fleet) -> None:
    clients = [RawClient(found.ports[0]) for _ in range(10)]
    for client in clients:
        client.post(CHAT, body_of(CHAT, "demo-n10000-d20", stream=True))
        client.read_until(b'"content":"A')
    found.redis_server.process.send_signal(signal.SIGSTOP)
    until(lambda: found.post(CHAT, body_of(CHAT, "demo")).status_code == 503, "the breaker is open")
    for client in clients:
        client.leave()
    found.redis_server.process.send_signal(signal.SIGCONT)
    found.ready()


def cut_redis(found: Fleet) -> None:
    for kind in ("normal", "pubsub"):
        found.redis.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
    until(lambda: found.post(CHAT, body_of(CHAT, "demo-n1")).status_code == 200, "requests are answered")


def lose_a_worker(found: Fleet) -> None:
    with RawClient(found.ports[0]) as client:
        client.post(CHAT, body_of(CHAT, "demo-n10000-d20", stream=True))
        client.read_until(b'"content":"A')
        lost = found.workers.pop()
        lost.kill()
        lost.stop()
        found.start_worker()
        found.ready()


STORM = (complete, leave, fail, lose_redis, cut_redis, lose_a_worker)


def held(found: Fleet) -> dict[str, float]:
    """What must be nothing on an idle Sluice."""
    api, workers = found.metrics(found.ports[0]), [found.metrics(port) for port in found.worker_ports]
    return {
        "viewers": api["sluice_open_viewers"],
        "subscriptions": api["sluice_subscriptions"],
        "channels": len(found.redis.pubsub_channels("*")),
        "waiting": found.waiting(),
        "leases": found.running(),
        "slots": sum(worker["sluice_running_generations"] for worker in workers),
        "buffered": sum(worker["sluice_publisher_buffered_bytes"] for worker in workers),
        "upstream": sum(worker["sluice_upstream_connections"] for worker in workers),
        "upstream, by its own count": found.stats()["open"],
    }


def lasting_keys(found: Fleet) -> set[str]:
    return {key.decode() for key in found.redis.scan_iter(count=1000) if found.redis.ttl(key) == -1}


def sizes(found: Fleet) -> dict[str, tuple[float, float]]:
    """Tasks and open files by process. The second worker is another one after each storm: it is left out."""
    of = {"api": found.metrics(found.ports[0]), "worker": found.metrics(found.worker_ports[0])}
    return {name: (metrics["sluice_tasks"], metrics["sluice_open_files"]) for name, metrics in of.items()}


def settle(found: Fleet) -> None:
    until(lambda: not any(held(found).values()), "nothing is held")
    # Records of what has ended are collected within a second or so, by another worker if that one was lost.
    until(lambda: lasting_keys(found) <= keyspace.PERMANENT, f"no more than {set(keyspace.PERMANENT)} stays")


def test_a_storm_leaves_nothing_behind(tmp_path: Path):
    with fleet(tmp_path, workers=2, **QUICK) as found:
        complete(found)  # So that what is made once and kept, such as pools, is there.
        settle(found)
        idle = sizes(found)

        for part in STORM:
            try:
                part(found)
                settle(found)
            except (AssertionError, httpx.HTTPError) as error:
                raise AssertionError(f"after {part.__name__}: {held(found)}") from error

        found.client.close()  # Its connections are ours, not the gateway's.
        found.client = httpx.Client(timeout=120)

        def is_idle() -> bool:
            now = sizes(found)
            return all(now[name][0] <= idle[name][0] + 1 and now[name][1] <= idle[name][1] + POOLED_MAX for name in idle)

        until(is_idle, f"tasks and files are as idle as before: {idle}")
