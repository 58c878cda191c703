"""Whose request is it, and is it within its tenant's share?

Before authentication, a request has only its credential. Credentials that were valid lately are remembered as digests, with
their tenants. All other requests share one entry. While fewer requests are admitted than come, every tenant that sends requests
has an equal share. A tenant that sends fewer than its share is refused nothing, however many requests another tenant sends. All
this is kept in the memory of this process, bounded.
"""

import hashlib
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

UNKNOWN = ""  # The entry of all requests whose credential is not known. No tenant has this name.
KNOWN_MAX = 10_000
ACTIVE_S = 1.0  # A tenant that has sent no request for this long has no share.
BURST_S = 0.1  # This much of a share may come at once: a turn of a busy loop brings what came during the previous one.
SHARES_PER_S_MIN = 20.0  # Divided, however little is admitted: enough for requests that come one by one.

_OWN = (b"x-sluice-key", b"cf-aig-authorization")  # If a request has one of these, the others carry a provider's key.
_SHARED = (b"authorization", b"x-api-key")
_SALT = secrets.token_bytes(16)


class CredentialOwner(NamedTuple):
    """Whose credential it is. ``is_background``: requests with it are background work, unless a header says otherwise."""

    tenant: str
    is_background: bool = False


NOBODY = CredentialOwner(UNKNOWN)


def credential_of(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return the digest of a request's credentials; empty if it has none."""
    # Hot path: once per request.
    gateway, shared = b"", b""
    for name, value in headers:
        if name in _SHARED:
            shared += value
        elif name in _OWN:
            gateway += value
    text = gateway or shared
    return hashlib.blake2b(text, digest_size=16, key=_SALT).digest() if text else b""


class CredentialCache:
    """The owners of credentials that were valid lately."""

    def __init__(self) -> None:
        self._owners: dict[bytes, CredentialOwner] = {}

    def add(self, credential: bytes, owner: CredentialOwner) -> None:
        if self._owners.get(credential) == owner:
            return
        self._owners[credential] = owner
        if len(self._owners) > KNOWN_MAX:
            del self._owners[next(iter(self._owners))]

    def find(self, credential: bytes) -> CredentialOwner:
        return self._owners.get(credential, NOBODY)


@dataclass(slots=True)
class _Bucket:
    filled_at: float
    tokens: float = 1.0


class Shares:
    """Keeps a share of what is admitted for each tenant that sends requests. Half of it is divided into shares. The other half
    goes to whoever comes first.

    If all of it were divided, nothing could be cut once every tenant sends its whole share or more.
    """

    def __init__(self) -> None:
        self._buckets: dict[str, _Bucket] = {}

    def spend(self, tenant: str, per_s: float, now: float) -> bool:
        """Return whether a request is within its tenant's share, and count it against that. ``per_s``: what is admitted."""
        bucket = self._buckets.get(tenant)
        if bucket is None:
            bucket = self._buckets[tenant] = _Bucket(now)
        if len(self._buckets) == 1:
            return False  # There is no other tenant to keep a share for.
        share_per_s = max(SHARES_PER_S_MIN, per_s) / 2 / len(self._buckets)
        bucket.tokens = min(max(1.0, share_per_s * BURST_S), bucket.tokens + share_per_s * (now - bucket.filled_at))
        bucket.filled_at = now
        if bucket.tokens < 1:
            return False
        bucket.tokens -= 1
        return True

    def forget_idle(self, now: float) -> None:
        """Remove the tenants that have sent no request lately."""
        for tenant in [tenant for tenant, bucket in self._buckets.items() if now - bucket.filled_at > ACTIVE_S]:
            del self._buckets[tenant]
