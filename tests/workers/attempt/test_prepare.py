"""What is sent in an attempt, and which pump turns its answer into the client's. No upstream is called."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import orjson
import pytest
from prometheus_client import CollectorRegistry

from common.canonical.events import Usage
from common.canonical.job import Job, Policy
from common.config.settings import Settings
from common.metering.attempt_cost import Attempt
from common.metering.pricing import Price
from common.vendors.models import ModelFacts
from workers.attempt.prepare import prepare_request, reply_info
from workers.metrics import Metrics
from workers.outcome import ActiveJob, CallResult, Total
from workers.providers import WIRES
from workers.providers.base import Deployment
from workers.transcode.guarded_pump import GuardedPump
from workers.transcode.output_guardrails import OutputGuards
from workers.transcode.pumps import Folding, FoldingWhole, Passing, PassingWhole, Translating

CHAT, RESPONSES = "openai-chat", "openai-responses"
JOB = Job("gen_1", "r", CHAT, "ours", True, Policy.STOP, 0, 7, guardrails={"pii": "log"})
HI = {"model": "ours", "messages": [{"role": "user", "content": "hi"}]}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
CALLED = {
    "model": "ours",
    "messages": [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "the result"},
    ],
}
TOOL_OF_LONG_NAME = {"type": "function", "function": {"name": "f" * 70, "parameters": {"type": "object"}}}
COMPACT = {"model": "ours", "input": [{"role": "user", "content": "hi"}, {"type": "compaction_trigger"}]}
NO_TOOLS = ModelFacts(tools=False)
SHORT_NAMES = ModelFacts(tool_name_chars_max=64)


def prepared(
    body: Mapping[str, Any],
    provider: str = "p",
    *,
    dialect: str = CHAT,
    wire: str = CHAT,
    stream: bool = True,
    has_guard: bool = False,
    **deployment: Any,
) -> tuple[dict[str, Any], Any, Any]:
    """Return the body that is sent, the pump, and the request."""
    job = replace(JOB, dialect=dialect, stream=stream, body=orjson.dumps(body))
    place = Deployment(provider, "http://x", "k", "theirs", wire, **deployment)
    info = reply_info(ActiveJob(job), CallResult(place), Total(), Settings())
    guard = OutputGuards(Settings(), None, Metrics(CollectorRegistry())).for_job(job) if has_guard else None
    request, pump = prepare_request(job, WIRES[wire], place, info, guard)
    return orjson.loads(request.body), pump, request


@pytest.mark.parametrize(("stream", "pump"), [(True, Passing), (False, PassingWhole)])
def test_a_body_passes_to_a_vendor_of_the_client_s_family(stream, pump):
    sent, made, _ = prepared({**HI, "unknown": 1}, stream=stream)

    assert type(made) is pump
    assert (sent["unknown"], sent["messages"], sent["model"]) == (1, HI["messages"], "theirs")


@pytest.mark.parametrize(("stream", "pump"), [(True, Translating), (False, Folding)])
def test_a_body_is_translated_for_another_family(stream, pump):
    sent, made, request = prepared({**HI, "seed": 1}, wire="anthropic-messages", stream=stream)

    assert type(made) is pump
    assert "unknown" not in sent
    assert request.dropped == ["seed"]


@pytest.mark.parametrize(("stream", "pump"), [(True, Translating), (False, FoldingWhole)])
def test_an_answer_that_must_be_filtered_does_not_pass(stream, pump):
    _, made, _ = prepared(HI, stream=stream, has_guard=True)

    assert type(made) is GuardedPump
    assert type(made._pump) is pump


@pytest.mark.parametrize(
    ("provider", "facts", "passes"),
    [
        ("openai", NO_TOOLS, True),  # OpenAI's own words for it.
        ("azure-openai", NO_TOOLS, True),
        ("groq", NO_TOOLS, False),
        ("groq", ModelFacts(), True),
    ],
)
def test_calls_of_the_history_become_text_for_a_model_without_tools(provider, facts, passes):
    sent, made, _ = prepared(CALLED, provider, facts=facts)

    assert type(made) is (Passing if passes else Translating)
    assert any(turn.get("tool_calls") for turn in sent["messages"]) is passes


def test_only_chat_completions_are_searched_for_calls_that_a_model_refuses():
    body = {**HI, "max_tokens": 9, "tools": [{"name": "f"}]}

    _, made, _ = prepared(body, dialect="anthropic-messages", wire="anthropic-messages", facts=NO_TOOLS)

    assert type(made) is Passing


@pytest.mark.parametrize(
    ("provider", "has_guard", "passes"), [("openai", False, True), ("openai", True, False), ("lab", False, False)]
)
def test_a_compaction_is_its_vendor_s_unless_a_guardrail_must_read_it(provider, has_guard, passes):
    sent, _, _ = prepared(COMPACT, provider, dialect=RESPONSES, wire=RESPONSES, has_guard=has_guard)

    assert (sent["input"][-1] == {"type": "compaction_trigger"}) is passes


@pytest.mark.parametrize(("stream", "pump"), [(True, Translating), (False, FoldingWhole)])
def test_tools_that_the_vendor_knows_by_another_name_are_the_client_s_in_the_answer(stream, pump):
    sent, made, _ = prepared({**HI, "tools": [TOOL_OF_LONG_NAME]}, facts=SHORT_NAMES, stream=stream)

    assert type(made) is pump
    assert len(sent["tools"][0]["function"]["name"]) <= 64


def test_refused_thoughts_are_left_out_and_named():
    thinking = [{"type": "thinking", "thinking": "hm", "signature": "s"}, {"type": "text", "text": "yes"}]
    body = {**HI, "max_tokens": 9, "messages": [*HI["messages"], {"role": "assistant", "content": thinking}, *HI["messages"]]}
    more = {"dialect": "anthropic-messages", "wire": CHAT}

    _, _, kept = prepared(body, **more)
    sent, _, without = prepared(body, **more, refuses_thoughts=True)

    assert "hm" not in orjson.dumps(sent).decode()
    assert len(without.dropped) == len(kept.dropped) + 1


def test_an_answer_is_told_as_that_of_its_generation():
    elapsed = ActiveJob(replace(JOB, body=b'{"a":1}'), waited_s=5)
    info = reply_info(elapsed, CallResult(Deployment("p", "http://x", "k", "m")), Total(), Settings())

    assert (info.generation_id, info.model, info.created_s, info.provider, info.body) == ("gen_1", "ours", 7, "p", {"a": 1})
    assert info.elapsed_ms() >= 5_000


PRICES = {f"p/{name}": Price(input_usd_per_mtok=price, output_usd_per_mtok=0) for name, price in (("m", 10), ("before", 1))}


@pytest.mark.parametrize(("usage", "usd"), [(Usage(300_000, 5), 2.0 + 0.1), (Usage(100_000, 5), 0.1)])
def test_the_cost_that_a_client_sees_has_each_attempt_at_its_own_price(usage, usd):
    """The first attempt has used 100,000 tokens, which are a part of the usage that the client sees."""
    settings = Settings(prices=PRICES)
    spent = Usage(100_000, 5)
    before = Attempt("p", "before", spent).apply_prices(PRICES)
    total = Total(attempts=[before], spent=spent)
    info = reply_info(ActiveJob(replace(JOB, body=b"{}")), CallResult(Deployment("p", "http://x", "k", "m")), total, settings)

    cost = info.price(usage)

    assert cost is not None
    assert float(cost.total_usd) == pytest.approx(usd)


def test_an_answer_without_a_known_price_has_no_cost():
    info = reply_info(
        ActiveJob(replace(JOB, body=b"{}")), CallResult(Deployment("p", "http://x", "k", "free")), Total(), Settings()
    )

    assert info.price(Usage(1, 1)) is None
