"""Which settings say how a provider is reached, and how long we wait for it?"""

from pydantic import BaseModel, Field

from common.config.setting_sources import environment as environment
from common.config.setting_values import GIB as GIB
from common.config.setting_values import KIB as KIB
from common.config.setting_values import MIB as MIB
from common.config.setting_values import (
    Wait,
)


class UpstreamSettings(BaseModel):
    """Upstream"""

    proxy_from_env: bool = Field(
        True,
        description="Use the proxies of HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY for providers, key sets and webhooks.",
    )
    connect_timeout_s: Wait = Field(5, description="Maximum time to connect to a provider.")
    first_token_timeout_s: Wait = Field(120, description="Maximum time from the request to a provider's first token.")
    between_tokens_timeout_s: Wait = Field(60, description="Maximum silence of a provider within a stream.")
    total_timeout_s: Wait = Field(1800, description="Maximum time of a generation, from its first claim to its end.")
    attempts_per_deployment: int = Field(
        3, ge=1, le=10, description="Attempts at a deployment before the next one of the route is tried. 1: no retry."
    )
    retry_backoff_s: float = Field(
        1,
        ge=0,
        le=60,
        description="Wait before the second attempt. It doubles before each further attempt, and varies by a quarter.",
    )
    retry_after_max_s: float = Field(
        30, ge=0, le=3600, description="The longest Retry-After of a provider that we obey or pass to the client."
    )
    health_probes_per_hour: int = Field(
        0,
        ge=0,
        le=3600,
        description="How often in an hour all workers together may ask a provider for its list of models, to see whether an "
        "unwell deployment is reached again (docs/providers.md). 0: never.",
    )
    upstream_connections_max: int = Field(
        2_500, ge=1, le=10**5, description="Maximum of connections of one worker to all providers."
    )
    upstream_event_bytes_max: int = Field(
        16 * MIB, ge=64 * KIB, le=GIB, description="Maximum size of one event in a provider's stream."
    )
    upstream_body_bytes_max: int = Field(
        64 * MIB, ge=64 * KIB, le=GIB, description="Maximum size of a provider's non-streaming answer."
    )
