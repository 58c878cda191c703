"""Fallbacks to other models, and hedges, with real processes: who answers, what the client is told, and what it costs."""

from collections.abc import Iterator
from typing import Any

import orjson
import pytest

from tests.support.clients.ledger_rows import row_of, rows
from tests.support.fleet import CHAT, MESSAGES, Fleet, body_of, fleet, headers_of, until

GOOD = "backup/demo-n3-d0"
OWN = "main/demo-n3-d0"
WHY = ["exhausted", "context_overflow", "content_policy", "retired"]
SMALL, LARGE = {"context_tokens": 1_000}, {"context_tokens": 50_000}
FACTS = [
    {"vendors": ["backup"], "models": "demo-small", **SMALL},
    {"vendors": ["backup"], "models": "demo-large", **LARGE},
    {"vendors": ["main"], "models": "demo-.*window", "context_tokens": 2_000},
    {"vendors": ["main"], "models": "demo-.*old", "retires": "2026-01-31"},
    {"vendors": ["backup"], "models": "demo-blind", "reads": [], "tools": False, "json_schema": False},
]


def route(model: str, *fallbacks: str | dict[str, Any], **more: Any) -> dict[str, Any]:
    rules = [rule if isinstance(rule, dict) else {"model": rule, "when": WHY} for rule in fallbacks]
    return {"targets": [model], "fallbacks": rules, **more}


ROUTES = {
    "down": route("main/demo-e503", GOOD),
    "gone": route("main/demo-e404", GOOD),
    "old": route("main/demo-n3-old", GOOD),
    "long": route("main/demo-overflow", GOOD),
    "longer": route("main/demo-overflow-window", "backup/demo-small-n3-d0", "backup/demo-large-n3-d0"),
    "known": route("main/demo-n3-d0-window", "backup/demo-large-n3-d0"),
    "unsafe": route("main/demo-policy", GOOD),
    "filtered": route("main/demo-filter", GOOD),
    "filtered-late": route("main/demo-n3-d0", "backup/demo-n4"),
    "blind": route("main/demo-e503", "backup/demo-blind-n3-d0", GOOD),
    "only-blind": route("main/demo-filter", "backup/demo-blind-n3-d0"),
    "strict": route("main/demo-overflow", {"model": GOOD, "when": ["exhausted"]}),
    "safe": route("main/demo-policy", {"model": GOOD, "when": ["exhausted", "context_overflow", "retired"]}),
    "signed-openai": route("anthropic/demo-overflow", "openai/demo-n3-d0"),
    "signed-gemini": route("anthropic/demo-overflow", "gemini/demo-n3-d0"),
    "both-fail": route("main/demo-overflow", "backup/demo-policy"),
    "later": route("main/demo-overflow", "backup/demo-e503"),
    "chain": route(
        "main/demo-overflow",
        {"model": "backup/demo-policy", "when": ["context_overflow"]},
        {"model": GOOD, "when": ["content_policy"]},
    ),
    "near": route("main/demo-e503", {"model": GOOD, "when": WHY, "tags": ["eu"]}, {"model": "backup/demo-n5", "when": WHY}),
    "dear": route("main/demo-filter", GOOD),
}


