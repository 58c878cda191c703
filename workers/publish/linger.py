"""When does a busy worker read what its upstreams have sent, and pass it on?

It does so at ticks, for all of its streams at once, because a wake-up costs as much as several tokens. If a stream sends data
faster than the ticks, the operating system holds the data until the next tick. A slower stream wakes the worker at once.
Why, and what it saves: docs/decisions/linger.md.
"""

import asyncio
import socket
from collections.abc import Callable

from common.config.settings import KIB

LINGER_STREAMS = 50  # From this many streams on, ticks have their full length. With few streams there is little to save.
HELD_TICKS = 2  # A stream that was read longer ago than this is not held. With 1, a late tick would release streams.
HELD_BYTES_MAX = 32 * KIB  # This much wakes the worker at once. With more, Linux would start to adjust the receive window.


class Linger:
    """The ticks of one worker. They happen only while something waits for one."""

    def __init__(self, linger_ms: float) -> None:
        self.streams = 0
        self.on_tick: Callable[[], object] = lambda: None  # Called after the held data has been read.
        self._linger_s = linger_ms / 1000
        self._held: list[Tap] = []
        self._timer: asyncio.TimerHandle | None = None
        self._ticked_at = 0.0

    def wait(self) -> None:
        """Schedule the next tick: now, if the last one is long enough ago."""
        # Hot path: once per upstream read.
        if self._timer is not None:
            return
        loop = asyncio.get_running_loop()
        due_at = self._ticked_at + self._tick_gap_s()
        if due_at <= loop.time():
            self._tick()
        else:
            self._timer = loop.call_at(due_at, self._tick)

    def is_worth_holding(self, gap_s: float) -> bool:
        """Whether a stream that was last read ``gap_s`` ago should wait and be read together with others."""
        return gap_s < HELD_TICKS * self._tick_gap_s()

    def _tick_gap_s(self) -> float:
        return self._linger_s * min(1.0, self.streams / LINGER_STREAMS)

    def hold(self, tap: "Tap") -> None:
        """Open a tap again at the next tick."""
        self._held.append(tap)
        self.wait()

    def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = None
        self._ticked_at = loop.time()
        held, self._held = self._held, []
        for tap in held:
            tap.open()
        if held:  # One turn of the loop reads the sockets, one more runs their readers.
            loop.call_soon(loop.call_soon, self.on_tick)
        else:
            self.on_tick()


class Tap:
    """The receiving side of one connection. While it is shut, new data wakes nobody, unless there is much or it is the end."""

    def __init__(self, linger: Linger, transport: asyncio.BaseTransport | None) -> None:
        self._linger = linger
        self._transport = transport
        self._socket: socket.socket | None = None
        self._is_shut = False
        self._read_at = 0.0

    def hold_if_fast(self, now: float) -> None:
        """Shut the tap until the next tick, if the stream is fast. Called when the stream is about to be read."""
        # Hot path: once per upstream read.
        gap_s, self._read_at = now - self._read_at, now
        if self._is_shut or not self._linger.is_worth_holding(gap_s) or self._transport is None:
            return
        try:
            if self._socket is None:
                self._socket = _duplicate_socket(self._transport)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, HELD_BYTES_MAX)
        except OSError:  # The socket is closed, or the system cannot hold data back.
            self._transport = None
            return
        self._is_shut = True
        self._linger.hold(self)

    def open(self) -> None:
        if self._is_shut and self._socket:
            self._is_shut = False
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)

    def close(self) -> None:
        """Restore the connection. Call it before the transport is closed: the duplicated socket would keep it open."""
        self.open()
        if self._socket:
            self._socket.close()
            self._socket = None


def _duplicate_socket(transport: asyncio.BaseTransport) -> socket.socket:
    """Duplicate the transport's socket: the transport may close its own at any time, and its number may be reused then."""
    if transport.is_closing():
        raise OSError("the connection is closed")
    duplicate: socket.socket = transport.get_extra_info("socket").dup()
    return duplicate
