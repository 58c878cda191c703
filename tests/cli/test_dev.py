from pathlib import Path

import pytest
from pydantic import SecretStr

from cli import dev
from common.settings import Settings


class Redis:
    url = "redis://127.0.0.1:1"
    folder = Path("/nowhere")


@pytest.mark.parametrize("secret", [None, SecretStr("one's own secret, of 32 bytes or more")])
def test_both_tiers_get_one_secret(monkeypatch, secret):
    monkeypatch.setattr(dev.Part, "start", lambda part: None)

    parts = dev._start_parts(Settings(secret=secret), Redis(), workers=2, verbose=False)  # type: ignore[arg-type]  # What it tells is all.

    secrets = {part.env["SLUICE_SECRET"] for part in parts}
    assert len(secrets) == 1
    assert secrets == {secret.get_secret_value()} if secret else len(secrets.pop()) == 64


def test_both_tiers_get_one_database_that_goes_with_the_setup(monkeypatch):
    monkeypatch.setattr(dev.Part, "start", lambda part: None)

    parts = dev._start_parts(Settings(), Redis(), workers=2, verbose=False)  # type: ignore[arg-type]

    assert {part.env["SLUICE_DATABASE_URL"] for part in parts} == {"sqlite:////nowhere/sluice.db"}
