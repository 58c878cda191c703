from collections.abc import Iterator

import pytest

from tests.support.fleet import Fleet, fleet


@pytest.fixture(scope="package")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """One API and two workers for all tests that break nothing."""
    with fleet(tmp_path_factory.mktemp("shared"), workers=2) as found:
        yield found
