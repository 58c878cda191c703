"""Large requests on a running gateway: refused while there is no room, served when there is, and everything is given back."""

import sys
from pathlib import Path

import orjson
import pytest

from tests.support.fleet import CHAT, MESSAGES, PATH_OF, Process, RawClient, body_of, fleet, headers_of, until

MIB = 2**20


def prompt(size: int) -> bytes:
    return orjson.dumps(body_of(CHAT, "demo-n2-d0", text="x" * size))


def test_what_does_not_fit_is_told_to_come_back_and_does(tmp_path: Path):
    large = prompt(3 * MIB)
    with fleet(tmp_path, SLUICE_BODIES_BYTES_MAX=str(4 * MIB), SLUICE_BODY_BYTES_MAX=str(4 * MIB)) as found:
        url = found.url + PATH_OF[CHAT]
        headers = headers_of(content_type="application/json")
        with RawClient(found.ports[0]) as slow:
            slow.send("POST", PATH_OF[CHAT], {**headers, "content-length": str(len(large))}, large[:MIB])
            until(lambda: found.metrics(found.ports[0])["sluice_body_bytes"] == len(large), "its place is taken")

            refused = found.client.post(url, content=prompt(2 * MIB), headers=headers)
            small = found.client.post(url, content=prompt(1000), headers=headers)
            slow.send_bytes(large[MIB:])
            slow.read_until(b'"finish_reason"')

        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "bodies_full")
        assert 1 <= int(refused.headers["retry-after"]) <= 5
        assert small.status_code == 200
        assert slow.received.startswith(b"HTTP/1.1 200")
        assert found.client.post(url, content=prompt(2 * MIB), headers=headers).status_code == 200
        assert found.metrics(found.ports[0])["sluice_body_bytes"] == 0
        assert found.metrics(found.ports[0])['sluice_refusals_total{limit="bodies"}'] == 1


def test_an_answer_that_is_too_large_ends_for_its_client_with_the_reason(tmp_path: Path):
    with fleet(tmp_path, SLUICE_ANSWER_BYTES_MAX=str(MIB)) as found:
        streamed = found.post(CHAT, body_of(CHAT, "demo-n20000-d0", stream=True))
        whole = found.post(CHAT, body_of(CHAT, "demo-n200000-d0"))

        assert (streamed.status_code, whole.status_code) == (200, 413)
        assert "answer_too_large" in streamed.text[-500:]
        assert "[DONE]" not in streamed.text
        assert whole.json()["error"]["code"] == "answer_too_large"
        until(lambda: found.stats()["open"] == 0, "the upstreams are closed")


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux' own account of a process")
@pytest.mark.parametrize("dialect", [CHAT, MESSAGES])  # A body that passes, and a stream of tokens that is folded.
def test_a_whole_answer_that_is_large_costs_a_few_times_its_size_at_most(tmp_path: Path, dialect: str):
    with fleet(tmp_path) as found:
        found.post(dialect, body_of(dialect, "openai/demo-n20-d0"))
        parts = {"api": found.apis[0], "worker": found.workers[0]}
        before = {name: peak_of(process) for name, process in parts.items()}

        whole = found.post(dialect, body_of(dialect, "openai/demo-n1000000-d0", max_tokens=2_000_000))

        size = len(whole.content)
        assert (whole.status_code, size > 5 * MIB) == (200, True)
        grown = {name: peak_of(process) - before[name] for name, process in parts.items()}
        assert grown["api"] < 2 * size + 4 * MIB, (size, grown)
        # The answer has an emoji, so that Python's own text of it has four bytes a character.
        assert grown["worker"] < 9 * size + 8 * MIB, (size, grown)


def peak_of(process: Process) -> int:
    """Bytes that a process has had resident at most."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
