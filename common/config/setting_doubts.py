"""Which settings are probably mistakes, although Sluice can run with them?

Unknown variables, and settings that name providers or models that do not exist. Each doubt is one sentence. A process logs its
doubts when it starts, and ``sluice doctor`` reports them.
"""

import difflib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple
from urllib.parse import urlsplit

from common.access.principal import Access, GuardrailPolicy
from common.config.compose_variables import COMPOSE_VARIABLES
from common.config.model_routes import fallbacks_of, find_problem, named_targets
from common.config.setting_sources import (
    ENV_FILE,
    FILE_SUFFIX,
    PREFIX,
    PROVIDER_VARIABLES,
    env_file,
    environment,
    full_path,
    provider_variable,
    yaml_values,
)
from common.config.setting_values import is_placeholder
from common.config.settings import Settings
from common.guardrails.table import GUARDRAILS, Mode
from common.vendors.table import VENDORS

# Kubernetes sets these variables in every pod if a Service's name begins with "sluice". They are not mistakes.
_SERVICE_LINK = re.compile(r"SLUICE_(\w+_)?(SERVICE_(HOST|PORT(_\w+)?)|PORT_\d+_(TCP|UDP)(_\w+)?)")


# How people write the ends of the providers' variables. The longest first.
_ENDINGS = {
    "api_keys": ("APIKEYS", "APIKEY", "APITOKEN", "KEYS", "KEY"),
    "base_url": ("APIBASEURL", "BASEURL", "APIBASE", "APIURL", "BASE", "URL"),
}
VENDOR_LETTERS_MIN = 5  # Shorter names are near to too many others.


class Doubt(NamedTuple):
    """``mend`` says what to do. ``is_fault``: it is certainly a mistake. An unknown name may belong to another program."""

    problem: str
    mend: str
    is_fault: bool = True


def find_doubts(settings: Settings) -> list[Doubt]:
    """Return the doubts about the settings, and about names that look like settings."""
    return [
        *_unknown_variables(),
        *_misspelt_provider_variables(),
        *_targets(settings),
        *_windows(settings),
        *_providers(settings),
        *_tenants(settings),
        *_patterns(settings),
        *_guardrails(settings),
    ]


def log_doubts(settings: Settings) -> None:
    import structlog  # Imported here, because `sluice doctor` logs nothing.

    for doubt in find_doubts(settings):
        structlog.get_logger().warning("setting_in_doubt", problem=doubt.problem, mend=doubt.mend)


def nearest(name: str, names: Iterable[str]) -> str | None:
    """Return the known name that is most similar to a name, if any is similar."""
    return next(iter(difflib.get_close_matches(name.lower().replace("-", "_"), names, n=1, cutoff=0.7)), None)


def unknown_keys() -> Iterator[tuple[str, str | None]]:
    """Yield the keys of ``sluice.yaml`` that are no settings, each with what was probably meant. No command runs then."""
    setting_names = Settings.model_fields
    for name in yaml_values():
        setting = name.lower().removeprefix(PREFIX.lower())
        vendor = next((vendor for vendor in VENDORS.values() if name.startswith(f"{vendor.env}_")), None)
        if name not in setting_names:
            similar = setting if setting in setting_names else nearest(setting, setting_names)
            yield name, f"providers: {{{vendor.id}: …}}" if vendor else similar


def _unknown_variables() -> Iterator[Doubt]:
    known = {*Settings.model_fields, *(name.lower().removeprefix(PREFIX.lower()) for name in COMPOSE_VARIABLES)}
    for variables, where in ((os.environ, "the environment"), (env_file(), full_path(ENV_FILE))):
        for name, value in variables.items():
            setting = name.lower().removeprefix(PREFIX.lower())
            setting = setting if setting in known else setting.removesuffix(FILE_SUFFIX.lower())
            if name.upper().startswith(PREFIX) and setting not in known and not _is_service_link(name, value or ""):
                near = nearest(setting, sorted(known))
                yield _unknown(name, where, f"{PREFIX}{near.upper()}" if near else None)


