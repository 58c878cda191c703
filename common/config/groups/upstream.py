"""How is a provider reached, and for how long is it waited for?"""

from pydantic import BaseModel, Field

from common.config.setting_sources import environment as environment
from common.config.setting_values import GIB as GIB
from common.config.setting_values import KIB as KIB
from common.config.setting_values import MIB as MIB
from common.config.setting_values import (
    Wait,
)


class UpstreamSettings(BaseModel):
    """The way to a provider"""

    proxy_from_env: bool = Field(
        True,
        description="Reach providers, key sets and webhooks as HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY say.",
    )
    connect_timeout_s: Wait = Field(5, description="Connecting to a provider.")
    first_token_timeout_s: Wait = Field(120, description="From the request to a provider's first token.")
    between_tokens_timeout_s: Wait = Field(60, description="Silence of a provider in mid-stream.")
    total_timeout_s: Wait = Field(1800, description="One generation, from its first claim to its end.")
    attempts_per_deployment: int = Field(
        3, ge=1, le=10, description="How often a deployment is called before the route's next one is: once is no retry."
    )
    retry_backoff_s: float = Field(
        1,
        ge=0,
        le=60,
        description="Wait before the second attempt, doubled before each further one, give or take a quarter.",
    )
    retry_after_max_s: float = Field(30, ge=0, le=3600, description="Longest Retry-After that we obey or relay.")
    upstream_connections_max: int = Field(2_500, ge=1, le=10**5, description="Connections of one worker to all providers.")
    upstream_event_bytes_max: int = Field(16 * MIB, ge=64 * KIB, le=GIB, description="One event of a provider's stream.")
    upstream_body_bytes_max: int = Field(64 * MIB, ge=64 * KIB, le=GIB, description="A provider's non-streaming answer.")
