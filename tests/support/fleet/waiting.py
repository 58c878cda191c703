"""Whatever must happen is waited for, and fails a test only after minutes: a machine may be busy, and no test is timed."""

import time
from typing import Any

import httpx

WAIT_S = 120


def is_ok(url: str) -> bool:
    try:
        return httpx.get(url, timeout=10).status_code == 200
    except httpx.HTTPError:
        return False


def until(holds: Any, what: str, within_s: float = WAIT_S) -> Any:
    """Return what ``holds()`` says as soon as it is true; fail where it never is."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if found := holds():
            return found
        time.sleep(0.02)
    raise AssertionError(f"not within {within_s} s: {what}")
