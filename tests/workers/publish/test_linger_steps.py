"""When is the next tick, and what does it do? The loop's clock stands still until a test moves it."""

import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from workers.publish import linger as module
from workers.publish.linger import HELD_BYTES_MAX, LINGER_STREAMS, Linger, Tap

MS = 40
START = 1_000.0


class Loop:
    """What a loop is asked to do, without doing it."""

    def __init__(self) -> None:
        self.now = START
        self.timers: list[tuple[float, Callable[[], object]]] = []
        self.soon: list[tuple[Callable[..., object], tuple[Any, ...]]] = []

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Callable[[], object]) -> object:
        self.timers.append((when, callback))
        return object()

    def call_soon(self, callback: Callable[..., object], *args: object) -> None:
        self.soon.append((callback, args))

    def turn(self) -> None:
        """Run what was to be run soon."""
        soon, self.soon = self.soon, []
        for callback, args in soon:
            callback(*args)


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Loop:
    found = Loop()
    monkeypatch.setattr(module.asyncio, "get_running_loop", lambda: found)
    return found


@pytest.fixture
def ticks(loop: Loop) -> tuple[Linger, list[float]]:
    """A worker with so many streams that its ticks have their full length, and when they were."""
    linger, at = Linger(MS), []
    linger.streams = LINGER_STREAMS
    linger.on_tick = lambda: at.append(loop.now)
    return linger, at


class Transport:
    def __init__(self, connection: socket.socket) -> None:
        self.connection, self.is_closed, self.asked = connection, False, 0

    def is_closing(self) -> bool:
        self.asked += 1
        return self.is_closed

    def get_extra_info(self, name: str) -> socket.socket:
        assert name == "socket"
        return self.connection


@pytest.fixture
def transport() -> Iterator[Transport]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield Transport(ours)


def waits_for(transport: Transport) -> int:
    """After how many bytes the connection wakes its reader."""
    return transport.connection.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT)


def test_a_worker_without_streams_holds_nothing_back_and_its_ticks_do_nothing(loop):
    linger = Linger(MS)

    assert not linger.is_worth_holding(1e-9)
    linger.wait()
    linger.wait()
    assert loop.timers == loop.soon == []


def test_the_first_tick_is_at_once_and_the_next_one_a_gap_later(ticks, loop):
    linger, at = ticks
    linger.wait()
    assert at == [START]
    loop.now += 0.015
    linger.wait()
    loop.now += 0.015
    linger.wait()

    ((due_at, tick),) = loop.timers
    assert due_at == pytest.approx(START + 0.04)
    loop.now = due_at
    tick()
    assert at == [START, due_at]
    loop.now += 0.01
    linger.wait()
    assert loop.timers[1][0] == pytest.approx(due_at + 0.04)


@pytest.mark.parametrize(("late_s", "is_now"), [(-0.001, False), (0, True), (0.001, True)])
def test_a_tick_that_is_due_does_not_wait_for_a_timer(ticks, loop, late_s, is_now):
    linger, at = ticks
    loop.now = 1_024.0  # An exact sum, so that the moment itself can be met.
    linger._linger_s = 0.5
    linger.wait()
    loop.now += 0.5 + late_s
    linger.wait()

    assert (len(at), len(loop.timers)) == ((2, 0) if is_now else (1, 1))


@pytest.mark.parametrize(
    ("streams", "gap_s"), [(LINGER_STREAMS * 10, 0.04), (LINGER_STREAMS, 0.04), (LINGER_STREAMS / 2, 0.02)]
)
def test_ticks_are_closer_with_few_streams(ticks, loop, streams, gap_s):
    linger, _ = ticks
    linger.streams = streams
    linger.wait()
    linger.wait()

    assert loop.timers[0][0] == pytest.approx(START + gap_s)


@pytest.mark.parametrize(("gap_s", "is_held"), [(0.0625, True), (0.125, False), (0.25, False)])
def test_a_stream_is_held_if_it_was_read_within_two_ticks(loop, transport, gap_s, is_held):
    linger = Linger(62.5)
    linger.streams = LINGER_STREAMS
    linger.wait()
    tap = Tap(linger, transport)
    tap.hold_if_fast(START)
    assert waits_for(transport) == 1, "it was never read before"

    tap.hold_if_fast(START + gap_s)

    assert waits_for(transport) == (HELD_BYTES_MAX if is_held else 1)
    assert len(loop.timers) == is_held
    tap.close()


def test_held_streams_are_read_at_the_tick_and_then_what_waits_for_it_runs(ticks, loop, transport):
    linger, at = ticks
    linger.wait()
    tap = Tap(linger, transport)
    for ms in range(3):
        tap.hold_if_fast(START + ms / 1000)
    ((_, tick),) = loop.timers
    at.clear()

    tick()

    assert waits_for(transport) == 1
    turns = 0
    while not at:
        turns += 1
        loop.turn()
    assert turns == 2, "one turn reads the sockets, the next one runs their readers"
    tap.hold_if_fast(START + 0.004)
    assert waits_for(transport) == HELD_BYTES_MAX, "it can be held again"
    assert transport.asked == 1, "with the same socket"
    tap.close()


def test_a_closed_tap_leaves_the_connection_as_it_was(ticks, transport):
    linger, _ = ticks
    linger.wait()
    tap = Tap(linger, transport)
    tap.hold_if_fast(START)
    tap.hold_if_fast(START + 0.001)
    duplicate = tap._socket

    tap.close()
    tap.close()

    assert waits_for(transport) == 1
    assert duplicate is not None and duplicate.fileno() == -1


def test_a_connection_that_is_closing_is_never_held(ticks, loop, transport):
    linger, _ = ticks
    linger.wait()
    transport.is_closed = True
    tap = Tap(linger, transport)
    for ms in range(4):
        tap.hold_if_fast(START + ms / 1000)

    assert transport.asked == 1
    assert loop.timers == []
    tap.close()


def test_without_a_connection_nothing_is_held(ticks, loop):
    linger, _ = ticks
    linger.wait()
    tap = Tap(linger, None)
    tap.hold_if_fast(START)
    tap.hold_if_fast(START + 0.001)

    assert loop.timers == []
    tap.close()


def test_a_tap_that_is_held_while_a_tick_runs_waits_for_the_next_one(ticks, loop):
    linger, _ = ticks
    opened: list[float] = []

    class Again(Tap):
        def open(self) -> None:
            opened.append(loop.now)
            linger.hold(self)

    linger.wait()
    linger.hold(Again(linger, None))
    for number in range(3):
        assert len(loop.timers) == number + 1
        loop.now, tick = loop.timers[-1]
        tick()

    assert opened == pytest.approx([START + 0.04, START + 0.08, START + 0.12])
