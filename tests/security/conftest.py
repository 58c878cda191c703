from collections.abc import Iterator

import pytest

from tests.support.fleet import Fleet, fleet

SECRET = "a-secret-of-these-tests-0123456789"


@pytest.fixture(scope="package")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """One API and one worker for all tests of this folder that break nothing."""
    with fleet(tmp_path_factory.mktemp("shared"), SLUICE_SECRET=SECRET, SLUICE_REFUSED_CREDENTIALS_MAX="0") as found:
        yield found
