"""Which targets (provider and model) does a model name stand for?

The API resolves the name before it accepts a request, and a worker again before it runs it. Both use the same settings, so a
job need not contain the route. The rules in order: an alias of the settings; the model map; ``model#provider``;
``provider/model``; a bare name whose provider is evident; the default provider. Then the vendor's own name for the model is
looked up (``model_names``). If the request names a provider beside the model, only that provider is used.

With bring-your-own-key the key is for one provider: the first of the route. That provider needs no configuration here. The
default model map, which depends on which providers have a key here, does not apply.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from common.canonical.errors import ErrorKind, GatewayError
from common.config.route_rules import Route, RouteFallback, RouteTarget
from common.config.settings import Settings
from common.vendors.model_names import MODEL_NAMES, VENDOR_OF

_NONE: Mapping[str, RouteFallback] = {}
_KNOWN_MAX, _KNOWN_CHARS_MAX = 1_000, 200  # Names that are resolved once. Clients may send any number of others.
_ALIASES_NAMED_MAX = 20  # In an error's message.


@dataclass(frozen=True, slots=True)
class Target:
    """A model at a provider. Key and address are not chosen yet."""

    provider: str
    model: str

    @property
    def name(self) -> str:
        return f"{self.provider}/{self.model}"


def resolve(name: str, settings: Settings, provider: str | None = None, *, has_byok_key: bool = False) -> list[Target]:
    """Return the targets of a model name, in the order in which they are tried. ``provider`` is a provider named beside it.

    An alias leads to those of its targets that can be used: one whose key is missing must not stop the others. A route's
    fallbacks come last, and never without one of its targets (``fallbacks_of``).

    Raises:
        GatewayError: MODEL_NOT_FOUND, none can be used. The message names the available models and the variable to set.
    """
    # Hot path: each request asks, and clients use few names. What is known belongs to these settings, and ends with them.
    known, asked = settings.known_routes, (name, provider, has_byok_key)
    targets = known.get(asked)
    if targets is None:
        targets = _resolve(name, settings, provider, has_byok_key=has_byok_key)
        if len(name) <= _KNOWN_CHARS_MAX and len(known) < _KNOWN_MAX:
            known[asked] = targets
    return [*targets]


def _resolve(name: str, settings: Settings, provider: str | None, *, has_byok_key: bool) -> list[Target]:
    targets = _targets(name, settings, provider, has_byok_key=has_byok_key)
    if has_byok_key:
        targets = [target for target in targets if target.provider == targets[0].provider]
    usable, errors = [], []
    for target in targets:
        try:
            _check(name, target, settings, has_byok_key)
            usable.append(target)
        except GatewayError as error:
            errors.append(error)
    if not has_target(name, usable, settings):
        where = (
            "at this provider" if provider or has_byok_key else "that is configured, and fallbacks do not answer without one"
        )
        raise errors[0] if errors else _not_found(f"The route {_quoted(name)} has no target {where}.", settings)
    return usable


def fallbacks_of(name: str, settings: Settings) -> Mapping[str, RouteFallback]:
    """Return the fallbacks of a name by their targets' names; empty for almost every name."""
    route = settings.routes.get(name)
    if route is None or not route.fallbacks:
        return _NONE
    if (known := settings.known_fallbacks.get(name)) is not None:
        return known
    targets = zip(named_targets([rule.model for rule in route.fallbacks], settings), route.fallbacks, strict=True)
    own = route_targets(route, settings)
    found = {target.name: rule for target, rule in targets if target and target.name not in own}
    return settings.known_fallbacks.setdefault(name, found)


def has_target(name: str, targets: Sequence[Target], settings: Settings) -> bool:
    """Whether there are other targets than fallbacks: a fallback never answers in the place of nothing."""
    fallbacks = fallbacks_of(name, settings)
    return any(target.name not in fallbacks for target in targets) if fallbacks else bool(targets)


