"""Who may answer a request, and which other model for which failure."""

from dataclasses import replace
from datetime import date

import pytest
from pydantic import ValidationError

from common.canonical.errors import ErrorKind, Failed
from common.canonical.job import Job, Policy
from common.config.model_routes import resolve
from common.config.settings import Settings
from common.vendors.models import ModelFacts
from workers.providers.base import Deployment
from workers.routing.lineup import Fallback, Fallbacks, Lineup, is_answerable_later, reason_of
from workers.routing.order import Router
from workers.routing.traffic import Traffic

PROVIDERS = {name: {"base_url": "http://127.0.0.1:9"} for name in "abcd"}
A, B, C, D = (Deployment(name, "http://x", "k", "m", key_id=f"{name}:1") for name in "abcd")
ROUTE = {
    "targets": ["a/m", "b/m"],
    "fallbacks": [{"model": "c/m", "when": ["exhausted"]}, {"model": "d/m", "when": ["context_overflow", "retired"]}],
}


def line_up(operation: str = "generate", **route: object) -> Lineup:
    router = Router(Settings(providers=PROVIDERS, routes={"r": {**ROUTE, **route}}), Traffic(lambda: 0.0))
    job = Job("g", "r", "openai-chat", "r", True, Policy.STOP, 0, 1, operation=operation)  # type: ignore[arg-type]
    return router.line_up(job, [A, B, C, D])


def test_a_lineup_separates_targets_from_fallbacks():
    lineup = line_up(hedge_after_ms=250)
    assert lineup == Lineup(
        [A, B],
        [Fallback([C], ("exhausted",)), Fallback([D], ("context_overflow", "retired"))],
        "r",
        "priority",
        0.25,
    )


def test_tokens_are_counted_by_no_other_model_than_the_one_that_replaces_it():
    lineup = line_up("count_tokens", hedge_after_ms=250)
    assert (lineup.fallbacks, lineup.hedge_after_s) == ([Fallback([D], ("retired",))], None)


def test_other_names_have_neither():
    router = Router(Settings(providers=PROVIDERS), Traffic(lambda: 0.0))
    assert router.line_up(Job("g", "r", "openai-chat", "a/m", True, Policy.STOP, 0, 1), [A]) == Lineup([A])


def test_exhausted_fallbacks_come_after_the_targets_and_the_others_only_for_their_reason():
    fallbacks = Fallbacks(line_up())
    assert fallbacks.first_round() == {None: [A, B], "retired": [], "exhausted": [C]}
    assert fallbacks.round_for("context_overflow") == [D]
    assert fallbacks.round_for("content_policy") == []

    fallbacks.record_call(D)
    assert fallbacks.round_for("context_overflow") == [], "no model is called for two reasons"


@pytest.mark.parametrize(("day", "is_over"), [("2026-05-31", False), ("2026-06-01", True), ("2027-01-01", True)])
def test_a_retired_target_is_left_out_from_its_day_on(day, is_over):
    old, new = replace(A, facts=ModelFacts(retires="2026-06-01")), replace(B, facts=ModelFacts(retires="2027-06-01"))
    replacement = Fallback([D], ("retired",))
    alone = Fallbacks(Lineup([old], [replacement]), lambda: date.fromisoformat(day)).first_round()
    beside = Fallbacks(Lineup([old, new], [replacement]), lambda: date.fromisoformat(day)).first_round()
    unreplaced = Fallbacks(Lineup([old], [Fallback([D], ("exhausted",))]), lambda: date.fromisoformat(day)).first_round()

    assert (alone[None], alone["retired"]) == (([], [D]) if is_over else ([old], []))
    assert (beside[None], beside["retired"]) == (([new], []) if is_over else ([old, new], []))
    assert unreplaced[None] == [old], "without a replacement the vendor has the word"


def test_each_failure_has_its_reason():
    reasons = {kind: reason_of(Failed(kind, "")) for kind in ErrorKind}
    assert {kind: reason for kind, reason in reasons.items() if reason} == {
        ErrorKind.CONTEXT_LENGTH_EXCEEDED: "context_overflow",
        ErrorKind.CONTENT_POLICY_VIOLATION: "content_policy",
        ErrorKind.UPSTREAM_MODEL_NOT_FOUND: "retired",
    }
    assert is_answerable_later(Failed(ErrorKind.UPSTREAM_UNAVAILABLE, ""))
    assert not is_answerable_later(Failed(ErrorKind.CONTENT_POLICY_VIOLATION, ""))


@pytest.mark.parametrize(
    ("route", "fault"),
    [
        ({"targets": ["a/m"], "fallbacks": [{"model": "a/m", "when": ["exhausted"]}]}, "not both or twice"),
        ({"targets": ["a/m"], "fallbacks": [{"model": "b/m", "when": ["exhausted"]}] * 2}, "not both or twice"),
        ({"targets": ["a/m"], "fallbacks": [{"model": "b/m", "when": []}]}, "at least 1 item"),
        ({"targets": ["a/m"], "fallbacks": [{"model": "b/m"}]}, "Field required"),
        ({"targets": ["a/m"], "fallbacks": [{"model": "b/m", "when": ["boredom"]}]}, "Input should be"),
        ({"targets": ["a/m"], "hedge_after_ms": 0}, "greater than or equal to 1"),
    ],
)
def test_a_wrong_rule_is_refused(route, fault):
    with pytest.raises(ValidationError, match=fault):
        Settings(providers=PROVIDERS, routes={"r": route})


def test_fallbacks_are_part_of_the_alias_but_never_answer_in_the_place_of_nothing():
    settings = Settings(providers=PROVIDERS | {"x": {"base_url": "http://x"}}, routes={"r": ROUTE})
    assert settings.aliases["r"] == ["a/m", "b/m", "c/m", "d/m"]
    assert [target.provider for target in resolve("r", settings)] == ["a", "b", "c", "d"]
    with pytest.raises(Exception, match="no target at this provider"):
        resolve("r", settings, "c")
