"""Whose request is it, and is it within its tenant's share?

Before authentication a request has only its credential. Credentials that were good lately are remembered by a digest, with
their tenant; all others share one place. While less is admitted than comes, each tenant that asks has an equal part of it: one
that asks for less than its part is refused nothing, however many requests another sends. All in this process' memory, and
bounded.
"""

import hashlib
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

UNKNOWN = ""  # The place of all whose credential is not known. No tenant has this name.
KNOWN_MAX = 10_000
ACTIVE_S = 1.0  # Who has asked for nothing for so long has no part.
BURST_S = 0.1  # So much of a part may come at once: a turn of a busy loop brings what came during the one before.
PARTS_PER_S_MIN = 20.0  # Divided, however little is admitted: enough for requests that come one by one.

_OWN = (b"x-sluice-key", b"cf-aig-authorization")  # Beside these the others carry a provider's key.
_SHARED = (b"authorization", b"x-api-key")
_SALT = secrets.token_bytes(16)


class Known(NamedTuple):
    """Who a credential is of. ``is_background``: what it asks for is background work, unless a request says otherwise."""

    tenant: str
    is_background: bool = False


NOBODY = Known(UNKNOWN)


def credential_of(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return the digest of what a request brings to say who sends it; empty where that is nothing."""
    # Hot path: once per request.
    own, shared = b"", b""
    for name, value in headers:
        if name in _SHARED:
            shared += value
        elif name in _OWN:
            own += value
    text = own or shared
    return hashlib.blake2b(text, digest_size=16, key=_SALT).digest() if text else b""


class Credentials:
    """The credentials that were good lately."""

    def __init__(self) -> None:
        self._known: dict[bytes, Known] = {}

    def learn(self, credential: bytes, known: Known) -> None:
        if self._known.get(credential) == known:
            return
        self._known[credential] = known
        if len(self._known) > KNOWN_MAX:
            del self._known[next(iter(self._known))]

    def find(self, credential: bytes) -> Known:
        return self._known.get(credential, NOBODY)


@dataclass(slots=True)
class _Bucket:
    filled_at: float
    tokens: float = 1.0


class Shares:
    """Keeps a part of what is admitted for each tenant that asks: half of it is divided, the other half is for who comes first.

    Were it all, there would be nothing left to cut, once all who ask do so for their part and more.
    """

    def __init__(self) -> None:
        self._of: dict[str, _Bucket] = {}

    def take(self, tenant: str, per_s: float, now: float) -> bool:
        """Return whether a request is within its tenant's part of what is admitted, ``per_s``."""
        bucket = self._of.get(tenant)
        if bucket is None:
            bucket = self._of[tenant] = _Bucket(now)
        if len(self._of) == 1:
            return False  # There is nobody to keep a part from.
        part_per_s = max(PARTS_PER_S_MIN, per_s) / 2 / len(self._of)
        bucket.tokens = min(max(1.0, part_per_s * BURST_S), bucket.tokens + part_per_s * (now - bucket.filled_at))
        bucket.filled_at = now
        if bucket.tokens < 1:
            return False
        bucket.tokens -= 1
        return True

    def forget_idle(self, now: float) -> None:
        """Take out who has asked for nothing lately."""
        for tenant in [tenant for tenant, bucket in self._of.items() if now - bucket.filled_at > ACTIVE_S]:
            del self._of[tenant]
