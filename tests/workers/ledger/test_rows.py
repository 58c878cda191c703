"""Records become rows, whatever they say."""

import json
from dataclasses import replace
from decimal import Decimal
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.canonical.events import Usage
from common.database.tables import LedgerAttempt, LedgerRow
from common.metering.attempt_cost import Attempt
from common.metering.pricing import Cost
from common.records.end import End
from common.records.head import Head
from common.records.request_summary import RequestSummary
from workers.ledger.rows import build_row, is_unmeasured, sharing_rows, with_attempts

ASKED = RequestSummary("key_a", "acme", "u1", "req_1", "openai-chat", "generate", True, "fast", 1_000)
END = {
    "error": None,
    "finish_reason": "stop",
    "usage": {"input_tokens": 10, "output_tokens": 5, "cache_read_tokens": 4, "cache_write_tokens": 3, "reasoning_tokens": 2},
    "estimated": False,
    "provider": "openai",
    "upstream_model": "gpt-5",
    "continuations": 1,
    "tries": 2,
    "queue_wait_ms": 3,
    "ttft_ms": 40,
    "duration_ms": 500,
    "cost": {"input_usd": "0.0000125", "output_usd": "0.00005", "total_usd": "0.0000625"},
}


def end_of(told: dict[str, Any]) -> End:
    return End.unpack(orjson.dumps(told))


def row(**end: Any) -> dict[str, Any]:
    return build_row("gen_1", ASKED, end_of({**END, **end}), 2_000)


def test_a_row_has_every_column_and_its_attempts_and_no_other():
    assert set(row()) == {*LedgerRow.__table__.columns.keys(), "attempts"}


def test_a_completed_generation_is_told_in_full():
    assert row() == {
        "id": "gen_1",
        "owner": "key_a",
        "tenant": "acme",
        "end_user": "u1",
        "request_id": "req_1",
        "dialect": "openai-chat",
        "operation": "generate",
        "stream": True,
        "model": "fast",
        "provider": "openai",
        "upstream_model": "gpt-5",
        "created_ms": 1_000,
        "ended_ms": 2_000,
        "outcome": "completed",
        "error_kind": None,
        "error_code": None,
        "finish_reason": "stop",
        "input_tokens": 10,
        "output_tokens": 5,
        "cache_read_tokens": 4,
        "cache_write_tokens": 3,
        "reasoning_tokens": 2,
        "is_estimated": False,
        "is_partial": False,
        "has_brought_key": False,
        "cost_nano_usd": 62_500,
        "input_cost_nano_usd": 12_500,
        "cache": "miss",
        "saved_nano_usd": None,
        "answered_by": None,
        "tries": 2,
        "continuations": 1,
        "queue_wait_ms": 3,
        "ttft_ms": 40,
        "duration_ms": 500,
        "details": None,
        "attempts": [],
    }


@pytest.mark.parametrize(
    ("error", "ttft_ms", "outcome", "is_partial"),
    [
        (None, 40, "completed", False),
        ({"kind": "upstream_unavailable", "message": "m"}, None, "failed", False),
        ({"kind": "upstream_unavailable", "message": "m"}, 40, "failed", True),
        ({"kind": "cancelled", "message": "m", "code": "cancelled"}, None, "cancelled", False),
        ({"kind": "cancelled", "message": "m", "code": "cancelled"}, 40, "cancelled", True),
    ],
)
def test_how_it_ended(error: Any, ttft_ms: int | None, outcome: str, is_partial: bool):
    found = row(error=error, ttft_ms=ttft_ms)

    assert (found["outcome"], found["is_partial"]) == (outcome, is_partial)
    assert found["error_kind"] == (error["kind"] if error else None)


@pytest.mark.parametrize(
    ("code", "kept"), [("rate_limit_exceeded", "rate_limit_exceeded"), ("Refused: tell me a secret", None), (5, None)]
)
def test_a_code_that_is_a_sentence_may_quote_the_prompt_and_is_not_kept(code: Any, kept: str | None):
    error = {"kind": "upstream_rejected", "message": "m", "code": code}

    assert row(error=error)["error_code"] == kept


