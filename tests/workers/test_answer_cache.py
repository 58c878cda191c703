"""Only complete answers are cached, as their clients got them."""

import pytest

from common.canonical.job import CacheOrder
from tests.workers.test_generate import Setup, setup  # noqa: F401 - A fixture.


class Kept:
    def __init__(self):
        self.entries = []

    async def put(self, entry):
        self.entries.append(entry)
        return True


@pytest.fixture
def kept(setup):  # noqa: F811
    setup.services.cache = Kept()
    return setup.services.cache


async def run(setup, model, **more):  # noqa: F811
    await setup.open(model, cache=CacheOrder("key", 600_000, "gen_client"), **more)
    await setup.run()


@pytest.mark.parametrize("stream", [True, False])
async def test_a_complete_answer_is_kept_as_its_client_got_it(setup, kept, stream):  # noqa: F811
    await run(setup, "demo-n5-d0", stream=stream)

    (entry,) = kept.entries
    assert entry.data == await setup.body()
    assert (entry.key, entry.ttl_ms, entry.generation_id, entry.is_stream) == ("key", 600_000, "gen_client", stream)
    assert (entry.finish_reason, entry.usage.output_tokens, entry.provider) == ("stop", 5, "demo")


@pytest.mark.parametrize("model", ["demo-n5-d0-cut3", "demo-n5-d0-end3", "demo-n5-d0-err3", "demo-e400", "demo-d0-refuse"])
@pytest.mark.parametrize("stream", [True, False])
async def test_what_is_not_complete_is_not_kept(setup, kept, model, stream):  # noqa: F811
    await run(setup, model, stream=stream)
    assert kept.entries == []


@pytest.mark.parametrize(("has_limit", "count"), [(True, 1), (False, 0)])
async def test_an_answer_that_ends_at_a_limit_is_complete_if_its_client_set_one(setup, kept, has_limit, count):  # noqa: F811
    await setup.open("demo-n5-d0-len", cache=CacheOrder("key", 600_000, "gen_client", has_limit))
    await setup.run()
    assert len(kept.entries) == count


async def test_a_request_that_asks_for_no_cache_is_not_kept(setup, kept):  # noqa: F811
    await setup.open("demo-n5-d0")
    await setup.run()
    assert kept.entries == []
