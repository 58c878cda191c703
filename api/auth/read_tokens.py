"""How does a browser read one generation without a key?

A native EventSource cannot set headers. So the client that started the generation gives the browser a token for the URL. The
token names the owner, and is signed with ``SLUICE_SECRET`` for one generation. It allows reading that generation and nothing
else, for as long as its log exists. It has no expiry of its own: a log that has expired answers 410 to everybody.
"""

import base64
import binascii
import re

from pydantic import SecretStr

from common.access.principal import Principal
from common.access.sealing import SIGNATURE_BYTES, sign, verify
from common.canonical.errors import ErrorKind, GatewayError
from common.config.groups.access import AccessSettings
from common.config.settings import Settings

_PURPOSE = b"sluice read token 1"
_OWNER = re.compile(rb"(?:key|jwt)_[A-Za-z0-9_-]{1,64}|anonymous")  # The ids of principals.


def require_secret(settings: AccessSettings) -> SecretStr:
    """Return the secret that signs the tokens.

    Raises:
        GatewayError: INVALID_REQUEST, it is not set.
    """
    if settings.secret is None:
        raise GatewayError(
            ErrorKind.INVALID_REQUEST,
            "This gateway cannot give read tokens: its operator must set SLUICE_SECRET, the same for all its processes.",
            code="read_tokens_off",
        )
    return settings.secret


def sign_read_token(principal: Principal, generation_id: str, settings: Settings) -> str:
    """Return a token that allows reading one generation of a principal."""
    owner = principal.id.encode()
    return f"{_text(owner)}.{_text(sign(_signed(owner, generation_id), require_secret(settings), _PURPOSE))}"


def read_token_owner(token: str, generation_id: str, settings: AccessSettings) -> Principal:
    """Return the principal whose generation the token allows to read.

    Raises:
        GatewayError: UNAUTHENTICATED.
    """
    owner_text, _, signature = token.partition(".")
    try:
        owner = _bytes(owner_text)
        if verify(_signed(owner, generation_id), _bytes(signature), settings.secrets, _PURPOSE):
            return Principal(owner.decode())
    except (binascii.Error, ValueError):
        pass
    raise GatewayError(
        ErrorKind.UNAUTHENTICATED,
        "The read token is not valid for this generation. Use the one that POST /v1/generations returned with its id.",
        code="invalid_read_token",
        param="token",
    )


def looks_like_a_read_token(text: str) -> bool:
    """Whether a text has the form of a read token, an owner's id and a signature, for any generation and any secret."""
    owner, _, signature = text.partition(".")
    try:
        return len(_bytes(signature)) == SIGNATURE_BYTES and _OWNER.fullmatch(_bytes(owner)) is not None
    except (binascii.Error, ValueError):
        return False


def _signed(owner: bytes, generation_id: str) -> bytes:
    return generation_id.encode() + b"\n" + owner


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _bytes(text: str) -> bytes:
    return base64.b64decode(text.encode("ascii") + b"=" * (-len(text) % 4), b"-_", validate=True)
