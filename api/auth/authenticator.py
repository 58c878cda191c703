"""Who is asking, and with whose key for the provider?

Credentials come as ``Authorization: Bearer`` or as ``x-api-key``: SDKs of one vendor send either. Where the gateway's own
comes in a header for it alone, ``x-sluice-key`` or ``cf-aig-authorization: Bearer``, those two carry the provider's key, if
anything. There are three kinds: static keys from the settings, managed keys (``common.access.key_text``) and JSON web tokens
(``api.auth.jwt``). What whoever asks may do is checked by ``api.auth.permissions``, but for what holds for every route: the
scope of a token, and the page that a browser sends from.
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
from api.auth.key_cache import KnownKeys
from api.auth.lockout import Refusals, blocked
from api.auth.read_tokens import looks_like_a_read_token
from api.server.client_address import client_address
from common.access import key_text
from common.access.key_records import managed_id
from common.access.principal import ALL, Principal
from common.canonical.errors import ErrorKind, GatewayError
from common.config.groups.access import AccessSettings
from common.config.groups.limits import LimitSettings
from common.config.settings import Settings

ANONYMOUS = "anonymous"
_WORD = re.compile(r"[A-Za-z0-9._~+/=-]{4,}")  # What a credential is written with, and the signs around one are not.
Scope = Literal["generate", "read", "usage"]  # What a token may be for; one that names no scopes is for all.

_NONE_SENT = "No API key was sent. Send it as 'Authorization: Bearer KEY' or as 'x-api-key: KEY'."
_UNKNOWN = "The API key is not valid. Check it for typing errors, or ask the gateway's operator for one."
_DISABLED = "The API key is disabled. Ask the gateway's operator to enable it, or for another."
_EXPIRED = "The API key has expired. Ask the gateway's operator for another."


@dataclass(frozen=True, slots=True)
class Credentials:
    """``brought_key`` is the provider's, to be used instead of ours."""

    principal: Principal
    brought_key: SecretStr | None = None


class Refused(NamedTuple):
    """Why a text lets nobody in. ``is_guess``: whoever sends it may be trying them out."""

    reason: str
    message: str
    is_guess: bool = True


