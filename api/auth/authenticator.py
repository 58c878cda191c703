"""Who sends a request, and whose provider key is used for it?

Clients send a credential as ``Authorization: Bearer`` or as ``x-api-key``: a vendor's SDKs use either. A client may also send
the gateway's credential in a header that only the gateway reads: ``x-sluice-key`` or ``cf-aig-authorization: Bearer``. Then the
two shared headers carry the client's own key for the provider (bring your own key), or nothing.

There are three kinds of credentials: static keys from the settings, managed keys (``common.access.key_text``) and JSON web
tokens (``api.auth.jwt``). This module checks what applies to every route: the scope of a token, and the origin of the page
that a browser sends from. ``api.auth.permissions`` checks everything else that a principal may do.
"""

import hashlib
import hmac
import ipaddress
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from pydantic import SecretStr
from starlette.datastructures import Headers
from starlette.requests import HTTPConnection

from api.auth.jwt import TokenRefused, TokenVerifier
from api.auth.key_cache import KeyCache
from api.auth.lockout import Lockout, locked_out
from api.auth.read_tokens import looks_like_a_read_token
from api.server.client_address import client_address
from common.access import key_text
from common.access.key_records import managed_id, principal_id
from common.access.principal import ALL, Principal
from common.canonical.errors import ErrorKind, GatewayError
from common.config.groups.access import AccessSettings
from common.config.groups.limits import LimitSettings
from common.config.settings import Settings

ANONYMOUS = "anonymous"
_WORD = re.compile(r"[A-Za-z0-9._~+/=-]{4,}")  # A run of the characters that credentials consist of.
Scope = Literal["generate", "read", "usage"]  # What a token may be used for. A token without scopes may be used for everything.

_NONE_SENT = "No API key was sent. Send it as 'Authorization: Bearer KEY' or as 'x-api-key: KEY'."
_UNKNOWN = "The API key is not valid. Check it for typing errors, or ask the gateway's operator for one."
_DISABLED = "The API key is disabled. Ask the gateway's operator to enable it, or for another."
_EXPIRED = "The API key has expired. Ask the gateway's operator for another."


@dataclass(frozen=True, slots=True)
class Identity:
    """Who sent a request. ``byok_key`` is the client's own key for the provider. It replaces the gateway's key."""

    principal: Principal
    byok_key: SecretStr | None = None


class Rejection(NamedTuple):
    """Why a credential is not accepted. ``is_guess``: the client may be guessing credentials."""

    reason: str
    message: str
    is_guess: bool = True


