"""Every shell example of docs/resuming.md, run as it stands, but for the address and the key."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from demo_provider.script import answer
from tests.support.fleet import KEY, Fleet, fleet, sse_events

PAGE = (Path(__file__).parents[2] / "docs" / "resuming.md").read_text()
RESUMED, STARTED, RETRIED = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    settings = {"SLUICE_SECRET": "a secret of these tests, 32 bytes or more", "SLUICE_DEFAULT_PROVIDER": "demo"}
    with fleet(tmp_path_factory.mktemp("gateway"), **settings) as found:
        yield found


def run(found: Fleet, tmp_path: Path, code: str) -> str:
    code = code.replace("http://127.0.0.1:8080", found.url).replace("sk-demo", KEY)
    done = subprocess.run(["bash", "-eu", "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_stream_is_left_and_resumed(gateway: Fleet, tmp_path: Path):
    events = sse_events(run(gateway, tmp_path, RESUMED))

    assert events[-1].data == "[DONE]"
    ids = [event.id for event in events]
    resumed = events[ids.index("1-2.1") + 1 :]  # The first client saw so much, or a little more.
    once = {event.id: event for event in resumed if event.data != "[DONE]"}
    assert len({ids.count(event_id) for event_id in ids}) == 2  # Some came to both clients.
    text = "".join(c["delta"].get("content") or "" for e in once.values() for c in e.fields["choices"])
    assert answer(40).endswith(text)


def test_one_is_started_read_asked_about_listed_and_stopped(gateway: Fleet, tmp_path: Path):
    said = run(gateway, tmp_path, STARTED)

    assert "message_stop" in said
    record, rest = said.rpartition("\n\n")[2].split('{"object":"list"')
    assert orjson.loads(record)["text"] == answer(40)
    assert '"stopped":false' in rest


def test_a_retry_costs_nothing(gateway: Fleet, tmp_path: Path):
    gateway.reset_demo()

    first, second = run(gateway, tmp_path, RETRIED).split("}{")

    assert first.partition('"id"')[2] == second.partition('"id"')[2].removesuffix("}")
    assert answer(5) in first
    assert gateway.stats()["requests"] == 1
