"""How does a worker read a log back that it writes itself, while Redis may be away?

An answer that continues needs its log, and so does the usage of one that broke off. Callers wait for it as long as frames may
wait to be written (``worker_buffer_s``).
"""

import asyncio
from contextlib import suppress

from common.canonical.errors import StoreUnavailable
from common.channel.base import Channel, Frame
from common.channel.transcript import read_log
from workers.publish.writer import PAUSE_WHILE_AWAY_S


async def read_own_log(channel: Channel, generation_id: str, patience_s: float) -> list[Frame]:
    """Return a whole log. ``patience_s``: how long Redis may be away.

    Raises:
        StoreUnavailable: Redis was away for all that time.
    """
    try:
        async with asyncio.timeout(patience_s):
            while True:
                with suppress(StoreUnavailable):
                    return await read_log(channel, generation_id)
                await asyncio.sleep(PAUSE_WHILE_AWAY_S)
    except TimeoutError as error:
        raise StoreUnavailable("the log could not be read in time") from error
