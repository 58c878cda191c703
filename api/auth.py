"""Who is asking, and with whose key for the provider?

Static keys from the settings, accepted as ``Authorization: Bearer`` and as ``x-api-key``: SDKs of one vendor send either.
Where the gateway's key comes in a header of its own, ``x-sluice-key`` or ``cf-aig-authorization: Bearer``, those two carry
the provider's key, if anything.
"""

import hashlib
import hmac
import ipaddress
from dataclasses import dataclass

from pydantic import SecretStr
from starlette.datastructures import Headers

from common.errors import ErrorKind, GatewayError
from common.settings import Settings

ANONYMOUS = "anonymous"


@dataclass(frozen=True, slots=True)
class Principal:
    """``id`` names the owner of generations, and the tenant in the queue; it never reveals the key."""

    id: str


@dataclass(frozen=True, slots=True)
class Credentials:
    """``brought_key`` is the provider's, to be used instead of ours."""

    principal: Principal
    brought_key: SecretStr | None = None


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
        return self.examine(headers).principal

    def examine(self, headers: Headers) -> Credentials:
        """Return who sent a request, and the provider's key that it brought.

        Raises:
            GatewayError: UNAUTHENTICATED.
        """
        ours, shared = _own_keys_in(headers), _shared_keys_in(headers)
        if not (ours or shared or self._is_open):
            raise _refused("No API key was sent. Send it as 'Authorization: Bearer KEY' or as 'x-api-key: KEY'.")
        named = next(filter(None, map(self._principal_of, ours)), None)
        if named or (ours and self._is_open):
            # Ours stays here, also where a client sends it twice.
            brought = next((key for key in shared if self._principal_of(key) is None), None)
            return Credentials(named or Principal(ANONYMOUS), SecretStr(brought) if brought else None)
        named = Principal(ANONYMOUS) if self._is_open else next(filter(None, map(self._principal_of, shared)), None)
        if named is None:
            raise _refused("The API key is not valid. Check it for typing errors, or ask the gateway's operator for one.")
        return Credentials(named)

    def _principal_of(self, key: str) -> Principal | None:
        digest = _digest(key)
        # Every known key is compared, in constant time: how long it takes tells nothing.
        found = [principal for known, principal in self._keys.items() if hmac.compare_digest(known, digest)]
        return found[0] if found else None


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


def _own_keys_in(headers: Headers) -> list[str]:
    """Headers that mean the gateway and nobody else."""
    return [key for key in (headers.get("x-sluice-key", "").strip(), _bearer(headers, "cf-aig-authorization")) if key]


def _shared_keys_in(headers: Headers) -> list[str]:
    """Headers that mean whoever the client believes to talk to."""
    return [key for key in (_bearer(headers, "authorization"), headers.get("x-api-key", "").strip()) if key]


def _bearer(headers: Headers, name: str) -> str:
    scheme, _, token = headers.get(name, "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def _name(key: str) -> str:
    return hashlib.sha256(b"sluice principal " + key.encode()).hexdigest()[:16]


def _refused(message: str) -> GatewayError:
    return GatewayError(ErrorKind.UNAUTHENTICATED, message, code="invalid_api_key")
