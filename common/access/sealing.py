"""How is data signed or encrypted with ``SLUICE_SECRET``?

Each use of the secret names a purpose, so a signature for one purpose is invalid for any other, and data that was encrypted
for one generation cannot be decrypted for another. ``Settings.secrets`` are the secrets to verify and decrypt with: the
present one and, during a rotation, the previous one.

A purpose is part of what is stored and sent. After a change of a purpose, everything signed or sealed with it is unreadable.
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
    """Whether one of these secrets signed a text. It tries all of them, so the time it takes reveals nothing."""
    return sum(hmac.compare_digest(sign(text, secret, purpose), signature) for secret in secrets) > 0


def seal(clear: bytes, generation_id: str, secret: SecretStr, purpose: bytes) -> bytes:
    """Encrypt data as a Fernet token. Only the same secret, purpose and generation decrypt it."""
    return _fernet(generation_id, secret, purpose).encrypt(clear)


def unseal(sealed: bytes, generation_id: str, secrets: Iterable[SecretStr], purpose: bytes) -> bytes | None:
    """Decrypt sealed data. None where none of these secrets decrypts it."""
    for secret in secrets:
        with suppress(InvalidToken):
            return _fernet(generation_id, secret, purpose).decrypt(sealed)
    return None


def derive(generation_id: str, secret: SecretStr, purpose: bytes) -> bytes:
    """Derive 32 bytes from the secret for one purpose and one generation (HKDF-SHA-256)."""
    derived = HKDF(SHA256(), length=32, salt=None, info=purpose + b" " + generation_id.encode())
    return derived.derive(secret.get_secret_value().encode())


def _fernet(generation_id: str, secret: SecretStr, purpose: bytes) -> Fernet:
    return Fernet(base64.urlsafe_b64encode(derive(generation_id, secret, purpose)))
