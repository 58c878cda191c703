"""How is the network between two parts broken? A TCP proxy that can reset, pause and slow what goes through it."""

import asyncio
import contextlib
import random
import re
import socket
import struct
import time
from collections import deque
from collections.abc import Mapping

_LINGER_OFF = struct.pack("ii", 1, 0)  # struct linger, on with 0 seconds: what is open then ends with RST instead of FIN.
_HELD_BYTES_MAX = 256 * 1024
_CLIENT = re.compile(rb'-c(\d+)[":]')  # A demo model's name ends with its client's number.


class Link:
    """One way between two parts, and all connections on it. ``target`` is a port of ours, or a unix socket's path.

    ``rewrites``: ports that the far side names, as Redis' protocol writes them, and what the near side is told instead. Both
    have five digits, as all ports that a system gives away.
    """

    def __init__(
        self, name: str, target: int | str, *, watches: bool = False, rewrites: Mapping[int, int] | None = None
    ) -> None:
        self.name = name
        self.rewrites = [(b"\r\n%d\r\n" % told, b"\r\n%d\r\n" % ours) for told, ours in (rewrites or {}).items()]
        self.port = 0
        self.flowing = asyncio.Event()
        self.flowing.set()
        self.delay_s = 0.0
        self.watches = watches
        # What a new connection gets from us, and nothing from the far side: these bytes, or a reset. None: the far side's.
        self.own_answer: bytes | None = None
        self.called_at: dict[int, float] = {}  # When a client's call came last.
        self.left_at: dict[int, float] = {}  # When the near side closed the connection that carried it.
        self.pairs: set[_Pair] = set()
        self._target = target
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen, after ``refuse`` on the same port again."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Pair(self).near, "127.0.0.1", self.port, backlog=4096)
        self.port = self._server.sockets[0].getsockname()[1]

    def refuse(self) -> None:
        """Refuse connections until ``start``."""
        if self._server:
            self._server.close()

    async def stop(self) -> None:
        if self._server:
            self._server.close()
        self.cut(1.0, random.Random(0))

    async def dial(self, far: "_Side") -> None:
        loop = asyncio.get_running_loop()
        if isinstance(self._target, str):
            await loop.create_unix_connection(lambda: far, self._target)
        else:
            await loop.create_connection(lambda: far, "127.0.0.1", self._target)

    def cut(self, share: float, chance: random.Random) -> int:
        """Reset a share of the connections; returns how many."""
        chosen = [pair for pair in self.pairs if chance.random() < share]
        for pair in chosen:
            pair.reset()
        return len(chosen)

    def pause(self) -> None:
        self.flowing.clear()
        for pair in self.pairs:
            pair.steer()

    def resume(self) -> None:
        self.flowing.set()
        for pair in self.pairs:
            pair.steer()

    def clients(self) -> set[int]:
        """The clients whose calls the open connections carry, or carried last."""
        return {pair.client for pair in self.pairs if pair.client is not None}


class _Pair:
    """One connection: the near side, which dialled us, and the far side, which we dial."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.client: int | None = None
        self.near, self.far = _Side(self), _Side(self)
        self.near.peer, self.far.peer = self.far, self.near
        self._dialling: asyncio.Task[None] | None = None
        self.own_answer = link.own_answer

    def begin(self) -> None:
        self.link.pairs.add(self)
        if self.own_answer is not None:
            if not self.own_answer:
                self.reset()
            return
        self._dialling = asyncio.create_task(self._dial())

    async def _dial(self) -> None:
        await self.link.flowing.wait()
        try:
            await self.link.dial(self.far)
        except OSError:
            self.reset()
            return
        if self.near.transport is None:  # It left meanwhile.
            self.reset()
        self.steer()

    def reset(self) -> None:
        for side in (self.near, self.far):
            if side.transport:
                with contextlib.suppress(OSError):  # Closed at this moment.
                    side.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_OFF)
                side.transport.abort()

    def steer(self) -> None:
        """Read from each side what the link and the other side take."""
        for side in (self.near, self.far):
            if side.transport and not side.transport.is_closing():
                takes = self.link.flowing.is_set() and side.peer.takes_more
                with contextlib.suppress(RuntimeError):  # Reading, or not reading, already.
                    (side.transport.resume_reading if takes else side.transport.pause_reading)()

    def lose(self, side: "_Side") -> None:
        if side is self.near:
            self.link.pairs.discard(self)
            if self._dialling:
                self._dialling.cancel()
            if self.client is not None:
                self.link.left_at[self.client] = time.monotonic()
        side.peer.close()


class _Side(asyncio.Protocol):
    """One end of a connection; what is written to it may be held back for a while."""

    peer: "_Side"

    def __init__(self, pair: _Pair) -> None:
        self.transport: asyncio.Transport | None = None
        self._pair = pair
        self._held: deque[tuple[float, bytes]] = deque()  # When it is due, and what.
        self._held_bytes = 0
        self._is_full = False
        self._is_closing = False
        self._is_lost = False

    @property
    def takes_more(self) -> bool:
        return self.transport is not None and not self._is_full and self._held_bytes < _HELD_BYTES_MAX

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport
        if self is self._pair.near:
            self._pair.begin()
        elif self._held:  # uvloop may have read before the far side was there.
            self._release()

    def data_received(self, data: bytes) -> None:
        pair = self._pair
        if pair.own_answer is not None:
            assert self.transport
            self.transport.write(pair.own_answer)
            self.transport.close()
            return
        if pair.link.watches and self is pair.near and (match := _CLIENT.search(data)):
            pair.client = int(match[1])
            pair.link.called_at[pair.client] = time.monotonic()
        elif pair.link.rewrites and self is pair.far:  # Sentinel's answers are small: none comes in two pieces.
            for told, ours in pair.link.rewrites:
                data = data.replace(told, ours)
        self.peer.write(data, pair.link.delay_s)

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport, self._is_lost = None, True
        self._held.clear()
        self._pair.lose(self)

    def pause_writing(self) -> None:
        self._is_full = True
        self._pair.steer()

    def resume_writing(self) -> None:
        self._is_full = False
        self._pair.steer()

    def write(self, data: bytes, delay_s: float) -> None:
        if self._is_lost:
            return
        if self.transport and not delay_s and not self._held:
            self.transport.write(data)
            return
        loop = asyncio.get_running_loop()
        self._held.append((loop.time() + delay_s, data))
        self._held_bytes += len(data)
        if len(self._held) == 1 and self.transport:
            loop.call_later(delay_s, self._release)
        if not self.takes_more:
            self._pair.steer()

    def _release(self) -> None:
        now, had_room = asyncio.get_running_loop().time(), self.takes_more
        while self.transport and self._held and self._held[0][0] <= now + 0.002:  # Timers are rounded.
            _, data = self._held.popleft()
            self._held_bytes -= len(data)
            self.transport.write(data)
        if self._held:
            asyncio.get_running_loop().call_later(max(0.001, self._held[0][0] - now), self._release)
        elif self._is_closing and self.transport:
            self.transport.close()
        if not had_room and self.takes_more:
            self._pair.steer()

    def close(self) -> None:
        """Close once everything is written."""
        self._is_closing = True
        if self.transport and not self._held:
            self.transport.close()
