"""What can be set, and what is it set to?

The values come from the environment and from files, see ``setting_sources.py``; the defaults below are design decisions,
with their units in the names. Each number has the range in which answers come through: outside of it no process starts.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from common.access.principal import Access, Budget, GuardrailPolicy, Limits
from common.config.setting_sources import environment as environment
from common.config.setting_sources import sources
from common.config.setting_values import (
    DAY_S,
    CommaList,
    DatabaseUrl,
    HttpUrl,
    Kept,
    Key,
    Keys,
    Lowered,
    Origins,
    Port,
    PortOrFree,
    RedisUrl,
    SecretCommaList,
    Wait,
)
from common.config.setting_values import GIB as GIB
from common.config.setting_values import KIB as KIB
from common.config.setting_values import MIB as MIB
from common.metering.pricing import Price
from common.vendors.model_names import CLAUDE_FOR_OPENAI, canonical_name
from common.vendors.prefill import Way
from common.vendors.table import VENDOR_IDS, VENDORS, Vendor, WireName

# RFC 7518, 3.2. Whoever has one text that was signed with a secret can try out short ones at home.
SECRET_BYTES_MIN = 32
KEY_CHARS_MIN = 16  # Of a static key: what is shorter may be found by trying, over a network.
_OWN_PROVIDER_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")  # It stands in model names, in front of a slash or behind a #.
# What must be larger than what, how many times at least, or else.
_RELATIONS = (
    ("lease_s", "renew_s", 2, "or workers take each other's jobs while both live, and answers break off"),
    ("vanished_viewers_s", "heartbeat_s", 2, "or answers are stopped while their clients still read them"),
)


class ProviderSettings(BaseModel):
    """One vendor's keys and address; ``base_url`` and ``wire`` None mean the vendor's own.

    ``continuation`` is how an answer goes on that broke off, None as ``continuing.py`` has it.
    """

    model_config = ConfigDict(extra="forbid")

    api_keys: Keys = ()
    base_url: HttpUrl | None = None
    wire: WireName | None = None
    continuation: Way | None = None
    limits: Limits = Limits()  # The vendor's quota for each key, which all workers keep to together.
    budget: Budget = Budget()


class Settings(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix="SLUICE_",
        env_file=".env",
        yaml_file="sluice.yaml",
        extra="ignore",
        frozen=True,
        env_ignore_empty=True,
        hide_input_in_errors=True,  # It may be a secret.
    )

    # Addresses
    redis_url: RedisUrl = Field(
        "redis://127.0.0.1:6379/0",
        description="Where both tiers meet. Also: unix://, redis+sentinel://host:port,host:port/service/0.",
    )
    host: str = Field("127.0.0.1", description="Address the API listens on. The container image sets 0.0.0.0.")
    port: Port = Field(8080, description="Port the API listens on.")
    worker_port: PortOrFree | None = Field(None, description="Health and metrics of a worker; unset or 0: a free port.")

    # Access
    api_keys: SecretCommaList = Field((), description="Comma-separated keys that clients may use.")
    auth: Literal["keys", "none"] = Field("keys", description="`none` lets anybody in: only behind your own access control.")
    cors_origins: Origins = Field(
        (), description="Comma-separated browser origins that may call the API: https://app.example, or * for all."
    )
    secret: SecretStr | None = Field(
        None,
        description="Signs read tokens and managed keys, encrypts brought keys; shared by all processes. 32 bytes or more.",
    )
    secret_previous: SecretStr | None = Field(
        None, description="The secret before, or the one to come, while SLUICE_SECRET is changed: docs/security.md."
    )
    admin_keys: SecretCommaList = Field((), description="Comma-separated keys for /admin; without one it is off.")
    jwt_secret: SecretStr | None = Field(None, description="Takes JSON web tokens that are signed with it (HS256).")
    jwt_jwks_url: HttpUrl | None = Field(None, description="Takes JSON web tokens signed by a key listed there (RS256, ES256).")
    jwt_issuer: str | None = Field(None, description="The `iss` that tokens must have.")
    jwt_audience: CommaList = Field((), description="Comma-separated; the `aud` of a token must be one of them.")
    jwt_leeway_s: float = Field(30, ge=0, le=3600, description="How far a token's clock may be off.")
    jwt_tenant_claim: str = Field("tenant", description="The claim that names a token's tenant.")
    jwt_scopes_claim: str = Field("scope", description="The claim that lists a token's scopes.")
    trusted_proxies: CommaList = Field(
        (), description="Addresses or networks whose X-Forwarded-For is believed, for clients' addresses."
    )
    refused_credentials_max: int = Field(
        30,
        ge=0,
        le=10**9,
        description="So many bad credentials of one address in a minute are answered, then it is blocked; 0: never.",
    )
    refused_credentials_block_s: Wait = Field(60, description="How long it is blocked, but for good credentials.")

    # Limits, budgets and guardrails
    limits: dict[Literal["key", "tenant", "end_user", "address"], Limits] = Field(
        default_factory=dict,
        description='For each of a kind: {"key": {"requests": 60, "tokens": 100000, "concurrent": 10, "window_s": 60}}.',
    )
    tenants: dict[str, Access] = Field(
        default_factory=dict,
        description='What a tenant may: {"acme": {"models": ["gpt-*"], "budget": {"month_usd": 500}}}. See docs/access.md.',
    )
    guardrails: GuardrailPolicy = Field(
        default_factory=GuardrailPolicy,
        description='For who has none of his own: {"pii": "block", "injection": "log"}. See docs/guardrails.md.',
    )
    guardrails_by_model: dict[str, GuardrailPolicy] = Field(
        default_factory=dict, description='For models, whoever asks: {"openai/*": {"pii": "block"}}. The strictest wins.'
    )
    guardrail_patterns_in: tuple[str, ...] = Field(
        (), description='Expressions that prompts must not match: ["(?i)project x"].'
    )
    guardrail_patterns_out: tuple[str, ...] = Field((), description="The same for answers.")
    guardrail_input_chars_max: int = Field(
        400_000, ge=1, le=10**9, description="Characters of a prompt, where the size guardrail is on."
    )
    guardrail_messages_max: int = Field(1_000, ge=1, le=10**6, description="Messages of a prompt, the same.")
    guardrail_plugin: str | None = Field(None, description="A guardrail of your own: module:callable. See docs/guardrails.md.")
    guardrail_webhook_url: HttpUrl | None = Field(None, description="The same as a service, which is asked by POST.")
    guardrail_timeout_s: float = Field(2, gt=0, le=60, description="How long one's own guardrail has for its answer.")

    # The database
    database_url: DatabaseUrl = Field(
        "sqlite:///sluice.db",
        description="Usage and managed keys: sqlite:///FILE for one machine, postgresql://user:password@host/name.",
    )
    audit_retention_days: float = Field(30, gt=0, le=3650, description="How long the audit log keeps an entry.")

    # Models
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
    budget_unknown_price: Literal["allow", "refuse"] = Field(
        "allow",
        description="Whether who has a budget may use models whose price is not known: they cost nothing there.",
    )
    azure_resource: str | None = Field(None, description="Azure OpenAI's resource, where AZURE_OPENAI_BASE_URL is not set.")
    azure_api_version: str = Field("2024-10-21", description="Azure OpenAI's api-version.")

    # Cloudflare's AI Gateway, on where account and gateway are set
    ai_gateway_account_id: str | None = Field(None, description="Cloudflare's account; Workers AI needs it, gateway or not.")
    ai_gateway_id: str | None = Field(None, description="The AI Gateway through which providers are reached.")
    ai_gateway_token: Key | None = Field(None, description="Its token, where it asks for one.")
    ai_gateway_base_url: HttpUrl = Field("https://gateway.ai.cloudflare.com/v1", description="Where AI Gateways are.")

    # The way out
    proxy_from_env: bool = Field(
        True,
        description="Reach providers, key sets and webhooks as HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY say.",
    )

    # Reporting
    log_level: Annotated[Literal["debug", "info", "warning", "error"], Lowered] = Field(
        "info", description="Least level that is logged."
    )

    # Time limits
    status_hold_s: float = Field(5, ge=0, le=600, description="How long a stream's HTTP status waits for the first token.")
    connect_timeout_s: Wait = Field(5, description="Connecting to a provider.")
    first_token_timeout_s: Wait = Field(120, description="From the request to a provider's first token.")
    between_tokens_timeout_s: Wait = Field(60, description="Silence of a provider in mid-stream.")
    total_timeout_s: Wait = Field(1800, description="One generation, from its first claim to its end.")
    queue_wait_s: Wait = Field(60, description="Longest wait for a worker, interactive requests.")
    queue_wait_background_s: Wait = Field(86_400, description="Longest wait for a worker, background requests.")
    request_read_timeout_s: Wait = Field(
        30, description="How long a request may take to arrive; a body has a second more for each 64 KiB."
    )
    retry_after_max_s: float = Field(30, ge=0, le=3600, description="Longest Retry-After that we obey or relay.")
    worker_drain_s: float = Field(60, ge=0, le=DAY_S, description="How long a stopping worker lets its generations run on.")
    api_drain_s: float = Field(30, ge=0, le=DAY_S, description="How long a stopping API lets its responses run on.")

    api_unready_s: float = Field(
        0, ge=0, le=600, description="How long a stopping API goes on as before, but for /readyz: until balancers know."
    )

    # The queue and the channel
    lease_s: float = Field(6, ge=1, le=3600, description="A claimed job belongs to its worker for this long without renewal.")
    renew_s: float = Field(2, ge=0.1, le=1800, description="How often a worker renews its leases.")
    heartbeat_s: float = Field(2, ge=0.1, le=60, description="How often a worker speaks up for a quiet generation.")
    keep_alive_s: Wait = Field(15, description="Silence after which a client gets a keep-alive comment.")
    vanished_viewers_s: Wait = Field(15, description="Nobody subscribed for this long counts as all viewers gone.")
    retention_stop_s: Kept = Field(60, description="How long a log outlives its end; policy stop.")
    retention_grace_s: Kept = Field(600, description="The same; policy grace.")
    retention_detach_s: Kept = Field(3600, description="The same; policy detach and background.")
    idempotency_s: Kept = Field(3600, description="How long an idempotency-key counts, and its generation is kept.")
    # A working day and its night: long enough to go on with a conversation, or to fetch what ran in the background.
    responses_ttl_s: Kept = Field(86_400, description="How long a response of /v1/responses is stored.")
    tombstone_s: Kept = Field(3600, description="How long an expired generation is still known to have existed.")
    publish_linger_ms: float = Field(
        40,
        ge=0,
        le=1000,
        description="How long a worker with 50 streams or more gathers their text, less with fewer; 0: not at all.",
    )

    # Bounds
    waiting_max: int = Field(20_000, ge=1, le=10**7, description="Waiting jobs of all tenants.")
    waiting_per_tenant_max: int = Field(5_000, ge=1, le=10**7, description="Waiting jobs of one tenant.")
    starting_max: int = Field(
        1_000, ge=10, le=10**6, description="Requests of one API that are on their way into the queue; more are refused."
    )
    overload_lag_ms: int = Field(
        50, ge=0, le=10_000, description="An API whose loop is later than this all along admits less; 0: it never does."
    )
    overload_claim_ms: int = Field(
        300, ge=0, le=60_000, description="The same where its jobs wait so long for workers that have free slots."
    )
    background_share: float = Field(0.75, gt=0, le=1, description="How much of queue and slots background jobs may fill.")
    worker_slots: int = Field(2_000, ge=1, le=10**5, description="Generations that one worker runs at a time.")
    upstream_connections_max: int = Field(2_500, ge=1, le=10**5, description="Connections of one worker to all providers.")
    worker_buffer_bytes_max: int = Field(
        64 * MIB, ge=MIB, le=64 * GIB, description="Frames that a worker holds while Redis is away."
    )
    worker_buffer_s: Wait = Field(30, description="How long one generation may go on while Redis is away.")
    viewer_buffer_bytes_max: int = Field(256 * KIB, ge=4 * KIB, le=GIB, description="Frames held for one slow viewer.")
    responses_bytes_max: int = Field(
        8 * MIB, ge=0, le=512 * MIB, description="A larger request or response of /v1/responses is not stored."
    )
    body_bytes_max: int = Field(32 * MIB, ge=KIB, le=512 * MIB, description="Request body.")
    bodies_bytes_max: int = Field(
        128 * MIB, ge=MIB, le=64 * GIB, description="Large request bodies that one API holds at a time, one always."
    )
    json_depth_max: int = Field(64, ge=8, le=256, description="Nesting of a request body.")
    json_values_max: int = Field(500_000, ge=1_000, le=10**8, description="Values in a request body, about.")
    header_bytes_max: int = Field(32 * KIB, ge=4 * KIB, le=MIB, description="All request headers together.")
    answer_bytes_max: int = Field(64 * MIB, ge=MIB, le=GIB, description="One answer, as its client gets it.")
    large_answers_bytes_max: int = Field(
        256 * MIB,
        ge=MIB,
        le=64 * GIB,
        description="Answers above 8 MiB that one worker has, in Redis too, read or not.",
    )
    upstream_event_bytes_max: int = Field(16 * MIB, ge=64 * KIB, le=GIB, description="One event of a provider's stream.")
    upstream_body_bytes_max: int = Field(64 * MIB, ge=64 * KIB, le=GIB, description="A provider's non-streaming answer.")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return sources(settings_cls, init_settings, dotenv_settings)

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_switches(cls, value: Any, info: ValidationInfo) -> Any:
        """`yes` in YAML is a switch, and few settings are: as a number it would be 1."""
        if isinstance(value, bool) and cls.model_fields[info.field_name or ""].annotation is not bool:
            raise ValueError("it must not be true or false: put a text that YAML takes for a switch in quotes")
        return value

    @model_validator(mode="after")
    def _check_relations(self) -> "Settings":
        for larger, smaller, times, reason in _RELATIONS:
            if getattr(self, larger) < times * getattr(self, smaller):
                least = f"at least {times} times SLUICE_{smaller.upper()}, which is {getattr(self, smaller):g}"
                message = f"it is {getattr(self, larger):g} and must be {least}, {reason}"
                raise PydanticCustomError("relation", message, {"setting": larger})
        return self

    @field_validator("secret", "secret_previous", "jwt_secret")
    @classmethod
    def _check_secret(cls, secret: SecretStr | None) -> SecretStr | None:
        if secret and len(secret.get_secret_value().encode()) < SECRET_BYTES_MIN:
            raise PydanticCustomError(
                "secret_too_short",
                f"is too short: it must have {SECRET_BYTES_MIN} bytes or more, for whoever has one key or token could find "
                "it by trying. Make one with `openssl rand -hex 32`.",
            )
        return secret

    @field_validator("secret_previous")
    @classmethod
    def _check_previous(cls, secret: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if secret and "secret" in info.data and info.data["secret"] is None:
            raise PydanticCustomError("secret_missing", "needs SLUICE_SECRET, with which everything new is signed.")
        return secret

    @field_validator("prices")
    @classmethod
    def _name_prices(cls, prices: dict[str, Price], info: ValidationInfo) -> dict[str, Price]:
        own = {name: name for name in info.data.get("providers", {})}
        return {canonical_name(name, {**own, **VENDOR_IDS}): price for name, price in prices.items()}

    @field_validator("guardrail_patterns_in", "guardrail_patterns_out")
    @classmethod
    def _check_patterns(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        if patterns:
            from common.guardrails.expressions import compiled  # Its engine is loaded only by who uses it.

            compiled(patterns)
        return patterns

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

    @property
    def secrets(self) -> tuple[SecretStr, ...]:
        """What something may have been signed or encrypted with; the first is for what is new."""
        return tuple(secret for secret in (self.secret, self.secret_previous) if secret)

    @cached_property
    def vendors(self) -> Mapping[str, Vendor]:
        """All vendors by their ids: those that we know, and the settings' own."""
        own = {
            name: Vendor(name, "", wires=(chosen.wire or "openai-chat",), base_url=None, key_is_needed=False)
            for name, chosen in self.providers.items()
            if name not in VENDORS
        }
        wired = {name: chosen.wire for name, chosen in self.providers.items() if name in VENDORS and chosen.wire}
        known = {name: replace(vendor, wires=(wired[name],)) if name in wired else vendor for name, vendor in VENDORS.items()}
        return {**known, **own}

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

    def brought_key_pays(self, provider: str) -> bool:
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
