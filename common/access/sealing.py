"""How is something signed or encrypted with ``SLUICE_SECRET``?

Whoever uses the secret names a purpose, so that what was made for one use is good for no other, and what was encrypted for
one generation cannot be opened as another's. The secrets to verify and open with are those of ``Settings.secrets``: the
present one, and while a rotation lasts the one before.

A purpose is part of what is stored and sent: to change one makes all that was signed or sealed with it unreadable.
"""

import base64
import hashlib
import hmac
from collections.abc import Iterable
from contextlib import suppress

from cryptography.fernet import Fernet, InvalidToken
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from pydantic import SecretStr

SIGNATURE_BYTES = hashlib.sha256().digest_size


def sign(text: bytes, secret: SecretStr, purpose: bytes) -> bytes:
    """Return the HMAC-SHA-256 of a text for one purpose."""
    return hmac.digest(secret.get_secret_value().encode(), purpose + b"\n" + text, hashlib.sha256)


def verify(text: bytes, signature: bytes, secrets: Iterable[SecretStr], purpose: bytes) -> bool:
    """Whether one of these secrets signed a text. With each of them, in constant time: how long it takes tells nothing."""
    return sum(hmac.compare_digest(sign(text, secret, purpose), signature) for secret in secrets) > 0


def seal(clear: bytes, generation_id: str, secret: SecretStr, purpose: bytes) -> bytes:
    """Return something as a Fernet token that only the secret, for this purpose and this generation, opens."""
    return _fernet(generation_id, secret, purpose).encrypt(clear)


def unseal(sealed: bytes, generation_id: str, secrets: Iterable[SecretStr], purpose: bytes) -> bytes | None:
    """Return what was sealed; None where none of these secrets opens it."""
    for secret in secrets:
        with suppress(InvalidToken):
            return _fernet(generation_id, secret, purpose).decrypt(sealed)
    return None


def derive(generation_id: str, secret: SecretStr, purpose: bytes) -> bytes:
    """Return the 32 bytes that the secret gives for one purpose and one generation (HKDF-SHA-256)."""
    derived = HKDF(SHA256(), length=32, salt=None, info=purpose + b" " + generation_id.encode())
    return derived.derive(secret.get_secret_value().encode())


def _fernet(generation_id: str, secret: SecretStr, purpose: bytes) -> Fernet:
    return Fernet(base64.urlsafe_b64encode(derive(generation_id, secret, purpose)))
