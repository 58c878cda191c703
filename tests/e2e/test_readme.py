"""Every example of the README, run as it stands, but for the address and the key."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from demo_provider.script import answer
from tests.support.fleet import KEY, Fleet

README = (Path(__file__).parents[2] / "README.md").read_text()
EXAMPLES = re.findall(r"```(bash|python)\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize(("language", "code"), EXAMPLES, ids=[code.split()[-1][:20] for _, code in EXAMPLES])
def test_the_example_runs_and_gets_the_whole_answer(shared: Fleet, tmp_path: Path, language: str, code: str):
    code = code.replace("http://127.0.0.1:8080", shared.url).replace("sk-demo", KEY)
    program = ["bash", "-euo", "pipefail", "-c"] if language == "bash" else [sys.executable, "-c"]
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "ANTHROPIC_"))}

    done = subprocess.run([*program, code], cwd=tmp_path, env=clean, capture_output=True, text=True, timeout=120)

    assert done.returncode == 0, done.stderr
    words = answer(None).split()
    assert words[-1] in done.stdout
    if language == "python":
        assert done.stdout.rstrip("\n") == answer(None)
    elif "DELETE" in code:
        assert '"status":"completed"' in done.stdout
    else:
        assert any(end in done.stdout for end in ("[DONE]", "message_stop", "response.completed", "event: done"))


def test_there_is_an_example_for_each_dialect_and_kind_of_client():
    text = " ".join(code for _, code in EXAMPLES)

    for needed in (
        "/v1/chat/completions",
        "/v1/messages",
        "from openai",
        "from anthropic",
        "/v1/generations/",
        "/v1/responses",
        "/api/",
        "/v1/chat?",
    ):
        assert needed in text
