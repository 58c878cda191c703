"""Which deployments does a model name stand for?

The API asks this before it accepts a request, a worker again before it runs it: both from the same settings, so a route
needs no place in the job. Order of the rules: an alias; ``model#provider``; ``provider/model``; a bare name whose
provider is evident; the default provider.
"""

from dataclasses import dataclass

from common.errors import ErrorKind, GatewayError
from common.settings import Settings
from common.vendors import VENDOR_IDS, VENDORS


@dataclass(frozen=True, slots=True)
class Target:
    """A model at a provider, keys and address not yet chosen."""

    provider: str
    model: str

    @property
    def wire(self) -> str:
        return VENDORS[self.provider].wire


def resolve(name: str, settings: Settings) -> list[Target]:
    """Return the targets of a model name, in the order in which they are tried.

    Raises:
        GatewayError: MODEL_NOT_FOUND; the message names what is available and the variable to set.
    """
    if name in settings.aliases:
        return [_target(target, settings) for target in settings.aliases[name]]
    return [_target(name, settings)]


def _target(name: str, settings: Settings) -> Target:
    target = _named(name) or _evident(name) or _default(name, settings)
    if target is None:
        raise _not_found(f"The model {_quoted(name)} does not say which provider has it.", settings)
    if not target.model:
        raise _not_found(f"The model name {_quoted(name)} names a provider but no model.", settings)
    if not settings.provider_is_on(target.provider):
        vendor = VENDORS[target.provider]
        variable = f"{vendor.env}_API_KEY" if vendor.key_is_needed else f"{vendor.env}_BASE_URL"
        raise _not_found(
            f"The model {_quoted(name)} needs the provider {vendor.id}, which is not configured: set {variable}.",
            settings,
        )
    return target


def _named(name: str) -> Target | None:
    model, mark, provider = name.rpartition("#")
    if mark and provider in VENDOR_IDS:
        return Target(VENDOR_IDS[provider], model)
    provider, mark, model = name.partition("/")
    if mark and provider in VENDOR_IDS:
        return Target(VENDOR_IDS[provider], model)
    return None


def _evident(name: str) -> Target | None:
    for vendor in VENDORS.values():
        if vendor.evident.match(name):
            return Target(vendor.id, name)
    return None


def _default(name: str, settings: Settings) -> Target | None:
    provider = VENDOR_IDS.get(settings.default_provider or "")
    return Target(provider, name) if provider else None


def available(settings: Settings) -> list[str]:
    """Return the ids of the providers that are configured."""
    return [provider for provider in VENDORS if settings.provider_is_on(provider)]


def _quoted(name: str) -> str:
    return repr(name if len(name) <= 100 else name[:100] + "…")


def _not_found(reason: str, settings: Settings) -> GatewayError:
    on = available(settings)
    known = [f"{provider}/MODEL" for provider in on] + sorted(settings.aliases)
    hint = f"Available: {', '.join(known)}." if known else "No provider is configured: set OPENAI_API_KEY, for example."
    return GatewayError(ErrorKind.MODEL_NOT_FOUND, f"{reason} {hint}", code="model_not_found", param="model")
