"""What the ledger's reports add up to, on both databases."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncEngine

from common.database.engine import open_database
from common.database.migrate import migrate
from common.database.store import add
from common.database.tables import ManagedKey
from common.ledger.reports import day_begins_ms, month_begins_ms, spent, usage
from common.ledger.usage_report import GROUPS, Line, UsageQuestion, moment_ms, usd

NOON = int(datetime(2026, 11, 21, 12, tzinfo=UTC).timestamp() * 1000)
HOUR, DAY = 3_600_000, 86_400_000
KEY_FIELDS = {"tenant": "t", "secret_hash": "h", "access": {}, "is_disabled": False, "created_ms": 1, "updated_ms": 1}


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    await migrate(database_url)
    engine = open_database(database_url)
    yield engine
    await engine.dispose()


def row(generation_id: str, **fields: Any) -> dict[str, Any]:
    told = {
        "id": generation_id,
        "owner": "key_a",
        "tenant": "acme",
        "end_user": None,
        "request_id": "req_1",
        "dialect": "openai-chat",
        "operation": "generate",
        "stream": True,
        "model": "demo",
        "provider": "demo",
        "upstream_model": "demo",
        "created_ms": NOON - 100,
        "ended_ms": NOON,
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
        "cost_nano_usd": 1_000,
        "input_cost_nano_usd": 400,
        "cache": "miss",
        "answered_by": None,
        "tries": 1,
        "continuations": 0,
        "queue_wait_ms": 1,
        "ttft_ms": 2,
        "duration_ms": 3,
    }
    return told | fields


async def ask(engine: AsyncEngine, *by: str, since_ms: int = 0, until_ms: int = 2 * NOON, **more: Any) -> list[Line]:
    return (await usage(engine, UsageQuestion(by, since_ms, until_ms, **more))).lines


async def test_a_line_sums_a_group(engine: AsyncEngine):
    await add(engine, [row("gen_1"), row("gen_2", is_estimated=True), row("gen_3", owner="key_b", cost_nano_usd=None)])

    a, b = await ask(engine, "key")

    assert a.to_dict() == {
        "key": "key_a",
        "requests": 2,
        "input_tokens": 20,
        "output_tokens": 10,
        "cache_read_tokens": 8,
        "cache_write_tokens": 6,
        "reasoning_tokens": 4,
        "total_tokens": 30,
        "cost_usd": "0.000002",
        "saved_usd": "0.00",
        "unpriced_requests": 0,
        "estimated_share": 0.5,
        "active_users": 1,
        "tokens_per_request": 15.0,
        "cost_per_user_usd": "0.000002",
    }
    assert (b.group, b.cost_nano_usd, b.unpriced) == ({"key": "key_b"}, 0, 1)


@pytest.mark.parametrize("by", GROUPS)
async def test_every_group_can_be_asked_for(engine: AsyncEngine, by: str):
    await add(engine, [row("gen_1", end_user="u")])

    (line,) = await ask(engine, by)

    shown = {
        "key": "key_a",
        "tenant": "acme",
        "end_user": "u",
        "cache": "miss",
        "day": "2026-11-21",
        "hour": "2026-11-21T12:00Z",
    }
    assert line.group == {by: shown.get(by, "demo")}


async def test_days_and_hours_are_those_of_utc_in_order(engine: AsyncEngine):
    first = day_begins_ms(NOON)
    await add(engine, [row("gen_1", ended_ms=first), row("gen_2", ended_ms=first - 1), row("gen_3", ended_ms=first + HOUR)])

    days, hours = await ask(engine, "day"), await ask(engine, "hour")

    assert [(line.group["day"], line.requests) for line in days] == [("2026-11-20", 1), ("2026-11-21", 2)]
    assert [line.group["hour"] for line in hours] == ["2026-11-20T23:00Z", "2026-11-21T00:00Z", "2026-11-21T01:00Z"]


async def test_groups_combine(engine: AsyncEngine):
    await add(engine, [row("gen_1"), row("gen_2", model="other"), row("gen_3", ended_ms=NOON + DAY)])

    lines = await ask(engine, "day", "model")

    assert [tuple(line.group.values()) for line in lines] == [
        ("2026-11-21", "demo"),
        ("2026-11-21", "other"),
        ("2026-11-22", "demo"),
    ]


async def test_the_first_moment_counts_and_the_last_does_not(engine: AsyncEngine):
    await add(engine, [row("gen_1", ended_ms=NOON - 1), row("gen_2", ended_ms=NOON), row("gen_3", ended_ms=NOON + 1)])

    (line,) = await ask(engine, "tenant", since_ms=NOON, until_ms=NOON + 1)

    assert line.requests == 1


async def test_users_are_told_apart_by_tenant_and_a_key_without_users_is_one(engine: AsyncEngine):
    users = [("acme", "u1"), ("acme", "u1"), ("acme", "u2"), ("other", "u1"), ("acme", None), ("acme", None)]
    rows = [row(f"gen_{n}", tenant=tenant, end_user=user, cost_nano_usd=10**9) for n, (tenant, user) in enumerate(users)]
    await add(engine, rows)

    (line,) = await ask(engine, "provider")

    assert line.users == 4
    assert line.to_dict()["cost_per_user_usd"] == "1.50"


async def test_what_is_not_known_counts_for_nothing_and_is_told(engine: AsyncEngine):
    unknown = dict.fromkeys(("input_tokens", "output_tokens", "cost_nano_usd", "provider"))
    await add(engine, [row("gen_1", **unknown), row("gen_2", **unknown)])

    (line,) = await ask(engine, "provider")

    assert line.group == {"provider": None}
    assert (line.requests, line.tokens["input_tokens"], line.cost_nano_usd, line.unpriced) == (2, 0, 0, 0)


async def test_only_what_was_asked_for_is_seen(engine: AsyncEngine):
    await add(engine, [row("gen_1"), row("gen_2", owner="key_b"), row("gen_3", owner="key_b", tenant="other")])

    assert [line.requests for line in await ask(engine, "model", only={"key": "key_b"})] == [2]
    assert [line.requests for line in await ask(engine, "model", only={"key": "key_b", "tenant": "acme"})] == [1]
    assert await ask(engine, "model", only={"key": "' OR 1=1 --"}) == []


async def test_a_report_is_bounded_and_says_so(engine: AsyncEngine):
    await add(engine, [row(f"gen_{n}", model=f"m{n}", cost_nano_usd=n) for n in range(5)])

    report = await usage(engine, UsageQuestion(["model"], 0, 2 * NOON, lines_max=2))

    assert report.has_more
    assert [line.group["model"] for line in report.lines] == ["m4", "m3"]
    assert not (await usage(engine, UsageQuestion(["model"], 0, 2 * NOON, lines_max=5))).has_more


async def test_an_empty_ledger_has_no_lines(engine: AsyncEngine):
    assert await ask(engine, "day") == []


async def test_sums_of_money_are_exact_where_floats_are_not(engine: AsyncEngine):
    await add(engine, [row("gen_1", cost_nano_usd=9_007_199_254_740_993), row("gen_2", cost_nano_usd=1)])

    (line,) = await ask(engine, "key")

    assert line.to_dict()["cost_usd"] == "9007199.254740994"


async def test_what_was_spent_is_summed_for_the_counters(engine: AsyncEngine):
    await add(
        engine,
        [
            row("gen_1", cost_nano_usd=5),
            row("gen_2", cost_nano_usd=7, owner="key_b", provider="openai"),
            row("gen_3", cost_nano_usd=None),
            row("gen_4", cost_nano_usd=11, ended_ms=NOON + 1),
            row("gen_5", cost_nano_usd=13, has_brought_key=True),
        ],
    )

    assert await spent(engine, NOON, NOON + 1) == {
        ("key", "key_a"): 5,
        ("key", "key_b"): 7,
        ("tenant", "acme"): 12,
        ("provider", "demo"): 5,
        ("provider", "openai"): 7,
    }


@given(st.integers(0, 2**63 - 1))
def test_dollars_are_exact_and_readable(nano: int):
    text = usd(nano)

    assert Decimal(text) * 10**9 == nano
    assert 2 <= len(text.partition(".")[2]) <= 9


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("2026-11-21", NOON - 12 * HOUR),
        ("2026-11-21T12:00", NOON),
        ("2026-11-21T12:00Z", NOON),
        ("2026-11-21T13:00+01:00", NOON),
        ("1d", NOON - DAY),
        ("12h", NOON - 12 * HOUR),
    ],
)
def test_moments_are_read(text: str, ms: int):
    assert moment_ms(text, datetime.fromtimestamp(NOON / 1000, UTC)) == ms


@pytest.mark.parametrize("text", ["", "yesterday", "7w", "2026-13-01", "-1d", "99999999d"])
def test_what_is_no_moment_is_refused(text: str):
    with pytest.raises(ValueError, match="a time is a date"):
        moment_ms(text, datetime.fromtimestamp(NOON / 1000, UTC))


def test_a_month_begins_in_utc():
    assert month_begins_ms(NOON) == moment_ms("2026-11-01", datetime.now(UTC))


async def test_managed_keys_are_told_with_the_names_that_they_were_given(engine: AsyncEngine):
    ids = [f"{n:012}" for n in range(1, 602)]  # More than a statement takes at a time.
    async with engine.begin() as connection:
        keys = [{"id": id_, "name": f"shop {id_}" if id_ != ids[1] else "", **KEY_FIELDS} for id_ in ids]
        await connection.execute(insert(ManagedKey), keys)
    owners = [*(f"key_{id_}" for id_ in ids), "key_static", "anonymous"]
    await add(engine, [row(f"gen_{n}", owner=owner) for n, owner in enumerate(owners)])

    told = (await usage(engine, UsageQuestion(("key", "model"), NOON - DAY, NOON + DAY))).to_dict()

    names = {line["key"]: line["key_name"] for line in told["data"]}
    assert names == {owner: f"shop {owner[4:]}" if owner[4:] in ids and owner[4:] != ids[1] else None for owner in owners}
    assert list(told["data"][0])[:3] == ["key", "key_name", "model"]


async def test_a_report_of_one_key_tells_whose_it_is(engine: AsyncEngine):
    async with engine.begin() as connection:
        await connection.execute(insert(ManagedKey), [{"id": "0" * 12, "name": "shop", **KEY_FIELDS}])

    told = (await usage(engine, UsageQuestion(("day",), NOON - DAY, NOON + DAY, {"key": f"key_{'0' * 12}"}))).to_dict()

    assert (told["key"], told["key_name"]) == (f"key_{'0' * 12}", "shop")


def part(generation_id: str, number: int, **fields: Any) -> dict[str, Any]:
    names = ("provider", "upstream_model", "is_estimated", "has_brought_key", "cost_nano_usd", "input_cost_nano_usd")
    told = {name: value for name, value in row(generation_id).items() if name in names or name.endswith("_tokens")}
    return told | {"generation_id": generation_id, "number": number, "details": None} | fields


async def test_a_generation_counts_for_each_provider_with_what_its_own_attempts_took(engine: AsyncEngine):
    attempts = [
        part("gen_1", 1, provider="dear", input_tokens=6, cost_nano_usd=900, is_estimated=True),
        part("gen_1", 2, provider="dear", input_tokens=1, cost_nano_usd=50, is_estimated=True),
        part("gen_1", 3, provider="cheap", input_tokens=3, cost_nano_usd=5),
    ]
    await add(engine, [row("gen_1", provider="cheap", cost_nano_usd=955, attempts=attempts), row("gen_2", provider="cheap")])

    lines = await ask(engine, "provider")
    found = {line.group["provider"]: (line.requests, line.cost_nano_usd, line.estimated) for line in lines}
    assert found == {"dear": (1, 950, 1), "cheap": (2, 1_005, 0)}
    assert [line.cost_nano_usd for line in await ask(engine, "key")] == [1_955], "the sum stands in the row"
    assert [line.cost_nano_usd for line in await ask(engine, "key", only={"provider": "dear"})] == [950]
    assert await spent(engine, 0, 2 * NOON) == {
        ("key", "key_a"): 1_955,
        ("tenant", "acme"): 1_955,
        ("provider", "dear"): 950,
        ("provider", "cheap"): 1_005,
    }


async def test_attempts_are_written_once_however_often_they_come(engine: AsyncEngine):
    for _ in range(2):
        await add(engine, [row("gen_1", attempts=[part("gen_1", 1, provider="a"), part("gen_1", 2, provider="b")])])

    assert [line.requests for line in await ask(engine, "provider")] == [1, 1]


INT_MAX = 2**63 - 1


@pytest.mark.parametrize("by", GROUPS)
async def test_no_sum_fails_whatever_older_versions_have_written(engine: AsyncEngine, by: str):
    most = dict.fromkeys(("input_tokens", "output_tokens", "cost_nano_usd"), INT_MAX)
    await add(engine, [row(f"gen_{n}", **most) for n in range(5)])

    (line,) = await ask(engine, by)

    assert (line.tokens["input_tokens"], line.cost_nano_usd) == (5 * INT_MAX, 5 * INT_MAX)
    shown = orjson.loads(orjson.dumps(line.to_dict()))
    assert shown["input_tokens"] == shown["total_tokens"] == INT_MAX
    assert Decimal(shown["cost_usd"]) * 10**9 == 5 * INT_MAX
    assert (await spent(engine, 0, 2 * NOON))["key", "key_a"] == 5 * INT_MAX
