"""The page on routes as it stands: each of its examples is used, and each row of its table of failures happens.

The rows are read from the page. This file only says how a row is brought about, so the page cannot say anything else than what
happens.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import httpx
import pytest
import yaml

from cli.dev.embedded_redis import free_port
from common.config.settings import Settings
from tests.support.clients.ledger_rows import row_of, rows
from tests.support.fleet import CHAT, ROOT, DemoProvider, Fleet, body_of, fleet, sse_events, until
from workers.quota.health import FAILURES_MIN, SILENT_MIN

PAGE = (ROOT / "docs" / "routing.md").read_text()

# The examples

EXAMPLES = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)]
VENDORS = ("openai", "azure", "anthropic", "vllm", "llama-cpp")
ROUTES: dict[str, Any] = {name: route for example in EXAMPLES for name, route in example["routes"].items()}
REQUESTS = 40  # A target that gets a quarter of the requests has none of so many once in 100,000 runs.


class Example(NamedTuple):
    """Which targets a route's requests may reach when all are well, and whether each of them is reached."""

    targets: set[str]
    are_all_reached: bool


def expected_of(route: dict[str, Any], prices: dict[str, Any]) -> Example:
    rules = [{"model": one} if isinstance(one, str) else one for one in route["targets"]]
    first = min(rule.get("priority", 1) for rule in rules)
    models = [rule["model"] for rule in rules if rule.get("priority", 1) == first]
    if "hedge_after_ms" in route:
        return Example(set(models), False)  # On a busy machine an answer may be slow.
    match route.get("strategy", "priority"):
        case "priority" if not route.get("affinity"):
            return Example(set(models[:1]), True)
        case "cheapest":
            return Example({min(models, key=lambda model: prices[model]["input_usd_per_mtok"])}, True)
        case _:
            return Example(set(models), not route.get("affinity"))


def test_the_page_has_an_example_of_each_strategy():
    strategies = {route.get("strategy", "affinity" if route.get("affinity") else "priority") for route in ROUTES.values()}
    assert strategies == {"priority", "weighted", "least_busy", "fastest", "cheapest", "affinity"}
    assert len(ROUTES) == sum(len(example["routes"]) for example in EXAMPLES), "each example has a name of its own"


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: ", ".join(example["routes"]))
def test_an_example_is_valid_as_it_stands(example: dict[str, Any]):
    assert Settings(_env_file=None, **example).routes.keys() == example["routes"].keys()


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    prices = {name: price for example in EXAMPLES for name, price in example.get("prices", {}).items()}
    with fleet(tmp_path_factory.mktemp("examples"), apis=0, workers=0) as gateway:
        address = {"base_url": f"{gateway.demo_url}/v1", "api_keys": "k"}
        gateway.settings |= {
            "SLUICE_PROVIDERS": json.dumps(dict.fromkeys(VENDORS, address) | {"anthropic": {"base_url": gateway.demo_url}}),
            "SLUICE_ROUTES": json.dumps(ROUTES),
            "SLUICE_PRICES": json.dumps(prices),
        }
        yield gateway.start()


@pytest.mark.parametrize("name", ROUTES)
def test_an_example_calls_the_targets_that_it_says(examples: Fleet, name: str):
    prices = {name: price for example in EXAMPLES for name, price in example.get("prices", {}).items()}
    expected = expected_of(ROUTES[name], prices)
    body = body_of(CHAT, name, max_tokens=1)

    reached = Counter(examples.post(CHAT, body).headers["x-sluice-route"].partition(";")[0] for _ in range(REQUESTS))

    targets = {target.replace("azure/", "azure-openai/") for target in expected.targets}
    assert reached.keys() <= targets, reached
    if expected.are_all_reached:
        assert reached.keys() == targets, reached


# The table


class Row(NamedTuple):
    first: str
    client: str
    calls: str
    health: str
    cost: str


TABLE = re.findall(r"^\| (.+) \|$", PAGE[PAGE.index("| the first target |") :].partition("\n\n")[0], re.MULTILINE)
ROWS = [Row(*line.split(" | ")) for line in TABLE[2:]]
ANSWER, SHORT = "demo-n3-d0", "demo-n1-d0"