def named_targets(names: Sequence[str], settings: Settings) -> list[Target | None]:
    """Return the targets of an alias by their names. None: there is no such provider."""
    targets: list[Target | None] = []
    for name in names:
        try:
            targets.append(_target(name, settings))
        except GatewayError:
            targets.append(None)
    return targets


def route_targets(route: Route, settings: Settings) -> dict[str, RouteTarget]:
    """Return the rules of a route's targets by the targets' names, ``provider/model``."""
    targets = named_targets([rule.model for rule in route.targets], settings)
    return {target.name: rule for target, rule in zip(targets, route.targets, strict=True) if target}


def own_name(name: str, settings: Settings, provider: str | None = None, *, has_byok_key: bool = False) -> str | None:
    """Return the name if ``resolve`` looks it up as the operator's own, an alias or a mapped name. None for any other name."""
    is_mapped = provider is None and (not has_byok_key or settings.model_map is not None)
    return name if name in settings.aliases or (is_mapped and name in settings.mapped_models) else None


def possible_targets(name: str, settings: Settings, *, has_byok_key: bool = False) -> list[Target]:
    """Return the targets of a name without a provider beside it, configured or not. Empty where it has none."""
    try:
        return _targets(name, settings, None, has_byok_key=has_byok_key)
    except GatewayError:
        return []


def spellings(target: Target) -> list[str]:
    """Return the model's name at its provider, and the public names that are known to mean it there."""
    names = MODEL_NAMES.get(target.provider, {})
    return [target.model, *(name for name, model in names.items() if model == target.model and name != model)]


def _targets(name: str, settings: Settings, provider: str | None, *, has_byok_key: bool) -> list[Target]:
    provider_id = _provider_id(provider, settings) if provider else None
    if name in settings.aliases:
        of_alias = named_targets(settings.aliases[name], settings)
        targets = [target for target in of_alias if target and provider_id in (None, target.provider)]
        if not any(of_alias):
            _target(settings.aliases[name][0], settings)  # Raises the reason.
        if not targets:
            raise _not_found(f"The alias {_quoted(name)} has no model at the provider {provider_id}.", settings)
        return targets
    if provider_id:
        named = _named(name, settings.vendor_ids)
        model = named.model if named and named.provider == provider_id else name
        return [_upstream(Target(provider_id, model))]
    is_own = own_name(name, settings, has_byok_key=has_byok_key) is not None
    return [_target(settings.mapped_models[name] if is_own else name, settings)]


def find_problem(name: str, settings: Settings) -> str | None:
    """Return why a name cannot be the target of an alias or of the model map. None where it can."""
    try:
        _check(name, _target(name, settings), settings, has_byok_key=False)
    except GatewayError as error:
        return error.failed.message
    return None


def find_mistake(name: str, settings: Settings, stored_providers: Iterable[str]) -> str | None:
    """Return why a name cannot be the target of a route, whichever providers have keys. None where it can.

    ``stored_providers`` are managed at run time, and need not be among the settings.
    """
    vendor_ids = {**settings.vendor_ids, **{provider: provider for provider in stored_providers}}
    target = _named(name, vendor_ids) or _evident(name, settings) or _default(name, settings)
    return _mistake_in(name, target) if target else _without_provider(name)


def _target(name: str, settings: Settings) -> Target:
    target = _named(name, settings.vendor_ids) or _evident(name, settings) or _default(name, settings)
    if target is None:
        raise _not_found(_without_provider(name), settings)
    return _upstream(target)


def _upstream(target: Target) -> Target:
    return Target(target.provider, MODEL_NAMES.get(target.provider, {}).get(target.model, target.model))


def _without_provider(name: str) -> str:
    """Return why no provider was found for a name."""
    model, mark, provider = name.rpartition("#") if "#" in name else name.partition("/")[::-1]
    if not mark or not provider or not model:
        return f"The model {_quoted(name)} does not say which provider has it: write it as PROVIDER/MODEL."
    return (
        f"There is no provider {_quoted(provider)}, which the model {_quoted(name)} names. "
        "The gateway's operator can add it to SLUICE_PROVIDERS."
    )