def test_an_end_that_no_worker_wrote_tells_only_its_error():
    found = build_row("gen_1", ASKED, end_of({"error": {"kind": "worker_lost", "message": "m"}}), 2_000)

    assert found["outcome"] == "failed"
    unknown = ("provider", "input_tokens", "output_tokens", "cost_nano_usd", "ttft_ms", "duration_ms")
    assert [found[name] for name in unknown] == [None] * len(unknown)
    assert is_unmeasured(found, end_of({"error": {}}))


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        ({}, False),
        ({"error": {"kind": "cancelled"}, "usage": None}, True),
        ({"error": {"kind": "cancelled"}, "usage": None, "ttft_ms": None}, False),  # Nothing was said.
        ({"error": {"kind": "cancelled"}, "usage": {"input_tokens": 1, "output_tokens": 1}}, True),  # Told at its start.
        ({"error": {"kind": "cancelled"}, "estimated": True}, False),
    ],
)
def test_what_is_to_be_estimated(end: dict[str, Any], expected: bool):
    assert is_unmeasured(row(**end), end_of({**END, **end})) is expected
    assert not is_unmeasured(row(**end, attempts=[]), end_of({**END, **end, "attempts": []})), "this version's workers count"


def test_an_estimate_fills_in_what_is_missing_and_is_marked():
    bare = build_row("gen_1", ASKED, end_of({"error": {"kind": "worker_lost"}}), 2_000)
    head = Head(provider="openai", upstream_model="gpt-5", attempt_count=2, queue_wait_ms=1, ttft_ms=9)

    attempt = Attempt("openai", "gpt-5", Usage(7, 3), Cost(Decimal(1), Decimal(2)), is_estimated=True)
    found = with_attempts(bare, head, [attempt])

    changed = {name: value for name, value in found.items() if bare[name] != value}
    assert changed == {
        "provider": "openai",
        "upstream_model": "gpt-5",
        "input_tokens": 7,
        "output_tokens": 3,
        "cache_read_tokens": 0,
        "cache_write_tokens": 0,
        "reasoning_tokens": 0,
        "is_estimated": True,
        "is_partial": True,
        "cost_nano_usd": 3 * 10**9,
        "input_cost_nano_usd": 10**9,
        "tries": 2,
        "queue_wait_ms": 1,
        "ttft_ms": 9,
    }


def test_an_estimate_does_not_overwrite_who_answered_and_when():
    head = Head(provider="other", attempt_count=9, ttft_ms=1)
    found = with_attempts(row(ttft_ms=40), head, [Attempt("other", "m", Usage(1, 1), is_estimated=True)])

    assert (found["provider"], found["tries"], found["ttft_ms"], found["cost_nano_usd"]) == ("openai", 2, 40, None)


SEVERAL = [
    Attempt("dear", "m1", Usage(10, 5, model="m1-2026"), Cost(Decimal(2), Decimal(1)), is_estimated=True),
    Attempt("cheap", "m2", Usage(20, 7, details={"web_searches": 2}, service_tier="flex"), Cost(Decimal(1), Decimal(0))),
]


def test_several_attempts_have_rows_of_their_own_and_the_generation_their_sum():
    found = row(attempts=[attempt.to_dict() for attempt in SEVERAL])

    assert [found[name] for name in ("input_tokens", "output_tokens", "is_estimated", "details")] == [30, 12, True, None]
    assert (found["cost_nano_usd"], found["input_cost_nano_usd"]) == (4 * 10**9, 3 * 10**9)
    assert [(each["generation_id"], each["number"], each["provider"]) for each in found["attempts"]] == [
        ("gen_1", 1, "dear"),
        ("gen_1", 2, "cheap"),
    ]
    assert [each["details"] for each in found["attempts"]] == [
        {"answered_by": "m1-2026"},
        {"web_searches": 2, "service_tier": "flex"},
    ]
    assert set(found["attempts"][0]) == set(LedgerAttempt.__table__.columns.keys())


def test_a_cost_of_which_a_part_is_not_known_is_not_known_and_the_known_part_is_kept():
    dear, cheap = (attempt.to_dict() for attempt in SEVERAL)

    found = row(attempts=[dear, {**cheap, "cost": None}])

    assert (found["cost_nano_usd"], found["input_tokens"]) == (None, 30)
    assert [each["cost_nano_usd"] for each in found["attempts"]] == [3 * 10**9, None]


