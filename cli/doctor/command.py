"""What is configured, what can be reached, what is wrong, and how is it fixed?"""

import asyncio
import resource
from contextlib import suppress

import click

from api.auth.authenticator import is_open, static_ids
from api.auth.startup_checks import refuse_to_start
from cli.doctor.finding import Finding, Level
from cli.doctor.http_get import get
from cli.doctor.redis_checks import examine_cache, examine_redis
from cli.settings import where_settings_are
from common.canonical.errors import GatewayError
from common.canonical.wording import counted
from common.config.foreign_effect import in_effect, turns_cache_on, without_effect
from common.config.groups.ledger import LedgerSettings
from common.config.groups.models import ModelSettings
from common.config.groups.server import ServerSettings
from common.config.model_routes import available, resolve
from common.config.setting_doubts import find_doubts
from common.config.settings import Settings, environment
from common.database.errors import DatabaseUnavailable
from common.database.revisions import HEAD, is_sqlite_url, sqlite_revision
from common.process.event_loop import Loop
from common.process.listening import local_url
from common.process.redaction import shown_url

MARKS: dict[Level, str] = {"ok": "✓", "note": "·", "doubt": "!", "wrong": "✗"}
FILES_WANTED = 10_000


def run(settings: Settings, *, with_keys: bool = False, url: str | None = None) -> int:
    """Print the report. Return 0 if nothing is wrong, else 1.

    ``with_keys``: ask the providers whether their keys are valid. ``url``: where the API listens, if the
    settings do not say it.
    """
    with asyncio.Runner(loop_factory=Loop) as runner:
        findings = runner.run(_examine(settings, with_keys=with_keys, url=url))
    for finding in findings:
        click.echo(f"{MARKS[finding.level]} {finding.summary}")
        if finding.fix:
            click.echo(f"    {finding.fix}")
    click.echo(f"\n{_verdict(findings)}")
    return 1 if any(finding.level == "wrong" for finding in findings) else 0


def _verdict(findings: list[Finding]) -> str:
    wrong, doubts = (sum(finding.level == level for finding in findings) for level in ("wrong", "doubt"))
    parts = [f"{counted(wrong, 'problems')} to fix ({MARKS['wrong']})"] * bool(wrong)
    parts += [f"{counted(doubts, 'doubts')} to look at ({MARKS['doubt']})"] * bool(doubts)
    return f"{', '.join(parts)}." if parts else "All is well."


async def _examine(settings: Settings, *, with_keys: bool, url: str | None) -> list[Finding]:
    findings = [
        *_sources(),
        *_access(settings),
        *_providers(settings),
        *unknown_prices(settings),
        *_foreign(settings),
        *_doubts(settings),
    ]
    findings.append(_files())
    api = await _api(settings, url)
    findings += [*await examine_redis(settings, is_running=api.level == "ok"), *await examine_cache(settings)]
    findings.append(await examine_database(settings))
    findings += await _upstreams(settings, with_keys=with_keys)
    return [*findings, api]


async def _upstreams(settings: Settings, *, with_keys: bool) -> list[Finding]:
    # Imported here: aiohttp is slow to load.
    from cli.doctor.providers import certificate_findings, key_findings, provider_findings

    findings = [*certificate_findings(), *await provider_findings(settings)]
    return findings + await key_findings(settings) if with_keys else findings


def _sources() -> list[Finding]:
    missing = where_settings_are().rstrip()
    return [Finding("doubt", missing)] if missing else []


def _access(settings: Settings) -> list[Finding]:
    if reason := refuse_to_start(settings):
        return [Finding("wrong", "The API would refuse to start.", reason)]
    if settings.auth != "none" and is_open(settings):
        fix = "Set SLUICE_API_KEYS before you make it reachable from elsewhere."
        return [Finding("note", "No API keys: everybody on this machine may use it.", fix)]
    findings = [Finding("ok", f"Clients can authenticate with {kind}.") for kind in _credentials(settings)]
    if settings.auth == "none":
        findings.append(Finding("note", "SLUICE_AUTH=none: anybody who reaches the API may use it."))
    if settings.secret is None:
        fix = "To have these, set SLUICE_SECRET to the same long random text for the API and the workers."
        findings.append(
            Finding("note", "No SLUICE_SECRET: no managed keys, and clients cannot bring their own provider key.", fix)
        )
    findings.append(
        Finding("ok", f"{len(settings.admin_keys)} admin key(s): /admin is on." if settings.admin_keys else "/admin is off.")
    )
    return findings


