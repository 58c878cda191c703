"""Is a key good? Asked of the demo provider on each wire: the key `bad-key` is none."""

from collections.abc import Iterator

import pytest
from click.testing import CliRunner

from cli.doctor.provider_keys import check_keys
from cli.main import main
from common.config.groups.models import ProviderSettings
from common.config.settings import Settings
from demo_provider.server import running
from tests.support.upstreams.answering_server import AnsweringServer, ReceivedRequest, Reply

GOOD = "sk-good-canary-0123456789-wxyz"


@pytest.mark.parametrize(
    ("provider", "path"),
    [("openai", "/v1"), ("anthropic", ""), ("google-ai-studio", ""), ("grok", "/v1"), ("mistral", ""), ("azure-openai", "")],
)
async def test_each_key_is_told_by_itself(provider: str, path: str):
    async with running() as address:
        chosen = ProviderSettings(api_keys=(GOOD, "bad-key"), base_url=address + path)
        found = await check_keys(Settings(providers={provider: chosen}))

    names = [each.key for each in found]
    assert names == [f"{provider}, key 1 of 2 (…wxyz)", f"{provider}, key 2 of 2"]
    is_listed = provider in ("openai", "anthropic", "grok", "mistral")
    assert [each.is_good for each in found] == ([True, False] if is_listed else [None, None])
    assert not any(text in repr(found) for text in (GOOD, "bad-key"))


async def test_a_server_that_needs_no_key_is_not_asked():
    found = await check_keys(Settings(providers={"demo": ProviderSettings(base_url="http://127.0.0.1:9/v1")}))

    assert found == []


async def test_a_provider_that_does_not_answer_tells_nothing_of_its_keys():
    found = await check_keys(
        Settings(providers={"openai": ProviderSettings(api_keys=("k",), base_url="http://127.0.0.1:9/v1")})
    )

    assert [each.is_good for each in found] == [None]


class Answering(AnsweringServer):
    def __init__(self) -> None:
        self.status, self.body = 200, b"{}"
        self.seen: list[ReceivedRequest] = []
        super().__init__()

    def reply(self, request: ReceivedRequest) -> Reply:
        self.seen.append(request)
        return Reply(self.body, self.status, headers={"location": "http://127.0.0.1:9/elsewhere"})


@pytest.fixture
def upstream() -> Iterator[Answering]:
    with Answering() as found:
        yield found


@pytest.mark.parametrize(
    ("status", "body", "is_good"),
    [
        (200, b"{}", True),
        (401, b"{}", False),
        (403, b"{}", False),
        (400, b'{"error": {"message": "API key not valid. Please pass a valid API key."}}', False),
        (400, b"{}", None),
        (404, b"not here", None),
        (429, b"{}", True),
        (503, b"", None),
        (302, b"", None),
    ],
)
async def test_what_a_status_says_of_a_key(upstream: Answering, status: int, body: bytes, is_good: bool | None):
    upstream.status, upstream.body = status, body

    (found,) = await check_keys(
        Settings(providers={"openai": ProviderSettings(api_keys=("k",), base_url=f"{upstream.url}/v1")})
    )

    assert found.is_good is is_good
    assert len(upstream.seen) == 1  # One request, and no redirect followed with the key.


@pytest.mark.parametrize(
    ("provider", "path", "header", "value"),
    [
        ("openai", "/v1/models", "authorization", "Bearer k"),
        ("anthropic", "/v1/models", "x-api-key", "k"),
        ("google-ai-studio", "/v1beta/models", "x-goog-api-key", "k"),
        ("cohere", "/v1/models", "authorization", "Bearer k"),
        ("azure-openai", "/openai/v1/models", "api-key", "k"),
        ("groq", "/openai/v1/models", "authorization", "Bearer k"),
    ],
)
async def test_each_vendor_is_asked_in_its_own_way(upstream: Answering, provider: str, path: str, header: str, value: str):
    base_url = f"{upstream.url}/v1" if provider == "openai" else upstream.url

    await check_keys(Settings(providers={provider: ProviderSettings(api_keys=("k",), base_url=base_url)}))

    (seen,) = upstream.seen
    assert (seen.path, seen.headers[header]) == (path, value)


def test_doctor_tells_of_keys_when_it_is_asked(upstream: Answering, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    upstream.status = 401
    env = {"OPENAI_API_KEY": GOOD, "OPENAI_BASE_URL": f"{upstream.url}/v1", "SLUICE_REDIS_URL": "redis://127.0.0.1:9/0"}

    without, with_keys = (CliRunner().invoke(main, ["doctor", *option], env=env).output for option in ([], ["--keys"]))

    assert "key 1 of 1" not in without
    assert "✗ The provider refuses openai, key 1 of 1 (…wxyz) (status 401)." in with_keys
    assert GOOD not in with_keys
