"""How do answers get from workers to clients, and how long are they kept?"""

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

    heartbeat_s: float = Field(2, ge=0.1, le=60, description="How often a worker speaks up for a quiet generation.")
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
    worker_buffer_bytes_max: int = Field(
        64 * MIB, ge=MIB, le=64 * GIB, description="Frames that a worker holds while Redis is away."
    )
    worker_buffer_s: Wait = Field(30, description="How long one generation may go on while Redis is away.")
    responses_bytes_max: int = Field(
        8 * MIB, ge=0, le=512 * MIB, description="A larger request or response of /v1/responses is not stored."
    )
    answer_bytes_max: int = Field(64 * MIB, ge=MIB, le=GIB, description="One answer, as its client gets it.")
    large_answers_bytes_max: int = Field(
        256 * MIB,
        ge=MIB,
        le=64 * GIB,
        description="Answers above 8 MiB that one worker has, in Redis too, read or not.",
    )
