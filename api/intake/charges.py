"""Which limits and budgets does a request count against, and how much?

The limits of a key, its tenant, the end user and the address each count on their own. All of them must allow the request. The
enqueue script decides (``common.limits.charges``). Nothing here asks Redis.
"""

from collections.abc import Collection

from common.access.principal import Limits, Principal
from common.canonical.generation import GenerationRequest
from common.config.groups.models import ModelSettings
from common.config.settings import Settings
from common.limits.charges import BudgetAccount, Charges, Scope, Slot, Window, charges_for_limits, safe_name
from common.metering.token_estimate import reserved_tokens

# Where anybody may send requests, nobody may use everything. This is many times what one person's chat needs.
OPEN_ADDRESS_LIMITS = Limits(requests=300, concurrent=50)


def charges_of(
    principal: Principal,
    address: str,
    request: GenerationRequest,
    providers: Collection[str],
    settings: Settings,
    *,
    has_byok_key: bool = False,
) -> Charges:
    """Return what a request is charged for. ``providers`` are those of its route.

    Where the client's own provider key pays for the call, no budget here is charged.
    """
    windows: list[Window] = []
    slots: list[Slot] = []
    tokens = None
    for scope, name, limits in _limits(principal, address, request, settings):
        if limits.tokens and tokens is None:
            tokens = reserved_tokens(request)
        more_windows, more_slots = charges_for_limits(scope, name, limits, tokens or 0)
        windows += more_windows
        slots += more_slots
    if has_byok_key and all(settings.byok_pays(provider) for provider in providers):
        return Charges(windows, slots)
    accounts = [
        BudgetAccount("key", principal.id, principal.access.budget),
        BudgetAccount("tenant", safe_name(principal.tenant), principal.tenant_access.budget),
    ]
    return Charges(windows, slots, accounts, _alternatives(providers, settings))


def _limits(
    principal: Principal, address: str, request: GenerationRequest, settings: Settings
) -> list[tuple[Scope, str, Limits]]:
    default, tenant = settings.limits, safe_name(principal.tenant)
    key_limits, tenant_limits = principal.access.limits, principal.tenant_access.limits
    limits: list[tuple[Scope, str, Limits]] = [
        ("key", principal.id, key_limits if key_limits.is_set else default.get("key", key_limits)),
        ("tenant", tenant, tenant_limits if tenant_limits.is_set else default.get("tenant", tenant_limits)),
        ("address", address, default.get("address", OPEN_ADDRESS_LIMITS if settings.auth == "none" else Limits())),
    ]
    end_user = principal.end_user or request.end_user
    if end_user and "end_user" in default:
        limits.append(("end_user", f"{tenant}/{safe_name(end_user)}", default["end_user"]))
    return [limit for limit in limits if limit[2].is_set]


def _alternatives(providers: Collection[str], settings: ModelSettings) -> list[BudgetAccount]:
    """Return the budgets of a route's providers if all of them have one. If one has none, the route is open."""
    accounts = [
        BudgetAccount("provider", provider, settings.provider(provider).budget) for provider in dict.fromkeys(providers)
    ]
    is_bounded = all((account.budget.day_usd, account.budget.month_usd) != (None, None) for account in accounts)
    return accounts if is_bounded else []
