"""Which keys of vendors are to be left alone, and until when?

A vendor's word to one worker counts for all: it is noted in Redis, under a digest of provider, key and model, and every
worker reads all notes with its pulse. So no call pays for it, and others know within half a second. Vendors limit most
models apart, so a pause is for one model; where several share a quota, each of them is told by a refusal of its own.

A pause has two ends: until then nobody calls (never for longer than a vendor is obeyed, then it is asked again), and when
there is more by the vendor's own word, which is what clients are told. In Redis the second is noted only where it is later
than the first, as a field of its own: a worker of the version before takes that for one more name.
"""

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

PAUSES_MAX = 1_000  # In Redis, where each worker reads all of them twice a second.
PROMISE_MAX_S = 31 * 86_400  # No quota is for longer than a month.
_PROMISE = " promised"  # Behind a name: the field that has the vendor's own word.
_SHARED_FROM_S = 0.1  # A shorter one is over before others would know, and a longer end than is noted must be as much longer.


class PauseLeft(NamedTuple):
    """Seconds: until a name may be called again, and until there is more by its vendor's word, which is never sooner."""

    pause_s: float
    promise_s: float


class _Pause(NamedTuple):
    """By our own clock."""

    until: float
    promised: float


class Pauses:
    """Names that are to be left alone; a name begins with its provider and a colon."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._pauses: dict[str, _Pause] = {}
        self._unshared: set[str] = set()

    def remaining(self, name: str) -> PauseLeft | None:
        """Return for how long yet; None where it may be called."""
        pause, now = self._pauses.get(name), self._clock()
        return PauseLeft(pause.until - now, pause.promised - now) if pause and pause.until > now else None

    def pause(self, name: str, vendor_s: float, max_s: float) -> bool:
        """Leave a name alone, as its vendor says, but for ``max_s`` at most; returns whether others are to be told of it."""
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
        """Return what others are to be told, once: names, each with the milliseconds of its pause and of its promise."""
        unshared = [(name, self.remaining(name)) for name in self._unshared]
        self._unshared.clear()
        return [
            (name, round(remaining.pause_s * 1000), round(remaining.promise_s * 1000))
            for name, remaining in unshared
            if remaining
        ]

    def merge(self, stored: dict[bytes, bytes], redis_ms: int) -> None:
        """Take over what Redis has: fields, each with a moment by its own clock."""
        now = self._clock()
        ends = {field.decode(): now + (int(until_ms) - redis_ms) / 1000 for field, until_ms in stored.items()}
        for name, until in ends.items():
            current = self._pauses.get(name)
            if not name.endswith(_PROMISE) and (current is None or until > current.until):
                self._pauses[name] = _Pause(until, max(until, ends.get(name + _PROMISE, until)))
        self._pauses = {name: pause for name, pause in self._pauses.items() if pause.until > now}

    def by_provider(self) -> Counter[str]:
        return Counter(name.partition(":")[0] for name in self._pauses if self.remaining(name))
