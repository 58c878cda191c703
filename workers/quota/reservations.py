"""How do all workers together keep to the quota of a vendor's key?

Before a call, one script reserves its request, its estimated tokens and its place among the concurrent calls. The real usage is
settled afterwards, together with other calls, while nobody waits. The windows are those of the clients' limits
(``common/limits/window.lua``): a limit of N admits N. Each place has an expiry, which its worker renews. So a killed worker
loses its places within a lease plus two seconds.
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

PLACE_EXTRA_S = 2.0  # A renewal may be this late.
BUSY_RECHECK_S = 0.25  # How often a waiting generation checks for a free place: nobody knows when a call will end.
TOKENS_RECHECK_S = 1.0  # Reserved tokens that a call did not use come back early.
HELD_BATCH = 1_000  # Keys and ids of places that one script renews; an even number.


class Shortage(NamedTuple):
    """Which limit of a quota is used up, and the seconds until there is enough again: at most ``wait_s``, at best
    ``earliest_s``.
    """

    limit: Literal["requests", "tokens", "concurrent"]
    wait_s: float
    earliest_s: float


@dataclass(frozen=True, slots=True)
class Reservation:
    name: str
    limits: Limits
    tokens: int
    bucket: str
    id: str = field(default_factory=lambda: secrets.token_hex(8))


class _KnownShortage(NamedTuple):
    """A shortage that holds for each call that needs ``tokens`` or more. Until its end Redis need not be asked again."""

    shortage: Shortage
    tokens: int
    asked_at: float


class Reservations:
    """One worker's reservations. A vendor's key is called by a name that does not reveal it."""

    def __init__(self, scripts: Scripts, lease_s: float, renew_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._scripts = scripts
        self._lease_ms = round((lease_s + PLACE_EXTRA_S) * 1000)
        self._renew_s = renew_s
        self._clock = clock
        self._renewed_at = clock()
        self._held: dict[str, str] = {}  # A call's id to the key of its place.
        self._unsettled: list[Call] = []
        self._shortages: dict[str, _KnownShortage] = {}

    async def reserve(self, name: str, limits: Limits, tokens: int) -> Reservation | Shortage:
        """Return a call's part of a key's quota, or the shortage that prevents the call.

        Raises:
            StoreUnavailable: it is not known whether anything was reserved.
        """
        # A call that needs more than the whole limit is admitted if nothing else has used the window.
        tokens = min(tokens, limits.tokens or 0)
        if shortage := self._known_shortage(name, tokens):
            return shortage
        reservation = Reservation(name, limits, tokens, "")
        windows = [_window_key(name, "requests"), limits.requests or 0, _window_key(name, "tokens"), limits.tokens or 0, tokens]
        args = [reservation.id, self._lease_ms, _window_ms(limits), *windows, _places_key(name), limits.concurrent or 0]
        try:
            outcome, figure = await self._scripts.run("reserve", [], args)
        except asyncio.CancelledError:
            # The script may have run. This settlement comes after it and frees its place. Its tokens stay counted.
            self._unsettled.append(("settle", [], [reservation.id, _places_key(name), "", 0, 0, 0, 0]))
            raise
        if outcome != b"ok":
            return self._keep_shortage(name, tokens, outcome.decode(), figure / 1000)
        if limits.concurrent:
            self._held[reservation.id] = _places_key(name)
        return Reservation(name, limits, tokens, figure.decode(), reservation.id)

    def release(self, reservation: Reservation, used_tokens: int) -> None:
        """Settle a call that has ended. The next flush sends it."""
        place = self._held.pop(reservation.id, "")
        tokens = _window_key(reservation.name, "tokens") if reservation.bucket else ""
        if place or tokens:
            figures = [_window_ms(reservation.limits), reservation.bucket, reservation.tokens, used_tokens]
            self._unsettled.append(("settle", [], [reservation.id, place, tokens, *figures]))
            self._shortages.pop(reservation.name, None)

    async def flush(self) -> None:
        """Settle the calls that have ended. Renew the places of running calls when it is time."""
        calls, self._unsettled = self._unsettled, []
        if self._held and self._clock() - self._renewed_at >= self._renew_s:
            self._renewed_at = self._clock()
            renewals = [item for id_, place in self._held.items() for item in (place, id_)]
            calls += [
                ("hold", [], [self._lease_ms, *renewals[at : at + HELD_BATCH]]) for at in range(0, len(renewals), HELD_BATCH)
            ]
        try:
            answers = await self._scripts.run_many(calls)
        except StoreUnavailable:
            # They are not sent again: a double settlement would admit too many calls. Places expire, and tokens leave the
            # window.
            return
        for answer in answers:
            if isinstance(answer, Exception) and not isinstance(answer, StoreUnavailable):
                log.error("quota_not_settled", error=str(answer))

    def _keep_shortage(self, name: str, tokens: int, limit: str, wait_s: float) -> Shortage:
        match limit:
            case "requests":
                shortage, tokens = Shortage("requests", wait_s, wait_s), 0
            case "tokens":
                shortage = Shortage("tokens", wait_s, min(wait_s, TOKENS_RECHECK_S))
            case _:
                shortage, tokens = Shortage("concurrent", BUSY_RECHECK_S, BUSY_RECHECK_S), 0
        self._shortages[name] = _KnownShortage(shortage, tokens, self._clock())
        return shortage

    def _known_shortage(self, name: str, tokens: int) -> Shortage | None:
        known = self._shortages.get(name)
        if known is None or tokens < known.tokens:
            return None
        past_s = self._clock() - known.asked_at
        limit, wait_s, earliest_s = known.shortage
        return Shortage(limit, wait_s - past_s, earliest_s - past_s) if past_s < earliest_s else None


def _window_key(name: str, kind: str) -> str:
    return keyspace.limit("upstream", name, kind)


def _places_key(name: str) -> str:
    return keyspace.slots("upstream", name)


def _window_ms(limits: Limits) -> int:
    return round(limits.window_s * 1000)
