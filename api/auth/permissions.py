"""May this principal use that model, provider and dialect?

Both its key and its tenant must allow it. A route keeps only the targets that are allowed. The job carries their names to the
worker, which resolves the route again from its own settings. Models and providers are checked after the request's model name is
resolved. Other fields of the body can name models too, for an upstream that is itself a router. These are checked as well
(``api.auth.upstream_fields``).
"""

from typing import Any, NamedTuple

from api.auth.authenticator import ANONYMOUS
from api.auth.upstream_fields import refuse_credentials, upstream_choices
from common.access.principal import Access, Principal
from common.canonical.errors import ErrorKind, GatewayError
from common.config.model_patterns import allows, provider_allows
from common.config.model_routes import Target, has_target, model_names, own_name, resolve
from common.config.settings import Settings

# No upstream speaks these dialects, so unknown fields are never passed on.
_NEVER_PASSED_ON = ("agentary", "unified")


class RequestedModel(NamedTuple):
    """The model that a request names; see ``common.config.model_routes.resolve``."""

    model: str
    provider: str | None = None
    has_byok_key: bool = False


def permitted_targets(
    principal: Principal, dialect: str, requested: RequestedModel, targets: list[Target], settings: Settings
) -> list[Target]:
    """Return the targets of a route that a principal may use, fallbacks among them only beside another one.

    Raises:
        GatewayError: PERMISSION_DENIED, it may use none of them.
    """
    if not principal.allows_dialect(dialect):
        raise _denied(f"This key may not be used for requests of the dialect {dialect}.", "dialect_not_allowed")
    return permitted_models(principal, requested, targets, settings)


def permitted_models(
    principal: Principal, requested: RequestedModel, targets: list[Target], settings: Settings
) -> list[Target]:
    """Return the same as ``permitted_targets``, without a check of the dialect."""
    if is_unbound(principal):
        return targets
    by_model = [target for target in targets if _may_use(principal, requested, target, settings)]
    if not has_target(requested.model, by_model, settings):
        message = f"This key may not use the model {_shown(requested.model)}. GET /v1/models lists the models that it may use."
        raise _denied(message, "model_not_allowed", "model")
    allowed = [target for target in by_model if _may_reach(principal, target.provider, settings)]
    if not has_target(requested.model, allowed, settings):
        names = ", ".join(dict.fromkeys(target.provider for target in by_model))
        raise _denied(f"This key may not use the provider {names}.", "provider_not_allowed", "provider")
    return allowed


def refusal_of(principal: Principal, requested: RequestedModel, target: Target, settings: Settings) -> str | None:
    """Return why a principal may not use one of a name's targets, as the error's code; None: it may."""
    if not _may_use(principal, requested, target, settings):
        return "model_not_allowed"
    return None if _may_reach(principal, target.provider, settings) else "provider_not_allowed"


def permitted_by_fields(
    principal: Principal, dialect: str, body: dict[str, Any], targets: list[Target], settings: Settings
) -> list[Target]:
    """Return the additional targets that the fields of a body name, for an upstream that is a router.

    Raises:
        GatewayError: PERMISSION_DENIED. A field names a credential or an endpoint, or a model that is not allowed. Or the
            principal is restricted to some models, and it is not clear which model the field leads to.
    """
    if dialect in _NEVER_PASSED_ON:
        return []
    refuse_credentials(body)
    if is_unbound(principal) and not settings.guardrails_by_model:
        return []
    choices = upstream_choices(body)
    if choices.routing:
        message = f"The field {choices.routing[0]} would let the upstream choose another model or provider. Leave it out."
        raise _denied(message, "field_not_allowed", choices.routing[0])
    field_targets: list[Target] = []
    for provider in dict.fromkeys(target.provider for target in targets):
        for field, model in choices.models:
            target = Target(provider, model)
            if not _may_use(principal, None, target, settings):
                raise _denied(f"This key may not use the model {_shown(model)}, named by {field}.", "model_not_allowed", field)
            field_targets.append(target)
    return field_targets


def is_unbound(principal: Principal) -> bool:
    """Whether a principal may use every model of every provider."""
    return _is_open(principal.access) and _is_open(principal.tenant_access)


def _is_open(access: Access) -> bool:
    models, providers = access.models, access.providers
    return (models is None or "*" in models) and (providers is None or "*" in providers)


def refuse_anonymous(principal: Principal, resource: str) -> None:
    """Refuse access to data of all anonymous clients: they share one principal, but must not see each other's data.

    Raises:
        GatewayError: PERMISSION_DENIED.
    """
    if principal.id == ANONYMOUS:
        raise GatewayError(
            ErrorKind.PERMISSION_DENIED,
            f"{resource} cannot be shown without a key: all clients without a key share one list. Send a key. The gateway's "
            "operator sets SLUICE_API_KEYS, or SLUICE_SECRET for managed keys.",
            code="key_needed",
        )


def listed_models(principal: Principal, settings: Settings) -> dict[str, str]:
    """Return the names of the models that a principal can use, each with its owner (a provider or the gateway), as
    ``common.config.model_routes.model_names`` returns them.

    A name that the access lists itself is included if it resolves, even if the gateway does not list it otherwise.
    """
    all_names = model_names(settings)
    if is_unbound(principal):
        return all_names
    listed = [
        name
        for access in (principal.access, principal.tenant_access)
        for name in access.models or ()
        if not any(char in name for char in "*?[") and name not in all_names
    ]
    owners = {name: _owner(name, principal, settings) for name in [*listed, *all_names]}
    return {name: all_names.get(name, owner) for name, owner in owners.items() if owner}


def _owner(name: str, principal: Principal, settings: Settings) -> str | None:
    """Return the first provider of the name's route that the principal may use; None if there is none."""
    try:
        targets = resolve(name, settings)
    except GatewayError:
        return None
    usable = (target.provider for target in targets if _may_use(principal, RequestedModel(name), target, settings))
    return next((provider for provider in usable if _may_reach(principal, provider, settings)), None)


def _may_use(principal: Principal, requested: RequestedModel | None, target: Target, settings: Settings) -> bool:
    """``requested`` is None if the target's name goes to an upstream as it is: then it is no alias of the operator."""
    alias, has_byok_key = None, False
    if requested:
        has_byok_key = requested.has_byok_key
        alias = own_name(requested.model, settings, requested.provider, has_byok_key=has_byok_key)

    def allowed_by(access: Access) -> bool:
        return access.models is None or any(
            allows(pattern, target, alias, settings, has_byok_key=has_byok_key) for pattern in access.models
        )

    return allowed_by(principal.access) and allowed_by(principal.tenant_access)


def _may_reach(principal: Principal, provider: str, settings: Settings) -> bool:
    lists = (principal.access.providers, principal.tenant_access.providers)
    return all(
        patterns is None or any(provider_allows(pattern, provider, settings) for pattern in patterns) for patterns in lists
    )


def _shown(model: str) -> str:
    return repr(model if len(model) <= 100 else model[:100] + "…")


def _denied(message: str, code: str, param: str | None = None) -> GatewayError:
    message = f"{message} Ask the gateway's operator for more rights."
    return GatewayError(ErrorKind.PERMISSION_DENIED, message, code=code, param=param)
