"""What does a managed key look like, and which texts can be one at all?

``sk_sluice_<id>_<secret><check>``: 12 characters that name the key, 30 that nobody can guess, and 8 that prove that it was
made here. Letters, digits and underscores alone, so that one double-click selects it and it needs no quoting anywhere.

The check is an HMAC by ``SLUICE_SECRET`` over all that stands before it. Only a text whose check is right is looked up, so
a flood of made-up keys costs a hash each and never reaches Redis or the database: one in 62^8 would.

Of the secret part only a SHA-256 is stored. It has 178 random bits, so there is no list of likely ones to try, and a slow
hash, which exists to make such lists expensive, would only make each first request with a key slow.
"""

import hashlib
import hmac
import re
import secrets as random_source
from typing import NamedTuple

from pydantic import SecretStr

from common.access.sealing import sign

PREFIX = "sk_sluice_"
_ID_CHARS = "0123456789abcdefghjkmnpqrstvwxyz"  # No i, l, o and u: ids are read aloud and typed, too.
_CHARS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_ID_LENGTH, _SECRET_LENGTH, _CHECK_LENGTH = 12, 30, 8
_ID = re.compile(rf"[{_ID_CHARS}]{{{_ID_LENGTH}}}")
_KEY = re.compile(rf"({PREFIX}({_ID.pattern})_([0-9A-Za-z]{{{_SECRET_LENGTH}}}))([0-9A-Za-z]{{{_CHECK_LENGTH}}})")
_PURPOSE = b"sluice managed key 1"


class ParsedKey(NamedTuple):
    """A well-formed key that somebody sent: its id, and the hash of its secret. Whether it is good is not known yet."""

    id: str
    secret_hash: str


def is_id(text: str) -> bool:
    return _ID.fullmatch(text) is not None


def new_id() -> str:
    return "".join(random_source.choice(_ID_CHARS) for _ in range(_ID_LENGTH))


def mint(id_: str, secret: SecretStr) -> tuple[str, str]:
    """Return a key's text, to be shown once, and the hash by which it is known from then on."""
    body = f"{PREFIX}{id_}_{(random := ''.join(random_source.choice(_CHARS) for _ in range(_SECRET_LENGTH)))}"
    return body + _check(body, secret), _hash(random)


def parse_key(text: str, *secrets: SecretStr | None) -> ParsedKey | None:
    """Return what a text presents; None where it cannot be a key that was made with one of these ``SLUICE_SECRET``s."""
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
