"""What do operators see: health, metrics and logs of both tiers, and nothing of what clients said?"""

import json
import re
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from cli.dev.embedded_redis import free_port
from demo_provider.script import answer
from tests.support.fleet import (
    CHAT,
    DIALECTS,
    FAMILY_OF,
    KEY,
    MESSAGES,
    OTHER_KEY,
    PATH_OF,
    Fleet,
    Process,
    RawClient,
    body_of,
    headers_of,
    is_ok,
    until,
)


class Moved:
    """What metrics have moved by since it was made, all processes of a tier together."""

    def __init__(self, found: Fleet) -> None:
        self._fleet = found
        self._before = self._read()

    def _read(self) -> dict[str, float]:
        total: dict[str, float] = {}
        for port in self._fleet.ports + self._fleet.worker_ports:
            for name, value in self._fleet.metrics(port).items():
                total[name] = total.get(name, 0) + value
        return total

    def by(self, name: str) -> float:
        return self._read().get(name, 0) - self._before.get(name, 0)

    def until(self, name: str, by: float) -> None:
        # The last frame reaches the client before the worker has counted it.
        until(lambda: self.by(name) == by, f"{name} has moved by {by}")


@pytest.fixture
def moved(shared: Fleet) -> Moved:
    shared.reset_demo()
    return Moved(shared)


def _ports(found: Fleet) -> list[int]:
    return found.ports + found.worker_ports


# Health


def test_both_tiers_say_that_they_live_and_are_ready(shared: Fleet):
    for port in _ports(shared):
        for path in ("/livez", "/readyz", "/health"):
            response = httpx.get(f"http://127.0.0.1:{port}{path}")
            for _ in range(50):  # An API learns of a worker that has just started within a second.
                if response.status_code == 200:
                    break
                time.sleep(0.1)
                response = httpx.get(f"http://127.0.0.1:{port}{path}")
            assert response.status_code == 200, response.text
            assert response.json()["status"] in ("ok", "healthy")


def test_health_names_the_parts(shared: Fleet):
    health = httpx.get(f"{shared.url}/health").json()

    assert health["checks"] == dict.fromkeys(
        ("redis", "feed", "providers", "workers", "claude_api", "rate_limiter", "auth"), True
    )
    assert health["problems"] == []
    assert health["uptime_seconds"] >= 0
    assert health["open_viewers"] == 0


def test_the_root_is_a_page_to_browsers_and_a_status_to_the_rest(shared: Fleet):
    page = httpx.get(f"{shared.url}/", headers={"accept": "text/html,*/*"})
    status = httpx.get(f"{shared.url}/")

    assert page.headers["content-type"].startswith("text/html")
    assert "script-src" in page.headers["content-security-policy"]
    assert status.json() == {"status": "ok", "service": "AI Proxy"}


# Metrics

API_FAMILIES = {
    "sluice_requests": "counter",
    "sluice_request_duration_seconds": "histogram",
    "sluice_generations_accepted": "counter",
    "sluice_generations_by_class": "counter",
    "sluice_refusals": "counter",
    "sluice_errors": "counter",
    "sluice_open_viewers": "gauge",
    "sluice_waiting_jobs": "gauge",
    "sluice_running_jobs": "gauge",
    "sluice_redis_up": "gauge",
}
WORKER_FAMILIES = {
    "sluice_generations": "counter",
    "sluice_upstream_calls": "counter",
    "sluice_time_to_first_token_seconds": "histogram",
    "sluice_inter_token_seconds": "histogram",
    "sluice_tokens": "counter",
    "sluice_queue_wait_seconds": "histogram",
    "sluice_running_generations": "gauge",
    "sluice_slots": "gauge",
    "sluice_retries": "counter",
    "sluice_takeovers": "counter",
    "sluice_errors": "counter",
}


