"""How does a process resolve host names, so that a name server that does not answer holds up nothing else?

This is the event loop of both tiers. Everything that connects to a host name (aiohttp, and httpx through anyio) calls its
``getaddrinfo``. uvloop's own implementation shares four threads for all names, and asyncio's uses the default executor, in
which guardrails and estimates run too. A name server that does not answer would block either. Here each lookup has its own
thread.
"""

import asyncio
import contextlib
import ipaddress
import socket
import threading
from typing import Any

import uvloop

LOOKUPS_MAX = 64  # Lookups at a time. Host names come from the settings: there are a few dozen at most.

_Query = tuple[Any, Any, int, int, int, int]  # The arguments of socket.getaddrinfo.


class Loop(uvloop.Loop):
    """uvloop's loop, with one thread per lookup. A caller may stop waiting at any time; the lookup itself cannot be stopped."""

    def __init__(self) -> None:
        super().__init__()
        self._lookups: dict[_Query, asyncio.Future[list[Any]]] = {}

    def is_resolving(self, host: str) -> bool:
        """Whether a lookup of this name is under way."""
        return any(query[0] == host for query in self._lookups)

    async def getaddrinfo(
        self, host: Any, port: Any, *, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0
    ) -> list[Any]:
        """Do the same as ``socket.getaddrinfo``. Callers that look up the same name at the same time share one lookup.

        Raises:
            socket.gaierror: also where the host name is invalid, or too many lookups are running.
        """
        if _is_address(host):
            return await super().getaddrinfo(host, port, family=family, type=type, proto=proto, flags=flags)  # Needs no server.
        query = (host, port, family, type, proto, flags)
        lookup = self._lookups.get(query)
        if lookup is None:
            if len(self._lookups) >= LOOKUPS_MAX:
                raise socket.gaierror(socket.EAI_AGAIN, "too many host names are being resolved")
            lookup = self._lookups[query] = self.create_future()
            # A daemon thread: a process that ends does not wait for a name server. No pool: the clients cache answers.
            threading.Thread(target=self._look_up, args=(query, lookup), name="getaddrinfo", daemon=True).start()
        return await asyncio.shield(lookup)

    def _look_up(self, query: _Query, lookup: "asyncio.Future[list[Any]]") -> None:
        result: list[Any] | OSError
        host, port, *hints = query
        try:
            result = socket.getaddrinfo(host, port, *hints)
        except OSError as error:
            result = error
        except UnicodeError:  # A label that is empty or longer than 63 characters.
            result = socket.gaierror(socket.EAI_NONAME, "not a valid host name")
        with contextlib.suppress(RuntimeError):  # The loop is closed: no caller waits any more.
            self.call_soon_threadsafe(self._settle, query, lookup, result)

    def _settle(self, query: _Query, lookup: "asyncio.Future[list[Any]]", result: list[Any] | OSError) -> None:
        del self._lookups[query]
        if lookup.cancelled():
            return
        if isinstance(result, OSError):
            lookup.set_exception(result)
            lookup.exception()  # Mark it as retrieved: all callers may have given up, and asyncio would log it.
        else:
            lookup.set_result(result)


def _is_address(host: object) -> bool:
    try:
        ipaddress.ip_address(host)  # type: ignore[arg-type]
    except ValueError:
        return False
    return True