def _misspelt_provider_variables() -> Iterator[Doubt]:
    """Yield doubts about variables that are nearly a provider's. A name that is not near belongs to another program."""
    present = environment()
    for variables, where in ((os.environ, "the environment"), (env_file(), full_path(ENV_FILE))):
        for name, value in variables.items():
            near = _near_provider_variable(name) if value else None
            if near and not present.get(near):
                is_fault = where != "the environment"  # There it may belong to another program.
                yield Doubt(f"{name} in {where} has no effect: there is no such variable.", meant(near), is_fault)


def _near_provider_variable(name: str) -> str | None:
    """Return the provider's variable that was probably meant; None for its own name, and for one that is not near."""
    if name in PROVIDER_VARIABLES or name.upper().startswith(PREFIX):
        return None
    letters = name.upper().replace("_", "").replace("-", "")
    for field, endings in _ENDINGS.items():
        ending = next((ending for ending in endings if letters.endswith(ending)), None)
        if ending:
            vendor = _near_vendor(letters.removesuffix(ending))
            return vendor and provider_variable(vendor, field)
    return None


def _near_vendor(letters: str) -> str | None:
    names = {vendor.env.replace("_", ""): vendor.env for vendor in VENDORS.values() if vendor.id != "demo"}
    if letters in names or len(letters) < VENDOR_LETTERS_MIN:
        return names.get(letters)
    return next((names[near] for near in difflib.get_close_matches(letters, names, n=1, cutoff=0.8)), None)


def _is_service_link(name: str, value: str) -> bool:
    return value.startswith(("tcp://", "udp://")) or _SERVICE_LINK.fullmatch(name) is not None


def _unknown(name: str, where: str, near: str | None) -> Doubt:
    return Doubt(f"{name} in {where} has no effect: there is no such setting.", meant(near), is_fault=near is not None)


def meant(near: str | None) -> str:
    return f"Did you mean {near}?" if near else "Every setting is in .env.example."


def _targets(settings: Settings) -> Iterator[Doubt]:
    """Yield doubts about aliases and mapped names that lead to an unknown or unconfigured provider."""
    named = [
        ("routes" if alias in settings.routes else "aliases", alias, target)
        for alias, targets in settings.aliases.items()
        for target in targets
    ]
    named += [("model_map", name, target) for name, target in (settings.model_map or {}).items()]
    for setting, name, target in named:
        if problem := find_problem(target, settings):
            yield _doubt(setting, f"{name!r} leads to {target!r}, which cannot be used", problem)


def _windows(settings: Settings) -> Iterator[Doubt]:
    """Yield doubts about fallbacks for conversations that are too long, whose own window is known to be no larger."""
    for name, route in settings.routes.items():
        known = {
            target.name: settings.model_table.facts(target.provider, target.model).context_tokens
            for target in named_targets([rule.model for rule in route.rules], settings)
            if target
        }
        fallbacks = fallbacks_of(name, settings)
        largest = max((window or 0 for target, window in known.items() if target not in fallbacks), default=0)
        for target, rule in fallbacks.items():
            window = known[target]
            if "context_overflow" in rule.when and window and window <= largest:
                problem = f"the fallback {target!r} of {name!r} has no larger context window than the route's targets"
                yield _doubt("routes", problem, f"It has {window:,} tokens. Choose another model for context_overflow.")


def _providers(settings: Settings) -> Iterator[Doubt]:
    """Yield doubts about settings that name an unknown or unconfigured provider."""
    if (default := settings.default_provider) and (problem := _problem_of_provider(default, settings)):
        yield _doubt("default_provider", f"{default!r} cannot be used", problem)
    for price in settings.prices:
        provider, slash, _ = price.partition("/")
        problem = _problem_of_provider(provider, settings) if slash else "Prices are set for provider/model."
        if problem:
            yield _doubt("prices", f"the price of {price!r} applies to nothing", problem)
    for provider, chosen in settings.providers.items():
        if any(is_placeholder(key.get_secret_value()) for key in chosen.api_keys):
            mend = "Put your own in its place, or remove it: the provider refuses each request with it."
            yield Doubt(f"The API key of {provider!r} looks like the placeholder of a documentation.", mend)
        if _is_own_address(chosen.base_url, settings):
            mend = "Set it to the provider's address. Otherwise requests come back to this gateway."
            yield Doubt(f"The base URL of {provider!r} is this gateway's own address.", mend)
        if (chosen.limits.is_set or chosen.budget.model_fields_set) and not settings.provider_is_on(provider):
            yield _doubt("providers", f"the limits of {provider!r} apply to nothing", _not_configured(provider, settings))


