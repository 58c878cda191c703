"""Where do packages from npm come from? ``npm install`` puts the versions of a package.json into a folder of the tree, once."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.fleet import ROOT

_INSTALL_S = 900


def node_packages(packages: Path, folder: str) -> Path:
    """Return the folder, with ``packages``, a package.json, and what it names. Skips the test if npm cannot install that."""
    target = ROOT / folder
    installed = target / "installed.json"
    if installed.is_file() and installed.read_bytes() == packages.read_bytes():
        return target
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("no npm: install Node 20 or newer, with npm")
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    shutil.copy(packages, target)
    installing = [npm, "install", "--no-audit", "--no-fund", "--no-package-lock", "--loglevel=error"]
    done = subprocess.run(installing, cwd=target, capture_output=True, text=True, timeout=_INSTALL_S)
    if done.returncode:
        pytest.skip(f"npm cannot install what {packages.relative_to(ROOT)} names: {done.stderr.strip()[-300:]}")
    shutil.copy(packages, installed)
    return target
