"""Do the Python lines of docs/clients.md run as they stand there?"""

import re
import subprocess
import sys
from importlib.util import find_spec

import pytest

from demo_provider.script import answer
from tests.support.fleet import KEY, ROOT, Fleet

BLOCKS = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "clients.md").read_text(), re.MULTILINE | re.DOTALL)
# What a block needs: the first word of each of its imports.
NEEDS = [sorted(set(re.findall(r"^(?:import|from) (\w+)", block, re.MULTILINE))) for block in BLOCKS]


@pytest.mark.parametrize(("block", "needs"), list(zip(BLOCKS, NEEDS, strict=True)), ids=["-".join(needs) for needs in NEEDS])
def test_the_lines_for_a_client_print_its_answers(shared: Fleet, block: str, needs: list[str]):
    missing = [name for name in needs if find_spec(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} is not installed")
    lines = block.replace("http://127.0.0.1:8080", shared.url).replace("sk-demo", KEY)

    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, timeout=120)

    assert (done.returncode, done.stdout) == (0, f"{answer()}\n" * block.count("print(")), done.stderr
