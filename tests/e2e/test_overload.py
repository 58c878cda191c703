"""What do clients meet where more is asked for than is served? Real processes, and a worker with one slot."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.support.fleet import CHAT, KEY, OTHER_KEY, PATH_OF, Fleet, body_of, fleet, headers_of, until

SLOW = "demo-n20-d20"  # Under half a second: two or three a second with one slot.
WAITING = 60


@pytest.fixture
def narrow(tmp_path: Path) -> Iterator[Fleet]:
    settings = {"SLUICE_WORKER_SLOTS": "1", "SLUICE_QUEUE_WAIT_S": "8", "SLUICE_SECRET": "s" * 32}
    with fleet(tmp_path, **settings) as found:
        yield found


def ask(found: Fleet, key: str = KEY, **headers: str) -> httpx.Response:
    url = f"http://127.0.0.1:{found.ports[0]}{PATH_OF[CHAT]}"
    return httpx.post(url, json=body_of(CHAT, SLOW), headers={**headers_of(key), **headers}, timeout=120)


def test_a_line_that_is_too_long_refuses_at_once_who_would_stand_at_its_end_and_nobody_else(narrow: Fleet):
    with ThreadPoolExecutor(WAITING + 1) as pool:
        first = [pool.submit(ask, narrow) for _ in range(WAITING)]
        refused = until(lambda: _refusal(narrow), "a line of more than 8 s is known to be one")
        other = pool.submit(ask, narrow, OTHER_KEY)
        background = httpx.post(
            f"http://127.0.0.1:{narrow.ports[0]}/v1/generations", json=body_of(CHAT, SLOW), headers=headers_of(KEY), timeout=120
        )
        health = httpx.get(f"http://127.0.0.1:{narrow.ports[0]}/health", timeout=120).json()
        readiness = httpx.get(f"http://127.0.0.1:{narrow.ports[0]}/readyz", timeout=120)
        statuses = {each.result().status_code for each in first}

    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "overloaded"
    assert 1 <= int(refused.headers["retry-after"]) <= 30
    assert other.result().status_code == 200
    assert background.status_code == 202
    assert (health["status"], health["load"]["is_overloaded"], health["load"]["reasons"]) == ("healthy", True, ["wait"])
    assert readiness.status_code == 200
    assert statuses <= {200, 503, 504}
    until(lambda: ask(narrow).status_code == 200, "the line is short again")


def _refusal(found: Fleet) -> httpx.Response | None:
    """Ask with a patience that ends before a request would have been served; returns its refusal, if it was refused."""
    try:
        url = f"http://127.0.0.1:{found.ports[0]}{PATH_OF[CHAT]}"
        answer = httpx.post(url, json=body_of(CHAT, SLOW), headers=headers_of(KEY), timeout=1)
    except httpx.TimeoutException:
        return None
    return answer if answer.status_code == 503 else None
