"""What can be set, and what is it set to?

Sources, strongest first: ``SLUICE_*`` environment variables, ``.env``, ``sluice.yaml``, the defaults below (design
decisions with their units in the names). Providers have their usual variables (``OPENAI_API_KEY``…), see ``vendors.py``.
"""

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from dotenv import dotenv_values
from pydantic import BaseModel, BeforeValidator, Field, SecretStr
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)

from common.vendors import VENDORS


def _split_commas(value: Any) -> Any:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


CommaList = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split_commas)]
SecretCommaList = Annotated[tuple[SecretStr, ...], NoDecode, BeforeValidator(_split_commas)]
KIB, MIB = 1024, 1024 * 1024


class ProviderSettings(BaseModel):
    """One vendor's keys and address; ``base_url`` None means the vendor's own."""

    api_keys: Annotated[tuple[SecretStr, ...], BeforeValidator(_split_commas)] = ()
    base_url: str | None = None


class Settings(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix="SLUICE_", env_file=".env", yaml_file="sluice.yaml", extra="ignore", frozen=True, env_ignore_empty=True
    )

    # Addresses
    redis_url: str = Field("redis://127.0.0.1:6379/0", description="Where both tiers meet. unix:// works too.")
    host: str = Field("127.0.0.1", description="Address the API listens on. The container image sets 0.0.0.0.")
    port: int = Field(8080, description="Port the API listens on.")
    worker_port: int | None = Field(None, description="Health and metrics of a worker; unset: a free loopback port.")

    # Access
    api_keys: SecretCommaList = Field((), description="Comma-separated keys that clients may use.")
    auth: Literal["keys", "none"] = Field("keys", description="`none` lets anybody in: only behind your own access control.")
    cors_origins: CommaList = Field((), description="Comma-separated browser origins that may call the API.")
    secret: SecretStr | None = Field(None, description="Signs read tokens and encrypts brought keys; shared by both tiers.")

    # Models
    providers: dict[str, ProviderSettings] = Field(default_factory=dict, description="From each provider's own variables.")
    default_provider: str | None = Field(None, description="Provider for model names that name none.")
    aliases: dict[str, list[str]] = Field(
        default_factory=dict,
        description='Model names of your own, each with its targets in order: {"fast": ["openai/gpt-5"]}.',
    )

    # Reporting
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level that is logged.")

    # Time limits
    status_hold_s: float = Field(5, description="How long a stream's HTTP status waits for the first token.")
    connect_timeout_s: float = Field(5, description="Connecting to a provider.")
    first_token_timeout_s: float = Field(120, description="From the request to a provider's first token.")
    between_tokens_timeout_s: float = Field(60, description="Silence of a provider in mid-stream.")
    total_timeout_s: float = Field(1800, description="One generation, from its first claim to its end.")
    queue_wait_s: float = Field(60, description="Longest wait for a worker, interactive requests.")
    queue_wait_background_s: float = Field(86_400, description="Longest wait for a worker, background requests.")
    retry_after_max_s: float = Field(30, description="Longest Retry-After that we obey or relay.")
    worker_drain_s: float = Field(60, description="How long a stopping worker lets its generations run on.")
    api_drain_s: float = Field(30, description="How long a stopping API lets its responses run on.")

    # The queue and the channel
    lease_s: float = Field(6, description="A claimed job belongs to its worker for this long without renewal.")
    renew_s: float = Field(2, description="How often a worker renews its leases.")
    heartbeat_s: float = Field(2, description="How often a worker speaks up for a quiet generation.")
    keep_alive_s: float = Field(15, description="Silence after which a client gets a keep-alive comment.")
    vanished_viewers_s: float = Field(15, description="Nobody subscribed for this long counts as all viewers gone.")
    retention_stop_s: float = Field(60, description="How long a log outlives its end; policy stop.")
    retention_grace_s: float = Field(600, description="The same; policy grace.")
    retention_detach_s: float = Field(3600, description="The same; policy detach and background.")
    tombstone_s: float = Field(3600, description="How long an expired generation is still known to have existed.")
    publish_linger_ms: float = Field(8, description="Least time between two flushes of a busy worker; 0: none.")

    # Bounds
    waiting_max: int = Field(20_000, description="Waiting jobs of all tenants.")
    waiting_per_tenant_max: int = Field(5_000, description="Waiting jobs of one tenant.")
    worker_slots: int = Field(2_000, description="Generations that one worker runs at a time.")
    upstream_connections_max: int = Field(2_500, description="Connections of one worker to all providers.")
    worker_buffer_bytes_max: int = Field(64 * MIB, description="Frames that a worker holds while Redis is away.")
    worker_buffer_s: float = Field(30, description="How long one generation may go on while Redis is away.")
    viewer_buffer_bytes_max: int = Field(256 * KIB, description="Frames held for one slow viewer.")
    body_bytes_max: int = Field(32 * MIB, description="Request body.")
    json_depth_max: int = Field(64, description="Nesting of a request body.")
    header_bytes_max: int = Field(32 * KIB, description="All request headers together.")
    upstream_event_bytes_max: int = Field(16 * MIB, description="One event of a provider's stream.")
    upstream_body_bytes_max: int = Field(64 * MIB, description="A provider's non-streaming answer.")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        yaml_settings = YamlConfigSettingsSource(settings_cls)
        return init_settings, env_settings, dotenv_settings, _ProviderVariables(settings_cls), yaml_settings

    def provider_is_on(self, provider: str) -> bool:
        vendor, chosen = VENDORS[provider], self.providers.get(provider, ProviderSettings())
        has_address = bool(chosen.base_url or vendor.base_url)
        return has_address and (bool(chosen.api_keys) or not vendor.key_is_needed)


class _ProviderVariables(PydanticBaseSettingsSource):
    """``OPENAI_API_KEY``, ``OPENAI_BASE_URL`` and their like, from the environment, then from ``.env``."""

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        raise LookupError("this source fills `providers` only, as a whole")

    def __call__(self) -> dict[str, Any]:
        variables = {**dotenv_values(Path(".env")), **os.environ}
        providers = {}
        for vendor in VENDORS.values():
            found = {
                "api_keys": variables.get(f"{vendor.env}_API_KEY"),
                "base_url": (variables.get(f"{vendor.env}_BASE_URL") or "").rstrip("/"),
            }
            if set_values := {name: value for name, value in found.items() if value}:
                providers[vendor.id] = set_values
        return {"providers": providers} if providers else {}
