"""Which settings does a command have together with what is managed at run time, as the processes have them?"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from common.config.setting_sources import Inputs
    from common.config.settings import Settings


def load_with_stored() -> "Settings":
    """Return the settings with what is managed at run time, as far as Redis and the secret give it; or end with status 2."""
    from cli.settings import load_settings
    from common.config.setting_sources import Inputs

    inputs = Inputs()
    return with_stored(load_settings(inputs), inputs)[1]


def with_stored(settings: "Settings", inputs: "Inputs") -> tuple[dict[str, list[str]], "Settings"]:
    """Return what the settings override of what is managed at run time, by its name, and both together."""
    import time

    from common.live.live_settings import build
    from common.live.stored_copy import StoredCopy

    document = with_redis(settings, lambda redis: StoredCopy(redis).load())
    records = [record for sealed in (document.records if document else ()) if (record := sealed.open(settings.secrets))]
    entries = [entry for record in records if (entry := record.entry(time.time_ns() // 1_000_000))]
    stronger = inputs.read or {}
    overridden = {f"{record.kind} {record.name}": fields for record in records if (fields := record.overridden(stronger))}
    return overridden, build(inputs, entries)[0]


def with_redis(settings: "Settings", work: Any) -> Any:
    """Run ``work`` with Redis. None: Redis does not answer."""
    import asyncio  # Imported here, like everything that a help page does not need.

    from common.canonical.errors import StoreUnavailable
    from common.redis.client import connect

    async def run() -> Any:
        redis = connect(settings.redis_url)
        try:
            return await work(redis)
        finally:
            await redis.aclose()

    try:
        return asyncio.run(run())
    except StoreUnavailable:
        return None