def _provider_id(name: str, settings: Settings) -> str:
    provider_id = settings.vendor_ids.get(name)
    if provider_id is None:
        raise _not_found(f"There is no provider {_quoted(name)}.", settings, param="provider")
    return provider_id


def _named(name: str, vendor_ids: Mapping[str, str]) -> Target | None:
    model, mark, provider = name.rpartition("#")
    if mark and provider in vendor_ids:
        return Target(vendor_ids[provider], model)
    provider, mark, model = name.partition("/")
    if mark and provider in vendor_ids:
        return Target(vendor_ids[provider], model)
    return None


def _evident(name: str, settings: Settings) -> Target | None:
    if name in VENDOR_OF:
        return Target(VENDOR_OF[name], name)
    for vendor in settings.vendors.values():
        if vendor.evident and vendor.evident.match(name):
            return Target(vendor.id, name)
    return None


def _default(name: str, settings: Settings) -> Target | None:
    provider = settings.vendor_ids.get(settings.default_provider or "")
    return Target(provider, name) if provider else None


def _mistake_in(name: str, target: Target) -> str | None:
    """Return why no provider can have a target's model; None: one may."""
    if "*" in target.model:
        return f"{_quoted(name)} is a pattern for models, not a model."
    return None if target.model else f"The model name {_quoted(name)} names a provider but no model."


def _check(name: str, target: Target, settings: Settings, has_byok_key: bool) -> None:
    if mistake := _mistake_in(name, target):
        raise _not_found(mistake, settings)
    has_address = settings.is_behind_gateway(target.provider) or bool(settings.base_url(target.provider))
    if settings.provider_is_on(target.provider) or (has_byok_key and has_address):
        return
    vendor = settings.vendors[target.provider]
    missing = [f"{vendor.env}_API_KEY"] if vendor.key_is_needed and not settings.provider(vendor.id).api_keys else []
    missing += [] if has_address else [f"{vendor.env}_BASE_URL"]
    reason = f"The model {_quoted(name)} needs the provider {vendor.id}, which is not configured: set {' and '.join(missing)}."
    raise _not_found(reason, settings)


def available(settings: Settings) -> list[str]:
    """Return the ids of the providers that are configured."""
    return [provider for provider in settings.vendors if settings.provider_is_on(provider)]


def model_names(settings: Settings) -> dict[str, str]:
    """Return the names that a client can use directly, each with its owner: a provider, or us (``sluice``).

    They are the names that we or the settings know. A provider may have more models; clients use those as ``provider/model``.
    """
    on = available(settings)
    names = {name: provider for provider in on for name in MODEL_NAMES.get(provider, ())}
    operator_names = dict.fromkeys([*sorted(settings.aliases), *sorted(settings.mapped_models)], "sluice")
    for name in sorted(settings.prices):
        provider, _, model = name.partition("/")
        if provider in on and model not in names and "*" not in model:
            names[name] = provider
    return names | operator_names


def _quoted(name: str) -> str:
    return repr(name if len(name) <= 100 else name[:100] + "…")


def _not_found(reason: str, settings: Settings, param: str = "model") -> GatewayError:
    on = available(settings)
    models = [f"{provider}/MODEL" for provider in on] + sorted(settings.aliases)[:_ALIASES_NAMED_MAX]
    models += ["demo"] if "demo" in on else []
    where = " (MODEL is any name that the provider knows)" if on else ""
    hint = (
        f"Available: {', '.join(models)}{where}." if models else "No provider is configured: set OPENAI_API_KEY, for example."
    )
    return GatewayError(ErrorKind.MODEL_NOT_FOUND, f"{reason} {hint}", code="model_not_found", param=param)
