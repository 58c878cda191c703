"""Which limit does a refusal name, in which words, and what has it taken by then? The test sets Redis' clock."""

from decimal import Decimal

import pytest

from common.access.principal import Budget, Limits
from common.canonical.errors import ErrorKind, GatewayError
from common.limits.charges import (
    BudgetAccount,
    Charges,
    LimitReached,
    LimitStatus,
    Slot,
    Window,
    charges_for_limits,
    enqueue_arguments,
    limit_error,
    periods,
    safe_name,
)
from common.redis import keyspace
from tests.common.queue.test_moments import Lab, lab  # noqa: F401 - a fixture.

LONG = Window("key", "k", "requests", 1, 60, 1)
SHORT = Window("tenant", "t", "tokens", 10, 30, 10)
DAY, MONTH = Decimal("0.000001"), Decimal("0.000002")  # 1,000 and 2,000 nano-dollars.


async def refusal(lab: Lab, charges: Charges) -> GatewayError:  # noqa: F811
    with pytest.raises(GatewayError) as refused:
        await lab.enqueue("gen_refused", charges=charges)
    assert len(await lab.redis.keys(keyspace.JOB + "gen_refused")) == 0
    return refused.value


@pytest.mark.parametrize("windows", [(LONG, SHORT), (SHORT, LONG)])
async def test_of_several_windows_the_one_that_lasts_longest_is_named(lab, windows):  # noqa: F811
    await lab.enqueue("gen_0", charges=Charges(windows))
    await lab.at(250)

    error = await refusal(lab, Charges(windows))

    assert isinstance(error, LimitReached)
    assert (error.failed.code, error.failed.retry_after_s) == ("requests_limit", 60.75)
    assert error.headers["x-ratelimit-remaining-requests"] == error.headers["x-ratelimit-remaining-tokens"] == "0"
    assert error.headers["x-ratelimit-reset-requests"] == "60.75s"
    assert error.headers["x-ratelimit-reset-tokens"] == "30.25s"


async def test_only_a_window_that_is_full_is_named(lab):  # noqa: F811
    await lab.enqueue("gen_0", charges=Charges([SHORT]))

    error = await refusal(lab, Charges([LONG, SHORT]))

    assert (error.failed.code, error.failed.retry_after_s) == ("tokens_limit", 30.5)
    assert error.failed.message.startswith("The limit of 10 tokens per 30 seconds of your tenant is reached. Try again in")
    assert error.headers["x-ratelimit-remaining-requests"] == "1", "a refusal takes nothing"


@pytest.mark.parametrize(("held", "named"), [("key", "Your key"), ("tenant", "Your tenant")])
async def test_of_several_slots_the_one_that_is_taken_is_named(lab, held, named):  # noqa: F811
    slots = [Slot("key", "x", 1), Slot("tenant", "x", 1)]
    await lab.enqueue("gen_0", charges=Charges(slots=[slot for slot in slots if slot.scope == held]))

    error = await refusal(lab, Charges(slots=slots))

    assert error.failed.code == "concurrency_limit"
    assert error.failed.message.startswith(f"{named} already has 1 generation at a time, its limit.")
    assert await lab.redis.zcard(keyspace.slots("tenant" if held == "key" else "key", "x")) == 0


KEY, TENANT = (
    BudgetAccount("key", "k", Budget(day_usd=DAY, month_usd=MONTH)),
    BudgetAccount("tenant", "t", Budget(month_usd=DAY)),
)


@pytest.mark.parametrize(
    ("scope", "period", "nano_usd", "words"),
    [
        ("key", 0, 1_000, "Your key's budget for this day is spent."),
        ("key", 1, 2_000, "Your key's budget for this month is spent."),
        ("tenant", 1, 1_000, "Your tenant's budget for this month is spent."),
        ("key", 1, 1_999, None),
        ("tenant", 0, 10**9, None),  # It has no budget for a day.
    ],
)
async def test_of_several_budgets_the_one_that_is_spent_is_named(lab, scope, period, nano_usd, words):  # noqa: F811
    counter = keyspace.spent(scope, "k" if scope == "key" else "t", periods()[period])
    await lab.redis.mset({keyspace.SPENT_LOADED: "loaded", counter: nano_usd})
    charges = Charges(accounts=[KEY, TENANT])
    if words is None:
        await lab.enqueue("gen_0", charges=charges)
        return

    error = await refusal(lab, charges)

    assert (error.failed.kind, error.failed.code) == (ErrorKind.BUDGET_EXCEEDED, "budget_exceeded")
    assert error.failed.message.startswith(f"{words} Days and months are counted in UTC.")


