"""Is a JSON web token valid, and which principal does it name?

HS256 tokens are checked with a secret from the settings. RS256 and ES256 tokens are checked with the public keys at a URL from
the settings. Only the operator decides which of these are on: a token that names another algorithm is refused. Each algorithm
has its own kind of key, so no key can be used for another algorithm, and ``none`` is not accepted.
Source: RFC 7519 (tokens), RFC 7517 (key sets), RFC 8725 (known attacks).
"""

import asyncio
import hashlib
import json
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jwt
import orjson
import structlog
from jwt.algorithms import AllowedPublicKeys

from common.access.principal import ALL, Principal
from common.canonical.errors import ErrorKind, GatewayError
from common.canonical.wording import try_again
from common.config.proxies import Proxy, proxy_for
from common.config.settings import Settings
from common.process.redaction import shown_url

log = structlog.get_logger()

TOKEN_CHARS_MAX = 8 * 1024  # Far more than the tokens of any issuer have, since a token must fit into a header.
RSA_BITS_MIN = 2048
KEY_SET_BYTES_MAX = 512 * 1024
KEY_SET_KEYS_MAX = 100
FETCH_TIMEOUT_S = 5.0
REFRESH_S = 600.0  # For how long a key may still be used after it was removed from the list.
REFETCH_S = 30.0  # The shortest time between two fetches for an unknown key id, since anybody can make one up.
RETRY_AFTER_S = 5
SUBJECT_MAX, TENANT_MAX = 255, 64

# What the parsers raise for a broken or hostile token, besides PyJWT's own errors: endless nesting, endless numbers.
_BROKEN = (jwt.PyJWTError, ValueError, TypeError, KeyError, OverflowError, RecursionError)
_KINDS = {"RSA": "RS256", "EC": "ES256"}


class TokenRefused(Exception):
    """A token is not valid. ``reason`` is one of a few words, for a metric. The client may see the message."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class VerifyingKey(NamedTuple):
    algorithm: str
    key: Any  # In PyJWT's form: bytes for HS256, a public key for the others.


class KeySet:
    """The public keys at a URL, by their ids. If a fetch fails, the keys of the last good fetch stay in use."""

    def __init__(
        self,
        url: str,
        clock: Callable[[], float] = time.monotonic,
        proxy: Callable[[], Proxy | None] = lambda: None,
    ) -> None:
        import api.server.http_client  # noqa: F401 - Loaded here, at startup: without a URL it is not needed.

        self._url = url
        self._clock = clock
        self._proxy = proxy
        self._keys: dict[str | None, VerifyingKey] | None = None
        self._fetched_at = self._tried_at = -1e9
        self._fetching: asyncio.Task[None] | None = None
        self._is_healthy = True

    async def find(self, kid: str | None) -> VerifyingKey | None:
        """Return the key with the id that a token names. If the token names no id, return the only key.

        Raises:
            GatewayError: OVERLOADED, the keys could not be fetched yet.
        """
        now = self._clock()
        if self._keys is None or (self._find_fetched(kid) is None and now - self._tried_at >= REFETCH_S):
            await asyncio.shield(self._fetch())
        elif now - self._fetched_at >= REFRESH_S and now - self._tried_at >= REFETCH_S:
            self._fetch()  # In the background: most likely the present keys are still the right ones.
        if self._keys is None:
            raise GatewayError(
                ErrorKind.OVERLOADED,
                f"The gateway cannot check tokens now: it could not fetch their keys. {try_again(RETRY_AFTER_S)}",
                code="token_keys_unavailable",
                retry_after_s=RETRY_AFTER_S,
            )
        return self._find_fetched(kid)

    def _find_fetched(self, kid: str | None) -> VerifyingKey | None:
        keys = self._keys or {}
        return keys.get(kid) if kid is not None else next(iter(keys.values())) if len(keys) == 1 else None

    def _fetch(self) -> "asyncio.Task[None]":
        """Start a fetch, or return the one that runs. While there are no keys, at most one fetch per second starts."""
        if self._fetching is None or self._fetching.done():
            if self._keys is None and self._clock() - self._tried_at < 1:
                return asyncio.ensure_future(asyncio.sleep(0))
            self._tried_at = self._clock()
            self._fetching = asyncio.create_task(self._refresh(), name="token_keys")
        return self._fetching

    async def _refresh(self) -> None:
        from api.server.http_client import HTTP_ERRORS

        try:
            async with asyncio.timeout(FETCH_TIMEOUT_S):
                keys = public_keys(await _get(self._url, self._proxy()))
        except (*HTTP_ERRORS, OSError, TimeoutError, ValueError, RecursionError) as error:
            if self._is_healthy:
                log.warning("token_keys_not_fetched", url=shown_url(self._url), error=f"{type(error).__name__}: {error}"[:300])
            self._is_healthy = False
            return
        if not self._is_healthy or self._keys is None or set(keys) != set(self._keys):
            log.info("token_keys_fetched", url=shown_url(self._url), keys=len(keys))
        self._keys, self._fetched_at, self._is_healthy = keys, self._clock(), True


async def _get(url: str, proxy: Proxy | None) -> bytes:
    """Return a body of bounded size. Redirects are not followed: only the operator's URL is asked."""

    from api.server.http_client import http_client

    async with (
        http_client(proxy, FETCH_TIMEOUT_S) as client,
        client.stream("GET", url, headers={"accept": "application/json"}) as response,
    ):
        if response.status_code != 200:
            raise ValueError(f"status {response.status_code}")
        body = b""
        async for piece in response.aiter_bytes():
            body += piece
            if len(body) > KEY_SET_BYTES_MAX:
                raise ValueError(f"more than {KEY_SET_BYTES_MAX} bytes")
        return body


