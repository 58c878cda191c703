"""The examples of docs/caching.md, run as they stand, but for the address and the key."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from common.config.settings import Settings
from tests.support.clients.ledger_rows import rows
from tests.support.fleet import CHAT, KEY, ROOT, Fleet, body_of, fleet, until

PAGE = (ROOT / "docs" / "caching.md").read_text()
(CURL,) = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
RULES, ONE_MODEL = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = [line.split("#")[0].split() for line in re.findall(r"^    (sluice (?:cache|usage) .*)$", PAGE, re.MULTILINE)]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    values = {
        name: json.dumps(value) if isinstance(value, dict) else str(value) for name, value in yaml.safe_load(RULES).items()
    }
    settings = {f"SLUICE_{name.upper()}": value for name, value in values.items()}
    with fleet(tmp_path_factory.mktemp("gateway"), SLUICE_DEFAULT_PROVIDER="demo", **settings) as found:
        yield found


def test_one_model_is_cached_for_two_tenants():
    assert Settings(**yaml.safe_load(ONE_MODEL)).tenants["globex"].cache.models == ("faq",)


def test_the_second_answer_comes_from_the_cache(gateway: Fleet):
    command = CURL.replace("http://127.0.0.1:8080", gateway.url).replace("sk-demo", KEY)

    answers = []
    for _ in range(2):
        done = subprocess.run(["bash", "-eu", "-c", command], capture_output=True, text=True, timeout=60, check=True)
        answers.append(done.stdout)
        until(lambda: not gateway.running(), "it is stored")

    assert "x-sluice-cache: miss" in answers[0], answers[0]
    assert re.search(r"x-sluice-cache: hit.*age: \d+|age: \d+.*x-sluice-cache: hit", answers[1], re.DOTALL), answers[1]
    assert gateway.stats()["requests"] == 1


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_command_does_what_the_page_says(gateway: Fleet, tmp_path: Path, command: list[str]):
    gateway.post(CHAT, body_of(CHAT, "demo-n1"))
    until(lambda: rows(gateway), "its usage is written")
    env = {**os.environ, **gateway.env(), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "cli.main", *command[1:]], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60
    )

    assert done.returncode == 0, done.stderr
    words = {"stats": "Answers in the cache", "clear": "answers removed", "--by": "cache"}
    assert next(word for name, word in words.items() if name in command) in done.stdout
