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
from tests.support.node_packages import node_packages

pytestmark = pytest.mark.long

SOURCES = Path(__file__).parent / "node_sdks"
FOLDER = ROOT / ".node-sdks"
SESSION_S = 120
# What each SDK calls the end of an answer, and what it throws when a stream breaks.
END = {"chat": "stop", "responses": "completed", "messages": "end_turn"}
FAILED = {"chat": "APIError", "responses": "EvalError", "messages": "APIError"}


@pytest.fixture(scope="module")
def node() -> str:
    """Return the node command, with the SDKs and the session in ``FOLDER``."""
    shutil.copy(SOURCES / "session.mjs", node_packages(SOURCES / "package.json", FOLDER.name))
    return "node"


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