HEDGED: dict[str, Any] = {
    f"slow-{dialect}-{stream}": {"targets": ["main/demo-n3-d0-f60000", OWN], "hedge_after_ms": 50}
    for dialect in (CHAT, MESSAGES)
    for stream in (False, True)
}
HEDGED |= {
    "first-fails": {"targets": ["main/demo-e503-f300", "backup/demo-n3-d0-f900"], "hedge_after_ms": 50},
    "hedge-fails": {"targets": ["main/demo-n3-d0-f500", "backup/demo-e503"], "hedge_after_ms": 50},
    "both": {"targets": ["main/demo-n3-d0-f400", "backup/demo-n3-d0-f60000"], "hedge_after_ms": 50},
    "lone": route("main/demo-n3-d0-f200", GOOD, hedge_after_ms=20),
    "unhurried": {"targets": ["main/demo-n3-d0-f200", OWN], "hedge_after_ms": 20},
    "limited": {
        "targets": [
            {"model": "main/demo-n3-d0-f200", "tags": ["slow"]},
            {"model": "backup/demo-n6-d0", "tags": ["quick"], "limits": {"requests": 1}},
        ],
        "hedge_after_ms": 20,
    },
    "few": {"targets": ["main/demo-n3-d0-f200", "backup/demo-n4-d0-f60000"], "hedge_after_ms": 20},
}
PRICES = {name: {"input_usd_per_mtok": 1, "output_usd_per_mtok": 2} for name in (OWN, OWN + "-f60000", GOOD)}
ADMIN = "an-admin-key-of-32-characters-or-more"
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"], "additionalProperties": False}
FORMAT = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}
PIXEL = "data:image/png;base64,iVBORw0KGgo="
IMAGE = [{"type": "text", "text": "what?"}, {"type": "image_url", "image_url": {"url": PIXEL}}]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with fleet(tmp_path_factory.mktemp("fallbacks"), apis=0, workers=0) as started:
        live = {"base_url": f"{started.demo_url}/v1"}
        started.settings |= {
            "SLUICE_PROVIDERS": orjson.dumps({"main": live, "backup": live}).decode(),
            "SLUICE_ROUTES": orjson.dumps(ROUTES | HEDGED).decode(),
            "SLUICE_MODEL_FACTS": orjson.dumps(FACTS).decode(),
            "SLUICE_PRICES": orjson.dumps(PRICES).decode(),
            "SLUICE_RETRY_BACKOFF_S": "0.01",
            "SLUICE_SECRET": "one long random text, of 32 bytes or more",
            "SLUICE_ADMIN_KEYS": ADMIN,
        }
        yield started.start(apis=1, workers=1)


@pytest.fixture
def restricted(gateway: Fleet) -> str:
    """A key that may use the models of one provider only."""
    body = {"name": "restricted", "access": {"models": ["main/*"]}}
    made = gateway.client.post(f"{gateway.url}/admin/keys", json=body, headers=headers_of(ADMIN))
    assert made.status_code == 201, made.text
    return str(made.json()["key"])


def seen(response: Any) -> str:
    return response.headers.get("x-sluice-route", "")


def by_metric(gateway: Fleet, name: str, **labels: str) -> float:
    text = name + "{" + ",".join(f'{key}="{value}"' for key, value in labels.items()) + "}"
    return gateway.metrics(gateway.worker_ports[0]).get(text, 0.0)


@pytest.mark.parametrize("dialect", [CHAT, MESSAGES])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("model", "attempts", "reason"),
    [
        ("down", None, "exhausted"),  # A dead target may be known as such by now.
        ("gone", 2, "retired"),
        ("old", 1, "retired"),
        ("long", 2, "context_overflow"),
        ("unsafe", 2, "content_policy"),
        ("filtered", 2, "content_policy"),
    ],
)
def test_another_model_answers_for_its_reason_and_is_named(gateway, dialect, stream, model, attempts, reason):
    response = gateway.post(dialect, body_of(dialect, model, stream=stream))

    assert response.status_code == 200, response.text
    name, told, why = seen(response).split("; ")
    assert (name, why) == (GOOD, f"reason={reason}")
    assert attempts is None or told == f"attempts={attempts}"
    assert "sluice" in response.text


@pytest.mark.parametrize("stream", [False, True])
def test_responses_name_it_too(gateway, stream):
    body = {"model": "filtered", "input": "hi", "stream": stream}
    response = gateway.client.post(f"{gateway.url}/v1/responses", json=body, headers=headers_of())
    assert seen(response) == f"{GOOD}; attempts=2; reason=content_policy", response.text


@pytest.mark.parametrize("path", ["/api/main", "/v1/chat?stream=true"])
def test_where_the_request_names_the_provider_no_other_one_answers(gateway, path):
    body = {"provider": "main", "model": "filtered", "messages": [{"role": "user", "content": "hi"}]}
    response = gateway.client.post(gateway.url + path, json=body, headers=headers_of())
    assert seen(response) == "main/demo-filter; attempts=1", response.text