@pytest.mark.parametrize(("tier", "families"), [("api", API_FAMILIES), ("worker", WORKER_FAMILIES)])
def test_the_metric_families_are_there_and_explained(shared: Fleet, tier: str, families: dict[str, str]):
    for port in shared.ports if tier == "api" else shared.worker_ports:
        response = httpx.get(f"http://127.0.0.1:{port}/metrics")
        assert response.headers["content-type"].startswith("text/plain")
        types = dict(re.findall(r"^# TYPE (\w+) (\w+)$", response.text, re.MULTILINE))
        found = {name.removesuffix("_total"): kind for name, kind in types.items()}
        assert families.items() <= found.items()
        assert all(f"# HELP {name} " in response.text for name in types)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_generation_moves_the_metrics_of_both_tiers(shared: Fleet, moved: Moved, dialect: str):
    provider, route = FAMILY_OF[dialect], PATH_OF[dialect]

    shared.post(dialect, body_of(dialect, f"{provider}/demo-think5-n10-d20", stream=True, text="two words"))

    moved.until(f'sluice_generations_total{{dialect="{dialect}",outcome="completed",provider="{provider}"}}', 1)
    assert moved.by(f'sluice_requests_total{{method="POST",route="{route}",status="200"}}') == 1
    assert moved.by(f'sluice_request_duration_seconds_count{{method="POST",route="{route}"}}') == 1
    assert moved.by(f'sluice_request_duration_seconds_sum{{method="POST",route="{route}"}}') > 0.02
    assert moved.by(f'sluice_generations_accepted_total{{dialect="{dialect}"}}') == 1
    assert moved.by(f'sluice_upstream_calls_total{{provider="{provider}",status="200"}}') == 1
    assert moved.by(f'sluice_time_to_first_token_seconds_count{{provider="{provider}"}}') == 1
    assert moved.by("sluice_queue_wait_seconds_count") == 1
    assert moved.by("sluice_inter_token_seconds_count") > 5
    assert (
        0
        < moved.by("sluice_inter_token_seconds_sum")
        < moved.by(f'sluice_request_duration_seconds_sum{{method="POST",route="{route}"}}')
    )
    counted = {kind: moved.by(f'sluice_tokens_total{{kind="{kind}",provider="{provider}"}}') for kind in ("input", "output")}
    assert counted == {"input": 3, "output": 15}
    assert moved.by(f'sluice_tokens_total{{kind="reasoning",provider="{provider}"}}') == 5


def test_an_upstreams_failures_are_counted_by_status_kind_and_retry(shared: Fleet, moved: Moved):
    shared.post(CHAT, body_of(CHAT, "openai/demo-n3-d0-e503x1-counted"))
    shared.post(MESSAGES, body_of(MESSAGES, "anthropic/demo-e400", stream=True))

    moved.until('sluice_generations_total{dialect="anthropic-messages",outcome="upstream_rejected",provider="anthropic"}', 1)
    moved.until('sluice_generations_total{dialect="openai-chat",outcome="completed",provider="openai"}', 1)
    assert moved.by('sluice_upstream_calls_total{provider="openai",status="503"}') == 1
    assert moved.by('sluice_upstream_calls_total{provider="openai",status="200"}') == 1
    assert moved.by('sluice_upstream_calls_total{provider="anthropic",status="400"}') == 1
    assert moved.by('sluice_retries_total{provider="openai"}') == 1
    assert moved.by('sluice_errors_total{kind="upstream_unavailable"}') == 1
    assert moved.by('sluice_errors_total{kind="upstream_rejected"}') == 1


def test_refusals_are_counted_by_limit_and_kind(shared: Fleet, moved: Moved):
    deep: Any = "bottom"
    for _ in range(100):
        deep = [deep]
    shared.post(CHAT, {**body_of(CHAT, "demo"), "metadata": deep})
    shared.post(CHAT, body_of(CHAT, "demo"), x_padding="x" * 40_000)
    shared.post(CHAT, body_of(CHAT, "demo"), key="sk-wrong")
    shared.post(CHAT, body_of(CHAT, "nobody-knows-it"))
    with RawClient(shared.ports[0]) as client:
        client.send(
            "POST", PATH_OF[CHAT], {**headers_of(), "content-type": "application/json", "content-length": "99999999999"}
        )
        client.read_until(b"\r\n\r\n")

    for limit in ("json_depth", "headers", "body"):
        assert moved.by(f'sluice_refusals_total{{limit="{limit}"}}') == 1
    assert moved.by('sluice_errors_total{kind="unauthenticated"}') == 1
    assert moved.by('sluice_errors_total{kind="model_not_found"}') == 1
    assert moved.by('sluice_errors_total{kind="request_too_large"}') == 1
    assert moved.by('sluice_errors_total{kind="invalid_request"}') == 2
    assert moved.by('sluice_generations_accepted_total{dialect="openai-chat"}') == 0


