"""The command behind ``make soak``: start a gateway, keep it busy at a steady rate, and say what has grown."""

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path

import aiohttp
import uvloop

from common.process.process import raise_file_limit
from tests.soak.mix import KEYS, Mix
from tests.soak.watch import Sample, grown, part_of, redis_of
from tests.support.fleet import Fleet, execute, fleet

KEPT_S = 20  # Each retention. A log is forgotten after two of them: its own, and its tombstone's.
AFTER_S = 3 * KEPT_S
WARM_UP_ACTIONS = 300
AT_ONCE_MAX = 500
SETTINGS = {
    "SLUICE_API_KEYS": ",".join(KEYS),
    "SLUICE_SECRET": "of a soak, 32 bytes or more of it.",
    "SLUICE_REFUSED_CREDENTIALS_MAX": "0",
    **{f"SLUICE_RETENTION_{policy}_S": str(KEPT_S) for policy in ("STOP", "GRACE", "DETACH")},
    **{f"SLUICE_{what}_S": str(KEPT_S) for what in ("RESPONSES_TTL", "TOMBSTONE", "IDEMPOTENCY")},
}


class Soak:
    def __init__(self, found: Fleet, mix: Mix) -> None:
        self._fleet, self._mix = found, mix
        self._running: set[asyncio.Task[None]] = set()

    @property
    def _actions(self) -> int:
        return sum(self._mix.seen.values())

    async def act(self, rate: float, *, count: int) -> None:
        """Do so many things, at a steady rate; who would be one too many at once waits."""
        began_at = time.monotonic()
        for n in range(count):
            await asyncio.sleep(max(0.0, began_at + n / rate - time.monotonic()))
            while len(self._running) >= AT_ONCE_MAX:
                await asyncio.sleep(0.01)
            task = asyncio.create_task(self._mix.one())
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def settle(self) -> None:
        await asyncio.gather(*self._running)

    def sample(self, what: str) -> Sample:
        found = self._fleet
        api = part_of(found.apis[0].pid, found.apis[0].log, found.metrics(found.ports[0]))
        worker = part_of(found.workers[0].pid, found.workers[0].log, found.metrics(found.worker_ports[0]))
        sample = Sample(self._actions, api, worker, *redis_of(found.redis))
        print(f"{what:>10} {sample.line()}", flush=True)
        return sample


async def run(found: Fleet, minutes: float, rate: float, seed: int) -> list[str]:
    timeout = aiohttp.ClientTimeout(total=90)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:
        mix = Mix(found.url, session, seed)
        soak = Soak(found, mix)
        await soak.act(rate, count=WARM_UP_ACTIONS)  # What is made once is made by then.
        await soak.settle()
        await asyncio.sleep(AFTER_S)
        start = await asyncio.to_thread(soak.sample, "start")
        samples = []
        for step in range(steps := max(2, round(minutes))):
            await soak.act(rate, count=round(minutes * 60 * rate / steps))
            samples.append(await asyncio.to_thread(soak.sample, f"{(step + 1) * minutes / steps:.1f} min"))
        await soak.settle()
    await asyncio.sleep(AFTER_S)
    after = await asyncio.to_thread(soak.sample, "after")
    for (kind, status), count in sorted(mix.seen.items()):
        print(f"{count:8d}  {kind}: {status}")
    return grown(start, samples[len(samples) // 2 - 1], samples[-1], after)


def main() -> None:
    parser = argparse.ArgumentParser(prog="make soak", description="Exit status 1: something has grown beyond its bound.")
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--rate", type=float, default=14.0, help="actions per second")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, default=None, help="keep the processes' logs in this folder")
    asked = parser.parse_args()
    raise_file_limit()
    with tempfile.TemporaryDirectory(prefix="soak-") as temporary:
        folder = asked.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        with fleet(folder, start=execute, **SETTINGS) as found, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            wrong = runner.run(run(found, asked.minutes, asked.rate, asked.seed))
    print("\n".join(["", *(f"GROWN {what}" for what in wrong)]) if wrong else "\nNothing has grown beyond its bound.")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
