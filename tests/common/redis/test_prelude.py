"""What each script can use: Redis' clock, and numbers as Redis reads them."""

from pathlib import Path

import pytest
from redis.asyncio import Redis

import common.redis.scripts
from common.redis.scripts import Scripts

PRELUDE = Path(common.redis.scripts.__file__).parent / "prelude.lua"


async def evaluated(redis: Redis, expression: str, before: str = "") -> str:
    script = f"{before}\n{PRELUDE.read_text()}\nreturn tostring({expression})"
    return (await redis.evalsha(await redis.script_load(script), 0)).decode()


@pytest.mark.parametrize(
    ("seconds", "microseconds", "ms"),
    [("1700000000", "999999", 1_700_000_000_999), ("1700000000", "1000", 1_700_000_000_001), ("5", "999", 5_000)],
)
async def test_the_clock_is_in_whole_milliseconds(redis, seconds, microseconds, ms):
    clock = f"local redis = {{call = function() return {{'{seconds}', '{microseconds}'}} end}}"

    assert await evaluated(redis, "string.format('%d', now_ms())", clock) == str(ms)


@pytest.mark.parametrize(("number", "text"), [("2 ^ 53", "9007199254740992"), ("1.9", "1"), ("-3", "-3")])
async def test_a_number_has_no_exponent_and_no_fraction(redis, number, text):
    assert await evaluated(redis, f"int({number})") == text


async def test_a_script_has_only_what_it_uses_before_it_directly_or_through_others(redis, tmp_path):
    (tmp_path / "_shared.lua").write_text(
        "local FACTOR = 7  -- unused\n\n"
        "-- Twice.\nlocal function twice(n)\n  return 2 * n\nend\n"
        "local function unused(n)\n  return twice(n) * FACTOR\nend\n"
        "local ONE, TWO = 1, 2\n"
        "local function four()\n  return twice(TWO)\nend\n"
    )
    (tmp_path / "number.lua").write_text("-- Not unused.\nreturn four()\n")
    scripts = Scripts(redis, tmp_path)

    assert await scripts.run("number", [], []) == 4
    source = scripts._sources["number"]
    assert [name for name in ("FACTOR", "function unused", "now_ms", "twice", "TWO") if name in source] == ["twice", "TWO"]
