"""How does the provider key that a request brought get to the worker, without being readable on the way?

It crosses Redis encrypted, under a key made of ``SLUICE_SECRET`` and the generation's id: what is taken from Redis is of no
use without the secret, and put into another job it cannot be read at all.
"""

from collections.abc import Iterable

from pydantic import SecretStr

from common.access.sealing import seal, unseal
from common.canonical.errors import ErrorKind, GatewayError

_PURPOSE = b"sluice brought key"


def seal_byok_key(key: SecretStr, generation_id: str, secret: SecretStr | None) -> str:
    """Return the key as it may be stored.

    Raises:
        GatewayError: INVALID_REQUEST, there is no secret to encrypt it with.
    """
    if secret is None:
        raise GatewayError(
            ErrorKind.INVALID_REQUEST,
            "The request brings a provider's key, which this gateway cannot take: its operator must set SLUICE_SECRET. "
            "Leave the provider's key out to use the gateway's own.",
            code="brought_keys_off",
            param="authorization",
        )
    return seal(key.get_secret_value().encode(), generation_id, secret, _PURPOSE).decode()


def open_byok_key(sealed: str | None, generation_id: str, secrets: Iterable[SecretStr]) -> str | None:
    """Return the key that a request brought, None where it brought none; ``secrets``: each that may have encrypted it.

    Raises:
        GatewayError: INTERNAL, it was encrypted with another secret.
    """
    if sealed is None:
        return None
    key = unseal(sealed.encode(), generation_id, secrets, _PURPOSE)
    if key is not None:
        return key.decode()
    raise GatewayError(
        ErrorKind.INTERNAL,
        "The key that the request brought cannot be read: the gateway's API and its workers need the same SLUICE_SECRET.",
        code="secrets_differ",
    )
