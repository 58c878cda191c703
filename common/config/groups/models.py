"""Which settings name providers and models, and say what models cost?"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from common.access.principal import Budget, Limits
from common.config.route_rules import Route, RouteFallback
from common.config.setting_sources import environment as environment
from common.config.setting_values import GIB as GIB
from common.config.setting_values import KIB as KIB
from common.config.setting_values import MIB as MIB
from common.config.setting_values import (
    Key,
    Keys,
    ProviderUrl,
)
from common.metering.pricing import Price
from common.vendors.model_names import CLAUDE_FOR_OPENAI, canonical_name
from common.vendors.models import MODELS, ModelRow, ModelTable
from common.vendors.prefill import ContinuationMethod
from common.vendors.table import VENDOR_IDS, VENDORS, Vendor, WireName

RequestedName = tuple[str, str | None, bool]  # A model, a provider named beside it, and whether the client brings its own key.
_OWN_PROVIDER_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")  # It is part of model names, before a slash or after a #.


def _models_of(route: Any) -> list[str]:
    """Return the models of a route that is not validated yet, its targets first; empty if it is none, which the validation
    reports.
    """
    lists = [route.get(name) if isinstance(route, dict) else getattr(route, name, None) for name in ("targets", "fallbacks")]
    rules = [rule for rules in lists if isinstance(rules, list) for rule in rules]
    models = [rule.get("model") if isinstance(rule, dict) else getattr(rule, "model", rule) for rule in rules]
    return [model for model in models if isinstance(model, str)]


class ProviderSettings(BaseModel):
    """One vendor's keys and address. ``base_url`` and ``wire`` None mean the vendor's own.

    ``continuation`` is how a broken answer is continued; None: as ``common/vendors/prefill.py`` says.
    """

    model_config = ConfigDict(extra="forbid")

    api_keys: Keys = ()
    base_url: ProviderUrl | None = None
    wire: WireName | None = None
    continuation: ContinuationMethod | None = None
    limits: Limits = Limits()  # The vendor's quota for each key. All workers together keep to it.
    budget: Budget = Budget()


_NOT_CONFIGURED = ProviderSettings()


class ModelSettings(BaseModel):
    """Providers and models"""

    providers: dict[str, ProviderSettings] = Field(
        default_factory=dict,
        description='Providers of your own: {"lab": {"base_url": "http://lab/v1", "api_keys": "k", "wire": "openai-chat"}}.',
    )
    default_provider: str | None = Field(None, description="Provider for model names without a provider.")
    aliases: dict[str, Annotated[list[str], Field(min_length=1)]] = Field(
        default_factory=dict,
        description='Model names of your own, each with its targets in order: {"fast": ["openai/gpt-5"]}.',
    )
    routes: dict[str, Route] = Field(
        default_factory=dict,
        description='Aliases whose targets have weights, priorities and tags: {"fast": {"strategy": "weighted", "targets": '
        '[{"model": "openai/gpt-5", "weight": 3}, "azure/gpt-5"]}}. See docs/routing.md.',
    )
    model_map: dict[str, str] | None = Field(
        None, description='Model names that mean another model: {"gpt-4": "claude-sonnet-5-5"}. Unset: see docs/providers.md.'
    )
    prices: dict[str, Price] = Field(
        default_factory=dict,
        description='Prices of your own: {"openai/gpt-5": {"input_usd_per_mtok": 1, "output_usd_per_mtok": 8}}.',
    )
    model_facts: list[ModelRow] = Field(
        default_factory=list,
        description="Rows added to the table of models, which win over its own (docs/models.md): "
        '[{"vendors": ["vllm"], "models": "qwen3", "reasoning": "by_default"}].',
    )
    azure_resource: str | None = Field(None, description="The Azure OpenAI resource, if AZURE_OPENAI_BASE_URL is not set.")
    azure_api_version: str = Field("2024-10-21", description="Azure OpenAI's api-version.")
    ai_gateway_account_id: str | None = Field(
        None, description="Your Cloudflare account. Workers AI needs it even without an AI Gateway."
    )
    ai_gateway_id: str | None = Field(None, description="The Cloudflare AI Gateway through which providers are reached.")
    ai_gateway_token: Key | None = Field(None, description="The token of the AI Gateway, if it requires one.")
    ai_gateway_base_url: ProviderUrl = Field(
        "https://gateway.ai.cloudflare.com/v1", description="The address of Cloudflare's AI Gateways."
    )

    @model_validator(mode="before")
    @classmethod
    def _name_routes(cls, values: Any) -> Any:
        """Make an alias of each route: whatever holds for aliases holds for routes."""
        routes, aliases = values.get("routes"), values.get("aliases") or {}
        if not isinstance(routes, dict) or not isinstance(aliases, dict):
            return values
        if both := sorted(routes.keys() & aliases.keys()):
            raise PydanticCustomError(
                "route", f"{both[0]!r} is in SLUICE_ALIASES too: leave it out there", {"setting": "routes"}
            )
        targets = {name: _models_of(route) for name, route in routes.items()}
        return {**values, "aliases": {**aliases, **{name: models for name, models in targets.items() if models}}}

    @field_validator("prices")
    @classmethod
    def _name_prices(cls, prices: dict[str, Price], info: ValidationInfo) -> dict[str, Price]:
        own_ids = {name: name for name in info.data.get("providers", {})}
        return {canonical_name(name, {**own_ids, **VENDOR_IDS}): price for name, price in prices.items()}

    @field_validator("providers")
    @classmethod
    def _name_providers(cls, providers: dict[str, ProviderSettings]) -> dict[str, ProviderSettings]:
        named: dict[str, ProviderSettings] = {}
        for name, chosen in providers.items():
            provider = VENDOR_IDS.get(name, name)
            if provider in named:
                chosen = named[provider].model_copy(update=chosen.model_dump(exclude_unset=True))
            if provider not in VENDORS and not _OWN_PROVIDER_ID.fullmatch(provider):
                raise ValueError(f"{name!r} cannot be a provider's id: use small letters, digits, dots and dashes")
            if provider not in VENDORS and not chosen.base_url:
                raise ValueError(f"the provider {name!r} needs a base_url")
            named[provider] = chosen
        return named

    @cached_property
    def model_table(self) -> ModelTable:
        """What models can do: the table that comes with the package, and the settings' own rows after it."""
        return ModelTable([*MODELS.rows, *self.model_facts]) if self.model_facts else MODELS

    @cached_property
    def known_fallbacks(self) -> dict[str, Mapping[str, RouteFallback]]:
        """The fallbacks of routes that were asked for; see ``common.config.model_routes.fallbacks_of``."""
        return {}

    @cached_property
    def known_routes(self) -> dict[RequestedName, Sequence[Any]]:
        """The targets of names that were asked for; see ``common.config.model_routes.resolve``."""
        return {}

    @cached_property
    def vendors(self) -> Mapping[str, Vendor]:
        """All vendors by id: those that we know, and those that the settings add."""
        own_vendors = {
            name: Vendor(name, "", wires=(chosen.wire or "openai-chat",), base_url=None, key_is_needed=False)
            for name, chosen in self.providers.items()
            if name not in VENDORS
        }
        chosen_wires = {name: chosen.wire for name, chosen in self.providers.items() if name in VENDORS and chosen.wire}
        known_vendors = {
            name: replace(vendor, wires=(chosen_wires[name],)) if name in chosen_wires else vendor
            for name, vendor in VENDORS.items()
        }
        return {**known_vendors, **own_vendors}

    @cached_property
    def vendor_ids(self) -> Mapping[str, str]:
        """The id of a vendor for each of its names."""
        return {**VENDOR_IDS, **{name: name for name in self.vendors}}

    def provider(self, provider: str) -> ProviderSettings:
        return self.providers.get(provider) or _NOT_CONFIGURED

    @property
    def ai_gateway_url(self) -> str | None:
        if not (self.ai_gateway_account_id and self.ai_gateway_id):
            return None
        return f"{self.ai_gateway_base_url}/{self.ai_gateway_account_id}/{self.ai_gateway_id}"

    def is_behind_gateway(self, provider: str) -> bool:
        """Whether a provider is reached through Cloudflare's AI Gateway: all that it serves, except those with a base URL."""
        if not self.ai_gateway_url or self.provider(provider).base_url:
            return False
        vendor = self.vendors[provider]
        return any(self.filled(path) for wire, path in vendor.gateway.items() if wire in vendor.wires)

    def base_url(self, provider: str) -> str | None:
        """Return the address of a provider that is reached directly. None where the settings do not give it."""
        return self.provider(provider).base_url or self.filled(self.vendors[provider].base_url or "") or None

    def filled(self, template: str) -> str | None:
        """Return a vendor's URL template with the settings filled in, except ``{model}``. None where one of them is not set."""
        for name in re.findall(r"\{(\w+)\}", template):
            if name != "model":
                if not (value := getattr(self, name)):
                    return None
                template = template.replace(f"{{{name}}}", value)
        return template

    def byok_pays(self, provider: str) -> bool:
        """Whether the client pays for a call with its own key: the provider requires a key, and is not behind an AI Gateway,
        which might use a key of its own instead."""
        needs_key = self.vendors[provider].key_is_needed or bool(self.provider(provider).api_keys)
        return needs_key and not self.is_behind_gateway(provider)

    def provider_is_on(self, provider: str) -> bool:
        return self.is_behind_gateway(provider) or (self.has_key(provider) and bool(self.base_url(provider)))

    def has_key(self, provider: str) -> bool:
        """Whether a provider has the key that it needs. One that is missing here may be stored at the AI Gateway."""
        has_own = bool(self.provider(provider).api_keys) or not self.vendors[provider].key_is_needed
        return has_own or self.is_behind_gateway(provider)

    @cached_property
    def mapped_models(self) -> Mapping[str, str]:
        """The effective model map. If unset, OpenAI's names mean Claude's where Anthropic is the only provider with a key."""
        if self.model_map is not None:
            return self.model_map
        with_keys = [name for name, chosen in self.providers.items() if chosen.api_keys]
        return CLAUDE_FOR_OPENAI if with_keys == ["anthropic"] and not self.ai_gateway_url else {}
