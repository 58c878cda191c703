"""The command behind ``make mutants``."""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Generator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from tests.mutants import equivalent
from tests.mutants.core import ROOT, mutants_of_core
from tests.mutants.covering import Covering, covering
from tests.mutants.mutant import Mutant
from tests.mutants.sandbox import NOT_RUN, Copy, Run

SURVIVORS_MAX = 0.05  # Of those drawn that are not equivalent.
TESTS_S_MAX = 90.0  # What the tests of one mutant take at most, by what they took without it; the slowest are left out.
NICE = 5


class Chosen:
    """A pytest plugin that runs the chosen tests alone, in their order, and writes down the first that fails."""

    def __init__(self, durations: dict[str, float], tests: list[str], failed: Path) -> None:
        self._place = {test: index for index, test in enumerate(tests)}
        self._limits = {test: 10 + 5 * durations[test] for test in tests}
        self._failed = failed

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = sorted((item for item in items if item.nodeid in self._place), key=lambda item: self._place[item.nodeid])
        for item in items:
            item.add_marker(pytest.mark.timeout(self._limits[item.nodeid]))

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._failed.write_text(nodeid)  # The last one that began is the first one that failed.


@dataclass
class Trial:
    """A mutant, and what became of it: `killed`, `survived`, or `equivalent`."""

    mutant: Mutant
    verdict: str = ""
    by: str = ""
    start_s: float = 0.0  # Until its first test began.
    tests_s: float = 0.0

    def __str__(self) -> str:
        line = f"{self.verdict:8} {self.mutant.path}:{self.mutant.line}  {self.by}"
        if self.verdict != "survived":
            return line
        diff = self.mutant.diff((ROOT / self.mutant.path).read_text(encoding="utf-8"))
        return f"{line}\n  {self.mutant.change}\n{diff}"


def _tests_within(cover: Covering, mutant: Mutant) -> list[str]:
    tests, left_s = [], TESTS_S_MAX
    for test in cover.tests_of(mutant):
        if cover.durations[test] <= left_s:
            left_s -= cover.durations[test]
            tests.append(test)
    return tests


def _try(trial: Trial, copy: Copy, cover: Covering) -> Generator[None, None, None]:
    """Set a trial's verdict; yields for as long as its tests run."""
    tests = _tests_within(cover, trial.mutant)
    if not tests:
        trial.verdict, trial.by = "survived", "no unit or contract test runs this line"
        return
    failed = copy.root.parent / "failed"
    files = list(dict.fromkeys(test.partition("::")[0] for test in tests))
    limit_s = 60 + 3 * sum(cover.durations[test] for test in tests)
    failed.unlink(missing_ok=True)
    with copy.changed(trial.mutant.path, trial.mutant.mutate()):
        run = Run(copy, files, partial(Chosen, cover.durations, tests, failed), limit_s, "-x")
        began_at = time.monotonic()
        while (code := run.poll()) is None:
            if not trial.start_s and failed.exists():
                trial.start_s = time.monotonic() - began_at
            yield
        trial.tests_s = time.monotonic() - began_at - trial.start_s
    if code == NOT_RUN and not failed.exists():  # Else something was left open, which pytest tells at the end of all.
        raise RuntimeError(copy.log.read_text()[-2000:])
    if code == pytest.ExitCode.NO_TESTS_COLLECTED:
        raise RuntimeError(
            f"the tests of {trial.mutant.path}:{trial.mutant.line} are not there:\n{copy.log.read_text()[-2000:]}"
        )
    trial.verdict = "survived" if code == pytest.ExitCode.OK else "killed"
    trial.by = f"{len(tests)} tests" if code == pytest.ExitCode.OK else _reason(failed, code)


def _reason(failed: Path, code: int) -> str:
    test = failed.read_text() if failed.exists() else "it cannot be imported"
    return f"{test} (took too long)" if code < 0 else test


