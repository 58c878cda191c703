"""May this principal ask for that?

Its key and its tenant must both allow it. A route keeps the targets that are allowed; the job carries them to the worker,
which finds the route again from its own settings.
"""

from common.access import Principal
from common.errors import ErrorKind, GatewayError
from common.routes import Target, model_names, resolve
from common.settings import Settings


def permitted(principal: Principal, dialect: str, model: str, targets: list[Target]) -> list[Target]:
    """Return the targets of a route that a principal may use; ``model`` is the name that it sent.

    Raises:
        GatewayError: PERMISSION_DENIED, there is none.
    """
    if not principal.allows("dialects", (dialect,)):
        raise _denied(f"This key may not be used for requests of the dialect {dialect}.", "dialect_not_allowed")
    by_model = [target for target in targets if principal.allows("models", (model, target.name))]
    if not by_model:
        shown = repr(model if len(model) <= 100 else model[:100] + "…")
        message = f"This key may not use the model {shown}. GET /v1/models lists those that it may."
        raise _denied(message, "model_not_allowed", "model")
    allowed = [target for target in by_model if principal.allows("providers", (target.provider,))]
    if not allowed:
        names = ", ".join(dict.fromkeys(target.provider for target in by_model))
        raise _denied(f"This key may not use the provider {names}.", "provider_not_allowed", "provider")
    return allowed


def is_unbound(principal: Principal) -> bool:
    """Whether a principal may use every model of every provider."""
    return all(each.models is None and each.providers is None for each in (principal.access, principal.tenant_access))


def listed_models(principal: Principal, settings: Settings) -> dict[str, str]:
    """Return the names of models that a principal can use, each with who answers for it, as ``common.routes.model_names``.

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
    return next((t.provider for t in targets if _may(principal, name, t)), None)


def _may(principal: Principal, name: str, target: Target) -> bool:
    return principal.allows("models", (name, target.name)) and principal.allows("providers", (target.provider,))


def _denied(message: str, code: str, param: str | None = None) -> GatewayError:
    return GatewayError(ErrorKind.PERMISSION_DENIED, f"{message} Ask the gateway's operator for more.", code=code, param=param)
