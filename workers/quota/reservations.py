"""How do all workers together keep to the quota of a vendor's key, and to the limits of a route's target?

Before a call, one script reserves its request, its estimated tokens and its place among the concurrent calls, in every quota
that the call uses, or in none. The real usage is settled afterwards, together with other calls, while nobody waits. The windows
are those of the clients' limits (``common/limits/window.lua``): a limit of N admits N. Each place has an expiry, which its
worker renews. So a killed worker loses its places within a lease plus two seconds.
"""

import asyncio
import secrets
import time
from collections.abc import Callable, Mapping
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
    quota: str = ""  # The name of the quota.


class _Share(NamedTuple):
    """A call's part of one quota. ``bucket``: where its tokens are counted."""

    quota: str
    limits: Limits
    tokens: int
    bucket: str = ""


@dataclass(frozen=True, slots=True)
class Reservation:
    shares: tuple[_Share, ...]
    id: str = field(default_factory=lambda: secrets.token_hex(8))

    @property
    def tokens(self) -> int:
        return max(share.tokens for share in self.shares)


class _KnownShortage(NamedTuple):
    """A shortage that holds for each call that needs ``tokens`` or more. Until its end Redis need not be asked again."""

    shortage: Shortage
    tokens: int
    asked_at: float


class Reservations:
    """One worker's reservations. The quota of a vendor's key has a name that does not reveal the key."""

    def __init__(self, scripts: Scripts, lease_s: float, renew_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._scripts = scripts
        self._lease_ms = round((lease_s + PLACE_EXTRA_S) * 1000)
        self._renew_s = renew_s
        self._clock = clock
        self._renewed_at = clock()
        self._held: dict[str, list[str]] = {}  # A call's id to the keys of its places.
        self._unsettled: list[Call] = []
        self._shortages: dict[str, _KnownShortage] = {}

    async def reserve(self, quotas: Mapping[str, Limits], tokens: int) -> Reservation | Shortage:
        """Return a call's part of each of these quotas, or the shortage that prevents the call.

        Raises:
            StoreUnavailable: it is not known whether anything was reserved.
        """
        # A call that needs more than the whole limit is admitted if nothing else has used the window.
        reservation = Reservation(tuple(_Share(name, one, min(tokens, one.tokens or 0)) for name, one in quotas.items()))
        for share in reservation.shares:
            if shortage := self._known_shortage(share.quota, share.tokens):
                return shortage
        args = [value for share in reservation.shares for value in _script_args(share)]
        try:
            outcome, *figures = await self._scripts.run("reserve", [], [reservation.id, self._lease_ms, *args])
        except asyncio.CancelledError:
            # The script may have run. This settlement comes after it and frees its places. Its tokens stay counted.
            self._unsettled += [
                ("settle", [], [reservation.id, _places_key(share.quota), "", 0, 0, 0, 0]) for share in reservation.shares
            ]
            raise
        if outcome != b"ok":
            wait_ms, number = figures
            return self._keep_shortage(reservation.shares[number - 1], outcome.decode(), wait_ms / 1000)
        if places := [_places_key(share.quota) for share in reservation.shares if share.limits.concurrent]:
            self._held[reservation.id] = places
        shares = zip(reservation.shares, figures, strict=True)
        return Reservation(tuple(share._replace(bucket=bucket.decode()) for share, bucket in shares), reservation.id)

    def release(self, reservation: Reservation, used_tokens: int) -> None:
        """Settle a call that has ended. The next flush sends it."""
        self._held.pop(reservation.id, None)
        for quota, limits, reserved, bucket in reservation.shares:
            place = _places_key(quota) if limits.concurrent else ""
            tokens = _window_key(quota, "tokens") if bucket else ""
            if place or tokens:
                figures = [_window_ms(limits), bucket, reserved, used_tokens]
                self._unsettled.append(("settle", [], [reservation.id, place, tokens, *figures]))
                self._shortages.pop(quota, None)

    async def flush(self) -> None:
        """Settle the calls that have ended. Renew the places of running calls when it is time."""
        calls, self._unsettled = self._unsettled, []
        if self._held and self._clock() - self._renewed_at >= self._renew_s:
            self._renewed_at = self._clock()
            renewals = [item for id_, places in self._held.items() for place in places for item in (place, id_)]
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

    def _keep_shortage(self, share: _Share, limit: str, wait_s: float) -> Shortage:
        quota, tokens = share.quota, 0
        match limit:
            case "requests":
                shortage = Shortage("requests", wait_s, wait_s, quota)
            case "tokens":
                shortage, tokens = Shortage("tokens", wait_s, min(wait_s, TOKENS_RECHECK_S), quota), share.tokens
            case _:
                shortage = Shortage("concurrent", BUSY_RECHECK_S, BUSY_RECHECK_S, quota)
        self._shortages[quota] = _KnownShortage(shortage, tokens, self._clock())
        return shortage

    def _known_shortage(self, name: str, tokens: int) -> Shortage | None:
        known = self._shortages.get(name)
        if known is None or tokens < known.tokens:
            return None
        past_s = self._clock() - known.asked_at
        limit, wait_s, earliest_s, quota = known.shortage
        return Shortage(limit, wait_s - past_s, earliest_s - past_s, quota) if past_s < earliest_s else None


def _script_args(share: _Share) -> list[str | int]:
    name, limits = share.quota, share.limits
    requests: list[str | int] = [_window_key(name, "requests"), limits.requests or 0]
    tokens: list[str | int] = [_window_key(name, "tokens"), limits.tokens or 0, share.tokens]
    return [_window_ms(limits), *requests, *tokens, _places_key(name), limits.concurrent or 0]


def _window_key(name: str, kind: str) -> str:
    return keyspace.limit("upstream", name, kind)


def _places_key(name: str) -> str:
    return keyspace.slots("upstream", name)


def _window_ms(limits: Limits) -> int:
    return round(limits.window_s * 1000)
