"""Which settings say where the processes listen, and what they accept from a client?"""

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

    host: str = Field("127.0.0.1", description="Address on which the API listens. The container image sets 0.0.0.0.")
    port: Port = Field(8080, description="Port on which the API listens.")
    worker_port: PortOrFree | None = Field(
        None, description="Port for a worker's health and metrics. Unset or 0: any free port."
    )
    log_level: Annotated[Literal["debug", "info", "warning", "error"], Lowered] = Field(
        "info", description="The lowest level that is logged."
    )
    status_hold_s: float = Field(5, ge=0, le=600, description="How long the HTTP status of a stream waits for the first token.")
    keep_alive_s: Wait = Field(15, description="After this time of silence a client gets a keep-alive comment.")
    request_read_timeout_s: Wait = Field(
        30, description="How long a request may take to arrive. A body may take one second longer per 64 KiB."
    )
    api_drain_s: float = Field(30, ge=0, le=DAY_S, description="How long a stopping API continues its running responses.")
    api_unready_s: float = Field(
        0,
        ge=0,
        le=600,
        description="How long a stopping API works as before, with /readyz failing, until load balancers have noticed.",
    )
    body_bytes_max: int = Field(32 * MIB, ge=KIB, le=512 * MIB, description="Maximum size of a request body.")
    bodies_bytes_max: int = Field(
        128 * MIB,
        ge=MIB,
        le=64 * GIB,
        description="Maximum size of all large request bodies that one API holds at the same time. One is always admitted.",
    )
    json_depth_max: int = Field(64, ge=8, le=256, description="Maximum nesting of a request body.")
    json_values_max: int = Field(500_000, ge=1_000, le=10**8, description="Maximum of values in a request body, approximately.")
    header_bytes_max: int = Field(32 * KIB, ge=4 * KIB, le=MIB, description="Maximum size of all headers of a request.")
    viewer_buffer_bytes_max: int = Field(256 * KIB, ge=4 * KIB, le=GIB, description="Frames buffered for one slow viewer.")
    starting_max: int = Field(
        1_000, ge=10, le=10**6, description="Requests of one API that are being enqueued at the same time. More are refused."
    )
    overload_lag_ms: int = Field(
        50, ge=0, le=10_000, description="If the event loop of an API is constantly later than this, it admits less. 0: off."
    )
    overload_claim_ms: int = Field(
        300, ge=0, le=60_000, description="The same if its jobs wait this long for workers with free slots. 0: off."
    )
