"""Are names resolved beside everything else, once each at a time?"""

import asyncio
import socket
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from common.process import event_loop
from common.process.event_loop import Loop

FOUND = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 1))]


class NameServer:
    """Answers once it is told to."""

    def __init__(self) -> None:
        self.queries: list[str] = []
        self.may_answer = threading.Event()
        self.answer: Any = FOUND

    def getaddrinfo(self, host: str, *query: Any) -> Any:
        self.queries.append(host)
        self.may_answer.wait(20)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Any:
    made = NameServer()
    monkeypatch.setattr("socket.getaddrinfo", made.getaddrinfo)
    yield made
    made.may_answer.set()


def on_loop(work: Callable[[Loop], Coroutine[Any, Any, Any]]) -> Any:
    async def run() -> Any:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, Loop)
        return await work(loop)

    with asyncio.Runner(loop_factory=Loop) as runner:
        return runner.run(run())


def test_all_who_ask_for_a_name_share_one_lookup(server):
    async def work(loop: Loop) -> Any:
        asking = [asyncio.create_task(loop.getaddrinfo("a.example", 1)) for _ in range(50)]
        await asyncio.sleep(0)
        assert loop.is_resolving("a.example") and not loop.is_resolving("b.example")
        server.may_answer.set()
        found = await asyncio.gather(*asking)
        assert not loop.is_resolving("a.example")
        return found

    assert on_loop(work) == [FOUND] * 50
    assert server.queries == ["a.example"]


def test_who_gives_up_takes_the_answer_from_nobody(server):
    async def work(loop: Loop) -> Any:
        patient = asyncio.create_task(loop.getaddrinfo("a.example", 1))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await loop.getaddrinfo("a.example", 1)
        server.may_answer.set()
        return await patient

    assert on_loop(work) == FOUND


@pytest.mark.parametrize(
    ("raised", "code"),
    [(socket.gaierror(socket.EAI_AGAIN, "later"), socket.EAI_AGAIN), (UnicodeError("label too long"), socket.EAI_NONAME)],
)
def test_a_failure_reaches_all_and_is_forgotten(server, raised, code):
    server.answer = raised
    server.may_answer.set()

    async def work(loop: Loop) -> Any:
        failed = await asyncio.gather(*(loop.getaddrinfo("a.example", 1) for _ in range(2)), return_exceptions=True)
        server.answer = FOUND
        return [error.errno for error in failed], await loop.getaddrinfo("a.example", 1)

    assert on_loop(work) == ([code, code], FOUND)


def test_lookups_are_bounded(server, monkeypatch):
    monkeypatch.setattr(event_loop, "LOOKUPS_MAX", 2)

    async def work(loop: Loop) -> Any:
        asking = [asyncio.create_task(loop.getaddrinfo(f"{n}.example", 1)) for n in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(socket.gaierror, match="too many host names"):
            await loop.getaddrinfo("3.example", 1)
        server.may_answer.set()
        await asyncio.gather(*asking)
        return await loop.getaddrinfo("3.example", 1)

    assert on_loop(work) == FOUND


def test_an_address_is_no_name(server):
    async def work(loop: Loop) -> Any:
        return await loop.getaddrinfo("127.0.0.1", 80, type=socket.SOCK_STREAM)

    assert on_loop(work)[0][4] == ("127.0.0.1", 80)
    assert server.queries == []


def test_a_loop_ends_while_a_name_is_being_resolved(server):
    async def work(loop: Loop) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await loop.getaddrinfo("a.example", 1)

    on_loop(work)
    server.may_answer.set()

    for thread in threading.enumerate():
        if thread.name == "getaddrinfo":
            thread.join(5)
            assert not thread.is_alive()
