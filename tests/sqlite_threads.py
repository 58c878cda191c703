"""When has SQLite's driver really let go of an event loop?"""

import asyncio
import threading


async def until_sqlite_lets_go() -> None:
    """Return once no thread of aiosqlite runs any more: one that failed to connect ends by itself, a moment later, and must
    find the loop that it was made on.
    """
    while any("_connection_worker_thread" in thread.name for thread in threading.enumerate()):
        await asyncio.sleep(0.001)
