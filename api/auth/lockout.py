"""Who tries out credentials?

So many refusals of one address in a minute block it for a while: whatever turns out wrong then gets one and the same
answer. What is right gets in all the same, whoever else is behind that address, so this stops no guess that hits; the
credentials' length does (``SECRET_BYTES_MIN``, ``KEY_CHARS_MIN`` of ``common/config/settings.py``). It takes away what a wrong
guess would tell, and keeps a flood from being counted for ever. In this process' memory and bounded.
"""

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from common.canonical.errors import ErrorKind, GatewayError

WINDOW_S = 60.0
ADDRESSES_MAX = 10_000
_BLOCKED = "Too many requests with credentials that are not valid came from your address. Try again in {:.0f} seconds."


class Refusals:
    """``most`` in a minute are answered, the next ones block the address for ``block_s``; 0: no address is ever blocked."""

    def __init__(self, most: int, block_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._block_s = block_s
        self._clock = clock
        self._counts: OrderedDict[str, tuple[int, float]] = OrderedDict()  # Address: refusals, and since when.
        self._blocked: OrderedDict[str, float] = OrderedDict()  # Address: until when.

    def note(self, address: str) -> None:
        """Count one refusal."""
        now = self._clock()
        count, since = self._counts.get(address, (0, now))
        count, since = (count + 1, since) if now - since < WINDOW_S else (1, now)
        self._counts[address] = count, since
        self._counts.move_to_end(address)
        _bound(self._counts, ADDRESSES_MAX)
        if 0 < self._most < count:
            del self._counts[address]
            self._blocked[address] = now + self._block_s
            self._blocked.move_to_end(address)
            _bound(self._blocked, ADDRESSES_MAX)

    def blocked_s(self, address: str) -> float:
        """Return for how long an address is still blocked; 0: it is not."""
        if not self._blocked:
            return 0.0
        until = self._blocked.get(address, 0.0)
        left_s = until - self._clock()
        if left_s <= 0:
            self._blocked.pop(address, None)
            return 0.0
        return left_s


def blocked(left_s: float) -> GatewayError:
    return GatewayError(
        ErrorKind.RATE_LIMITED, _BLOCKED.format(left_s), code="too_many_refused_credentials", retry_after_s=left_s
    )


def _bound(entries: "OrderedDict[Any, Any]", most: int) -> None:
    while len(entries) > most:
        entries.popitem(last=False)
