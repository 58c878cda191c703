"""May this principal ask for that?

Its key and its tenant must both allow it. A route keeps the targets that are allowed; the job carries them to the worker,
which finds the route again from its own settings. Models and providers are checked on what the request resolved to, and so
are the models that other fields of its body name to an upstream that is a router itself (``api.auth.upstream_fields``).
"""

from typing import Any, NamedTuple

from api.auth.authenticator import ANONYMOUS
from api.auth.upstream_fields import refuse_credentials, upstream_choices
from common.access.principal import Access, Principal
from common.canonical.errors import ErrorKind, GatewayError
from common.config.model_patterns import allows, provider_allows
from common.config.model_routes import Target, model_names, own_name, resolve
from common.config.settings import Settings

# No upstream speaks these dialects, so a field that we do not know ends here.
_NEVER_PASSED_ON = ("agentary", "unified")


class Named(NamedTuple):
    """How a request names its model; see ``common.config.model_routes.resolve``."""

    model: str
    provider: str | None = None
    has_brought_key: bool = False


def permitted(principal: Principal, dialect: str, named: Named, targets: list[Target], settings: Settings) -> list[Target]:
    """Return the targets of a route that a principal may use.

    Raises:
        GatewayError: PERMISSION_DENIED, there is none.
    """
    if not principal.allows_dialect(dialect):
        raise _denied(f"This key may not be used for requests of the dialect {dialect}.", "dialect_not_allowed")
    return permitted_models(principal, named, targets, settings)


def permitted_models(principal: Principal, named: Named, targets: list[Target], settings: Settings) -> list[Target]:
    """The same, in whichever dialect."""
    if is_unbound(principal):
        return targets
    by_model = [target for target in targets if _may_use(principal, named, target, settings)]
    if not by_model:
        message = f"This key may not use the model {_shown(named.model)}. GET /v1/models lists those that it may."
        raise _denied(message, "model_not_allowed", "model")
    allowed = [target for target in by_model if _may_reach(principal, target.provider, settings)]
    if not allowed:
        names = ", ".join(dict.fromkeys(target.provider for target in by_model))
        raise _denied(f"This key may not use the provider {names}.", "provider_not_allowed", "provider")
    return allowed


def permitted_by_fields(
    principal: Principal, dialect: str, body: dict[str, Any], targets: list[Target], settings: Settings
) -> list[Target]:
    """Return the further targets that fields of a body name to an upstream that is a router.

    Raises:
        GatewayError: PERMISSION_DENIED, a field names a credential or an endpoint, or a model that is not allowed, or, for
            whoever is bound to models, something of which nobody can tell which model it leads to.
    """
    if dialect in _NEVER_PASSED_ON:
        return []
    refuse_credentials(body)
    if is_unbound(principal) and not settings.guardrails_by_model:
        return []
    choices = upstream_choices(body)
    if choices.routing:
        message = f"The field {choices.routing[0]} would let the upstream choose other models or providers. Leave it out."
        raise _denied(message, "field_not_allowed", choices.routing[0])
    others: list[Target] = []
    for provider in dict.fromkeys(target.provider for target in targets):
        for field, model in choices.models:
            other = Target(provider, model)
            if not _may_use(principal, Named(model), other, settings, is_own=False):
                raise _denied(f"This key may not use the model {_shown(model)}, named by {field}.", "model_not_allowed", field)
            others.append(other)
    return others


def is_unbound(principal: Principal) -> bool:
    """Whether a principal may use every model of every provider."""
    return _is_open(principal.access) and _is_open(principal.tenant_access)


def _is_open(access: Access) -> bool:
    models, providers = access.models, access.providers
    return (models is None or "*" in models) and (providers is None or "*" in providers)


def refuse_anonymous(principal: Principal, what: str) -> None:
    """Refuse what tells of all who ask without a credential, for they are one principal and strangers to each other.

    Raises:
        GatewayError: PERMISSION_DENIED.
    """
    if principal.id == ANONYMOUS:
        raise GatewayError(
            ErrorKind.PERMISSION_DENIED,
            f"{what} cannot be told to whoever asks without a key: everybody's would be in it. Send a key; the gateway's "
            "operator sets SLUICE_API_KEYS, or SLUICE_SECRET for managed keys.",
            code="key_needed",
        )


def listed_models(principal: Principal, settings: Settings) -> dict[str, str]:
    """Return the names of models that a principal can use, each with who answers for it, as
    ``common.config.model_routes.model_names``.

    Names that it is allowed by name, and that lead somewhere, are among them though they are not known otherwise.
    """
    known = model_names(settings)
    if is_unbound(principal):
        return known
    named = [
        name
        for access in (principal.access, principal.tenant_access)
        for name in access.models or ()
        if not any(char in name for char in "*?[") and name not in known
    ]
    found = {name: _owner(name, principal, settings) for name in [*named, *known]}
    return {name: known.get(name, owner) for name, owner in found.items() if owner}


def _owner(name: str, principal: Principal, settings: Settings) -> str | None:
    """The first provider of the name's route that the principal may use; None where there is none."""
    try:
        targets = resolve(name, settings)
    except GatewayError:
        return None
    usable = (target.provider for target in targets if _may_use(principal, Named(name), target, settings))
    return next((provider for provider in usable if _may_reach(principal, provider, settings)), None)


def _may_use(principal: Principal, named: Named, target: Target, settings: Settings, *, is_own: bool = True) -> bool:
    """``is_own``: the name may be one of the operator's own. What an upstream is told never is."""
    model, provider, has_brought_key = named
    own = own_name(model, settings, provider, has_brought_key=has_brought_key) if is_own else None

    def allowed_by(access: Access) -> bool:
        return access.models is None or any(
            allows(pattern, target, own, settings, has_brought_key=has_brought_key) for pattern in access.models
        )

    return allowed_by(principal.access) and allowed_by(principal.tenant_access)


def _may_reach(principal: Principal, provider: str, settings: Settings) -> bool:
    lists = (principal.access.providers, principal.tenant_access.providers)
    return all(each is None or any(provider_allows(pattern, provider, settings) for pattern in each) for each in lists)


def _shown(model: str) -> str:
    return repr(model if len(model) <= 100 else model[:100] + "…")


def _denied(message: str, code: str, param: str | None = None) -> GatewayError:
    return GatewayError(ErrorKind.PERMISSION_DENIED, f"{message} Ask the gateway's operator for more.", code=code, param=param)