def test_a_larger_window_is_chosen_and_a_known_overflow_is_not_even_tried(gateway):
    assert seen(gateway.post(CHAT, body_of(CHAT, "longer"))).startswith("backup/demo-large-n3-d0; attempts=2")

    long = body_of(CHAT, "known", text="word " * 5_000)
    assert seen(gateway.post(CHAT, long)) == "backup/demo-large-n3-d0; attempts=1; reason=context_overflow"
    assert seen(gateway.post(CHAT, body_of(CHAT, "known"))) == "main/demo-n3-d0-window; attempts=1"


@pytest.mark.parametrize(
    "asked", [{"tools": [TOOL]}, {"response_format": FORMAT}, {"messages": [{"role": "user", "content": IMAGE}]}]
)
def test_a_fallback_that_would_lose_a_part_of_the_request_is_skipped(gateway, asked):
    response = gateway.post(CHAT, body_of(CHAT, "blind", **asked))
    assert seen(response).startswith(GOOD), response.text
    sent = gateway.upstream_requests()[-1]["body"]
    assert all(sent[name] == value for name, value in asked.items())


def test_an_answer_stays_as_it_is_if_no_fallback_can_take_the_request(gateway):
    response = gateway.post(CHAT, body_of(CHAT, "only-blind", tools=[TOOL]))
    assert response.json()["choices"][0]["finish_reason"] == "content_filter"
    assert "reason" not in seen(response)
    assert by_metric(gateway, "sluice_route_skips_total", misfit="tools", route="only-blind", target="backup/demo-blind-n3-d0")


def test_a_fallback_for_another_reason_does_not_answer(gateway):
    response = gateway.post(CHAT, body_of(CHAT, "strict"))
    assert (response.status_code, response.json()["error"]["code"]) == (400, "context_length_exceeded")
    response = gateway.post(CHAT, body_of(CHAT, "safe"))
    assert (response.status_code, response.json()["error"]["code"]) == (400, "content_policy_violation")