@dataclass
class Case:
    """How a row is brought about: the models of both targets at the demo provider, and what else is set for the first one.

    ``when``: the second one is no target, but a fallback for this reason.
    """

    first: str
    second: str = ANSWER
    provider: dict[str, Any] = field(default_factory=dict)
    target: dict[str, Any] = field(default_factory=dict)
    requests_before: int = 0
    when: str = ""

    def route(self, first: str, second: str) -> dict[str, Any]:
        targets = [{"model": f"{first}/{self.first}"} | self.target]
        second_model = f"{second}/{self.second}"
        if self.when:
            return {"targets": targets, "fallbacks": [{"model": second_model, "when": [self.when]}]}
        return {"targets": [*targets, second_model]}


CASES = {
    "answers 429 with `retry-after`": Case("demo-e429-ra2"),
    "answers 429 without `retry-after`": Case("demo-e429"),
    "answers 500": Case("demo-e500"),
    "answers 502": Case("demo-e502"),
    "answers 503 with `retry-after`": Case("demo-e503-ra2"),
    "answers 504": Case("demo-e504"),
    "answers 529": Case("demo-e529"),
    "refuses the connection": Case(ANSWER, provider={"base_url": f"http://127.0.0.1:{free_port()}/v1"}),
    "resets the connection before the first token": Case("demo-drop"),
    "stalls before the first token": Case("demo-stall0"),
    "sends an error event before the first token": Case("demo-err0"),
    "resets the connection after the first token": Case("demo-cut2"),
    "ends the stream in the middle": Case("demo-end2"),
    "sends an error event in the middle": Case("demo-err2"),
    "stalls in the middle": Case("demo-stall2"),
    "begins late, within `SLUICE_FIRST_TOKEN_TIMEOUT_S`": Case("demo-n3-d0-f700"),
    "refuses its key with 401": Case(ANSWER, provider={"api_keys": "bad-key"}),
    "refuses its key with 403": Case("demo-e403"),
    "has no credit left (402)": Case("demo-e402"),
    "has no credit left (429 with `insufficient_quota`)": Case("demo-spent"),
    "says that the context window is exceeded": Case("demo-overflow"),
    "says so, and the second is a fallback for `context_overflow`": Case("demo-overflow", when="context_overflow"),
    "refuses by its content policy": Case("demo-policy"),
    "does so, and the second is a fallback for `content_policy`": Case("demo-policy", when="content_policy"),
    "does not know the model (404)": Case("demo-e404"),
    "does not, and the second is a fallback for `retired`": Case("demo-e404", when="retired"),
    "answers 500, and the second is a fallback for `exhausted`": Case("demo-e500", when="exhausted"),
    "answers the client's mistake with 400": Case("demo-e400"),
    "and the second answer 503": Case("demo-e503", "demo-e503"),
    "and the second are unwell, and recover": Case("demo-n3-d0-e500x5", "demo-e500", requests_before=2),
    "has spent its provider's budget": Case(ANSWER, provider={"budget": {"day_usd": 0}}),
    "has reached its `limits`": Case(ANSWER, target={"limits": {"requests": 1}}, requests_before=1),
}
FIRST = {name: f"first{number}" for number, name in enumerate(CASES)}
SECOND = {name: f"second{number}" for number, name in enumerate(CASES)}


def test_each_row_of_the_table_has_its_case():
    assert [row.first for row in ROWS] == list(CASES)