def _credentials(settings: Settings) -> list[str]:
    """Return the kinds of credentials that clients may send."""
    kinds = {
        f"{len(settings.api_keys)} API key(s) of SLUICE_API_KEYS ({', '.join(static_ids(settings))})": settings.api_keys,
        "managed keys (`sluice keys`)": settings.secret,
        "JSON web tokens signed with SLUICE_JWT_SECRET (HS256)": settings.jwt_secret,
        f"JSON web tokens signed by {settings.jwt_issuer} (RS256, ES256)": settings.jwt_jwks_url,
    }
    return [kind for kind, is_set in kinds.items() if is_set]


def _providers(settings: Settings) -> list[Finding]:
    providers = available(settings)
    findings = [Finding("ok", f"Provider {provider} is configured{_way(provider, settings)}.") for provider in providers]
    if not findings:
        variables = ", ".join(f"{vendor.env}_API_KEY" for vendor in settings.vendors.values() if vendor.key_is_needed)
        return [Finding("wrong", "No provider is configured.", f"Set one of {variables}; or run `sluice dev` for the demo.")]
    return findings


def unknown_prices(settings: Settings) -> list[Finding]:
    """Return a finding for each alias of the operator whose cost nobody can count."""
    if not settings.aliases:
        return []
    from common.metering.pricing import has_known_price  # Imported here: loading the price list takes a quarter of a second.

    findings = []
    for alias in sorted(settings.aliases):
        with suppress(GatewayError):
            for target in resolve(alias, settings):
                if not has_known_price(target.provider, target.model, settings.prices):
                    fix = f'Set SLUICE_PRICES={{"{target.name}": {{"input_usd_per_mtok": …, "output_usd_per_mtok": …}}}}.'
                    summary = f"The price of {target.name} (alias {alias}) is not known: budgets count its cost as nothing."
                    findings.append(Finding("note", summary, fix))
    return findings


def _way(provider: str, settings: ModelSettings) -> str:
    if not settings.is_behind_gateway(provider):
        return ""
    return " through the AI Gateway" + ("" if settings.provider(provider).api_keys else ", with the keys stored there")


def _foreign(settings: Settings) -> list[Finding]:
    """Return a finding for each variable of another gateway: whether it has an effect here."""
    effective = []
    for name in in_effect(environment(), settings):
        cache = " It turns the cache on for POST /v1/chat: see docs/caching.md." if turns_cache_on(name, settings) else ""
        effective.append(Finding("ok", f"{name} is used as a setting of Sluice.{cache}"))
    ignored = without_effect(environment(), settings)
    return effective + [Finding("doubt", f"{name} has no effect: {reason}.") for name, reason in ignored.items()]


def _doubts(settings: Settings) -> list[Finding]:
    return [Finding("wrong" if doubt.is_fault else "doubt", doubt.problem, doubt.mend) for doubt in find_doubts(settings)]


def _files() -> Finding:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < FILES_WANTED:
        return Finding(
            "note", f"A process may open {hard} files; each stream needs one or two.", f"Raise it: ulimit -Hn {FILES_WANTED}"
        )
    return Finding("ok", f"A process may open {hard} files.")


async def examine_database(settings: LedgerSettings) -> Finding:
    where = shown_url(settings.database_url)
    try:
        revision = await _revision(settings.database_url)
    except DatabaseUnavailable as error:
        fix = "Check SLUICE_DATABASE_URL, and that the database runs. Until then usage records wait in Redis; nothing is lost."
        return Finding("wrong", f"The database {where} cannot be used: {error}.", fix)
    if revision is not None and revision >= HEAD:
        return Finding("ok", f"The database {where} has the tables of this version.")
    state = f"is at revision {revision}, this version needs {HEAD}" if revision else "has no tables yet"
    if where.startswith("sqlite"):
        return Finding("note", f"The database {where} {state}.", "The first process that opens it makes them: nothing to do.")
    return Finding("wrong", f"The database {where} {state}.", "Run `sluice migrate`.")


async def _revision(url: str) -> str | None:
    if is_sqlite_url(url):
        return sqlite_revision(url)
    from common.database.migrate import read_revision  # Imported here: it takes longer to load than everything else.

    return await read_revision(url)


async def _api(settings: ServerSettings, url: str | None) -> Finding:
    address = f"{(url or local_url(settings.host, settings.port)).rstrip('/')}/readyz"
    try:
        status = (await get(address)).status
    except (OSError, TimeoutError) as error:
        fix = "Start it with `sluice api`. If it listens elsewhere, say where: `sluice doctor --url http://127.0.0.1:PORT`."
        return Finding("wrong" if url else "note", f"The API does not answer at {address}: {_error_text(error)}.", fix)
    if status >= 500:
        return Finding("note", f"The API answers at {address} with status {status}.", "Try again later.")
    return Finding("ok", f"The API answers at {address}.")


def _error_text(error: Exception) -> str:
    reason = getattr(error, "strerror", None)
    return f"{type(error).__name__}, {reason}" if reason else type(error).__name__
