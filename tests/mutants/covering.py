"""Which unit and contract tests run a line of Python, or a Lua script, and how long do they take?

One run of all of them tells: coverage.py has a context for each test, and each call of a script names its SHA-1.
The answer is kept: it is asked for again where a file has changed.
"""

import hashlib
import json
import os
import re
import time
from collections import defaultdict
from collections.abc import Generator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import hiredis
import pytest
from coverage import Coverage

from tests.mutants.core import ROOT, all_files, core_files
from tests.mutants.mutant import Mutant
from tests.mutants.sandbox import TESTS, Copy, Run

CACHE = ROOT / ".mutants_cache.json"
FILES_AT_ONCE = 30  # What these told is kept, so that a run that is broken off has not been for nothing.
_DECLARATION = re.compile(r"^(?=local )", re.MULTILINE)
LIMIT_S = 900  # For so many.


@dataclass
class Covering:
    """``durations``: of each test, in seconds. ``lines``: the tests of each line of each Python file, ``scripts``: of each Lua
    file. ``failed``: the tests that fail without a mutant, and say nothing of one."""

    durations: dict[str, float] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    lines: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    scripts: dict[str, list[str]] = field(default_factory=dict)

    def tests_of(self, mutant: Mutant) -> list[str]:
        """Return the tests that run a mutant's lines: those of its own room first, and the fastest of them."""
        if mutant.path.endswith(".lua"):
            tests = set(self.scripts.get(mutant.path, ()))
        else:
            lines = self.lines.get(mutant.path, {})
            tests = {test for line in mutant.lines for test in lines.get(str(line), ())}
        room, stem = str(Path(mutant.path).parent), Path(mutant.path).stem

        def distance(test: str) -> tuple[bool, bool, float]:
            file = _file_of(test)
            return not file.startswith(f"tests/{room}"), Path(file).stem != f"test_{stem}", self.durations[test]

        return sorted(tests & self.durations.keys(), key=distance)

    def keep(self, files: set[str]) -> None:
        """Leave out the tests of all other files."""
        self.durations = {test: s for test, s in self.durations.items() if _file_of(test) in files}
        self.failed = [test for test in self.failed if _file_of(test) in files]
        for lines in [self.scripts, *self.lines.values()]:
            for key, tests in lines.items():
                lines[key] = [test for test in tests if _file_of(test) in files]

    def add(self, other: "Covering") -> None:
        """Take in what another run told."""
        self.durations |= other.durations
        self.failed += other.failed
        for path, lines in other.lines.items():
            mine = self.lines.setdefault(path, {})
            for line, tests in lines.items():
                mine[line] = [*mine.get(line, ()), *tests]
        for path, tests in other.scripts.items():
            self.scripts[path] = [*self.scripts.get(path, ()), *tests]


def _file_of(test: str) -> str:
    return test.partition("::")[0]


def covering(copies: list[Copy]) -> Covering:
    """Return what the tests cover. The last answer holds for a test file that has not changed and in which no test failed,
    while all that is not a test has not changed either."""
    hashes = _hashes()
    try:
        kept = json.loads(CACHE.read_text())
    except (OSError, ValueError):
        kept = {"hashes": {}, "covering": {}}
    whole = Covering(**kept["covering"]) if kept["hashes"].get("") == hashes[""] else Covering()
    again = {_file_of(test) for test in whole.failed}
    known = {file: digest for file, digest in hashes.items() if kept["hashes"].get(file) == digest and file not in again}
    known = {"": hashes[""], **(known if whole.durations else {})}
    whole.keep(set(known))
    changed = sorted(hashes.keys() - known.keys())
    for start in range(0, len(changed), FILES_AT_ONCE):
        files = changed[start : start + FILES_AT_ONCE]
        whole.add(_measured(copies, files))
        known |= {file: hashes[file] for file in files}
        CACHE.write_text(json.dumps({"hashes": known, "covering": asdict(whole)}))
        print(f"what the tests cover: {start + len(files)} of {len(changed)} files", flush=True)
    return whole