@pytest.fixture(scope="module")
def failing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Two demo providers, and for each row a route of its own to both: what happens in one row is not known in another."""
    folder = tmp_path_factory.mktemp("failing")
    with fleet(folder, apis=0, workers=0) as gateway:
        second = DemoProvider(folder, gateway.env(), free_port())
        until(second.is_ready, "the second demo provider is ready")
        live = {"base_url": f"{gateway.demo_url}/v1"}
        firsts = {FIRST[name]: live | case.provider for name, case in CASES.items()}
        seconds = {SECOND[name]: {"base_url": f"{second.url}/v1"} for name in CASES}
        routes = {FIRST[name]: case.route(FIRST[name], SECOND[name]) for name, case in CASES.items()}
        price = {"input_usd_per_mtok": 1000, "output_usd_per_mtok": 1000}
        models = [
            f"{ids[name]}/{model}"
            for ids in (FIRST, SECOND)
            for name, case in CASES.items()
            for model in (case.first, case.second)
        ]
        gateway.settings |= {
            "SLUICE_PROVIDERS": json.dumps(firsts | seconds),
            "SLUICE_ROUTES": json.dumps(routes),
            "SLUICE_PRICES": json.dumps(dict.fromkeys(models, price)),
            "SLUICE_RETRY_BACKOFF_S": "0.01",
            "SLUICE_FIRST_TOKEN_TIMEOUT_S": "2",
            "SLUICE_BETWEEN_TOKENS_TIMEOUT_S": "2",
        }
        try:
            yield gateway.start()
        finally:
            second.stop()


def ask(gateway: Fleet, name: str) -> httpx.Response:
    return gateway.post(CHAT, body_of(CHAT, FIRST[name], stream=True))


def calls_of(gateway: Fleet, provider: str) -> int:
    metrics = gateway.metrics(gateway.workers[0].port)
    return round(
        sum(n for key, n in metrics.items() if key.startswith("sluice_upstream_calls_total") and f'"{provider}"' in key)
    )


def seen_by_client(response: httpx.Response, route: str) -> str:
    """Return what a client got, in the words of the table."""
    if response.status_code != 200:
        code = response.json()["error"].get("code")
        return f"{response.status_code} `{code}`" if code else str(response.status_code)
    events = sse_events(response.text)
    last = json.loads(events[-1].data) if events[-1].data != "[DONE]" else {}
    if "error" in last:
        error = last["error"]
        return f"the text so far, then the error `{error.get('code') or error['type']}`"
    which = response.headers["x-sluice-route"].partition("/")[0].rstrip("0123456789")
    return f"the {which}'s answer"


def health_after(gateway: Fleet, name: str, calls: int) -> str:
    """Return what the log says of the first target's health, in the words of the table. ``calls`` of it have failed so far."""
    provider, worker = FIRST[name], gateway.workers[0]

    def reasons() -> list[str]:
        return [event["reason"] for event in worker.events("deployment_unwell") if event["provider"] == provider]

    if reasons() and calls < SILENT_MIN:
        assert reasons()[0] in ("key_refused", "quota_spent")
        return "rests"
    if gateway.metrics(worker.port).get(f'sluice_upstream_paused{{provider="{provider}"}}'):
        return "paused"
    while calls_of(gateway, provider) < FAILURES_MIN and not reasons():
        before = calls_of(gateway, provider)
        ask(gateway, name)
        if calls_of(gateway, provider) == before:  # It is paused, has no budget, or is not called any more.
            break
    return {"errors": "failure", "silent": "silent"}[reasons()[0]] if reasons() else "–"


def cost_of(gateway: Fleet, name: str, generation_id: str) -> str:
    """Return whose calls the ledger has counted, in the words of the table."""
    row = row_of(gateway, generation_id)
    attempts = [one for one in rows(gateway, table="ledger_attempts") if one["generation_id"] == generation_id]
    costs = {one["provider"]: one["cost_nano_usd"] for one in attempts or [row]}
    names = {FIRST[name]: "first", SECOND[name]: "second"}
    return ", ".join(names[provider] for provider, cost in costs.items() if cost) or "–"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.first)
def test_it_happens_as_the_table_says(failing: Fleet, row: Row):
    case = CASES[row.first]
    providers = FIRST[row.first], SECOND[row.first]
    for _ in range(case.requests_before):
        ask(failing, row.first)
    if "unwell" in row.first:
        assert all(any(e["provider"] == p for e in failing.workers[0].events("deployment_unwell")) for p in providers)
    before = [calls_of(failing, provider) for provider in providers]

    response = ask(failing, row.first)

    calls = [calls_of(failing, provider) - count for provider, count in zip(providers, before, strict=True)]
    assert seen_by_client(response, row.first) == row.client, response.text[-500:]
    assert ", ".join(map(str, calls)) == row.calls
    assert cost_of(failing, row.first, response.headers["x-generation-id"]) == row.cost
    if "unwell" not in row.first:
        assert health_after(failing, row.first, calls[0]) == row.health
