"""What does a flood of bad keys ask of others? Nothing: see also bench/bad_keys.py, which tells what it costs."""

import secrets
from collections.abc import Callable

import pytest
import redis

from common.access import key_text
from tests.support.fleet import CHAT, Fleet, body_of

REQUESTS = 400
KEYS: dict[str, Callable[[], str]] = {
    "any text": lambda: "sk-" + secrets.token_urlsafe(32),
    "a managed key's form": lambda: f"{key_text.PREFIX}8yxr35nb7q0d_{secrets.token_hex(19)}",
    "a web token": lambda: f"eyJhbGciOiJIUzI1NiJ9.{secrets.token_urlsafe(40)}.{secrets.token_urlsafe(32)}",
    "none at all": lambda: "",
}


def calls(client: redis.Redis) -> dict[str, int]:
    return {name: stats["calls"] for name, stats in client.info("commandstats").items()}


@pytest.mark.parametrize("kind", KEYS)
def test_a_bad_key_asks_nothing_of_redis(shared: Fleet, kind: str):
    before = calls(shared.redis)

    for _ in range(REQUESTS):
        assert shared.post(CHAT, body_of(CHAT, "demo-n1-d0"), key=KEYS[kind]()).status_code == 401

    grown = {name: count - before.get(name, 0) for name, count in calls(shared.redis).items()}
    # What is asked beside requests comes a few times each second, far less often than these.
    assert {name: count for name, count in grown.items() if count >= REQUESTS / 2} == {}


def test_a_flood_of_bad_keys_leaves_nothing_behind(shared: Fleet):
    """No state by key or address in Redis: guesses could fill it."""
    before = shared.redis.dbsize()

    for _ in range(REQUESTS):
        shared.post(CHAT, body_of(CHAT, "demo-n1-d0"), key=KEYS["a managed key's form"]())

    assert shared.redis.dbsize() <= before + 5  # What expires, or is written, by and by.