def _try_all(trials: list[Trial], copies: list[Copy], cover: Covering) -> None:
    waiting = list(reversed(trials))
    running: dict[Copy, tuple[Trial, Generator[None, None, None]]] = {}
    began_at = time.monotonic()
    done = 0
    try:
        while waiting or running:
            for copy in copies:
                if copy not in running and waiting:
                    running[copy] = (waiting[-1], _try(waiting.pop(), copy, cover))
            for copy, (trial, steps) in list(running.items()):
                if next(steps, trial) is trial:
                    del running[copy]
                    done += 1
                    at = f"[{time.monotonic() - began_at:6.0f} s, {done}/{len(trials)}]"
                    print(f"{at} {trial}", flush=True)
            time.sleep(0.02)
    finally:
        for _, steps in running.values():
            steps.close()


def _report(trials: list[Trial], listed: int, seed: int) -> bool:
    count = Counter(trial.verdict for trial in trials)
    print("\nSurvivors:")
    for trial in trials:
        if trial.verdict == "survived":
            print(f"\n{trial}")
    tried = [trial for trial in trials if trial.verdict]
    start_s, tests_s = sum(trial.start_s for trial in tried), sum(trial.tests_s for trial in tried)
    print(f"\n{len(tried)} runs: {start_s:.0f} s until their first tests, {tests_s:.0f} s of tests")
    real = count["killed"] + count["survived"]
    ratio = count["survived"] / max(real, 1)
    print(f"\nseed {seed}: {count['killed']} killed, {count['survived']} survived of {real} or {ratio:.1%}")
    print(f"{listed} equivalent ones besides")
    return ratio <= SURVIVORS_MAX


def main() -> int:
    parser = argparse.ArgumentParser(prog="make mutants", description="Exit status 1: more than one in twenty survives.")
    parser.add_argument("--seed", type=int, default=None, help="the same seed and the same files: the same mutants")
    parser.add_argument("--count", type=int, default=400, help="how many mutants are drawn")
    parser.add_argument("--only", default="", help="draw from the files whose path has this in it")
    parser.add_argument("--side-by-side", type=int, default=2, help="how many are tried at a time")
    options = parser.parse_args()
    seed = random.randrange(1_000_000) if options.seed is None else options.seed
    everything = mutants_of_core()
    possible = [mutant for mutant in everything if options.only in mutant.path]
    drawn = random.Random(seed).sample(possible, min(options.count, len(possible)))
    known = equivalent.load()
    trials = [Trial(mutant) for mutant in drawn if not known.has(mutant)]
    for entry in known.outdated(everything):
        print(f"no longer in the code, so change or remove it in {equivalent.LIST.name}: {entry}")
    print(f"seed {seed}: {len(drawn)} of {len(possible)} mutants", flush=True)
    os.nice(NICE)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # By way of the ends of all contexts.
    with tempfile.TemporaryDirectory(prefix="mutants-", ignore_cleanup_errors=True) as temporary:
        os.chmod(temporary, 0o711)  # As root, the tests start PostgreSQL as another user.
        began_at = time.monotonic()
        first = Copy(Path(temporary) / "0")
        first.import_libraries()
        copies = [first, *(Copy(Path(temporary) / str(index), first.root) for index in range(1, options.side_by_side))]
        copied_at = time.monotonic()
        cover = covering(copies)
        print(
            f"{len(cover.durations)} tests of {sum(cover.durations.values()):.0f} s; "
            f"{copied_at - began_at:.0f} s for the copies, {time.monotonic() - copied_at:.0f} s for what the tests cover",
            flush=True,
        )
        for test in cover.failed:
            print(f"left out, because it fails without a mutant: {test}", flush=True)
        try:
            _try_all(trials, copies, cover)
        except (KeyboardInterrupt, SystemExit):
            print(f"\nbroken off after {sum(bool(trial.verdict) for trial in trials)} mutants")
    is_within = _report(trials, len(drawn) - len(trials), seed)
    return int(not (is_within and all(trial.verdict for trial in trials)))


if __name__ == "__main__":
    sys.exit(main())
