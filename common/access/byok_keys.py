"""How does a request's own provider key (bring-your-own-key) get to the worker without being readable on the way?

It is encrypted in Redis, with a key derived from ``SLUICE_SECRET`` and the generation's id. A copy from Redis is useless
without the secret, and in another generation's job it cannot be decrypted.
"""

from collections.abc import Iterable

from pydantic import SecretStr

from common.access.sealing import seal, unseal
from common.canonical.errors import ErrorKind, GatewayError

_PURPOSE = b"sluice brought key"


def seal_byok_key(key: SecretStr, generation_id: str, secret: SecretStr | None) -> str:
    """Return the encrypted key, which may be stored.

    Raises:
        GatewayError: INVALID_REQUEST, because no secret is set to encrypt it with.
    """
    if secret is None:
        raise GatewayError(
            ErrorKind.INVALID_REQUEST,
            "The request contains a provider's key, which this gateway cannot accept: its operator must set SLUICE_SECRET. "
            "Leave the provider's key out to use the gateway's own key.",
            code="brought_keys_off",
            param="authorization",
        )
    return seal(key.get_secret_value().encode(), generation_id, secret, _PURPOSE).decode()


def open_byok_key(sealed: str | None, generation_id: str, secrets: Iterable[SecretStr]) -> str | None:
    """Decrypt a request's own provider key; None where it had none. ``secrets``: all that may have encrypted it.

    Raises:
        GatewayError: INTERNAL, because it was encrypted with another secret.
    """
    if sealed is None:
        return None
    key = unseal(sealed.encode(), generation_id, secrets, _PURPOSE)
    if key is not None:
        return key.decode()
    raise GatewayError(
        ErrorKind.INTERNAL,
        "The provider's key in the request cannot be decrypted: the gateway's API and its workers need the same SLUICE_SECRET.",
        code="secrets_differ",
    )
