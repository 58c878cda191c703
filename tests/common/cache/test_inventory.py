"""What operators see of the cache, and how they remove it, on a real Redis."""

import asyncio
from dataclasses import replace

import pytest

from common.cache.inventory import Group, Inventory
from common.cache.store import CacheStore
from common.config.groups.models import ProviderSettings
from common.config.settings import Settings
from tests.common.cache.test_store import ENTRY, OVERHEAD, present, stored

SETTINGS = Settings(
    providers={name: ProviderSettings(api_keys=("k",)) for name in ("openai", "mistral")},
    aliases={"fast": ["openai/gpt-5", "mistral/small"]},
)


@pytest.fixture
def store(redis) -> CacheStore:
    return CacheStore(redis, SETTINGS)


@pytest.fixture
def inventory(redis) -> Inventory:
    return Inventory(redis, SETTINGS)


async def test_entries_are_counted_by_tenant_model_and_what_answered(store, inventory):
    await stored(store, 1, tenant="other")
    await stored(store, 2, 3)
    await stored(store, 4, tenant="other", upstream_model="x")
    await stored(store, 5, model="n", ttl_ms=1)
    await asyncio.sleep(0.01)

    counts = await inventory.count()
    assert {group: size.entries for group, size in counts.items()} == {
        Group("acme", "m", "p/pm"): 2,
        Group("other", "m", "p/pm"): 1,
        Group("other", "m", "p/x"): 1,
    }
    assert next(iter(counts)) == Group("acme", "m", "p/pm"), "the largest first"
    assert counts["acme", "m", "p/pm"].bytes == 2 * OVERHEAD


# What clients write, and what answered.
ANSWERS = {
    1: ("fast", "openai", "gpt-5"),
    2: ("openai/gpt-5", "openai", "gpt-5"),
    3: ("gpt-5", "openai", "gpt-5"),
    4: ("gpt-5#mistral", "mistral", "gpt-5"),
    5: ("mistral/small", "mistral", "small"),
    6: ("fast", "mistral", "small"),
    7: ("fast", "mistral", "old"),  # The alias led there when it was stored.
    8: ("slow", "openai", "gpt-5-mini"),
}


@pytest.mark.parametrize(
    ("model", "removed"),
    [
        ("openai/gpt-5", {1, 2, 3}),
        ("GPT-5#OpenAI", {1, 2, 3}),
        ("gpt-5", {1, 2, 3, 4}),
        ("fast", {1, 2, 3, 5, 6, 7}),
        ("openai/*", {1, 2, 3, 8}),
        ("slow", {8}),
        ("gpt-6", set()),
        ("", set()),
        (None, set(ANSWERS)),
    ],
)
async def test_a_model_is_cleared_under_all_its_names(store, inventory, model, removed):
    for number, (sent, provider, upstream_model) in ANSWERS.items():
        await stored(store, number, model=sent, provider=provider, upstream_model=upstream_model)

    assert await inventory.clear(model=model) == len(removed)
    assert await present(store, *ANSWERS) == sorted(set(ANSWERS) - removed)


async def test_only_the_chosen_tenant_is_cleared(store, inventory, redis):
    await stored(store, 1, 2)
    await stored(store, 3, tenant="other")
    await stored(store, 4, tenant="other", model="n")

    assert await inventory.clear(tenant="other", model="n") == 1
    assert await present(store, 1, 2, 3, 4) == [1, 2, 3]
    assert await inventory.clear(tenant="acm?") == 0, "tenants are no patterns"
    assert await inventory.clear(tenant="") == 0
    assert await inventory.clear(tenant="acme") == 2
    assert await present(store, 1, 2, 3, 4) == [3]
    assert int(await redis.get("sluice:cache:bytes")) == OVERHEAD + len("other") - len("acme")


async def test_what_has_expired_is_not_counted_as_removed(store, inventory):
    await stored(store, 1, ttl_ms=1)
    await stored(store, 2)
    await asyncio.sleep(0.01)

    assert await inventory.clear() == 1
    assert await inventory.count() == {}


async def test_many_entries_are_counted_and_cleared_in_steps(store, inventory):
    for number in range(1200):
        await store.put(replace(ENTRY, key=f"k{number}", model=f"m{number % 3}"))

    assert [size.entries for size in (await inventory.count()).values()] == [400, 400, 400]
    assert await inventory.clear(model="m1") == 400
    assert await inventory.clear() == 800
