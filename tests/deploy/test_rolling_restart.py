"""Does a rolling restart of every process lose a stream? The real nginx before two APIs, with two workers, under load."""

import shutil
import signal
import threading
import time
from pathlib import Path

import httpx
import orjson
import pytest

from demo_provider.script import answer
from tests.support.fleet import KEY, Api, Fleet, Worker, fleet, sse_events, until
from tests.support.servers import nginx

pytestmark = [
    pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed"),
    pytest.mark.timeout(600),
]

AUTH = {"authorization": f"Bearer {KEY}"}
LONG, SHORT = 400, 25  # Tokens of 20 ms: longer than an API's grace, and much shorter.
GRACES = {"SLUICE_API_DRAIN_S": "4", "SLUICE_WORKER_DRAIN_S": "30"}


class Caller(threading.Thread):
    """Asks again and again until told to stop; ``problems`` is what was not as it must be, ``done`` what was."""

    def __init__(self, address: str, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self.problems: list[str] = []
        self.done = 0
        self._stop_asking = stop
        self._client = httpx.Client(base_url=address, headers=AUTH, timeout=120)
        self.start()

    def run(self) -> None:
        with self._client:
            while not self._stop_asking.is_set():
                try:
                    self.ask()
                except Exception as error:
                    self.problems.append(f"{type(error).__name__}: {error}")

    def ask(self) -> None:
        raise NotImplementedError

    def body(self, count: int) -> dict[str, object]:
        return {"model": f"demo-n{count}-d20", "stream": True, "messages": [{"role": "user", "content": "hi"}]}

    def check(self, text: str, expected: str) -> None:
        if text == expected:
            self.done += 1
        else:
            self.problems.append(f"{len(text)} of {len(expected)} characters, at the end {text[-40:]!r}")


class Plain(Caller):
    """A client that knows nothing of resuming; like the SDKs it sends a request again that was refused with 503."""

    def ask(self) -> None:
        response = self._client.post("/v1/chat/completions", json=self.body(SHORT))
        if response.status_code == 503:
            time.sleep(0.5)
        else:
            self.check(text_of(response.text), answer(SHORT) if response.text.endswith("data: [DONE]\n\n") else "")


class Resuming(Caller):
    """A client that comes back with its cursor until it has seen the end."""

    def ask(self) -> None:
        generation, received = None, ""
        for _ in range(100):
            before = received
            try:
                with self._open(generation, received) as response:
                    if response.status_code == 503:
                        time.sleep(0.2)
                        continue
                    if response.status_code != 200:
                        raise AssertionError(f"{response.status_code} after {len(received)} characters")
                    generation = response.headers["x-generation-id"]
                    for piece in response.iter_text():
                        received += piece
            except httpx.TransportError:
                pass  # A cut connection is one of the ways in which it has to come back.
            received = whole_events(received, before)
            if received.endswith("data: [DONE]\n\n"):
                break
        self.check(text_of(received), answer(LONG))

    def _open(self, generation: str | None, received: str):  # httpx's own type of a stream.
        if generation is None:
            return self._client.stream(
                "POST", "/v1/chat/completions", json=self.body(LONG), headers={"x-disconnect": "grace=60"}
            )
        ids = [event.id for event in sse_events(received) if event.id]
        headers = {"last-event-id": ids[-1]} if ids else {}
        return self._client.stream("GET", f"/v1/generations/{generation}", headers=headers)


def whole_events(received: str, before: str) -> str:
    """Drop what is half an event, and a last word about the restart: it has no id, for it is no part of the answer."""
    received = received[: received.rfind("\n\n") + 2] if "\n\n" in received else ""
    head, _, last = received.removesuffix("\n\n").rpartition("\n\n")
    return head + "\n\n" if '"gateway_restarting"' in last else max(received, before, key=len)


def text_of(received: str) -> str:
    events = [orjson.loads(event.data) for event in sse_events(received) if event.data.startswith("{")]
    return "".join(c["delta"].get("content") or "" for event in events for c in event.get("choices", []))


def restart(found: Fleet, processes: list[Api] | list[Worker], index: int) -> None:
    """Stop one process as an orchestrator does, and start it again where it was."""
    before = processes[index]
    before.send(signal.SIGTERM)
    assert before.wait(120) == 0
    before.stop()  # Closes what it wrote to.
    processes[index] = type(before)(f"{before.log.stem}-again", found.folder, found.env(), before.port)
    until(processes[index].is_ready, f"{before.log.stem} is ready again")
    time.sleep(2.5)  # nginx leaves a server alone for 2 s after it found it gone.


def test_a_rolling_restart_of_every_process_loses_no_stream(tmp_path: Path):
    with fleet(tmp_path, apis=2, workers=2, **GRACES) as found, nginx.running(tmp_path, found.ports) as front:
        stop = threading.Event()
        callers: list[Caller] = [Plain(front, stop) for _ in range(4)] + [Resuming(front, stop) for _ in range(6)]
        until(lambda: found.stats()["open"] >= 8, "there is load")

        for processes in (found.workers, found.apis):
            for index in range(2):
                restart(found, processes, index)
        stop.set()
        for caller in callers:
            caller.join(60)

        assert [caller.problems for caller in callers] == [[]] * len(callers)
        assert all(caller.done for caller in callers)
        until(lambda: found.stats()["open"] == found.running() == found.waiting() == 0, "nothing is left")
