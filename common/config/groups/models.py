"""Which providers are there, what are models called, and what do they cost?"""

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from common.access.principal import Budget, Limits
from common.config.setting_sources import environment as environment
from common.config.setting_values import GIB as GIB
from common.config.setting_values import KIB as KIB
from common.config.setting_values import MIB as MIB
from common.config.setting_values import (
    HttpUrl,
    Key,
    Keys,
)
from common.metering.pricing import Price
from common.vendors.model_names import CLAUDE_FOR_OPENAI, canonical_name
from common.vendors.prefill import ContinuationMethod
from common.vendors.table import VENDOR_IDS, VENDORS, Vendor, WireName

_OWN_PROVIDER_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")  # It stands in model names, in front of a slash or behind a #.


class ProviderSettings(BaseModel):
    """One vendor's keys and address; ``base_url`` and ``wire`` None mean the vendor's own.

    ``continuation`` is how an answer goes on that broke off, None as ``continuing.py`` has it.
    """

    model_config = ConfigDict(extra="forbid")

    api_keys: Keys = ()
    base_url: HttpUrl | None = None
    wire: WireName | None = None
    continuation: ContinuationMethod | None = None
    limits: Limits = Limits()  # The vendor's quota for each key, which all workers keep to together.
    budget: Budget = Budget()


class ModelSettings(BaseModel):
    """Providers and models"""

    providers: dict[str, ProviderSettings] = Field(
        default_factory=dict,
        description='Providers of your own: {"lab": {"base_url": "http://lab/v1", "api_keys": "k", "wire": "openai-chat"}}.',
    )
    default_provider: str | None = Field(None, description="Provider for model names that name none.")
    aliases: dict[str, Annotated[list[str], Field(min_length=1)]] = Field(
        default_factory=dict,
        description='Model names of your own, each with its targets in order: {"fast": ["openai/gpt-5"]}.',
    )
    model_map: dict[str, str] | None = Field(
        None, description='Bare names that stand for another model: {"gpt-4": "claude-sonnet-5-5"}. Unset: docs/providers.md.'
    )
    prices: dict[str, Price] = Field(
        default_factory=dict,
        description='Prices that you know better: {"openai/gpt-5": {"input_usd_per_mtok": 1, "output_usd_per_mtok": 8}}.',
    )
    azure_resource: str | None = Field(None, description="Azure OpenAI's resource, where AZURE_OPENAI_BASE_URL is not set.")
    azure_api_version: str = Field("2024-10-21", description="Azure OpenAI's api-version.")
    ai_gateway_account_id: str | None = Field(None, description="Cloudflare's account; Workers AI needs it, gateway or not.")
    ai_gateway_id: str | None = Field(None, description="The AI Gateway through which providers are reached.")
    ai_gateway_token: Key | None = Field(None, description="Its token, where it asks for one.")
    ai_gateway_base_url: HttpUrl = Field("https://gateway.ai.cloudflare.com/v1", description="Where AI Gateways are.")

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
    def vendors(self) -> Mapping[str, Vendor]:
        """All vendors by their ids: those that we know, and the settings' own."""
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
        """The vendor's id for each name that it goes by."""
        return {**VENDOR_IDS, **{name: name for name in self.vendors}}

    def provider(self, provider: str) -> ProviderSettings:
        return self.providers.get(provider) or ProviderSettings()

    @property
    def ai_gateway_url(self) -> str | None:
        if not (self.ai_gateway_account_id and self.ai_gateway_id):
            return None
        return f"{self.ai_gateway_base_url}/{self.ai_gateway_account_id}/{self.ai_gateway_id}"

    def is_behind_gateway(self, provider: str) -> bool:
        """Whether a provider is reached through Cloudflare's AI Gateway: all that it serves, but for those with a base URL."""
        if not self.ai_gateway_url or self.provider(provider).base_url:
            return False
        vendor = self.vendors[provider]
        return any(self.filled(path) for wire, path in vendor.gateway.items() if wire in vendor.wires)

    def base_url(self, provider: str) -> str | None:
        """Return the address of a provider that is reached directly; None where the settings do not tell it."""
        return self.provider(provider).base_url or self.filled(self.vendors[provider].base_url or "") or None

    def filled(self, template: str) -> str | None:
        """Return a vendor's template with its words filled in but for the model; None where one of them is not set."""
        for name in re.findall(r"\{(\w+)\}", template):
            if name != "model":
                if not (value := getattr(self, name)):
                    return None
                template = template.replace(f"{{{name}}}", value)
        return template

    def byok_pays(self, provider: str) -> bool:
        """Whether a key that a request brings for a provider pays for the call: the provider cannot do without one, and no
        gateway stands before it, which may have used a key of its own instead."""
        needs_key = self.vendors[provider].key_is_needed or bool(self.provider(provider).api_keys)
        return needs_key and not self.is_behind_gateway(provider)

    def provider_is_on(self, provider: str) -> bool:
        if self.is_behind_gateway(provider):
            return True  # Keys that are missing here may be stored there.
        has_key = bool(self.provider(provider).api_keys) or not self.vendors[provider].key_is_needed
        return has_key and bool(self.base_url(provider))

    @cached_property
    def mapped_models(self) -> Mapping[str, str]:
        """The model map in effect: unset, OpenAI's names stand for Claude's where Anthropic is the only provider with a key."""
        if self.model_map is not None:
            return self.model_map
        with_keys = [name for name, chosen in self.providers.items() if chosen.api_keys]
        return CLAUDE_FOR_OPENAI if with_keys == ["anthropic"] and not self.ai_gateway_url else {}
