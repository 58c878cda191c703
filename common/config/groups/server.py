"""Where do the processes listen, and what do they take from a client?"""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from common.config.setting_sources import environment as environment
from common.config.setting_values import (
    DAY_S,
    Lowered,
    Port,
    PortOrFree,
    Wait,
)
from common.config.setting_values import GIB as GIB
from common.config.setting_values import KIB as KIB
from common.config.setting_values import MIB as MIB


class ServerSettings(BaseModel):
    """Server"""

    host: str = Field("127.0.0.1", description="Address the API listens on. The container image sets 0.0.0.0.")
    port: Port = Field(8080, description="Port the API listens on.")
    worker_port: PortOrFree | None = Field(None, description="Health and metrics of a worker; unset or 0: a free port.")
    log_level: Annotated[Literal["debug", "info", "warning", "error"], Lowered] = Field(
        "info", description="Least level that is logged."
    )
    status_hold_s: float = Field(5, ge=0, le=600, description="How long a stream's HTTP status waits for the first token.")
    keep_alive_s: Wait = Field(15, description="Silence after which a client gets a keep-alive comment.")
    request_read_timeout_s: Wait = Field(
        30, description="How long a request may take to arrive; a body has a second more for each 64 KiB."
    )
    api_drain_s: float = Field(30, ge=0, le=DAY_S, description="How long a stopping API lets its responses run on.")
    api_unready_s: float = Field(
        0, ge=0, le=600, description="How long a stopping API goes on as before, but for /readyz: until balancers know."
    )
    body_bytes_max: int = Field(32 * MIB, ge=KIB, le=512 * MIB, description="Request body.")
    bodies_bytes_max: int = Field(
        128 * MIB, ge=MIB, le=64 * GIB, description="Large request bodies that one API holds at a time, one always."
    )
    json_depth_max: int = Field(64, ge=8, le=256, description="Nesting of a request body.")
    json_values_max: int = Field(500_000, ge=1_000, le=10**8, description="Values in a request body, about.")
    header_bytes_max: int = Field(32 * KIB, ge=4 * KIB, le=MIB, description="All request headers together.")
    viewer_buffer_bytes_max: int = Field(256 * KIB, ge=4 * KIB, le=GIB, description="Frames held for one slow viewer.")
    starting_max: int = Field(
        1_000, ge=10, le=10**6, description="Requests of one API that are on their way into the queue; more are refused."
    )
    overload_lag_ms: int = Field(
        50, ge=0, le=10_000, description="An API whose loop is later than this all along admits less; 0: it never does."
    )
    overload_claim_ms: int = Field(
        300, ge=0, le=60_000, description="The same where its jobs wait so long for workers that have free slots."
    )