def public_keys(body: bytes) -> dict[str | None, VerifyingKey]:
    """Return the keys of a set that can verify signatures here. Other keys are skipped.

    Raises:
        ValueError: the body is not a key set, or has no usable key.
    """
    document = orjson.loads(body)
    entries = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise ValueError("not a key set")  # noqa: TRY004 - It is about a document, not about an argument.
    keys: dict[str | None, VerifyingKey] = {}
    for entry in entries[:KEY_SET_KEYS_MAX]:
        if isinstance(entry, dict) and (key := _public_key(entry)):
            kid = entry.get("kid")
            keys[kid if isinstance(kid, str) else None] = key
    if not keys:
        raise ValueError("it has no RSA or P-256 key for signatures")
    return keys


def _public_key(entry: Mapping[str, Any]) -> VerifyingKey | None:
    algorithm = _KINDS.get(str(entry.get("kty")))
    if algorithm is None or entry.get("alg", algorithm) != algorithm or entry.get("use", "sig") != "sig":
        return None
    if algorithm == "ES256" and entry.get("crv") != "P-256":
        return None
    public = {name: value for name, value in entry.items() if name in ("kty", "n", "e", "crv", "x", "y")}
    try:
        key: AllowedPublicKeys = jwt.PyJWK.from_dict(public, algorithm=algorithm).key
    except _BROKEN:
        return None
    if algorithm == "RS256" and getattr(key, "key_size", 0) < RSA_BITS_MIN:
        return None
    return VerifyingKey(algorithm, key)


def _key_set(settings: Settings) -> KeySet | None:
    url = settings.jwt_jwks_url
    return KeySet(url, proxy=lambda: proxy_for(url, settings)) if url else None