def _hashes() -> dict[str, str]:
    """Return a hash of each test file that is measured, and one of all else that they may depend on, under an empty name."""
    test_files, others = {}, hashlib.sha256()
    for path in all_files():
        digest = hashlib.sha256((ROOT / path).read_bytes()).hexdigest()
        if path.startswith(TESTS) and Path(path).name.startswith("test_"):
            test_files[path] = digest
        elif path.endswith((".py", ".lua", ".toml", "constraints.txt")) and not path.startswith("tests/mutants/"):
            others.update(f"{path} {digest}".encode())
    return {**test_files, "": others.hexdigest()}


def _measured(copies: list[Copy], files: list[str]) -> Covering:
    copies = copies[: len(files)]
    answers = [copy.root.parent / "covering.json" for copy in copies]
    runs = [
        Run(copy, files[index :: len(copies)], partial(_Recorder, copy.root, answer), LIMIT_S)
        for index, (copy, answer) in enumerate(zip(copies, answers, strict=True))
    ]
    while None in [run.poll() for run in runs]:
        time.sleep(0.2)
    whole = Covering()
    for copy, answer in zip(copies, answers, strict=True):
        if not answer.exists():
            raise RuntimeError(f"the tests did not come to their end:\n{copy.log.read_text()[-2000:]}")
        whole.add(Covering(**json.loads(answer.read_text())))
    return whole


class _Recorder:
    """A pytest plugin that writes a `Covering`."""

    def __init__(self, root: Path, answer: Path) -> None:
        os.environ["COVERAGE_CORE"] = "ctrace"  # The newer one has no contexts.
        self._root, self._answer = root, answer
        self._python = [path for path in core_files() if path.endswith(".py")]
        self._lua = {
            path: (root / path).read_text().rpartition("-- PRELUDE\n")[2] for path in core_files() if path.endswith(".lua")
        }
        self._coverage = Coverage(data_file=None, include=[str(root / path) for path in self._python])
        self._test = ""
        self._calls: set[tuple[str, str]] = set()  # A test, and the SHA-1 of a script that it called.
        self._sources: dict[str, str] = {}
        self._durations: dict[str, float] = defaultdict(float)
        self._failed: set[str] = set()
        self._skipped: set[str] = set()

    def pytest_configure(self) -> None:
        pack = hiredis.pack_command

        def recorded(command: tuple[Any, ...]) -> bytes:
            if command[0] == "EVALSHA":
                self._calls.add((self._test, command[1]))
            elif command[:2] == ("SCRIPT", "LOAD"):
                self._sources[hashlib.sha1(command[2].encode()).hexdigest()] = command[2]
            return pack(command)

        hiredis.pack_command = recorded
        self._coverage.start()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        self._test = item.nodeid
        self._coverage.switch_context(item.nodeid)
        return (yield)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._durations[report.nodeid] += report.duration
        if report.failed:
            self._failed.add(report.nodeid)
        elif report.skipped:
            self._skipped.add(report.nodeid)

    def pytest_sessionfinish(self) -> None:
        self._coverage.stop()
        data = self._coverage.get_data()
        usable = self._durations.keys() - self._failed - self._skipped
        covered = Covering({test: round(self._durations[test], 3) for test in usable}, sorted(self._failed))
        for path in self._python:
            lines = data.contexts_by_lineno(str(self._root / path))
            covered.lines[path] = {str(line): [test for test in tests if test] for line, tests in lines.items()}
        for path, text in self._lua.items():
            # A script has only those declarations of a prelude before it that it uses.
            pieces = [text] if any(source.endswith(text) for source in self._sources.values()) else _DECLARATION.split(text)[1:]
            shas = {sha for sha, source in self._sources.items() if any(piece in source for piece in pieces)}
            covered.scripts[path] = sorted({test for test, sha in self._calls if sha in shas})
        self._answer.write_text(json.dumps(asdict(covered)))
