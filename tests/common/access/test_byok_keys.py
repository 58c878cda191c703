from typing import Any

import pytest
from pydantic import SecretStr

from common.access.byok_keys import open_byok_key, seal_byok_key
from common.canonical.errors import ErrorKind, GatewayError
from common.canonical.job import Job, Policy
from common.config.settings import Settings

SETTINGS = Settings(secret=SecretStr("a long random text of 32 bytes or more"))
KEY = SecretStr("sk-theirs-canary")


def job(sealed: str | None, **changed: Any) -> Job:
    fields = {"generation_id": "gen_1", "request_id": "r", "dialect": "openai-chat", "model": "m", "stream": True}
    return Job(**{**fields, "policy": Policy.STOP, "grace_s": 0.0, "created_s": 1, **changed}, brought_key=sealed)


def opened(job: Job, settings: Settings) -> str | None:
    return open_byok_key(job.brought_key, job.generation_id, settings.secrets)


def test_a_key_comes_out_as_it_went_in_and_is_unreadable_between():
    sealed = seal_byok_key(KEY, "gen_1", SETTINGS.secret)
    stored = job(sealed).pack()

    assert b"canary" not in stored
    assert sealed != seal_byok_key(KEY, "gen_1", SETTINGS.secret)  # Nor can two jobs be seen to have the same.
    assert opened(Job.unpack(stored), SETTINGS) == "sk-theirs-canary"
    assert sealed not in repr(job(sealed))


def test_no_key_is_none():
    assert opened(job(None), SETTINGS) is None
    assert opened(job(None), Settings(secret=None)) is None


def test_without_a_secret_the_request_is_told_which_setting_is_missing():
    with pytest.raises(GatewayError, match="SLUICE_SECRET") as caught:
        seal_byok_key(KEY, "gen_1", None)

    assert caught.value.failed.kind is ErrorKind.INVALID_REQUEST


@pytest.mark.parametrize(
    ("changed", "settings"),
    [
        ({}, Settings(secret=SecretStr("another long random text, of 32 bytes too"))),
        ({}, Settings(secret=None)),
        ({"generation_id": "gen_2"}, SETTINGS),
        ({"brought": "tampered"}, SETTINGS),
    ],
)
def test_with_another_secret_or_in_another_job_it_cannot_be_read(changed, settings):
    sealed = seal_byok_key(KEY, "gen_1", SETTINGS.secret)
    if changed.pop("brought", None):
        sealed = sealed[:-8] + "AAAAAAA="

    with pytest.raises(GatewayError) as caught:
        opened(job(sealed, **changed), settings)

    assert (caught.value.failed.kind, caught.value.failed.code) == (ErrorKind.INTERNAL, "secrets_differ")


def test_a_key_that_was_sealed_before_a_rotation_can_be_opened():
    sealed = seal_byok_key(KEY, "gen_1", SETTINGS.secret)
    rotated = Settings(secret=SecretStr("another long random text, of 32 bytes too"), secret_previous=SETTINGS.secret)

    assert opened(job(sealed), rotated) == "sk-theirs-canary"
