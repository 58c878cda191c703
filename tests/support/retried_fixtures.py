"""A pytest plugin: a fixture of many tests that failed once is set up again for the next, and does not fail them all.

Left alone, pytest keeps what a session's or a module's fixture raised: one slow start on a busy machine would be as many errors
as there are tests behind it. A fixture that fails again and again is left failed, so that no run waits for it each time.
"""

import collections
from collections.abc import Generator
from typing import Any

import pytest

SETUPS_MAX = 3

_failures: collections.Counter[pytest.FixtureDef[Any]] = collections.Counter()


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any], request: Any) -> Generator[None, Any, Any]:
    try:
        return (yield)
    except Exception:  # Not a skip, which is no failure and would be the same again.
        _failures[fixturedef] += 1
        if _failures[fixturedef] < SETUPS_MAX:
            fixturedef.finish(request)  # Forgets what was raised.
        raise