@pytest.mark.parametrize("vendor", ["openai", "gemini"])
@pytest.mark.parametrize("stream", [False, True])
def test_another_vendor_s_signed_thoughts_and_calls_do_not_break_the_fallback(gateway, vendor, stream):
    thought = {"type": "thinking", "thinking": "I must look.", "signature": "c2lnbmVkIGJ5IGFub3RoZXIgdmVuZG9y"}
    turns = [
        {"role": "user", "content": "look"},
        {"role": "assistant", "content": [thought, {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": "a river"}]},
    ]
    tools = [{"name": "look", "input_schema": {"type": "object", "properties": {}}}]
    asked = body_of(MESSAGES, f"signed-{vendor}", stream=stream, messages=turns, tools=tools)

    response = gateway.post(MESSAGES, asked)

    assert response.status_code == 200, response.text
    assert seen(response).endswith("reason=context_overflow")
    assert "river" in response.text


def test_the_first_refusal_is_told_unless_a_repetition_may_help(gateway):
    refused, later = gateway.post(CHAT, body_of(CHAT, "both-fail")), gateway.post(CHAT, body_of(CHAT, "later"))
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert later.status_code == 503


def test_fallbacks_follow_on_each_other_each_for_its_own_reason(gateway):
    response = gateway.post(CHAT, body_of(CHAT, "chain"))
    assert seen(response) == f"{GOOD}; attempts=3; reason=content_policy"


def test_a_key_never_reaches_a_fallback_that_it_may_not_use(gateway, restricted):
    response = gateway.post(CHAT, body_of(CHAT, "long"), authorization=f"Bearer {restricted}")
    assert (response.status_code, response.json()["error"]["code"]) == (400, "context_length_exceeded")
    response = gateway.post(CHAT, body_of(CHAT, "filtered"), authorization=f"Bearer {restricted}")
    assert response.json()["choices"][0]["finish_reason"] == "content_filter"


def test_tags_hold_for_fallbacks(gateway):
    refused = gateway.post(CHAT, body_of(CHAT, "near"), x_sluice_tags="eu")
    assert refused.status_code == 400, "no target has the tag, and a fallback never answers in the place of none"


def test_an_answer_of_a_fallback_is_never_cached(gateway):
    body = body_of(CHAT, "long", text="cache me")
    answers = []
    for _ in range(2):
        answers.append(gateway.post(CHAT, body, x_sluice_cache="use"))
        until(lambda: not gateway.running(), "the job is over")
    assert [answer.headers["x-sluice-cache"] for answer in answers] == ["miss", "miss"]
    assert all(seen(answer).endswith("reason=context_overflow") for answer in answers)


def test_the_record_the_metrics_and_the_ledger_say_what_was_chosen_and_why(gateway):
    response = gateway.post(CHAT, body_of(CHAT, "filtered", text="for the record"))
    id_ = response.headers["x-generation-id"]

    record = gateway.client.get(f"{gateway.url}/v1/generations/{id_}", headers=headers_of(accept="application/json")).json()
    assert (record["provider"], record["route_reason"], record["tries"]) == ("backup", "content_policy", 2)
    assert by_metric(gateway, "sluice_route_calls_total", reason="content_policy", route="filtered", target=GOOD)
    row = row_of(gateway, id_)
    assert (row["provider"], row["upstream_model"], row["tries"]) == ("backup", "demo-n3-d0", 2)
    paid = [line for line in rows(gateway, table="ledger_attempts") if line["generation_id"] == id_]
    assert [line["provider"] for line in paid] == ["main", "backup"], "the vendor has read the prompt that it refused"


# Hedges


@pytest.mark.parametrize("dialect", [CHAT, MESSAGES])
@pytest.mark.parametrize("stream", [False, True])
def test_a_slow_target_is_overtaken_once_and_both_calls_are_paid_for(gateway, dialect, stream):
    response = gateway.post(dialect, body_of(dialect, f"slow-{dialect}-{stream}", stream=stream))

    assert seen(response) == f"{OWN}; attempts=2; reason=hedge", response.text
    row = row_of(gateway, response.headers["x-generation-id"])
    paid = [line for line in rows(gateway, table="ledger_attempts") if line["generation_id"] == row["id"]]
    assert [(line["upstream_model"], line["is_estimated"]) for line in paid] == [("demo-n3-d0-f60000", 1), ("demo-n3-d0", 0)]
    assert all(line["cost_nano_usd"] > 0 for line in paid)
    assert row["cost_nano_usd"] == sum(line["cost_nano_usd"] for line in paid)
    until(lambda: gateway.stats()["open"] == 0, "the slow call is stopped")


def test_an_error_never_wins_while_the_other_call_runs(gateway):
    first_fails, hedge_fails = (
        gateway.post(CHAT, body_of(CHAT, "first-fails")),
        gateway.post(CHAT, body_of(CHAT, "hedge-fails")),
    )
    assert seen(first_fails) == "backup/demo-n3-d0-f900; attempts=2; reason=hedge", first_fails.text
    assert seen(hedge_fails) == "main/demo-n3-d0-f500; attempts=2", hedge_fails.text


def test_the_first_call_may_still_win(gateway):
    assert seen(gateway.post(CHAT, body_of(CHAT, "both"))) == "main/demo-n3-d0-f400; attempts=2"


def test_another_model_is_no_hedge_and_few_calls_are_made_twice(gateway):
    assert seen(gateway.post(CHAT, body_of(CHAT, "lone"))) == "main/demo-n3-d0-f200; attempts=1"
    attempts = [seen(gateway.post(CHAT, body_of(CHAT, "few"))) for _ in range(4)]
    assert attempts == ["main/demo-n3-d0-f200; attempts=2"] + 3 * ["main/demo-n3-d0-f200; attempts=1"]


def test_background_work_is_not_hedged(gateway):
    response = gateway.post(CHAT, body_of(CHAT, "unhurried"), x_sluice_class="background")
    assert seen(response) == "main/demo-n3-d0-f200; attempts=1"


def test_a_target_whose_limit_is_reached_is_no_hedge(gateway):
    assert seen(gateway.post(CHAT, body_of(CHAT, "limited"), x_sluice_tags="quick")) == "backup/demo-n6-d0; attempts=1"
    assert seen(gateway.post(CHAT, body_of(CHAT, "limited"))) == "main/demo-n3-d0-f200; attempts=1"
