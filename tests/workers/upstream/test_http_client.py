"""Does every byte of an upstream come through, however it is sent and read?"""

import asyncio
import gzip
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from aiohttp.client_proto import ResponseHandler

from common.canonical.errors import GatewayError
from common.config.settings import Settings
from workers.providers.base import UpstreamRequest
from workers.publish.linger import Linger
from workers.upstream.http_client import Upstream

BODY = random.Random(1).randbytes(3_000_000)


@asynccontextmanager
async def answering(answer: Callable[[web.Request], web.StreamResponse]) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_post("/", answer)  # type: ignore[arg-type]
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/"
    finally:
        await runner.cleanup()


async def test_a_request_is_sent_once_there_is_a_connection_for_it():
    upstream = Upstream(Settings(), Linger(0))
    unreachable = UpstreamRequest("http://127.0.0.1:9/", {}, b"{}")
    hung, is_over = asyncio.Event(), asyncio.Event()

    async def hang(request: web.Request) -> web.StreamResponse:
        hung.set()
        await is_over.wait()
        return web.Response()

    async def call(request: UpstreamRequest) -> None:
        async with upstream.open(request, "demo", is_stream=True):
            pass

    async with answering(hang) as url:
        with pytest.raises(GatewayError):
            await call(unreachable)
        left = asyncio.create_task(call(reached := UpstreamRequest(url, {}, b"{}")))
        await asyncio.wait_for(hung.wait(), 10)
        left.cancel()
        await asyncio.gather(left, return_exceptions=True)
        is_over.set()
    await upstream.close()

    assert (unreachable.is_sent, reached.is_sent) == (False, True)


async def read_all(url: str, pause_s: float = 0) -> bytes:
    upstream = Upstream(Settings(), Linger(0))
    got = b""
    try:
        async with upstream.open(UpstreamRequest(url, {}, b"{}"), "demo", is_stream=True) as answer:
            while chunk := await answer.read():
                got += chunk
                await asyncio.sleep(pause_s)
    finally:
        await upstream.close()
    return got


@pytest.mark.parametrize("how", ["chunked", "with its length", "gzipped"])
async def test_a_reader_that_is_slower_than_its_upstream_gets_every_byte(monkeypatch: pytest.MonkeyPatch, how: str):
    pauses = []
    real = ResponseHandler.pause_reading

    def pause_reading(self: ResponseHandler) -> None:
        pauses.append(1)
        real(self)

    monkeypatch.setattr(ResponseHandler, "pause_reading", pause_reading)

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        sent = BODY
        if how == "gzipped":
            response.headers["content-encoding"], sent = "gzip", gzip.compress(BODY)
        if how == "with its length":
            response.content_length = len(sent)
        await response.prepare(request)
        await response.write(sent)
        await response.write_eof()
        return response

    async with answering(answer) as url, asyncio.timeout(120):
        assert await read_all(url, pause_s=0.001) == BODY
    assert pauses


async def test_a_paced_stream_is_not_parsed_twice(monkeypatch: pytest.MonkeyPatch):
    empty = []
    real = ResponseHandler.data_received

    def data_received(self: ResponseHandler, data: bytes) -> None:
        if not data:
            empty.append(data)
        real(self, data)

    monkeypatch.setattr(ResponseHandler, "data_received", data_received)

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(20):
            await response.write(b"data: x\n\n")
            await asyncio.sleep(0.001)
        return response

    async with answering(answer) as url, asyncio.timeout(120):
        assert await read_all(url) == b"data: x\n\n" * 20
    assert empty == []
