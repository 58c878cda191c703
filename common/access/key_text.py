"""What does a managed key look like, and which texts can be one?

``sk_sluice_<id>_<secret><check>``: 12 characters that name the key, 30 that nobody can guess, and 8 that prove that this
gateway made it. It has only letters, digits and underscores, so that a double-click selects it and it needs no quoting.

The check is an HMAC with ``SLUICE_SECRET`` over all characters before it. Only a text with a correct check is looked up. So a
flood of invented keys costs one hash each and does not reach Redis or the database: only one in 62^8 would.

Only a SHA-256 of the secret part is stored. The secret has 178 random bits, so it cannot be found in a list of likely values.
A slow hash exists to make such lists expensive; here it would only slow down the first request with each key.
"""

import hashlib
import hmac
import re
import secrets as random_source
from typing import NamedTuple

from pydantic import SecretStr

from common.access.sealing import sign

PREFIX = "sk_sluice_"
_ID_CHARS = "0123456789abcdefghjkmnpqrstvwxyz"  # Without i, l, o and u: people also read ids aloud and type them.
_CHARS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_ID_LENGTH, _SECRET_LENGTH, _CHECK_LENGTH = 12, 30, 8
_ID = re.compile(rf"[{_ID_CHARS}]{{{_ID_LENGTH}}}")
_KEY = re.compile(rf"({PREFIX}({_ID.pattern})_([0-9A-Za-z]{{{_SECRET_LENGTH}}}))([0-9A-Za-z]{{{_CHECK_LENGTH}}})")
_PURPOSE = b"sluice managed key 1"


class ParsedKey(NamedTuple):
    """A well-formed key that a client sent: its id, and the hash of its secret. Whether it is valid is not known yet."""

    id: str
    secret_hash: str


def is_id(text: str) -> bool:
    return _ID.fullmatch(text) is not None


def new_id() -> str:
    return "".join(random_source.choice(_ID_CHARS) for _ in range(_ID_LENGTH))


def mint(id_: str, secret: SecretStr) -> tuple[str, str]:
    """Create a key. Returns its text, to be shown once, and the hash of its secret, to be stored."""
    body = f"{PREFIX}{id_}_{(random := ''.join(random_source.choice(_CHARS) for _ in range(_SECRET_LENGTH)))}"
    return body + _check(body, secret), _hash(random)


def parse_key(text: str, *secrets: SecretStr | None) -> ParsedKey | None:
    """Parse a key. None where the text cannot be a key that was made with one of these values of ``SLUICE_SECRET``."""
    match = _KEY.fullmatch(text)
    if match is None or not sum(hmac.compare_digest(_check(match[1], secret), match[4]) for secret in secrets if secret):
        return None
    return ParsedKey(match[2], _hash(match[3]))


def _hash(random: str) -> str:
    return hashlib.sha256(random.encode()).hexdigest()


def _check(body: str, secret: SecretStr) -> str:
    number, chars = int.from_bytes(sign(body.encode(), secret, _PURPOSE)[:16]), []
    for _ in range(_CHECK_LENGTH):
        number, index = divmod(number, len(_CHARS))
        chars.append(_CHARS[index])
    return "".join(chars)