def _is_own_address(url: str | None, settings: Settings) -> bool:
    parts = urlsplit(url or "")
    if (parts.port or {"http": 80, "https": 443}.get(parts.scheme)) != settings.port:
        return False
    return parts.hostname == settings.host or parts.hostname in ("localhost", "127.0.0.1", "::1")


def _problem_of_provider(name: str, settings: Settings) -> str | None:
    if name not in settings.vendor_ids:
        near = nearest(name, settings.vendor_ids)
        return f"There is no provider {name!r}." + (f" Did you mean {near}?" if near else "")
    provider = settings.vendor_ids[name]
    return None if settings.provider_is_on(provider) else _not_configured(provider, settings)


def _not_configured(provider: str, settings: Settings) -> str:
    return find_problem(f"{provider}/model", settings) or ""


def _tenants(settings: Settings) -> Iterator[Doubt]:
    for tenant, access in settings.tenants.items():
        for subject, mend in find_access_doubts(access, settings):
            yield _doubt("tenants", f"{tenant!r} is allowed {subject}", mend)


def find_access_doubts(access: Access, settings: Settings) -> Iterator[tuple[str, str]]:
    """Yield what a key's or a tenant's access allows that does not exist, each with what to do."""
    from common.dialects import DIALECTS  # Imported here, because few setups need them.

    for kind, names, existing_names in _lists(access, settings.vendor_ids, DIALECTS):
        for name in names:
            if name not in existing_names and not re.search(r"[*?[]", name):
                near = nearest(name, existing_names)
                mend = f"Did you mean {near}?" if near else f"There are: {', '.join(existing_names)}."
                yield f"the {kind} {name!r}, which does not exist", mend


def _lists(
    access: Access, providers: Mapping[str, str], dialects: Mapping[str, object]
) -> Iterator[tuple[str, list[str], Iterable[str]]]:
    yield "provider", list(access.providers or ()), list(providers)
    yield "provider of models", [model.partition("/")[0] for model in access.models or () if "/" in model], list(providers)
    yield "dialect", list(access.dialects or ()), list(dialects)


def _patterns(settings: Settings) -> Iterator[Doubt]:
    """Yield doubts about patterns that apply to no model."""
    for setting in ("guardrails_by_model", "cache_models"):
        for pattern in getattr(settings, setting):
            provider, slash, _ = pattern.partition("/")
            if slash and not re.search(r"[*?[]", provider) and provider not in settings.vendor_ids:
                yield _doubt(setting, f"{pattern!r} applies to nothing", _problem_of_provider(provider, settings) or "")


def _guardrails(settings: Settings) -> Iterator[Doubt]:
    """Yield doubts about guardrails that are on but lack their settings."""
    policies = [settings.guardrails, *settings.guardrails_by_model.values()]
    policies += [access.guardrails for access in settings.tenants.values() if access.guardrails]
    for row in GUARDRAILS:
        has_settings = not row.needs_one_of or any(getattr(settings, name) for name in row.needs_one_of)
        if not has_settings and _is_on(row.name, policies):
            variables = " or ".join(f"{PREFIX}{name.upper()}" for name in row.needs_one_of)
            yield Doubt(f"The guardrail {row.name!r} is on, but has nothing to check for.", f"Set {variables}.")


def _is_on(guardrail: str, policies: Iterable[GuardrailPolicy]) -> bool:
    return any(policy.mode(guardrail) is not Mode.OFF for policy in policies)


def _doubt(setting: str, problem: str, mend: str) -> Doubt:
    return Doubt(f"{PREFIX}{setting.upper()}: {problem}.", mend)
