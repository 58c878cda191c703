"""A Redis for tests."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from redis.asyncio import Redis

from cli.dev.embedded_redis import EmbeddedRedis
from common.redis.client import connect


@asynccontextmanager
async def client_of(server: EmbeddedRedis) -> AsyncIterator[Redis]:
    """Empty the server, and yield a client of it."""
    client = connect(server.url)
    await client.flushall()
    try:
        yield client
    finally:
        await client.aclose()
        await client.connection_pool.disconnect()
