"""Which files are mutated?

The core: what queues, stores, relays and counts. A pattern that matches nothing is an error, so that a file which moves is not
left out unseen.
"""

import subprocess
from fnmatch import fnmatch
from pathlib import Path

from tests.mutants import lua_mutants, python_mutants
from tests.mutants.mutant import Mutant

ROOT = Path(__file__).resolve().parents[2]
PATTERNS = (
    "api/auth/permissions.py",
    "api/intake/accepted.py",
    "api/intake/charges.py",
    "api/relay/*.py",
    "common/channel/*.py",
    "common/limits/*.py",
    "common/metering/pricing.py",
    "common/queue/*.py",
    "common/sse.py",
    "workers/attempt/*.py",
    "workers/continuation/*.py",
    "workers/ledger/collector.py",
    "workers/publish/*.py",
    "workers/transcode/continuing.py",
    "workers/transcode/pumps.py",
    "workers/transcode/splice.py",
    "*.lua",
)


def all_files() -> list[str]:
    """Return the files of the working tree that git knows or would add."""
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\n")
    return sorted(path for path in listed if (ROOT / path).is_file())


def core_files() -> list[str]:
    """Return the paths of the core's files, relative to the repository.

    Raises:
        LookupError: a pattern matches no file.
    """
    files = all_files()
    for pattern in PATTERNS:
        if not any(fnmatch(path, pattern) for path in files):
            raise LookupError(f"no file matches {pattern}: say in tests/mutants/core.py where it is now")
    return [path for path in files if any(fnmatch(path, pattern) for pattern in PATTERNS)]


def mutants_of_core() -> list[Mutant]:
    """Return every mutant that there can be."""
    makers = {".py": python_mutants.mutants_of, ".lua": lua_mutants.mutants_of}
    return [
        mutant for path in core_files() for mutant in makers[Path(path).suffix](path, (ROOT / path).read_text(encoding="utf-8"))
    ]
