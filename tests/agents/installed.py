"""Where do the agents come from? ``npm install`` puts the versions of package.json into the folder ``.agents`` of the tree."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.fleet import ROOT

_PACKAGES = Path(__file__).with_name("package.json")
_FOLDER = ROOT / ".agents"
_INSTALL_S = 900


def agents_folder() -> Path:
    """Return the folder with the agents' commands. Skips the test if npm is missing or cannot install them."""
    commands, installed = _FOLDER / "node_modules" / ".bin", _FOLDER / "installed.json"
    if installed.is_file() and installed.read_bytes() == _PACKAGES.read_bytes():
        return commands
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("no npm: install Node 20 or newer, with npm")
    shutil.rmtree(_FOLDER, ignore_errors=True)
    _FOLDER.mkdir()
    shutil.copy(_PACKAGES, _FOLDER)
    installing = [npm, "install", "--no-audit", "--no-fund", "--no-package-lock", "--loglevel=error"]
    done = subprocess.run(installing, cwd=_FOLDER, capture_output=True, text=True, timeout=_INSTALL_S)
    if done.returncode:
        pytest.skip(f"npm cannot install the agents: {done.stderr.strip()[-300:]}")
    shutil.copy(_PACKAGES, installed)
    return commands
