"""What does a request take of whose limits and budgets?

Limits of a key, its tenant, the end user and the address each count on their own, and all must allow the request. The
enqueue script decides (``common.limits.charges``); nothing here asks Redis.
"""

from collections.abc import Collection

from common.access.principal import Limits, Principal
from common.canonical.generation import GenerationRequest
from common.config.groups.models import ModelSettings
from common.config.settings import Settings
from common.limits.charges import Charges, Purse, Scope, Slot, Window, of_limits, safe_name
from common.metering.token_estimate import reserved_tokens

# Where anybody may ask, nobody may ask for everything: what one person's chat needs, many times over.
OPEN_ADDRESS_LIMITS = Limits(requests=300, concurrent=50)


def charges_of(
    principal: Principal,
    address: str,
    request: GenerationRequest,
    providers: Collection[str],
    settings: Settings,
    *,
    has_brought_key: bool = False,
) -> Charges:
    """Return what a request is to be charged for; ``providers`` are those of its route.

    Where the provider's key that a request brings pays for the call, that is nobody's budget here.
    """
    windows: list[Window] = []
    slots: list[Slot] = []
    tokens = None
    for scope, name, limits in _limits(principal, address, request, settings):
        if limits.tokens and tokens is None:
            tokens = reserved_tokens(request)
        more_windows, more_slots = of_limits(scope, name, limits, tokens or 0)
        windows += more_windows
        slots += more_slots
    if has_brought_key and all(settings.brought_key_pays(provider) for provider in providers):
        return Charges(windows, slots)
    purses = [
        Purse("key", principal.id, principal.access.budget),
        Purse("tenant", safe_name(principal.tenant), principal.tenant_access.budget),
    ]
    return Charges(windows, slots, purses, _alternatives(providers, settings))


def _limits(
    principal: Principal, address: str, request: GenerationRequest, settings: Settings
) -> list[tuple[Scope, str, Limits]]:
    default, tenant = settings.limits, safe_name(principal.tenant)
    own, of_tenant = principal.access.limits, principal.tenant_access.limits
    found: list[tuple[Scope, str, Limits]] = [
        ("key", principal.id, own if own.is_set else default.get("key", own)),
        ("tenant", tenant, of_tenant if of_tenant.is_set else default.get("tenant", of_tenant)),
        ("address", address, default.get("address", OPEN_ADDRESS_LIMITS if settings.auth == "none" else Limits())),
    ]
    end_user = principal.end_user or request.end_user
    if end_user and "end_user" in default:
        found.append(("end_user", f"{tenant}/{safe_name(end_user)}", default["end_user"]))
    return [each for each in found if each[2].is_set]


def _alternatives(providers: Collection[str], settings: ModelSettings) -> list[Purse]:
    """The purses of a route's providers, where each has a budget: as long as one has none, the route is open."""
    purses = [Purse("provider", provider, settings.provider(provider).budget) for provider in dict.fromkeys(providers)]
    is_bounded = all((purse.budget.day_usd, purse.budget.month_usd) != (None, None) for purse in purses)
    return purses if is_bounded else []