class TokenVerifier:
    """Checks tokens by the rules in the settings. ``is_on``: the settings allow some kind of token."""

    def __init__(self, settings: Settings, key_set: KeySet | None = None) -> None:
        self._settings = settings
        self._secret = settings.jwt_secret.get_secret_value().encode() if settings.jwt_secret else None
        self._key_set = key_set or _key_set(settings)
        self.is_on = bool(self._secret or self._key_set)

    def with_settings(self, settings: Settings) -> "TokenVerifier":
        """Return a verifier for other settings, with the same fetched keys."""
        return TokenVerifier(settings, self._key_set)

    async def verify(self, token: str) -> Principal:
        """Return the principal that a token names.

        Raises:
            TokenRefused: the token is not valid.
            GatewayError: OVERLOADED, the keys that check the token are not available.
        """
        key = await self._key_for(token)
        try:
            claims = self._claims(token, key)
        except jwt.ExpiredSignatureError as error:
            raise TokenRefused("expired", "The token has expired. Get a new one and send the request again.") from error
        except (jwt.InvalidIssuerError, jwt.InvalidAudienceError) as error:
            message = "The token was not made for this gateway: its iss or aud names another one."
            raise TokenRefused("claims", message) from error
        except (jwt.MissingRequiredClaimError, jwt.ImmatureSignatureError, jwt.InvalidIssuedAtError) as error:
            raise TokenRefused("claims", f"The token is not valid: {str(error)[:200]}.") from error
        except _BROKEN as error:
            raise TokenRefused("signature", "The token's signature is not valid.") from error
        return self._principal(claims)

    async def is_ours(self, token: str) -> bool:
        """Whether a token was made for this gateway, valid or not. No provider may see such a token."""
        try:
            key = await self._key_for(token)
            jwt.decode(token, key.key, algorithms=[key.algorithm], options={"verify_aud": False, "verify_exp": False})
        except (TokenRefused, *_BROKEN) as error:
            is_signed = isinstance(error, jwt.InvalidTokenError) and not isinstance(error, jwt.DecodeError)
            return is_signed or self._claims_to_be_ours(token)
        return True

    def _claims_to_be_ours(self, token: str) -> bool:
        """Whether the claims name our issuer or audience. The signing key may be an old one, or the token was changed."""
        if len(token) > TOKEN_CHARS_MAX:
            return True  # No provider's key is that long.
        try:
            claims = jwt.decode(token, options={"verify_signature": False})
        except _BROKEN:
            return False
        audience = claims.get("aud")
        audiences = {name for name in (audience if isinstance(audience, list) else [audience]) if isinstance(name, str)}
        issuer = self._settings.jwt_issuer
        return bool(issuer and claims.get("iss") == issuer) or not audiences.isdisjoint(self._settings.jwt_audience)

    async def _key_for(self, token: str) -> VerifyingKey:
        if len(token) > TOKEN_CHARS_MAX:
            raise TokenRefused("malformed", f"The token is longer than {TOKEN_CHARS_MAX} characters.")
        try:
            header = jwt.get_unverified_header(token)
        except _BROKEN as error:
            raise TokenRefused("malformed", "The token cannot be read as a JSON web token.") from error
        algorithm, kid = header.get("alg"), header.get("kid")
        if "crit" in header:  # It lists extensions that must be understood. This gateway understands none.
            raise TokenRefused("malformed", "The token needs extensions that this gateway does not support.")
        if algorithm == "HS256" and self._secret:
            return VerifyingKey("HS256", self._secret)
        if algorithm in _KINDS.values() and self._key_set:
            key = await self._key_set.find(kid)
            if key is None:
                raise TokenRefused("signature", "The token was signed with a key that this gateway does not know.")
            if key.algorithm == algorithm:
                return key
        raise TokenRefused("algorithm", "The token uses an algorithm that this gateway does not accept.")

    def _claims(self, token: str, key: VerifyingKey) -> dict[str, Any]:
        settings = self._settings
        optional = {"iss": settings.jwt_issuer, "aud": settings.jwt_audience}
        required = ["exp", "sub", *(name for name, setting in optional.items() if setting)]
        return jwt.decode(
            token,
            key.key,
            algorithms=[key.algorithm],
            issuer=settings.jwt_issuer,
            audience=settings.jwt_audience or None,
            leeway=settings.jwt_leeway_s,
            options={"require": required, "verify_aud": bool(settings.jwt_audience)},
        )

    def _principal(self, claims: Mapping[str, Any]) -> Principal:
        subject, tenant = claims["sub"], claims.get(self._settings.jwt_tenant_claim, "")
        if isinstance(tenant, int) and not isinstance(tenant, bool):
            tenant = str(tenant)
        if not isinstance(subject, str) or not 0 < len(subject) <= SUBJECT_MAX or not subject.isprintable():
            raise TokenRefused("claims", f"The token's sub must be 1 to {SUBJECT_MAX} printable characters.")
        if not isinstance(tenant, str) or len(tenant) > TENANT_MAX or not tenant.isprintable():
            message = f"The token's {self._settings.jwt_tenant_claim} must be at most {TENANT_MAX} printable characters."
            raise TokenRefused("claims", message)
        # As JSON, not joined with a separator: no two different lists have the same text.
        identity = json.dumps([claims.get("iss"), tenant, subject]).encode()
        return Principal(
            id=f"jwt_{hashlib.sha256(identity).hexdigest()[:32]}",
            tenant=tenant,
            end_user=subject,
            tenant_access=self._settings.tenants.get(tenant, ALL),
            scopes=self._scopes(claims.get(self._settings.jwt_scopes_claim)),
        )

    def _scopes(self, claim: object) -> frozenset[str] | None:
        if claim is None:
            return None
        scopes = claim.split() if isinstance(claim, str) else claim
        if not isinstance(scopes, list):
            message = f"The token's {self._settings.jwt_scopes_claim} must be a list, or words separated by spaces."
            raise TokenRefused("claims", message)
        return frozenset(scope for scope in scopes if isinstance(scope, str))