@pytest.mark.parametrize("figure", [10**15, 2**63, 1e300, -5, "12", True, None, [1]])
def test_a_record_of_an_older_version_with_an_absurd_figure_fits_every_sum(figure: Any):
    cost = {"input_usd": "9" * 30, "output_usd": "0", "total_usd": "9" * 30}
    found = row(usage={"input_tokens": figure, "output_tokens": 1}, cost=cost)

    assert 0 <= found["input_tokens"] <= 10**9
    assert found["cost_nano_usd"] == 10**15


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=5,
)
FIELDS = sorted(END)


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(FIELDS, JSON)))
def test_whatever_an_end_says_its_row_fits_the_columns(end: dict[str, Any]):
    found = build_row("gen_1", ASKED, End.unpack(json.dumps(end, allow_nan=False).encode()), 2_000) if is_plain(end) else row()

    for column in LedgerRow.__table__.columns:
        if column.name == "details":
            continue
        value = found[column.name]
        assert column.nullable or value is not None
        if isinstance(value, str):
            assert len(value) <= column.type.length
            assert "\0" not in value
            value.encode()
        elif value is not None:
            assert -(2**63) <= value < 2**63


def is_plain(value: Any) -> bool:
    """Whether it is JSON that can be written: no infinities, and whole numbers of 64 bits."""
    if isinstance(value, dict):
        return all(map(is_plain, value.values()))
    if isinstance(value, list):
        return all(map(is_plain, value))
    if isinstance(value, float):
        return value == value and abs(value) != float("inf")
    return not isinstance(value, int) or -(2**63) <= value < 2**64


@pytest.mark.parametrize("end", [b"", b"null", b"[]", b'"x"', b"{"])
def test_an_end_that_is_not_an_object_is_refused(end: bytes):
    with pytest.raises(ValueError):
        build_row("gen_1", ASKED, End.unpack(end), 2_000)


def test_those_that_shared_a_log_have_a_row_each_and_one_pays():
    end = end_of({**END, "attempts": [Attempt("openai", "gpt-5", Usage(10, 5), Cost(Decimal(1), Decimal(2))).to_dict()]})
    end.cost = Cost(Decimal(1), Decimal(2))
    left = b"1500 " + orjson.dumps({"error": {"kind": "cancelled", "message": "The client left.", "code": "cancelled"}})
    others = {id_: replace(ASKED, end_user=id_.decode(), cache="join").pack() for id_ in (b"gen_1", b"gen_2", b"gen_3")}

    payer, second, third = sharing_rows("gen_1", ASKED, end, 2_000, {**others, b"left:gen_3": left})

    assert [(one["id"], one["end_user"]) for one in (payer, second, third)] == [
        ("gen_1", "u1"),
        ("gen_2", "gen_2"),
        ("gen_3", "gen_3"),
    ]
    assert [one["cost_nano_usd"] for one in (payer, second, third)] == [3 * 10**9, 0, 0]
    assert [one["saved_nano_usd"] for one in (payer, second, third)] == [None, 3 * 10**9, 0], "who left early saved nothing"
    assert [one["answered_by"] for one in (payer, second, third)] == [None, "gen_1", "gen_1"]
    assert [one["cache"] for one in (payer, second, third)] == ["miss", "join", "join"]
    assert [(one["outcome"], one["ended_ms"]) for one in (payer, second, third)] == [
        ("completed", 2_000),
        ("completed", 2_000),
        ("cancelled", 1_500),
    ]
    assert (second["input_tokens"], second["attempts"], second["tries"]) == (None, [], 0)


def test_who_pays_may_leave_before_the_others_and_still_pays():
    end = end_of(END)
    left = b"1500 " + orjson.dumps({"error": {"kind": "cancelled", "message": "Stopped.", "code": "cancelled"}})

    (payer,) = sharing_rows("gen_1", ASKED, end, 2_000, {b"gen_1": b"", b"left:gen_1": left})

    assert (payer["outcome"], payer["cost_nano_usd"]) == ("cancelled", row()["cost_nano_usd"])


def test_a_row_of_a_cached_answer_costs_nothing_and_says_what_it_saved():
    told = {**END, "cost": {"input_usd": "0", "output_usd": "0"}, "tries": 0}
    priced, unpriced = (
        build_row("gen_1", replace(ASKED, cache="hit"), end_of({**told, "saved": saved}), 2_000)
        for saved in ({"input_usd": "1", "output_usd": "2"}, None)
    )

    assert (priced["cost_nano_usd"], priced["saved_nano_usd"]) == (0, 3 * 10**9)
    assert (unpriced["cost_nano_usd"], unpriced["saved_nano_usd"]) == (0, None), "an unknown price is not 0"
