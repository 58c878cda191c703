"""How does a process of ours resolve names, so that a dead one holds up nothing else?

The event loop of both tiers. Whatever connects by a name (aiohttp, and httpx by way of anyio) calls its ``getaddrinfo``.
uvloop's own shares four threads between all names, asyncio's the default executor, where guardrails and estimates compute too:
a name server that does not answer would use up either. Here each name has a thread of its own while it is being resolved.
"""

import asyncio
import contextlib
import ipaddress
import socket
import threading
from typing import Any

import uvloop

LOOKUPS_MAX = 64  # Names that are being resolved at a time. Addresses come from settings: there are a few dozen at most.

_Query = tuple[Any, Any, int, int, int, int]  # The arguments of socket.getaddrinfo.


class Loop(uvloop.Loop):
    """uvloop's, with one thread per name. How long a caller waits is its own affair; the lookup itself cannot be stopped."""

    def __init__(self) -> None:
        super().__init__()
        self._lookups: dict[_Query, asyncio.Future[list[Any]]] = {}

    def is_resolving(self, host: str) -> bool:
        """Whether a lookup of this name is under way."""
        return any(query[0] == host for query in self._lookups)

    async def getaddrinfo(
        self, host: Any, port: Any, *, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0
    ) -> list[Any]:
        """As ``socket.getaddrinfo``; whoever asks for what is being looked up already gets the same answer.

        Raises:
            socket.gaierror: also where the name cannot be one, or too many lookups are under way.
        """
        if _is_address(host):
            return await super().getaddrinfo(host, port, family=family, type=type, proto=proto, flags=flags)  # It asks nobody.
        query = (host, port, family, type, proto, flags)
        lookup = self._lookups.get(query)
        if lookup is None:
            if len(self._lookups) >= LOOKUPS_MAX:
                raise socket.gaierror(socket.EAI_AGAIN, "too many names are being resolved")
            lookup = self._lookups[query] = self.create_future()
            # A daemon: a process that ends does not wait for a name server. No pool: an answer is cached by who connects.
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
            result = socket.gaierror(socket.EAI_NONAME, "not a name that can be resolved")
        with contextlib.suppress(RuntimeError):  # The loop is closed: nobody waits any more.
            self.call_soon_threadsafe(self._settle, query, lookup, result)

    def _settle(self, query: _Query, lookup: "asyncio.Future[list[Any]]", result: list[Any] | OSError) -> None:
        del self._lookups[query]
        if lookup.cancelled():
            return
        if isinstance(result, OSError):
            lookup.set_exception(result)
            lookup.exception()  # Those who waited may have given up; asyncio would complain.
        else:
            lookup.set_result(result)


def _is_address(host: object) -> bool:
    try:
        ipaddress.ip_address(host)  # type: ignore[arg-type]
    except ValueError:
        return False
    return True
