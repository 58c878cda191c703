"""Which vendors' keys are paused, and until when?

What a vendor tells one worker counts for all workers. The pause is stored in Redis under a digest of provider, key and model,
and each worker reads all pauses with its regular Redis poll. So no call has to wait for this, and other workers know within
half a second. Vendors have separate limits for most models, so a pause is for one model. If several models share a quota, each
of them gets its own refusal.

A pause has two ends. Until the first, nobody calls; it is never later than the longest wait that we obey, and then the vendor
is called again. The second is the vendor's own value; clients get this one. Redis stores the second only if it is later than
the first, in its own field. A worker of the previous version treats that field as one more name.
"""

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

PAUSES_MAX = 1_000  # In Redis, where each worker reads all of them twice a second.
PROMISE_MAX_S = 31 * 86_400  # No quota is for longer than a month.
_PROMISE = " promised"  # After a name: the field with the vendor's own value.
_SHARED_FROM_S = 0.1  # A shorter pause, or a smaller extension of one, would be over before other workers read it.


class PauseLeft(NamedTuple):
    """In seconds: until a name may be called again, and until the vendor's own value is over, which is never sooner."""

    pause_s: float
    promise_s: float


class _Pause(NamedTuple):
    """Both times are by our own clock."""

    until: float
    promised: float


class Pauses:
    """The paused names. A name begins with its provider and a colon."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._pauses: dict[str, _Pause] = {}
        self._unshared: set[str] = set()

    def remaining(self, name: str) -> PauseLeft | None:
        """Return how long a name is still paused; None: it may be called."""
        pause, now = self._pauses.get(name), self._clock()
        return PauseLeft(pause.until - now, pause.promised - now) if pause and pause.until > now else None

    def pause(self, name: str, vendor_s: float, max_s: float) -> bool:
        """Pause a name for ``vendor_s``, but at most for ``max_s``. Return whether other workers must be told."""
        now = self._clock()
        pause = _Pause(now + min(vendor_s, max_s), now + min(vendor_s, PROMISE_MAX_S))
        current = self._pauses.get(name)
        is_news = pause.until - (current.until if current else now) >= _SHARED_FROM_S
        if current is None or pause.until > current.until:
            self._pauses[name] = pause
        if is_news:
            self._unshared.add(name)
        return is_news

    def pop_unshared(self) -> list[tuple[str, int, int]]:
        """Return the pauses that other workers do not know yet, once: name, pause in ms, and the vendor's own value in ms."""
        unshared = [(name, self.remaining(name)) for name in self._unshared]
        self._unshared.clear()
        return [
            (name, round(remaining.pause_s * 1000), round(remaining.promise_s * 1000))
            for name, remaining in unshared
            if remaining
        ]

    def merge(self, stored: dict[bytes, bytes], redis_ms: int) -> None:
        """Merge the pauses that Redis has: fields with times (ms) by Redis' clock."""
        now = self._clock()
        ends = {field.decode(): now + (int(until_ms) - redis_ms) / 1000 for field, until_ms in stored.items()}
        for name, until in ends.items():
            current = self._pauses.get(name)
            if not name.endswith(_PROMISE) and (current is None or until > current.until):
                self._pauses[name] = _Pause(until, max(until, ends.get(name + _PROMISE, until)))
        self._pauses = {name: pause for name, pause in self._pauses.items() if pause.until > now}

    def by_provider(self) -> Counter[str]:
        return Counter(name.partition(":")[0] for name in self._pauses if self.remaining(name))
