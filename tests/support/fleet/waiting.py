"""Waiting for an expected event. A test fails only after minutes, because the machine may be busy and no test measures time."""

import time
from typing import Any

import httpx

WAIT_S = 120


def is_ok(url: str) -> bool:
    try:
        return httpx.get(url, timeout=10).status_code == 200
    except httpx.HTTPError:
        return False


def until(condition: Any, description: str, within_s: float = WAIT_S) -> Any:
    """Return the value of ``condition()`` as soon as it is true; fail if that does not happen in time."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError(f"not within {within_s} s: {description}")
