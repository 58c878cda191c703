"""What do the vendors' own Node SDKs get from Sluice? The scenarios are in node_sdks/session.mjs.

The SDKs come from npm, once, into the folder ``.node-sdks``.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from demo_provider.script import answer
from tests.support.fleet import KEY, ROOT, Fleet

pytestmark = pytest.mark.long

SOURCES = Path(__file__).parent / "node_sdks"
FOLDER = ROOT / ".node-sdks"
INSTALL_S, SESSION_S = 300, 120
# What each SDK calls the end of an answer, and what it throws when a stream breaks.
END = {"chat": "stop", "responses": "completed", "messages": "end_turn"}
FAILED = {"chat": "APIError", "responses": "EvalError", "messages": "APIError"}


@pytest.fixture(scope="module")
def node() -> str:
    """Return the node command, with the SDKs and the session in ``FOLDER``."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("no npm: install Node 20 or newer, with npm")
    FOLDER.mkdir(exist_ok=True)
    packages, installed = SOURCES / "package.json", FOLDER / "installed.json"
    if not installed.is_file() or installed.read_bytes() != packages.read_bytes():
        shutil.copy(packages, FOLDER)
        installing = [npm, "install", "--no-audit", "--no-fund", "--no-package-lock", "--loglevel=error"]
        done = subprocess.run(installing, cwd=FOLDER, capture_output=True, text=True, timeout=INSTALL_S)
        if done.returncode:
            pytest.skip(f"npm cannot install the SDKs: {done.stderr.strip()[-300:]}")
        shutil.copy(packages, installed)
    shutil.copy(SOURCES / "session.mjs", FOLDER)
    return node


@pytest.mark.parametrize("provider", ["openai", "anthropic", "gemini", "cohere"])
def test_every_scenario_of_the_node_sdks(shared: Fleet, node: str, provider: str) -> None:
    variables = {**os.environ, "SLUICE_URL": shared.url, "SLUICE_KEY": KEY, "PROVIDER": provider}

    ran = subprocess.run([node, "session.mjs"], cwd=FOLDER, env=variables, capture_output=True, text=True, timeout=SESSION_S)

    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout) == {name: result for dialect in END for name, result in expected(dialect).items()}


def expected(dialect: str) -> dict[str, Any]:
    whole = {"text": answer(5), "end": END[dialect], "tokens": 5}
    results: dict[str, Any] = {
        "whole": whole,
        "stream": whole,
        "tools": {"arguments": {"city": "Zürich"}, "text": "The tool answered: 18 degrees"},
        "schema": {"city": "Zürich"},
        "error": {"kind": "RateLimitError", "status": 429},
        "broken stream": {"text": answer(10), "failed": FAILED[dialect]},
    }
    if dialect != "responses":
        results["media"] = answer(3)
    return {f"{dialect} {name}": result for name, result in results.items()}
