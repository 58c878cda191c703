"""Writes that wait for the end of the loop's turn."""

import asyncio

from api.server.corking import Cork, CorkedTransport


class Transport:
    """Notes what reaches it. Once closing it refuses, as uvloop's does."""

    def __init__(self, written: list[tuple[str, bytes]], name: str) -> None:
        self.written = written
        self.name = name
        self.is_gone = False

    def write(self, data: bytes) -> None:
        if self.is_gone:
            raise RuntimeError("the handler is closed")
        self.written.append((self.name, data))

    def is_closing(self) -> bool:
        return self.is_gone

    def close(self) -> None:
        self.written.append((self.name, b"closed"))
        self.is_gone = True

    def get_extra_info(self, name: str) -> str:
        return name


async def test_what_one_turn_writes_to_a_client_goes_out_at_its_end_as_one_write() -> None:
    written: list[tuple[str, bytes]] = []
    cork = Cork()
    one, two = (CorkedTransport(Transport(written, name), cork) for name in "ab")

    one.write(b"1")
    two.write(b"2")
    one.write(b"3")
    one.write(b"3")
    assert written == []
    await asyncio.sleep(0)
    one.write(b"4")
    await asyncio.sleep(0)

    assert written == [("a", b"133"), ("b", b"2"), ("a", b"4")]


async def test_closing_comes_after_what_was_written() -> None:
    written: list[tuple[str, bytes]] = []
    transport = CorkedTransport(Transport(written, "a"), Cork())

    transport.write(b"last")
    transport.close()

    assert written == [("a", b"last"), ("a", b"closed")]


async def test_a_client_that_left_meanwhile_costs_the_others_nothing() -> None:
    written: list[tuple[str, bytes]] = []
    cork, gone = Cork(), Transport(written, "a")

    CorkedTransport(gone, cork).write(b"1")
    CorkedTransport(Transport(written, "b"), cork).write(b"2")
    gone.is_gone = True
    await asyncio.sleep(0)

    assert written == [("b", b"2")]


async def test_all_else_is_the_transports_own() -> None:
    assert CorkedTransport(Transport([], "a"), Cork()).get_extra_info("peername") == "peername"