def test_gauges_tell_what_runs_now(shared: Fleet, moved: Moved):
    with RawClient(shared.ports[0]) as client:
        client.post(CHAT, body_of(CHAT, "demo-stall3-d1", stream=True))
        client.read_until(b'"content":"A')

        assert moved.by("sluice_open_viewers") == 1
        assert moved.by("sluice_subscriptions") == 1
        assert moved.by("sluice_running_jobs") == 1
        assert moved.by("sluice_running_generations") == 1
        assert moved.by("sluice_upstream_connections") == 1

    for name in ("open_viewers", "subscriptions", "running_jobs", "running_generations", "upstream_connections"):
        moved.until(f"sluice_{name}", 0)
    assert [shared.metrics(port)["sluice_slots"] for port in shared.worker_ports] == [2000, 2000]


def test_paths_and_methods_that_clients_make_up_are_no_labels(shared: Fleet, moved: Moved):
    for i in range(3):
        httpx.request("PROPFIND", f"{shared.url}/made-up/{i}")
        httpx.get(f"{shared.url}/v1/generations/gen_made_up_{i}", headers=headers_of())

    assert moved.by('sluice_requests_total{method="other",route="unknown",status="404"}') == 3
    assert moved.by('sluice_requests_total{method="GET",route="/v1/generations/{generation_id}",status="404"}') == 3
    assert "made" not in httpx.get(f"{shared.url}/metrics").text


# Logs


@pytest.mark.parametrize("dialect", DIALECTS)
def test_both_tiers_log_json_lines_with_the_same_ids(shared: Fleet, dialect: str):
    response = shared.post(
        dialect, body_of(dialect, f"{FAMILY_OF[dialect]}/demo-n3-d1", stream=True), x_request_id="req-of-a-test"
    )
    generation_id = response.headers["x-generation-id"]

    def lines(processes: list[Process]) -> list[dict[str, Any]]:
        return [line for process in processes for line in process.lines() if line.get("generation_id") == generation_id]

    until(lambda: lines(shared.apis) and lines(shared.workers), "both have logged it")
    (request,) = [line for line in lines(shared.apis) if line["event"] == "request"]
    (ended,) = [line for line in lines(shared.workers) if line["event"] == "generation_ended"]
    assert request["request_id"] == ended["request_id"] == "req-of-a-test"
    assert (request["tier"], request["route"], request["status"]) == ("api", PATH_OF[dialect], 200)
    assert (ended["tier"], ended["outcome"], ended["dialect"], ended["output_tokens"]) == ("worker", "completed", dialect, 3)
    assert ended["provider"] == FAMILY_OF[dialect]
    assert 0 < ended["ttft_ms"] <= ended["duration_ms"]
    assert {"timestamp", "level"} <= request.keys() & ended.keys()


def test_every_line_of_a_log_is_json(shared: Fleet):
    for process in [*shared.apis, *shared.workers]:
        for line in process.log.read_text().splitlines():
            assert json.loads(line)["event"]