@pytest.mark.parametrize(
    ("spent", "is_refused"), [((), False), (("b",), False), (("a",), False), (("a", "b"), True), (("other",), False)]
)
async def test_a_route_is_closed_once_all_of_its_providers_are_spent(lab, spent, is_refused):  # noqa: F811
    providers = [BudgetAccount("provider", name, Budget(day_usd=DAY, month_usd=MONTH)) for name in ("b", "a")]
    counters = {keyspace.spent("provider", name, periods()[number]): 2_000 for number, name in enumerate(spent)}
    await lab.redis.mset({keyspace.SPENT_LOADED: "loaded", **counters})
    charges = Charges(alternatives=providers)
    if not is_refused:
        await lab.enqueue("gen_0", charges=charges)
        return

    error = await refusal(lab, charges)

    assert error.failed.kind is ErrorKind.BUDGET_EXCEEDED
    assert error.failed.message.startswith("The gateway's budget for a, b is spent. Models of other providers")


@pytest.mark.parametrize("charges", [Charges(accounts=[KEY]), Charges(alternatives=[KEY])])
async def test_what_nobody_knows_is_neither_spent_nor_free(lab, charges):  # noqa: F811
    error = await refusal(lab, charges)

    assert (error.failed.kind, error.failed.code) == (ErrorKind.OVERLOADED, "budget_unknown")
    assert error.failed.retry_after_s


def test_a_script_gets_the_charges_in_its_order():
    charges = Charges([LONG, SHORT], [Slot("key", "k", 3)], [KEY, TENANT], [KEY])
    day, month = (keyspace.spent("key", "k", period) for period in periods())

    assert enqueue_arguments(charges) == [
        "key:k=1000/2000 tenant:t=0/1000",
        *(2, keyspace.limit("key", "k", "requests"), 60_000, 1, 1, 0),
        *(keyspace.limit("tenant", "t", "tokens"), 30_000, 10, 10, 1),
        *(1, keyspace.slots("key", "k"), 3),
        *(3, day, 1_000, month, 2_000, keyspace.spent("tenant", "t", periods()[1]), 1_000),
        *(1, 2, day, 1_000, month, 2_000),
    ]


@pytest.mark.parametrize(
    ("limits", "tokens", "amounts", "slots"),
    [
        (Limits(), 5, [], []),
        (Limits(requests=3), 5, [("requests", 3, 1)], []),
        (Limits(tokens=10), 9, [("tokens", 10, 9)], []),
        (Limits(tokens=10), 11, [("tokens", 10, 10)], []),
        (Limits(tokens=10), 0, [], []),
        (Limits(requests=3, tokens=10, concurrent=2), 1, [("requests", 3, 1), ("tokens", 10, 1)], [2]),
    ],
)
def test_a_request_takes_of_those_limits_that_are_set(limits, tokens, amounts, slots):
    windows, held = charges_for_limits("key", "k", limits, tokens)

    assert [(window.kind, window.limit, window.amount) for window in windows] == amounts
    assert all((window.scope, window.name, window.window_s) == ("key", "k", limits.window_s) for window in windows)
    assert held == [Slot("key", "k", limit) for limit in slots]


@pytest.mark.parametrize(
    ("name", "is_kept"), [("a.b_c@d-E1", True), ("", True), ("x" * 64, True), ("x" * 65, False), ("a b", False), ("é", False)]
)
def test_a_name_that_could_break_a_key_is_a_digest_there(name, is_kept):
    assert (safe_name(name) == name) is is_kept
    assert len(safe_name(name)) == (len(name) if is_kept else 32)
    assert safe_name("a b") != safe_name("a  b")


def test_a_refusal_has_the_figures_of_its_windows():
    error = limit_error(LONG, 1_500, [LimitStatus(LONG, 0, 1.5)])

    assert (error.failed.kind, error.failed.code, error.failed.retry_after_s) == (ErrorKind.RATE_LIMITED, "requests_limit", 1.5)
    assert error.headers == {
        "x-ratelimit-limit-requests": "1",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "1.5s",
    }