class Authenticator:
    """``key_cache`` is None where there are no managed keys. ``on_refused`` gets the reason of every refusal, as one word."""

    def __init__(
        self,
        settings: Settings,
        key_cache: KeyCache | None = None,
        tokens: TokenVerifier | None = None,
        on_refused: Callable[[str], None] = lambda reason: None,
        lockout: Lockout | None = None,
    ) -> None:
        self._settings = settings
        self._static = [_static(key.get_secret_value(), settings) for key in settings.api_keys]
        self._admin = [_digest(key.get_secret_value()) for key in settings.admin_keys]
        self._key_cache = key_cache
        self._tokens = tokens or TokenVerifier(settings)
        self._lockout = lockout or Lockout(settings.refused_credentials_max, settings.refused_credentials_block_s)
        self._on_refused = on_refused
        self._is_open = is_open(settings)
        self._anonymous = Principal(ANONYMOUS, tenant_access=settings.tenants.get(ANONYMOUS, ALL))

    def with_settings(self, settings: Settings) -> "Authenticator":
        """Return an authenticator for other settings, which remembers the same addresses and fetched keys."""
        tokens = self._tokens.with_settings(settings)
        return Authenticator(settings, self._key_cache, tokens, self._on_refused, self._lockout)

    async def authenticate(self, request: HTTPConnection, scope: Scope | None = None) -> Principal:
        """Return the principal that sent a request. ``scope`` is the scope that a token needs, None for no scope.

        Raises:
            GatewayError: UNAUTHENTICATED; PERMISSION_DENIED; RATE_LIMITED after too many refusals; OVERLOADED while the
                credential cannot be checked.
        """
        return (await self.identify(request, scope)).principal

    async def identify(self, request: HTTPConnection, scope: Scope | None = None) -> Identity:
        """Return the principal that sent a request, and the provider key that the client sent with it.

        Raises:
            GatewayError: the same errors as ``authenticate``.
        """
        identity = await self._identify(request.headers, client_address(request.scope))
        principal = identity.principal
        if scope and principal.scopes is not None and scope not in principal.scopes:
            raise GatewayError(
                ErrorKind.PERMISSION_DENIED,
                f"The token lacks the scope '{scope}', which this request needs. Get one that has it.",
                code="missing_scope",
            )
        if origin := request.headers.get("origin"):
            self._check_origin(origin, request, principal)
        return identity

    def check_admin(self, request: HTTPConnection) -> None:
        """Check that a request has an admin key.

        Raises:
            GatewayError: UNAUTHENTICATED; RATE_LIMITED after too many refusals.
        """
        address, texts = client_address(request.scope), _shared_keys_in(request.headers)
        if not texts:
            self._on_refused("missing")
            raise _unauthenticated("No admin key was sent. Send one as 'Authorization: Bearer KEY'.")
        if sum(_is_one_of(self._admin, _digest(text)) for text in texts):
            return
        raise self._refuse([Rejection("unknown", "The admin key is not valid.")], address)

    async def check_read_token_owner(self, owner: Principal) -> None:
        """Check that the owner of a read token may still read. When a managed key is revoked, its read tokens end too.

        Raises:
            GatewayError: UNAUTHENTICATED; OVERLOADED while the key cannot be checked.
        """
        id_ = managed_id(owner.id)
        if id_ is None or self._key_cache is None:
            return
        record = (await self._key_cache.find(id_)).record
        if record is None or record.is_disabled or record.is_expired(time.time_ns() // 1_000_000):
            self._on_refused("revoked")
            raise _unauthenticated("The key that this read token comes from is no longer valid.")

    async def _identify(self, headers: Headers, address: str) -> Identity:
        gateway_keys, shared_keys = _gateway_keys_in(headers), _shared_keys_in(headers)
        if not (gateway_keys or shared_keys or self._is_open):
            self._on_refused("missing")
            raise _unauthenticated(_NONE_SENT)
        rejections: list[Rejection] = []
        principal = await self._first_principal(gateway_keys, rejections)
        if principal or (gateway_keys and self._is_open):
            return Identity(principal or self._anonymous, await self._find_byok_key(shared_keys))
        principal = await self._first_principal(shared_keys, rejections)
        if principal is None and not self._is_open:
            raise self._refuse(rejections, address)
        return Identity(principal or self._anonymous)

    async def _first_principal(self, texts: list[str], rejections: list[Rejection]) -> Principal | None:
        for text in texts:
            result = await self._check_credential(text)
            if isinstance(result, Principal):
                return result
            rejections.append(result)
        return None

    async def _check_credential(self, text: str) -> Principal | Rejection:
        digest = _digest(text)
        # Every static key is compared, in constant time: the duration reveals nothing.
        matches = [principal for known_digest, principal in self._static if hmac.compare_digest(known_digest, digest)]
        if matches:
            return matches[0]
        if text.startswith(key_text.PREFIX):
            return await self._check_managed_key(text)
        if self._tokens.is_on and _looks_like_a_token(text):
            try:
                return await self._tokens.verify(text)
            except TokenRefused as error:
                return Rejection(error.reason, str(error), is_guess=error.reason != "expired")
        return Rejection("unknown", _UNKNOWN)

    async def _check_managed_key(self, text: str) -> Principal | Rejection:
        presented = key_text.parse_key(text, *self._settings.secrets)
        if presented is None or self._key_cache is None:
            return Rejection("malformed", _UNKNOWN)
        record = (await self._key_cache.find(presented.id)).record
        now_ms = time.time_ns() // 1_000_000
        # Only a client that has the secret learns the state of a key. The id alone reveals nothing.
        if record is None or not record.accepts(presented, now_ms):
            return Rejection("unknown", _UNKNOWN)
        if record.is_disabled:
            return Rejection("disabled", _DISABLED, is_guess=False)
        if record.is_expired(now_ms):
            return Rejection("expired", _EXPIRED, is_guess=False)
        tenant_access = self._settings.tenants.get(record.tenant, ALL)
        return Principal(principal_id(record.id), record.tenant, access=record.access, tenant_access=tenant_access)

    async def _find_byok_key(self, shared_keys: list[str]) -> SecretStr | None:
        """Return the client's provider key. A credential of the gateway is never one, valid or not, even if sent twice."""
        for text in shared_keys:
            if not await self._is_gateway_credential(text):
                return SecretStr(text)
        return None

    async def _is_gateway_credential(self, text: str) -> bool:
        """Whether a text is, or was, a credential of this gateway. No provider may see such a text."""
        digest = _digest(text)
        if text.startswith(key_text.PREFIX) or looks_like_a_read_token(text):
            return True
        if _is_one_of([known_digest for known_digest, _ in self._static], digest) or _is_one_of(self._admin, digest):
            return True
        return self._tokens.is_on and _looks_like_a_token(text) and await self._tokens.is_ours(text)

    async def without_gateway_credentials(self, headers: Mapping[str, str]) -> dict[str, str]:
        """Return the headers that hold no credential of this gateway. Only these may be passed to a provider."""
        return {name: value for name, value in headers.items() if not await self._holds_gateway_credential(value)}

    async def _holds_gateway_credential(self, value: str) -> bool:
        for word in _WORD.findall(value):
            if await self._is_gateway_credential(word):
                return True
        return False

    def _refuse(self, rejections: list[Rejection], address: str) -> GatewayError:
        """Return the error for a request without a valid credential. While an address is locked out, all its guesses get the
        same error: it does not reveal which guess was close, or why it failed."""
        # A rejection of a known key says more than the rejection of another vendor's key beside it.
        rejection = next((rejection for rejection in rejections if not rejection.is_guess), rejections[0])
        if rejection.is_guess and (remaining_s := self._lockout.remaining_s(address)):
            self._on_refused("blocked")
            return locked_out(remaining_s)
        self._on_refused(rejection.reason)
        if rejection.is_guess:
            self._lockout.record_refusal(address)
        return _unauthenticated(rejection.message)

    def _check_origin(self, origin: str, request: HTTPConnection, principal: Principal) -> None:
        """Check the origin that a browser sends. A key that lists origins may be used from these, from the origins in the
        settings, and from the gateway's own page."""
        accesses = (principal.access, principal.tenant_access)
        lists = [access.cors_origins for access in accesses if access.cors_origins is not None]
        if not lists or any(allowed in self._settings.cors_origins for allowed in (origin, "*")):
            return
        is_own_page = origin == f"{request.scope.get('scheme')}://{request.headers.get('host')}"
        if not is_own_page and any(origin not in origins and "*" not in origins for origins in lists):
            raise GatewayError(
                ErrorKind.PERMISSION_DENIED,
                "This key may not be used from the page that sent the request. Ask the gateway's operator to add its origin.",
                code="origin_not_allowed",
            )


def is_open(settings: Settings) -> bool:
    """Whether requests without credentials are accepted: the settings say so, or no way to authenticate is configured.

    ``SLUICE_SECRET`` counts as such a way, since it turns on managed keys. There need not be any key yet.
    """
    return settings.auth == "none" or not (_has_credentials(settings) or settings.admin_keys)


def _has_credentials(settings: AccessSettings) -> bool:
    return bool(settings.api_keys or settings.jwt_secret or settings.jwt_jwks_url or settings.secret)


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def static_ids(settings: AccessSettings) -> list[str]:
    """Return the principal ids of the keys in the settings, in their order."""
    return [f"key_{_name(key.get_secret_value())}" for key in settings.api_keys]


def _static(key: str, settings: LimitSettings) -> tuple[bytes, Principal]:
    id_ = f"key_{_name(key)}"
    return _digest(key), Principal(id_, tenant_access=settings.tenants.get(id_, ALL))


def _is_one_of(known_digests: Iterable[bytes], digest: bytes) -> bool:
    """Whether a digest is one of those that are known. All of them are compared: the duration reveals nothing."""
    return sum(hmac.compare_digest(known_digest, digest) for known_digest in known_digests) > 0


def _looks_like_a_token(text: str) -> bool:
    return text.startswith("ey") and text.count(".") == 2  # Three parts, and the first is a JSON object in base64.


def _gateway_keys_in(headers: Headers) -> list[str]:
    """Return the credentials in the headers that only the gateway reads."""
    return [key for key in (headers.get("x-sluice-key", "").strip(), _bearer(headers, "cf-aig-authorization")) if key]


def _shared_keys_in(headers: Headers) -> list[str]:
    """Return the credentials in the headers that carry either a gateway credential or a provider's key."""
    return [key for key in (_bearer(headers, "authorization"), headers.get("x-api-key", "").strip()) if key]


def _bearer(headers: Headers, name: str) -> str:
    scheme, _, token = headers.get(name, "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def _name(key: str) -> str:
    return hashlib.sha256(b"sluice principal " + key.encode()).hexdigest()[:16]


def _unauthenticated(message: str) -> GatewayError:
    return GatewayError(ErrorKind.UNAUTHENTICATED, message, code="invalid_api_key")
