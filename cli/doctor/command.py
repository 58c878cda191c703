"""What is configured, what can be reached, what is wrong, and how is it mended?"""

import asyncio
import resource
from contextlib import suppress

import click

from api.auth.authenticator import is_open, static_ids
from api.auth.startup_checks import refuse_to_start
from cli.doctor.finding import Finding, Level
from cli.doctor.http_get import get
from cli.doctor.redis_checks import examine_redis
from common.canonical.errors import GatewayError
from common.config.foreign_effect import in_effect, without_effect
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

MARKS: dict[Level, str] = {"ok": "✓", "note": "·", "wrong": "✗"}
FILES_WANTED = 10_000


def run(settings: Settings, *, with_keys: bool = False) -> int:
    """Print the report; returns 0 if nothing is wrong, else 1. ``with_keys``: providers are asked whether theirs are good."""
    with asyncio.Runner(loop_factory=Loop) as runner:
        findings = runner.run(_examine(settings, with_keys=with_keys))
    for finding in findings:
        click.echo(f"{MARKS[finding.level]} {finding.what}")
        if finding.mend:
            click.echo(f"    {finding.mend}")
    wrong = sum(finding.level == "wrong" for finding in findings)
    click.echo(f"\n{wrong} thing{'s' if wrong != 1 else ''} to mend." if wrong else "\nAll is well.")
    return 1 if wrong else 0


async def _examine(settings: Settings, *, with_keys: bool) -> list[Finding]:
    findings = [*_access(settings), *_providers(settings), *unknown_prices(settings), *_foreign(settings), *_doubts(settings)]
    findings.append(_files())
    api = await _api(settings)
    findings += [*await examine_redis(settings, is_running=api.level == "ok"), await examine_database(settings)]
    findings += await _upstreams(settings, with_keys=with_keys)
    return [*findings, api]


async def _upstreams(settings: Settings, *, with_keys: bool) -> list[Finding]:
    from cli.doctor.providers import certificates, keys_checked, providers_reached  # Here: aiohttp takes long to load.

    found = [*certificates(), *await providers_reached(settings)]
    return found + await keys_checked(settings) if with_keys else found


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
    return findings


def unknown_prices(settings: Settings) -> list[Finding]:
    """Names of the operator's own whose cost nobody can count."""
    if not settings.aliases:
        return []
    from common.metering.pricing import has_known_price  # Here: to read the list takes a quarter of a second.

    found = []
    for alias in sorted(settings.aliases):
        with suppress(GatewayError):
            for target in resolve(alias, settings):
                if not has_known_price(target.provider, target.model, settings.prices):
                    mend = f'Set SLUICE_PRICES={{"{target.name}": {{"input_usd_per_mtok": …, "output_usd_per_mtok": …}}}}.'
                    what = f"The price of {target.name} (alias {alias}) is not known: it counts for nothing in budgets."
                    found.append(Finding("note", what, mend))
    return found


def _way(provider: str, settings: ModelSettings) -> str:
    if not settings.is_behind_gateway(provider):
        return ""
    return " through the AI Gateway" + ("" if settings.provider(provider).api_keys else ", with the keys that are stored there")


def _foreign(settings: Settings) -> list[Finding]:
    """Variables of other gateways."""
    found = [Finding("ok", f"{name} is taken for a setting of ours.") for name in in_effect(environment(), settings)]
    ignored = without_effect(environment(), settings)
    return found + [Finding("note", f"{name} has no effect: {reason}.") for name, reason in ignored.items()]


def _doubts(settings: Settings) -> list[Finding]:
    return [Finding("wrong" if doubt.is_fault else "note", doubt.problem, doubt.mend) for doubt in find_doubts(settings)]


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
        found = await _revision(settings.database_url)
    except DatabaseUnavailable as error:
        mend = "Check SLUICE_DATABASE_URL, and that it is running. Until then what was used waits in Redis; nothing is lost."
        return Finding("wrong", f"The database {where} cannot be used: {error}.", mend)
    if found is not None and found >= HEAD:
        return Finding("ok", f"The database {where} has the tables of this version.")
    state = f"is at revision {found}, this version needs {HEAD}" if found else "has no tables yet"
    if where.startswith("sqlite"):
        return Finding("note", f"The database {where} {state}.", "Whoever opens it first makes them: nothing is to be done.")
    return Finding("wrong", f"The database {where} {state}.", "Run `sluice migrate`.")


async def _revision(url: str) -> str | None:
    if is_sqlite_url(url):
        return sqlite_revision(url)
    from common.database.migrate import read_revision  # Here: it takes longer to load than all else.

    return await read_revision(url)


async def _api(settings: ServerSettings) -> Finding:
    address = f"{local_url(settings.host, settings.port)}/readyz"
    try:
        status = (await get(address)).status
    except (OSError, TimeoutError) as error:
        return Finding("note", f"The API does not answer at {address}: {_words(error)}.", "Start it with `sluice api`.")
    if status >= 500:
        return Finding("note", f"The API answers at {address} with status {status}.", "Try again later.")
    return Finding("ok", f"The API answers at {address}.")


def _words(error: Exception) -> str:
    reason = getattr(error, "strerror", None)
    return f"{type(error).__name__}, {reason}" if reason else type(error).__name__
