"""How does a worker read a log back that it writes itself, while Redis may be away?

An answer that continues needs its log, and so does the usage of one that broke off. Frames may be written late by
``worker_buffer_s``, and the log is waited for just as long.
"""

import asyncio
from contextlib import suppress

from common.canonical.errors import StoreUnavailable
from common.channel.base import Frame
from common.channel.transcript import read_log
from workers.publish.writer import PAUSE_WHILE_AWAY_S
from workers.services import Services


async def read_own_log(services: Services, generation_id: str) -> list[Frame]:
    """Return a whole log.

    Raises:
        StoreUnavailable: Redis was away for all that time.
    """
    try:
        async with asyncio.timeout(services.settings.worker_buffer_s):
            while True:
                with suppress(StoreUnavailable):
                    return await read_log(services.channel, generation_id)
                await asyncio.sleep(PAUSE_WHILE_AWAY_S)
    except TimeoutError as error:
        raise StoreUnavailable("the log could not be read in time") from error