def test_nothing_that_clients_or_keys_say_is_in_logs_metrics_or_errors(shared: Fleet):
    canary = "canary7f3a"
    tool = {"function": {"name": f"{canary}_tool", "parameters": {"type": "object"}}, "type": "function"}
    said: list[httpx.Response] = []
    for dialect in DIALECTS:
        provider = FAMILY_OF[dialect]
        text = f"{canary} in a prompt"
        system = {} if dialect == CHAT else {"system": f"{canary} in a system prompt"}
        tools = [tool] if dialect == CHAT else [{"name": f"{canary}_tool", "input_schema": {"type": "object"}}]
        results = [{"type": "tool_result", "tool_use_id": "1", "content": f"{canary} in a result"}]
        for spec, stream in [("n9", True), ("n9", False), ("tool", True), ("tool", False), ("cut5", True), ("e400", False)]:
            body = body_of(dialect, f"{provider}/demo-d0-{spec}", stream=stream, text=text, tools=tools, **system)
            shared.post(dialect, body, x_forwarded_for=canary, cookie=f"session={canary}")
        body = body_of(MESSAGES, "anthropic/demo-d0", messages=[{"role": "user", "content": results}])
        shared.post(MESSAGES, body)
        said += [
            shared.post(dialect, body_of(dialect, "demo", text=text, temperature=canary)),
            shared.post(dialect, body_of(dialect, "demo", messages=[{"role": "user", "content": {"text": canary}}])),
            shared.post(dialect, body_of(dialect, "demo", text=text), key=f"sk-{canary}"),
            shared.post(dialect, body_of(dialect, "demo", text=text), x_disconnect=canary),
            shared.client.post(
                shared.url + PATH_OF[dialect], content=canary, headers=headers_of(content_type="application/json")
            ),
            shared.post(dialect, body_of(dialect, "demo", text=text), x_padding=canary * 5000),
            shared.client.get(f"{shared.url}/v1/generations/gen_0?after={canary}&key={canary}", headers=headers_of()),
        ]
    assert all(400 <= response.status_code < 500 for response in said)

    logs = {process.log.name: process.log.read_text() for process in [*shared.apis, *shared.workers]}
    metrics = {str(port): httpx.get(f"http://127.0.0.1:{port}/metrics").text for port in _ports(shared)}
    secrets = (canary, KEY, OTHER_KEY, "sk-upstream", answer(9), "small gate", "Zürich")
    for name, text in {**logs, **metrics}.items():
        assert not [secret for secret in secrets if secret in text], name
    for response in said:
        assert canary not in response.text
        assert not [secret for secret in secrets[1:] if secret in response.text]


def test_an_upstreams_key_never_reaches_a_client(shared: Fleet):
    responses = [shared.post(CHAT, body_of(CHAT, f"openai/demo-{spec}")) for spec in ("e401", "e403", "e400", "n3-d0")]

    assert not [response for response in responses if "sk-upstream" in response.text + str(response.headers)]


# Starting


def test_an_api_that_anybody_could_reach_does_not_start_without_keys(shared: Fleet, tmp_path: Path):
    env = {"SLUICE_REDIS_URL": shared.redis_server.url, "SLUICE_PORT": str(free_port()), "SLUICE_API_KEYS": ""}
    api = Process(["api"], {**env, "SLUICE_HOST": "0.0.0.0"}, tmp_path / "api.log")
    try:
        assert api.wait(120) == 2
    finally:
        api.stop()

    said = api.log.read_text()
    assert "0.0.0.0" in said
    assert "SLUICE_API_KEYS=" in said
    assert "SLUICE_AUTH=none" in said
    assert "Traceback" not in said


def test_an_api_may_be_open_on_purpose(shared: Fleet, tmp_path: Path):
    port = free_port()
    env = {**shared.env(), "SLUICE_PORT": str(port), "SLUICE_API_KEYS": "", "SLUICE_HOST": "0.0.0.0", "SLUICE_AUTH": "none"}
    api = Process(["api"], env, tmp_path / "api.log")
    try:
        until(lambda: is_ok(f"http://127.0.0.1:{port}/readyz"), "it is ready")
        response = httpx.post(f"http://127.0.0.1:{port}{PATH_OF[CHAT]}", json=body_of(CHAT, "demo-n2-d0"))
    finally:
        api.stop()

    assert response.status_code == 200
    assert "anybody who reaches this address may use it" in api.log.read_text()


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("SLUICE_PORT", "eighty", "SLUICE_PORT: "),
        ("SLUICE_AUTH", "off", "SLUICE_AUTH: "),
        ("SLUICE_LEASE_S", "x", "SLUICE_LEASE_S: "),
    ],
)
@pytest.mark.parametrize("tier", ["api", "worker"])
def test_a_setting_that_cannot_be_is_named(tmp_path: Path, tier: str, name: str, value: str, words: str):
    process = Process([tier], {name: value}, tmp_path / "process.log")
    try:
        assert process.wait(120) == 2
    finally:
        process.stop()

    assert words in process.log.read_text()
    assert "Traceback" not in process.log.read_text()
