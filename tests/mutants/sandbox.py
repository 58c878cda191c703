"""How do tests run in a copy of the tree, without the second that a new Python would take to import everything?

The libraries are imported once. Each run is a fork of that process, in a process group of its own, in a copy of the tree; it
imports the copy's code, runs pytest in itself, and is killed where it takes too long.
"""

import contextlib
import importlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from common.process.process import die_with_parent
from tests.mutants.core import ROOT, all_files

OURS = ("api", "workers", "common", "cli", "demo_provider", "tests", "bench")
TESTS = ("tests/api", "tests/common", "tests/contracts", "tests/workers")
NOT_RUN = 70  # An exit code that pytest has not.
_PYTEST = ("-p", "no:cacheprovider", "-p", "no:xdist", "-W", "ignore::pytest.PytestAssertRewriteWarning", "--tb=line")
_LIST_LIBRARIES = """
import pytest, sys
code = pytest.main(sys.argv[1:])
print(*sys.modules, sep="\\n", file=sys.stderr)
sys.exit(code)
"""


class Copy:
    """A copy of the tree, with room for what its tests leave behind."""

    def __init__(self, folder: Path, original: Path = ROOT) -> None:
        self.root = folder / "tree"
        self.log = folder / "log"
        self.temporary = folder / "t"
        if original != ROOT:
            shutil.copytree(original, self.root)
            return
        for path in all_files():
            (self.root / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / path, self.root / path)

    def import_libraries(self) -> None:
        """Import here what the tests would import, but for our own code; the copy gets compiled files by that."""
        command = [sys.executable, "-c", _LIST_LIBRARIES, "-qq", "--collect-only", *_PYTEST, *TESTS]
        done = subprocess.run(command, cwd=self.root, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"the tests cannot be collected:\n{done.stdout[-2000:]}")
        for name in done.stderr.splitlines():
            if name.partition(".")[0] not in (*OURS, "__main__", "antigravity", "this"):
                with contextlib.suppress(Exception):  # Parts that only others may import.
                    importlib.import_module(name)

    @contextlib.contextmanager
    def changed(self, path: str, text: str) -> Iterator[None]:
        """Have one file say something else."""
        file = self.root / path
        before, stat = file.read_bytes(), file.stat()
        file.write_text(text, encoding="utf-8")
        try:
            yield
        finally:
            file.write_bytes(before)
            os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # The compiled file is of this time.


class Run:
    """One run of pytest in a copy. ``plugin`` says there which tests run, and may return something to do at the end."""

    def __init__(self, copy: Copy, files: list[str], plugin: Callable[[], object], limit_s: float, *options: str) -> None:
        self._deadline = time.monotonic() + limit_s
        self.copy = copy
        self._code: int | None = None
        shutil.rmtree(copy.temporary, ignore_errors=True)
        copy.temporary.mkdir(parents=True)
        sys.stdout.flush()
        self._pid = os.fork()
        if self._pid == 0:
            _be_child(copy, files, plugin, options)

    def poll(self) -> int | None:
        """Return pytest's exit code, below 0 where the run took too long or broke off; None where it runs on."""
        if self._code is None:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            if pid == 0 and time.monotonic() < self._deadline:
                return None
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._pid, signal.SIGKILL)  # And what it left running.
            if pid == 0:
                _, status = os.waitpid(self._pid, 0)
            self._code = os.waitstatus_to_exitcode(status)
            shutil.rmtree(self.copy.temporary, ignore_errors=True)
        return self._code


def _be_child(copy: Copy, files: list[str], plugin: Callable[[], object], options: tuple[str, ...]) -> None:
    code = NOT_RUN
    try:
        os.setsid()
        die_with_parent()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with copy.log.open("wb") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        os.chdir(copy.root)
        os.environ |= {"TMPDIR": str(copy.temporary), "PYTHONDONTWRITEBYTECODE": "1", "HYPOTHESIS_EXAMPLES": "100"}
        tempfile.tempdir = None
        sys.dont_write_bytecode = True
        sys.path[:] = [str(copy.root), *(path for path in sys.path if path not in ("", str(ROOT)))]
        own = plugin()
        for name in list(sys.modules):
            if name.partition(".")[0] in OURS:
                del sys.modules[name]  # Those of the tree itself.
        importlib.invalidate_caches()
        code = int(pytest.main([*_PYTEST, *options, *files], plugins=[own]))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)
