"""The command behind ``make chaos``."""

import argparse
import asyncio
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import uvloop

from common.process.process import raise_file_limit
from tests.chaos.fleet import missing
from tests.chaos.report import Report
from tests.chaos.run import Length, run
from tests.chaos.stores import STORES


async def _until_done_or_told(folder: Path, asked: argparse.Namespace) -> Report:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)  # By way of the ends of all contexts.
    began_at = time.monotonic()

    def tell(what: str) -> None:
        if asked.verbose or what.startswith("WRONG"):
            print(f"[{time.monotonic() - began_at:6.1f}] {what}", flush=True)

    length = Length(asked.minutes * 60, asked.streams, asked.every, asked.viewers, asked.only)
    return await run(folder, asked.redis, asked.seed, length, tell)


def main() -> None:
    parser = argparse.ArgumentParser(prog="make chaos", description="Exit status 1: a client saw what none may see.")
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=None, help="the same seed: the same clients and the same faults")
    parser.add_argument("--redis", choices=STORES, default="one", help="one server, or a master that Sentinels watch")
    parser.add_argument("--streams", type=float, default=60.0, help="new streams per second")
    parser.add_argument("--every", type=float, default=2.0, help="seconds between two faults")
    parser.add_argument("--viewers", type=int, default=0, help="EventSources besides, that read for as long as the run takes")
    parser.add_argument("--only", choices=("api", "worker", "redis", "target"), default="", help="break nothing else")
    parser.add_argument("--keep", type=Path, default=None, help="keep the processes' logs in this folder")
    parser.add_argument("--verbose", action="store_true", help="tell each fault as it comes")
    asked = parser.parse_args()
    if reason := missing():
        sys.exit(f"Cannot run here: {reason}.")
    asked.seed = random.randrange(1_000_000) if asked.seed is None else asked.seed
    raise_file_limit()
    with tempfile.TemporaryDirectory(prefix="chaos-") as temporary:
        folder = asked.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            sys.exit(f"{folder} is not empty: a run that finds another one's database would report that one's rows.")
        print(
            f"seed {asked.seed}: {asked.minutes * 60:.0f} s, {asked.streams:g} streams/s, a fault every {asked.every:g} s, "
            f"Redis: {asked.redis} …",
            flush=True,
        )
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                report = runner.run(_until_done_or_told(folder, asked))
        except (KeyboardInterrupt, asyncio.CancelledError):
            sys.exit("Stopped.")
    print(report.text())
    if report.wrong:
        given = {name: value for name in ("streams", "every", "viewers", "only") if (value := getattr(asked, name))}
        more = " ".join(f"--{name} {value}" for name, value in given.items())
        again = f"make chaos MINUTES={asked.minutes:g} SEED={asked.seed} REDIS={asked.redis} ARGS='{more}'"
        print(f"\nThe same clients and faults again: {again}")
    sys.exit(1 if report.wrong else 0)


if __name__ == "__main__":
    main()
