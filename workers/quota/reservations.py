"""How do all workers together keep to the quota of a vendor's key?

A call reserves its request, its tokens by estimate and its place among the concurrent ones in one script, before it is
made; what it really took is settled afterwards, with others', while nobody waits. The windows are those of clients' limits
(``common/limits/window.lua``): a limit of N admits N. A place is dated, and renewed by the worker that has it, so one
that is killed loses its places within a lease and two seconds.
"""

import asyncio
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import structlog

from common.access.principal import Limits
from common.canonical.errors import StoreUnavailable
from common.redis import keyspace
from common.redis.scripts import Call, Scripts

log = structlog.get_logger()

PLACE_EXTRA_S = 2.0  # A renewal may come so late.
BUSY_LOOK_S = 0.25  # How often somebody who waits for a place looks for one: when a call ends, nobody can foretell.
TOKENS_LOOK_S = 1.0  # Tokens that were reserved for nothing come back before their time.
HELD_BATCH = 1_000  # Keys and ids of places that are renewed in one script; an even number.


class Short(NamedTuple):
    """What of a quota is used up, and the seconds until there is enough again: ``wait_s`` at most, ``look_s`` at best."""

    limit: Literal["requests", "tokens", "concurrent"]
    wait_s: float
    look_s: float


@dataclass(frozen=True, slots=True)
class Reserved:
    name: str
    limits: Limits
    tokens: int
    bucket: str
    id: str = field(default_factory=lambda: secrets.token_hex(8))


class _Memory(NamedTuple):
    """A shortage that holds for whoever asks for so many tokens or more: until its end Redis need not be asked again."""

    short: Short
    tokens: int
    asked_at: float


class Reservations:
    """One worker's part of it. Keys of vendors go by names that do not tell them."""

    def __init__(self, scripts: Scripts, lease_s: float, renew_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._scripts = scripts
        self._lease_ms = round((lease_s + PLACE_EXTRA_S) * 1000)
        self._renew_s = renew_s
        self._clock = clock
        self._renewed_at = clock()
        self._held: dict[str, str] = {}  # A call's id to the key of its place.
        self._unsettled: list[Call] = []
        self._short: dict[str, _Memory] = {}

    async def reserve(self, name: str, limits: Limits, tokens: int) -> Reserved | Short:
        """Return a call's part of a key's quota, or what stands in the way.

        Raises:
            StoreUnavailable: whether anything was reserved is unknown.
        """
        # One that asks for more than there is at all is let in while nothing else has been used.
        tokens = min(tokens, limits.tokens or 0)
        if short := self._remembered(name, tokens):
            return short
        reserved = Reserved(name, limits, tokens, "")
        windows = [_window(name, "requests"), limits.requests or 0, _window(name, "tokens"), limits.tokens or 0, tokens]
        args = [reserved.id, self._lease_ms, _window_ms(limits), *windows, _places(name), limits.concurrent or 0]
        try:
            what, figure = await self._scripts.run("reserve", [], args)
        except asyncio.CancelledError:
            # The script may have run. It was sent before this, so its place is free again afterwards; its tokens are spent.
            self._unsettled.append(("settle", [], [reserved.id, _places(name), "", 0, 0, 0, 0]))
            raise
        if what != b"ok":
            return self._remember(name, tokens, what.decode(), figure / 1000)
        if limits.concurrent:
            self._held[reserved.id] = _places(name)
        return Reserved(name, limits, tokens, figure.decode(), reserved.id)

    def give_back(self, reserved: Reserved, used_tokens: int) -> None:
        """Settle a call that has ended, with the next flush."""
        place = self._held.pop(reserved.id, "")
        tokens = _window(reserved.name, "tokens") if reserved.bucket else ""
        if place or tokens:
            figures = [_window_ms(reserved.limits), reserved.bucket, reserved.tokens, used_tokens]
            self._unsettled.append(("settle", [], [reserved.id, place, tokens, *figures]))
            self._short.pop(reserved.name, None)

    async def flush(self) -> None:
        """Settle what has ended, and renew the places of what runs when it is time to."""
        calls, self._unsettled = self._unsettled, []
        if self._held and self._clock() - self._renewed_at >= self._renew_s:
            self._renewed_at = self._clock()
            flat = [item for id_, place in self._held.items() for item in (place, id_)]
            calls += [("hold", [], [self._lease_ms, *flat[at : at + HELD_BATCH]]) for at in range(0, len(flat), HELD_BATCH)]
        try:
            answers = await self._scripts.run_many(calls)
        except StoreUnavailable:
            # What is settled twice would let in too many. Places lapse by themselves, tokens count until their time is over.
            return
        for answer in answers:
            if isinstance(answer, Exception) and not isinstance(answer, StoreUnavailable):
                log.error("quota_not_settled", error=str(answer))

    def _remember(self, name: str, tokens: int, what: str, wait_s: float) -> Short:
        match what:
            case "requests":
                short, tokens = Short("requests", wait_s, wait_s), 0
            case "tokens":
                short = Short("tokens", wait_s, min(wait_s, TOKENS_LOOK_S))
            case _:
                short, tokens = Short("concurrent", BUSY_LOOK_S, BUSY_LOOK_S), 0
        self._short[name] = _Memory(short, tokens, self._clock())
        return short

    def _remembered(self, name: str, tokens: int) -> Short | None:
        known = self._short.get(name)
        if known is None or tokens < known.tokens:
            return None
        past_s = self._clock() - known.asked_at
        limit, wait_s, look_s = known.short
        return Short(limit, wait_s - past_s, look_s - past_s) if past_s < look_s else None


def _window(name: str, kind: str) -> str:
    return keyspace.limit("upstream", name, kind)


def _places(name: str) -> str:
    return keyspace.slots("upstream", name)


def _window_ms(limits: Limits) -> int:
    return round(limits.window_s * 1000)
