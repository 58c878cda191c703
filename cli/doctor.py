"""What is configured, what can be reached, what is wrong, and how is it mended?"""

import asyncio
import resource
from dataclasses import dataclass
from typing import Literal

import click
import httpx
from redis.asyncio import Redis
from redis.exceptions import RedisError

from api.auth import is_open, static_ids
from api.safe_start import refuse_to_start
from common.foreign_variables import in_effect, without_effect
from common.redaction import shown_url
from common.redis_client import COMMAND_TIMEOUT_S, connect
from common.routes import available
from common.settings import MIB, Settings, environment

Level = Literal["ok", "note", "wrong"]
MARKS: dict[Level, str] = {"ok": "✓", "note": "·", "wrong": "✗"}
FILES_WANTED = 10_000
PUBSUB_HARD_LIMIT_WANTED = 64 * MIB


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report; ``mend`` says what to do about it."""

    level: Level
    what: str
    mend: str = ""


def run(settings: Settings) -> int:
    """Print the report; returns 0 if nothing is wrong, else 1."""
    findings = asyncio.run(_examine(settings))
    for finding in findings:
        click.echo(f"{MARKS[finding.level]} {finding.what}")
        if finding.mend:
            click.echo(f"    {finding.mend}")
    wrong = sum(finding.level == "wrong" for finding in findings)
    click.echo(f"\n{wrong} thing{'s' if wrong != 1 else ''} to mend." if wrong else "\nAll is well.")
    return 1 if wrong else 0


async def _examine(settings: Settings) -> list[Finding]:
    findings = [*_access(settings), *_providers(settings), *_foreign(settings), _files()]
    findings += [*await _redis(settings), await _database(settings)]
    on = available(settings)
    findings += [await _reach(provider, settings) for provider in on if not settings.is_behind_gateway(provider)]
    if settings.ai_gateway_url:
        mend = "Check SLUICE_AI_GATEWAY_BASE_URL and this machine's way to the internet."
        findings.append(await _answers("The AI Gateway", settings.ai_gateway_base_url, mend))
    findings.append(await _api(settings))
    return findings


def _access(settings: Settings) -> list[Finding]:
    if reason := refuse_to_start(settings):
        return [Finding("wrong", "The API would refuse to start.", reason)]
    if settings.auth != "none" and is_open(settings):
        return [Finding("note", "No API keys: open to everybody on this machine.", "Set SLUICE_API_KEYS before going further.")]
    found = [Finding("ok", f"{kind} let clients in.") for kind in _credentials(settings)]
    if settings.auth == "none":
        found.append(Finding("note", "SLUICE_AUTH=none: anybody who reaches the API may use it."))
    if settings.secret is None:
        mend = "Set SLUICE_SECRET to the same long random text for the API and the workers, if these are wanted."
        found.append(Finding("note", "No SLUICE_SECRET: no managed keys, and requests cannot bring a provider's key.", mend))
    found.append(
        Finding("ok", f"{len(settings.admin_keys)} admin key(s): /admin is on." if settings.admin_keys else "/admin is off.")
    )
    return found


def _credentials(settings: Settings) -> list[str]:
    """The kinds of credentials that clients may send."""
    kinds = {
        f"{len(settings.api_keys)} API key(s) of SLUICE_API_KEYS ({', '.join(static_ids(settings))})": settings.api_keys,
        "Managed keys (`sluice keys`)": settings.secret,
        "JSON web tokens signed with SLUICE_JWT_SECRET (HS256)": settings.jwt_secret,
        f"JSON web tokens signed by {settings.jwt_issuer} (RS256, ES256)": settings.jwt_jwks_url,
    }
    return [kind for kind, is_set in kinds.items() if is_set]


def _providers(settings: Settings) -> list[Finding]:
    on = available(settings)
    findings = [Finding("ok", f"Provider {provider} is configured{_way(provider, settings)}.") for provider in on]
    if not findings:
        variables = ", ".join(f"{vendor.env}_API_KEY" for vendor in settings.vendors.values() if vendor.key_is_needed)
        return [Finding("wrong", "No provider is configured.", f"Set one of {variables}; or run `sluice dev` for the demo.")]
    default = settings.default_provider
    if default and settings.vendor_ids.get(default) not in available(settings):
        findings.append(
            Finding(
                "wrong",
                f"SLUICE_DEFAULT_PROVIDER={default} is not configured.",
                f"Choose from: {', '.join(available(settings))}.",
            )
        )
    return findings


def _way(provider: str, settings: Settings) -> str:
    if not settings.is_behind_gateway(provider):
        return ""
    return " through the AI Gateway" + ("" if settings.provider(provider).api_keys else ", with the keys that are stored there")


def _foreign(settings: Settings) -> list[Finding]:
    """Variables of other gateways."""
    found = [Finding("ok", f"{name} is taken for a setting of ours.") for name in in_effect(environment(), settings)]
    ignored = without_effect(environment(), settings)
    return found + [Finding("note", f"{name} has no effect: {reason}.") for name, reason in ignored.items()]


def _files() -> Finding:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < FILES_WANTED:
        return Finding(
            "note", f"A process may open {hard} files; each stream needs one or two.", f"Raise it: ulimit -Hn {FILES_WANTED}"
        )
    return Finding("ok", f"A process may open {hard} files.")


async def _redis(settings: Settings) -> list[Finding]:
    redis = connect(settings.redis_url)
    where = shown_url(settings.redis_url)
    try:
        async with asyncio.timeout(COMMAND_TIMEOUT_S):
            info = await redis.info()
        found = [Finding("ok", f"Redis {info['redis_version']} answers at {where}.")]
        if tuple(map(int, info["redis_version"].split(".")[:2])) < (6, 2):
            found.append(Finding("wrong", "Redis is older than 6.2.", "Install 6.2 or newer."))
        found += await _redis_settings(redis)
        return found
    except (RedisError, OSError, TimeoutError) as error:
        mend = "Start it (redis-server --appendonly yes), or point SLUICE_REDIS_URL at yours. `sluice dev` brings its own."
        return [Finding("wrong", f"Redis does not answer at {where}: {type(error).__name__}.", mend)]
    finally:
        await redis.aclose()


async def _database(settings: Settings) -> Finding:
    from common.database.errors import DatabaseUnavailable
    from common.database.migrate import HEAD, revision_of  # Here: no other command has to pay for SQLAlchemy.

    where = shown_url(settings.database_url)
    try:
        found = await revision_of(settings.database_url)
    except DatabaseUnavailable as error:
        mend = "Check SLUICE_DATABASE_URL, and that it is running. Until then what was used waits in Redis; nothing is lost."
        return Finding("wrong", f"The database {where} cannot be used: {error}.", mend)
    if found is not None and found >= HEAD:
        return Finding("ok", f"The database {where} has the tables of this version.")
    state = f"is at revision {found}, this version needs {HEAD}" if found else "has no tables yet"
    if where.startswith("sqlite"):
        return Finding("note", f"The database {where} {state}.", "Whoever opens it first makes them: nothing is to be done.")
    return Finding("wrong", f"The database {where} {state}.", "Run `sluice migrate`.")


async def _redis_settings(redis: Redis) -> list[Finding]:
    try:
        async with asyncio.timeout(COMMAND_TIMEOUT_S):
            config = await redis.config_get("*")
    except (RedisError, TimeoutError):
        return [Finding("note", "Redis does not show its settings; make sure of noeviction and appendonly.")]
    found = []
    if config.get("maxmemory-policy") != "noeviction":
        mend = "CONFIG SET maxmemory-policy noeviction"
        found.append(Finding("wrong", f"Redis may evict keys ({config.get('maxmemory-policy')}): answers would be lost.", mend))
    if config.get("appendonly") != "yes":
        found.append(Finding("note", "Redis is not appendonly: a restart loses running answers.", "CONFIG SET appendonly yes"))
    if (limit := _pubsub_hard_limit(config.get("client-output-buffer-limit", ""))) and limit < PUBSUB_HARD_LIMIT_WANTED:
        mend = "The API sets it where Redis lets it; else CONFIG SET client-output-buffer-limit 'pubsub 256mb 64mb 60'"
        found.append(Finding("note", f"Redis cuts a subscriber past {limit // MIB} MiB.", mend))
    return found or [Finding("ok", "Redis keeps what it is given: noeviction, appendonly.")]


def _pubsub_hard_limit(setting: str) -> int:
    words = setting.split()
    return int(words[words.index("pubsub") + 1]) if "pubsub" in words else 0


async def _reach(provider: str, settings: Settings) -> Finding:
    env = settings.vendors[provider].env
    what = f"{env}_BASE_URL" if env else "its base_url"
    mend = f"Check {what} and this machine's way to the internet."
    return await _answers(f"Provider {provider}", settings.base_url(provider) or "", mend)


async def _api(settings: Settings) -> Finding:
    address = f"http://{settings.host}:{settings.port}/readyz"
    finding = await _answers("The API", address, "Start it with `sluice api`.")
    return finding if finding.level == "ok" else Finding("note", finding.what, finding.mend)


async def _answers(who: str, address: str, mend: str) -> Finding:
    """Whether anything answers at an address; which status does not matter, and no key is sent."""
    try:
        async with httpx.AsyncClient(timeout=5) as client:
            await client.get(address)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return Finding("wrong", f"{who} does not answer at {shown_url(address)}: {type(error).__name__}.", mend)
    return Finding("ok", f"{who} answers at {shown_url(address)}.")
