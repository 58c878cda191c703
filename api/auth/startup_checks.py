"""May the API start with these settings, or would it be less safe than they suggest?"""

import ipaddress
from urllib.parse import urlsplit

import structlog

from api.auth.authenticator import is_loopback, is_open
from common.config.groups.access import KEY_CHARS_MIN, AccessSettings
from common.config.settings import Settings


def refuse_to_start(settings: Settings) -> str | None:
    """Return why the API must not start, and what to do; None where it may."""
    return (
        _is_open_to_the_world(settings)
        or _short_keys(settings)
        or _admin_keys(settings)
        or _tokens(settings)
        or _proxies(settings)
    )


def log_if_open(settings: Settings) -> None:
    """Log that no key is needed because none is set. If the settings say so, the operator knows."""
    if settings.auth != "none" and is_open(settings):
        structlog.get_logger().warning(
            "no_client_keys",
            problem="No keys for clients are set, so every program on this machine may use the gateway.",
            mend="Set SLUICE_API_KEYS=key1,key2, or set SLUICE_SECRET and make keys with `sluice keys create`.",
        )


def _is_open_to_the_world(settings: Settings) -> str | None:
    if settings.auth == "none" or is_loopback(settings.host) or not is_open(settings):
        return None
    return (
        f"Refusing to listen on {settings.host} without API keys: anybody could spend your provider's tokens. "
        "Set SLUICE_API_KEYS=key1,key2, or set SLUICE_SECRET and make keys with `sluice keys create` "
        "(or set SLUICE_AUTH=none if something in front of Sluice authenticates the clients)."
    )


def _short_keys(settings: Settings) -> str | None:
    if is_loopback(settings.host):
        return None
    for name, keys in (("SLUICE_API_KEYS", settings.api_keys), ("SLUICE_ADMIN_KEYS", settings.admin_keys)):
        if any(len(key.get_secret_value()) < KEY_CHARS_MIN for key in keys):
            return (
                f"{name} has a key that is too short to listen on {settings.host}: somebody could guess it. "
                f"Use {KEY_CHARS_MIN} characters or more; make one with `openssl rand -hex 24`."
            )
    return None


def _admin_keys(settings: AccessSettings) -> str | None:
    if not settings.admin_keys:
        return None
    both = {key.get_secret_value() for key in settings.api_keys} & {key.get_secret_value() for key in settings.admin_keys}
    if both:
        return "A key is in both SLUICE_API_KEYS and SLUICE_ADMIN_KEYS: every client with it could make keys. Use two keys."
    if settings.secret is None:
        return "SLUICE_ADMIN_KEYS needs SLUICE_SECRET, the same long random text for all processes: managed keys depend on it."
    return None


def _tokens(settings: AccessSettings) -> str | None:
    if not settings.jwt_jwks_url:
        return None
    parts = urlsplit(settings.jwt_jwks_url)
    if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(parts.hostname or "")):
        return "SLUICE_JWT_JWKS_URL must begin with https://: whoever can change the keys on their way here can sign any token."
    if not settings.jwt_issuer or not settings.jwt_audience:
        return (
            "SLUICE_JWT_JWKS_URL needs SLUICE_JWT_ISSUER and SLUICE_JWT_AUDIENCE: the issuer uses the same keys to sign tokens "
            "for other services, and those tokens are not meant for this gateway."
        )
    return None


def _proxies(settings: AccessSettings) -> str | None:
    for proxy in settings.trusted_proxies:
        try:
            ipaddress.ip_network(proxy)
        except ValueError:
            return f"SLUICE_TRUSTED_PROXIES: {proxy!r} is neither an address nor a network such as 10.0.0.0/8."
    return None