class Authenticator:
    """``known`` None: there are no managed keys. ``on_refused`` is told the reason of every refusal, in a word."""

    def __init__(
        self,
        settings: Settings,
        known: KnownKeys | None = None,
        tokens: TokenVerifier | None = None,
        on_refused: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self._settings = settings
        self._static = [_static(key.get_secret_value(), settings) for key in settings.api_keys]
        self._admin = [_digest(key.get_secret_value()) for key in settings.admin_keys]
        self._known = known
        self._tokens = tokens or TokenVerifier(settings)
        self._refusals = Refusals(settings.refused_credentials_max, settings.refused_credentials_block_s)
        self._on_refused = on_refused
        self._is_open = is_open(settings)
        self._anonymous = Principal(ANONYMOUS, tenant_access=settings.tenants.get(ANONYMOUS, ALL))

    async def authenticate(self, request: HTTPConnection, scope: Scope | None = None) -> Principal:
        """Return who sent a request that needs a scope, or none.

        Raises:
            GatewayError: UNAUTHENTICATED; PERMISSION_DENIED; RATE_LIMITED, too many refusals; OVERLOADED, cannot be told now.
        """
        return (await self.examine(request, scope)).principal

    async def examine(self, request: HTTPConnection, scope: Scope | None = None) -> Credentials:
        """Return who sent a request, and the provider's key that it brought.

        Raises:
            GatewayError: as for ``authenticate``.
        """
        credentials = await self._identify(request.headers, client_address(request.scope))
        principal = credentials.principal
        if scope and principal.scopes is not None and scope not in principal.scopes:
            raise GatewayError(
                ErrorKind.PERMISSION_DENIED,
                f"The token lacks the scope '{scope}', which this request needs. Get one that has it.",
                code="missing_scope",
            )
        if origin := request.headers.get("origin"):
            self._check_origin(origin, request, principal)
        return credentials

    def check_admin(self, request: HTTPConnection) -> None:
        """Return only if a request brings an admin key.

        Raises:
            GatewayError: UNAUTHENTICATED; RATE_LIMITED, too many refusals.
        """
        address, texts = client_address(request.scope), _shared_keys_in(request.headers)
        if not texts:
            self._on_refused("missing")
            raise _unauthenticated("No admin key was sent. Send one as 'Authorization: Bearer KEY'.")
        if sum(_is_one_of(self._admin, _digest(text)) for text in texts):
            return
        raise self._refusal([Refused("unknown", "The admin key is not valid.")], address)

    async def check_giver(self, owner: Principal) -> None:
        """Return only if whoever gave away a read token could still read: a managed key that is revoked takes them along.

        Raises:
            GatewayError: UNAUTHENTICATED; OVERLOADED, cannot be told now.
        """
        id_ = managed_id(owner.id)
        if id_ is None or self._known is None:
            return
        record = (await self._known.find(id_)).record
        if record is None or record.is_disabled or record.is_expired(time.time_ns() // 1_000_000):
            self._on_refused("revoked")
            raise _unauthenticated("The key that this read token comes from is no longer valid.")

    async def _identify(self, headers: Headers, address: str) -> Credentials:
        ours, shared = _own_keys_in(headers), _shared_keys_in(headers)
        if not (ours or shared or self._is_open):
            self._on_refused("missing")
            raise _unauthenticated(_NONE_SENT)
        refused: list[Refused] = []
        named = await self._first_named(ours, refused)
        if named or (ours and self._is_open):
            return Credentials(named or self._anonymous, await self._brought(shared))
        named = await self._first_named(shared, refused)
        if named is None and not self._is_open:
            raise self._refusal(refused, address)
        return Credentials(named or self._anonymous)

    async def _first_named(self, texts: list[str], refused: list[Refused]) -> Principal | None:
        for text in texts:
            found = await self._named(text)
            if isinstance(found, Principal):
                return found
            refused.append(found)
        return None

    async def _named(self, text: str) -> Principal | Refused:
        digest = _digest(text)
        # Every static key is compared, in constant time: how long it takes tells nothing.
        static = [principal for known, principal in self._static if hmac.compare_digest(known, digest)]
        if static:
            return static[0]
        if text.startswith(key_text.PREFIX):
            return await self._named_by_managed_key(text)
        if self._tokens.is_on and _looks_like_a_token(text):
            try:
                return await self._tokens.verify(text)
            except TokenRefused as error:
                return Refused(error.reason, str(error), is_guess=error.reason != "expired")
        return Refused("unknown", _UNKNOWN)

    async def _named_by_managed_key(self, text: str) -> Principal | Refused:
        presented = key_text.read(text, *self._settings.secrets)
        if presented is None or self._known is None:
            return Refused("malformed", _UNKNOWN)
        record, principal, _ = await self._known.find(presented.id)
        now_ms = time.time_ns() // 1_000_000
        # What follows is told to who has the secret alone: an id says nothing about a key to others.
        if record is None or principal is None or not record.accepts(presented, now_ms):
            return Refused("unknown", _UNKNOWN)
        if record.is_disabled:
            return Refused("disabled", _DISABLED, is_guess=False)
        if record.is_expired(now_ms):
            return Refused("expired", _EXPIRED, is_guess=False)
        return principal

    async def _brought(self, shared: list[str]) -> SecretStr | None:
        """The provider's key. What is ours stays here, good or not, also where a client sends it twice."""
        for text in shared:
            if not await self._is_ours(text):
                return SecretStr(text)
        return None

    async def _is_ours(self, text: str) -> bool:
        """Whether a text is, or was, a credential of this gateway, of any kind: no provider may see it."""
        digest = _digest(text)
        if text.startswith(key_text.PREFIX) or looks_like_a_read_token(text):
            return True
        if _is_one_of([known for known, _ in self._static], digest) or _is_one_of(self._admin, digest):
            return True
        return self._tokens.is_on and _looks_like_a_token(text) and await self._tokens.is_ours(text)

    async def without_ours(self, headers: Mapping[str, str]) -> dict[str, str]:
        """Return those of some headers that hold no credential of this gateway: what goes on to a provider."""
        return {name: value for name, value in headers.items() if not await self._holds_ours(value)}

    async def _holds_ours(self, value: str) -> bool:
        for word in _WORD.findall(value):
            if await self._is_ours(word):
                return True
        return False

    def _refusal(self, refused: list[Refused], address: str) -> GatewayError:
        """Return why nobody is let in. Once an address is blocked, all of its guesses are answered alike: which of them was
        nearly right, and why it was not, is not told."""
        # The most telling: of a key that is known, rather than of another vendor's beside it.
        chosen = next((each for each in refused if not each.is_guess), refused[0])
        if chosen.is_guess and (left_s := self._refusals.blocked_s(address)):
            self._on_refused("blocked")
            return blocked(left_s)
        self._on_refused(chosen.reason)
        if chosen.is_guess:
            self._refusals.note(address)
        return _unauthenticated(chosen.message)

    def _check_origin(self, origin: str, request: HTTPConnection, principal: Principal) -> None:
        """Browsers say which page sends. A key that lists pages is good from these, from the settings', and from our own."""
        lists = [each.cors_origins for each in (principal.access, principal.tenant_access) if each.cors_origins is not None]
        if not lists or any(each in self._settings.cors_origins for each in (origin, "*")):
            return
        is_own_page = origin == f"{request.scope.get('scheme')}://{request.headers.get('host')}"
        if not is_own_page and any(origin not in each and "*" not in each for each in lists):
            raise GatewayError(
                ErrorKind.PERMISSION_DENIED,
                "This key may not be used from the page that sent the request. Ask the gateway's operator to add its origin.",
                code="origin_not_allowed",
            )


def is_open(settings: Settings) -> bool:
    """Whether a request without credentials is let in: where the settings say so, or know of no way to tell who asks.

    With ``SLUICE_SECRET`` there is one, managed keys, though none may have been made yet.
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
    """Return the principals of the settings' keys, in their order."""
    return [f"key_{_name(key.get_secret_value())}" for key in settings.api_keys]


def _static(key: str, settings: LimitSettings) -> tuple[bytes, Principal]:
    id_ = f"key_{_name(key)}"
    return _digest(key), Principal(id_, tenant_access=settings.tenants.get(id_, ALL))


def _is_one_of(known: Iterable[bytes], digest: bytes) -> bool:
    """Whether a digest is among those that are known. Every one is compared: how long it takes tells nothing."""
    return sum(hmac.compare_digest(each, digest) for each in known) > 0


def _looks_like_a_token(text: str) -> bool:
    return text.startswith("ey") and text.count(".") == 2  # A JSON object in base64, and three parts.


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


def _unauthenticated(message: str) -> GatewayError:
    return GatewayError(ErrorKind.UNAUTHENTICATED, message, code="invalid_api_key")
