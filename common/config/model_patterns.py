"""Does one of the operator's patterns match the model that a request resolved to?

Lists with models (allowed models, guardrails by model) are matched with the resolved target, never with the client's spelling
alone: a client may write one model in many ways, and another provider's model may have a similar name. ``*`` matches any
characters, ``?`` one character.
"""

from fnmatch import fnmatchcase

from common.config.model_routes import Target, possible_targets, spellings
from common.config.settings import Settings

_WILDCARDS = "*?["


def allows(pattern: str, target: Target, own_name: str | None, settings: Settings, *, has_byok_key: bool = False) -> bool:
    """Whether a pattern allows a target. ``own_name`` is the alias or mapped name that led there (``model_routes.own_name``).

    A pattern with a provider is matched with the target only. A pattern without one is matched with the operator's own name,
    and with the model if its bare name leads to exactly this target: ``gpt-*`` allows ``openai/gpt-4o``, not ``agg/gpt-4o``.
    A list of models, which some routers accept, is allowed if each model in it is allowed.
    """
    if pattern == "*":
        return True
    provider_pattern = _with_provider(pattern, settings)
    if provider_pattern is None and own_name is not None and fnmatchcase(own_name, pattern):
        return True
    return all(_allows_one(pattern, provider_pattern, single, settings, has_byok_key) for single in _split_models(target))


def guards(pattern: str, sent: str, targets: list[Target], settings: Settings) -> bool:
    """Whether a pattern names one of the targets in any way. Restrictions apply however a client spells a model.

    A pattern without a provider applies to the model at every provider. An alias applies to everything that it leads to.
    """
    provider_pattern = (_with_provider(pattern, settings) or pattern).casefold()
    singles = [single for target in targets for single in _split_models(target)]
    names = {sent, *(form for single in singles for name in spellings(single) for form in (name, f"{single.provider}/{name}"))}
    names = {name.strip().casefold() for name in names}
    if any(fnmatchcase(name, provider_pattern) for name in names):
        return True
    operator_targets = () if _has_wildcard(pattern) else possible_targets(pattern, settings)
    return not names.isdisjoint(target.name.casefold() for target in operator_targets)


def provider_allows(pattern: str, provider: str, settings: Settings) -> bool:
    """Whether a pattern for providers allows a provider's id. The pattern may be any known name of the provider."""
    return fnmatchcase(provider, settings.vendor_ids.get(pattern.lower(), pattern.lower()))


def _allows_one(pattern: str, provider_pattern: str | None, target: Target, settings: Settings, has_byok_key: bool) -> bool:
    if provider_pattern is not None:
        return any(fnmatchcase(f"{target.provider}/{name}", provider_pattern) for name in spellings(target))
    return any(
        fnmatchcase(name, pattern) and target in possible_targets(name, settings, has_byok_key=has_byok_key)
        for name in spellings(target)
    )


def _split_models(target: Target) -> list[Target]:
    if "," not in target.model:
        return [target]
    return [Target(target.provider, model.strip()) for model in target.model.split(",")]


def _with_provider(pattern: str, settings: Settings) -> str | None:
    """Return a pattern that names a provider as ``provider/model`` with the provider's id. None if it names no provider."""
    model, mark, provider = pattern.rpartition("#")
    if mark and (provider_id := settings.vendor_ids.get(provider.lower())):
        return f"{provider_id}/{model}"
    provider, mark, model = pattern.partition("/")
    if mark and (provider_id := settings.vendor_ids.get(provider.lower())):
        return f"{provider_id}/{model}"
    return f"{provider.lower()}/{model}" if mark and _has_wildcard(provider) else None


def _has_wildcard(text: str) -> bool:
    return any(char in text for char in _WILDCARDS)
