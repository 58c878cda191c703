"""Which addresses are guessing credentials?

Too many refusals within a minute lock an address out for a while. During the lockout every invalid credential from it gets the
same answer. A valid credential is still accepted, because others may share the address. So the lockout does not stop a correct
guess: the length of the credentials does (``SECRET_BYTES_MIN``, ``KEY_CHARS_MIN`` of ``common/config/settings.py``). The
lockout hides what a wrong guess would reveal, and ends the counting of a flood. It is kept in this process's memory, bounded.
"""

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from common.canonical.errors import ErrorKind, GatewayError
from common.canonical.wording import try_again

WINDOW_S = 60.0
ADDRESSES_MAX = 10_000
_BLOCKED = "Too many requests with credentials that are not valid came from your address."


class Lockout:
    """More than ``refusals_max`` refusals in a minute lock an address out for ``block_s``. 0: no address is ever locked out."""

    def __init__(self, refusals_max: int, block_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._refusals_max = refusals_max
        self._block_s = block_s
        self._clock = clock
        self._counts: OrderedDict[str, tuple[int, float]] = OrderedDict()  # By address: the refusals, and when they began.
        self._locked_until: OrderedDict[str, float] = OrderedDict()  # By address: the end of its lockout.

    def record_refusal(self, address: str) -> None:
        """Count one refusal, and lock the address out if it is one too many."""
        now = self._clock()
        count, since = self._counts.get(address, (0, now))
        count, since = (count + 1, since) if now - since < WINDOW_S else (1, now)
        self._counts[address] = count, since
        self._counts.move_to_end(address)
        _bound(self._counts, ADDRESSES_MAX)
        if 0 < self._refusals_max < count:
            del self._counts[address]
            self._locked_until[address] = now + self._block_s
            self._locked_until.move_to_end(address)
            _bound(self._locked_until, ADDRESSES_MAX)

    def remaining_s(self, address: str) -> float:
        """Return for how long an address is still locked out; 0 if it is not."""
        if not self._locked_until:
            return 0.0
        until = self._locked_until.get(address, 0.0)
        remaining_s = until - self._clock()
        if remaining_s <= 0:
            self._locked_until.pop(address, None)
            return 0.0
        return remaining_s


def locked_out(remaining_s: float) -> GatewayError:
    message = f"{_BLOCKED} {try_again(remaining_s)}"
    return GatewayError(ErrorKind.RATE_LIMITED, message, code="too_many_refused_credentials", retry_after_s=remaining_s)


def _bound(entries: "OrderedDict[Any, Any]", entries_max: int) -> None:
    while len(entries) > entries_max:
        entries.popitem(last=False)
