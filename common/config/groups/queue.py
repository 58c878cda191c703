"""Which settings say where the tiers meet, how long jobs wait, and when they change workers?"""

from pydantic import BaseModel, Field

from common.config.setting_sources import environment as environment
from common.config.setting_values import (
    DAY_S,
    RedisUrl,
    Wait,
)
from common.config.setting_values import GIB as GIB
from common.config.setting_values import KIB as KIB
from common.config.setting_values import MIB as MIB


class QueueSettings(BaseModel):
    """Queue"""

    redis_url: RedisUrl = Field(
        "redis://127.0.0.1:6379/0",
        description="The Redis of both tiers. Also: unix://, redis+sentinel://host:port,host:port/service/0.",
    )
    queue_wait_s: Wait = Field(60, description="Longest wait of an interactive request for a worker.")
    queue_wait_background_s: Wait = Field(86_400, description="Longest wait of a background request for a worker.")
    waiting_max: int = Field(20_000, ge=1, le=10**7, description="Maximum of waiting jobs of all tenants.")
    waiting_per_tenant_max: int = Field(5_000, ge=1, le=10**7, description="Maximum of waiting jobs of one tenant.")
    background_share: float = Field(
        0.75, gt=0, le=1, description="The share of the queue and of a worker's slots that background jobs may use."
    )
    worker_slots: int = Field(2_000, ge=1, le=10**5, description="Generations that one worker runs at the same time.")
    worker_drain_s: float = Field(
        60, ge=0, le=DAY_S, description="How long a stopping worker continues its running generations."
    )
    lease_s: float = Field(6, ge=1, le=3600, description="How long a claimed job belongs to its worker without a renewal.")
    renew_s: float = Field(2, ge=0.1, le=1800, description="How often a worker renews its leases.")
