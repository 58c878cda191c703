"""Which keys of vendors are to be left alone, and until when?

A vendor's word to one worker counts for all: it is noted in Redis, under a digest of provider, key and model, and every
worker reads all notes with its pulse. So no call pays for it, and others know within half a second. Vendors limit most
models apart, so a pause is for one model; where several share a quota, each of them is told by a refusal of its own.
"""

from collections import Counter
from collections.abc import Callable

PAUSES_MAX = 1_000  # In Redis, where each worker reads all of them twice a second.
_SHARED_FROM_S = 0.1  # A shorter one is over before others would know, and a longer end than is noted must be as much longer.


class Pauses:
    """Names and the seconds for which to leave them alone; a name begins with its provider and a colon."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._until: dict[str, float] = {}  # By our own clock.
        self._unshared: set[str] = set()

    def left_s(self, name: str) -> float:
        """Return for how long yet; 0 where it may be called."""
        until = self._until.get(name)
        return max(0.0, until - self._clock()) if until is not None else 0.0

    def pause(self, name: str, seconds: float) -> bool:
        """Leave a name alone for so long from now; returns whether others are to be told of it."""
        until = self._clock() + seconds
        is_news = until - self._until.get(name, self._clock()) >= _SHARED_FROM_S
        self._until[name] = max(until, self._until.get(name, until))
        if is_news:
            self._unshared.add(name)
        return is_news

    def take_unshared(self) -> list[tuple[str, int]]:
        """Return what others are to be told: names, each with the milliseconds that are left. Once."""
        told = [(name, round(self.left_s(name) * 1000)) for name in self._unshared]
        self._unshared.clear()
        return [(name, left_ms) for name, left_ms in told if left_ms > 0]

    def note(self, noted: dict[bytes, bytes], redis_ms: int) -> None:
        """Take over what Redis has: names, each with the moment when its pause ends, by its own clock."""
        now = self._clock()
        for name, until_ms in noted.items():
            until = now + (int(until_ms) - redis_ms) / 1000
            self._until[name.decode()] = max(until, self._until.get(name.decode(), until))
        self._until = {name: until for name, until in self._until.items() if until > now}

    def by_provider(self) -> Counter[str]:
        return Counter(name.partition(":")[0] for name in self._until if self.left_s(name))
