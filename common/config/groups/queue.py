"""Where do the tiers meet, and how do jobs wait and change hands?"""

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
        description="Where both tiers meet. Also: unix://, redis+sentinel://host:port,host:port/service/0.",
    )
    queue_wait_s: Wait = Field(60, description="Longest wait for a worker, interactive requests.")
    queue_wait_background_s: Wait = Field(86_400, description="Longest wait for a worker, background requests.")
    waiting_max: int = Field(20_000, ge=1, le=10**7, description="Waiting jobs of all tenants.")
    waiting_per_tenant_max: int = Field(5_000, ge=1, le=10**7, description="Waiting jobs of one tenant.")
    background_share: float = Field(0.75, gt=0, le=1, description="How much of queue and slots background jobs may fill.")
    worker_slots: int = Field(2_000, ge=1, le=10**5, description="Generations that one worker runs at a time.")
    worker_drain_s: float = Field(60, ge=0, le=DAY_S, description="How long a stopping worker lets its generations run on.")
    lease_s: float = Field(6, ge=1, le=3600, description="A claimed job belongs to its worker for this long without renewal.")
    renew_s: float = Field(2, ge=0.1, le=1800, description="How often a worker renews its leases.")
