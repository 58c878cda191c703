"""Limits of a route's targets over two workers, and a target that is down, comes back, and is probed by the gateway itself."""

import json
from collections import Counter
from pathlib import Path

import pytest

from cli.dev.embedded_redis import free_port
from tests.support.fleet import CHAT, DemoProvider, Fleet, RawClient, body_of, fleet, until

MODEL = "demo-n2-d0"
LONG = "demo-n2000-d20"


def answered_by(gateway: Fleet, route: str) -> str:
    response = gateway.post(CHAT, body_of(CHAT, route))
    assert response.status_code == 200, response.text
    return response.headers["x-sluice-route"].partition("/")[0]


def calls(gateway: Fleet, provider: str) -> Counter[str]:
    """Return the calls of all workers to a provider by their status."""
    found: Counter[str] = Counter()
    for worker in gateway.workers:
        for name, count in gateway.metrics(worker.port).items():
            if name.startswith("sluice_upstream_calls_total") and f'provider="{provider}"' in name:
                found[name.partition('status="')[2].partition('"')[0]] += int(count)
    return found


@pytest.fixture
def limited(tmp_path: Path):
    with fleet(tmp_path, apis=0, workers=0) as gateway:
        live = {"base_url": f"{gateway.demo_url}/v1"}
        routes = {
            "counted": {"targets": [{"model": f"one/{MODEL}", "limits": {"requests": 3}}, f"two/{MODEL}"]},
            "narrow": {"targets": [{"model": f"one/{LONG}", "limits": {"concurrent": 2}}, f"two/{MODEL}"]},
            "alone": {"targets": [{"model": f"one/{MODEL}", "limits": {"requests": 1}}]},
        }
        gateway.settings |= {
            "SLUICE_PROVIDERS": json.dumps({"one": live, "two": live}),
            "SLUICE_ROUTES": json.dumps(routes),
            "SLUICE_RETRY_AFTER_MAX_S": "5",
        }
        yield gateway.start(apis=1, workers=2)


def test_a_target_gets_what_its_limits_allow_of_all_workers_together(limited: Fleet):
    assert Counter(answered_by(limited, "counted") for _ in range(10)) == {"one": 3, "two": 7}

    readers = [RawClient(limited.ports[0]) for _ in range(2)]
    for reader in readers:
        reader.post(CHAT, body_of(CHAT, "narrow", stream=True))
        reader.read_until(b"data:")
    assert Counter(answered_by(limited, "narrow") for _ in range(4)) == {"two": 4}
    for reader in readers:
        reader.leave()
    with RawClient(limited.ports[0]) as again:
        until(lambda: limited.stats()["open"] == 0, "the places are free")
        again.post(CHAT, body_of(CHAT, "narrow", stream=True))
        assert b"x-sluice-route: one/" in again.read_until(b"data:")

    limited.reset_demo()
    assert answered_by(limited, "alone") == "one"
    refused = limited.post(CHAT, body_of(CHAT, "alone"))
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "upstream_quota")
    assert "The route has used up its limit of requests" in refused.json()["error"]["message"]
    assert limited.stats()["requests"] == 1, "what is refused is no call"


def test_no_request_finds_out_that_a_probed_target_is_still_down(tmp_path: Path):
    port = free_port()
    with fleet(tmp_path, apis=0, workers=0) as gateway:
        gateway.settings |= {
            "SLUICE_PROVIDERS": json.dumps(
                {"gone": {"base_url": f"http://127.0.0.1:{port}/v1"}, "well": {"base_url": f"{gateway.demo_url}/v1"}}
            ),
            "SLUICE_ROUTES": json.dumps({"safe": {"targets": [f"gone/{MODEL}", f"well/{MODEL}"]}}),
            "SLUICE_HEALTH_PROBES_PER_HOUR": "100",
        }
        gateway.start(apis=1, workers=2)

        def probes(outcome: str) -> float:
            name = f'sluice_upstream_probes_total{{outcome="{outcome}",provider="gone"}}'
            return sum(gateway.metrics(worker.port).get(name, 0) for worker in gateway.workers)

        def is_unwell() -> bool:
            answered_by(gateway, "safe")
            return any(worker.events("deployment_unwell") for worker in gateway.workers)

        until(is_unwell, "the dead target is unwell")
        until(lambda: probes("down") >= 1 and answered_by(gateway, "safe"), "it is probed")
        refused = calls(gateway, "gone")["0"]
        until(lambda: probes("down") >= 2, "it is probed again, later than its first rest was over")
        assert answered_by(gateway, "safe") == "well"
        assert calls(gateway, "gone")["0"] == refused, "no request has called it since"

        revived = DemoProvider(tmp_path, gateway.env(), port)
        try:
            until(lambda: probes("reached") >= 1, "a probe reaches it")
            until(lambda: answered_by(gateway, "safe") == "gone", "it serves again")
            assert calls(gateway, "gone")["0"] == refused
            assert gateway.client.get(f"{revived.url}/stats").json()["requests"] >= 1
        finally:
            revived.stop()
