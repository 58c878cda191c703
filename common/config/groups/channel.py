"""Which settings say how answers get from workers to clients, and how long they are kept?"""

from pydantic import BaseModel, Field

from common.config.setting_sources import environment as environment
from common.config.setting_values import GIB as GIB
from common.config.setting_values import KIB as KIB
from common.config.setting_values import MIB as MIB
from common.config.setting_values import (
    Kept,
    Wait,
)


class ChannelSettings(BaseModel):
    """Channel"""

    heartbeat_s: float = Field(2, ge=0.1, le=60, description="How often a worker sends a heartbeat for a quiet generation.")
    vanished_viewers_s: Wait = Field(15, description="After this time without any subscriber, all viewers count as gone.")
    retention_stop_s: Kept = Field(60, description="How long a log is kept after its end, with the policy stop.")
    retention_grace_s: Kept = Field(600, description="The same, with the policy grace.")
    retention_detach_s: Kept = Field(3600, description="The same, with the policy detach and for background requests.")
    idempotency_s: Kept = Field(3600, description="How long an idempotency-key is remembered and its generation is kept.")
    # A day: long enough to continue a conversation, or to fetch a background response.
    responses_ttl_s: Kept = Field(86_400, description="How long a response of /v1/responses is stored.")

    tombstone_s: Kept = Field(
        3600, description="How long we still know that an expired generation existed (status 410 instead of 404)."
    )
    publish_linger_ms: float = Field(
        40,
        ge=0,
        le=1000,
        description="How long a worker with 50 or more streams collects text before it sends it. Shorter with fewer. 0: off.",
    )
    worker_buffer_bytes_max: int = Field(
        64 * MIB, ge=MIB, le=64 * GIB, description="Frames that a worker buffers while Redis is away."
    )
    worker_buffer_s: Wait = Field(30, description="How long a generation may continue while Redis is away.")
    responses_bytes_max: int = Field(
        8 * MIB, ge=0, le=512 * MIB, description="A larger request or response of /v1/responses is not stored."
    )
    answer_bytes_max: int = Field(64 * MIB, ge=MIB, le=GIB, description="Maximum size of one answer, as its client gets it.")
    large_answers_bytes_max: int = Field(
        256 * MIB,
        ge=MIB,
        le=64 * GIB,
        description="Total size of the answers above 8 MiB of one worker, including those that are only in Redis.",
    )
