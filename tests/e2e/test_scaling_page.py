"""Does Redis have to do what docs/scaling.md says? Its own counters are compared with the page's table."""

import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pytest

from tests.support.fleet import CHAT, ROOT, Fleet, body_of, fleet, until

PAGE = (ROOT / "docs" / "scaling.md").read_text()
REQUESTS = 60
STREAMS, FEW, MANY = 16, 10, 60  # At once; frames of each.
PACE_MS = 60  # Longer than a frame waits for a second token.
IDLE_S = 4.0
MORE, LESS = 1.15, 0.8  # A measured figure may be so many times the page's.


class Work(NamedTuple):
    """What Redis did: script calls, and bytes over its network."""

    calls: float
    received: float
    sent: float

    def minus(self, other: "Work", times: float = 1.0) -> "Work":
        return Work(*(own - others * times for own, others in zip(self, other, strict=True)))

    def over(self, count: float) -> "Work":
        return Work(*(own / count for own in self))


ROWS = {
    name.split(" ")[1]: Work(*(float(cell.replace(",", "")) for cell in cells.split(" | ")))
    for name, cells in re.findall(r"^\| (a .+?) \| ([\d,.| ]+) \|$", PAGE, re.MULTILINE)
}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with fleet(tmp_path_factory.mktemp("scaling")) as started:
        started.post(CHAT, body_of(CHAT, "demo-n1-d0"))
        yield started


@pytest.fixture(scope="module")
def idle(gateway: Fleet) -> Work:
    """What Redis does in a second in which nobody asks for anything."""
    before, began = counted(gateway), time.monotonic()
    time.sleep(IDLE_S)
    return counted(gateway).minus(before).over(time.monotonic() - began)


def counted(gateway: Fleet) -> Work:
    until(lambda: not gateway.running() and not gateway.redis.llen("sluice:q:ended"), "all is over and in the ledger")
    stats = gateway.redis.info("stats")
    calls = gateway.redis.info("commandstats")["cmdstat_evalsha"]["calls"]
    return Work(calls, stats["total_net_input_bytes"], stats["total_net_output_bytes"])


def cost_of(gateway: Fleet, act: Callable[[], object], idle: Work) -> Work:
    """Return what Redis did for this, without what it does anyway."""
    before, began = counted(gateway), time.monotonic()
    act()
    return counted(gateway).minus(before).minus(idle, time.monotonic() - began)


def is_as_the_page_says(measured: Work, row: str) -> bool:
    return all(LESS * stated <= value <= MORE * stated for value, stated in zip(measured, ROWS[row], strict=True))


def test_the_page_has_these_figures():
    assert ROWS.keys() == {"small", "frame"}


def test_a_small_request(gateway: Fleet, idle: Work):
    def send() -> None:
        for _ in range(REQUESTS):
            assert gateway.post(CHAT, body_of(CHAT, "demo-n20-d0", stream=False)).status_code == 200

    measured = cost_of(gateway, send, idle).over(REQUESTS)

    assert is_as_the_page_says(measured, "small"), measured


def test_a_frame(gateway: Fleet, idle: Work):
    def stream(tokens: int) -> Work:
        body = body_of(CHAT, f"demo-n{tokens}-d{PACE_MS}", stream=True)

        def read_all() -> None:
            with ThreadPoolExecutor(STREAMS) as threads:
                assert {answer.status_code for answer in threads.map(lambda _: gateway.post(CHAT, body), range(STREAMS))} == {
                    200
                }

        return cost_of(gateway, read_all, idle).over(STREAMS)

    measured = stream(MANY).minus(stream(FEW)).over(MANY - FEW)

    assert is_as_the_page_says(measured, "frame"), measured
