"""A pytest plugin: if the setup of a shared fixture fails once, it is tried again for the next test.

By default pytest keeps the exception of a session's or a module's fixture. One slow start on a busy machine would then fail
every test that uses the fixture. A fixture that fails repeatedly stays failed, so that no run waits for it each time.
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
    except Exception:  # A skip is not caught here: it is no failure, and would happen again.
        _failures[fixturedef] += 1
        if _failures[fixturedef] < SETUPS_MAX:
            fixturedef.finish(request)  # Forgets the exception.
        raise
