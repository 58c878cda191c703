"""Who is asking?

Static keys from the settings, accepted as ``Authorization: Bearer`` and as ``x-api-key``: SDKs of one vendor send either.
"""

import hashlib
import hmac
import ipaddress
from dataclasses import dataclass

from starlette.datastructures import Headers

from common.errors import ErrorKind, GatewayError
from common.settings import Settings

ANONYMOUS = "anonymous"


@dataclass(frozen=True, slots=True)
class Principal:
    """``id`` names the owner of generations, and the tenant in the queue; it never reveals the key."""

    id: str


class Authenticator:
    def __init__(self, settings: Settings) -> None:
        self._keys = {
            _digest(key.get_secret_value()): Principal(f"key_{_name(key.get_secret_value())}") for key in settings.api_keys
        }
        self._is_open = settings.auth == "none" or not self._keys

    def authenticate(self, headers: Headers) -> Principal:
        """Return who sent a request.

        Raises:
            GatewayError: UNAUTHENTICATED.
        """
        if self._is_open:
            return Principal(ANONYMOUS)
        keys = _keys_in(headers)
        if not keys:
            raise _refused("No API key was sent. Send it as 'Authorization: Bearer KEY' or as 'x-api-key: KEY'.")
        for key in keys:
            digest = _digest(key)
            # Every known key is compared, in constant time: how long it takes tells nothing.
            found = [principal for known, principal in self._keys.items() if hmac.compare_digest(known, digest)]
            if found:
                return found[0]
        raise _refused("The API key is not valid. Check it for typing errors, or ask the gateway's operator for one.")


def refuse_to_be_open(settings: Settings) -> str | None:
    """Return why the API must not start: it would let anybody in from anywhere. None where it may."""
    if settings.api_keys or settings.auth == "none" or is_loopback(settings.host):
        return None
    return (
        f"Refusing to listen on {settings.host} without API keys: anybody could spend your provider's tokens. "
        "Set SLUICE_API_KEYS=key1,key2 (or SLUICE_AUTH=none if something in front of Sluice checks who calls)."
    )


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _keys_in(headers: Headers) -> list[str]:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    bearer = token.strip() if scheme.lower() == "bearer" else ""
    return [key for key in (bearer, headers.get("x-api-key", "").strip()) if key]


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def _name(key: str) -> str:
    return hashlib.sha256(b"sluice principal " + key.encode()).hexdigest()[:16]


def _refused(message: str) -> GatewayError:
    return GatewayError(ErrorKind.UNAUTHENTICATED, message, code="invalid_api_key")
