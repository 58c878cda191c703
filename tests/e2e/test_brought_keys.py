"""A provider key that a request brings: used for that request alone, and readable nowhere on the way."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from openai import AuthenticationError, OpenAI

from tests.support.fleet import CHAT, DIALECTS, KEY, Fleet, body_of, fleet, sse_events, until
from tests.support.upstreams.recording_upstream import REFUSED_KEY, RecordingUpstream

BROUGHT = "sk-brought-canary-0123456789"
SECRET = "one long random text, of 32 bytes or more"


@pytest.fixture(scope="module")
def upstream() -> Iterator[RecordingUpstream]:
    with RecordingUpstream() as found:
        yield found


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory, upstream: RecordingUpstream) -> Iterator[Fleet]:
    settings = {
        "SLUICE_SECRET": SECRET,
        "SLUICE_LOG_LEVEL": "debug",
        "OPENAI_BASE_URL": f"{upstream.url}/v1",
        "GROQ_BASE_URL": upstream.url,  # An address and no key: off.
    }
    with fleet(tmp_path_factory.mktemp("keyed"), **settings) as found:
        yield found


class Monitor:
    """Everything that Redis is told while this is open, scripts' arguments included."""

    def __init__(self, url: str) -> None:
        self._client = redis.Redis.from_url(url)
        self._monitor = self._client.monitor()
        self.seen: list[bytes] = []

    def __enter__(self) -> "Monitor":
        self._monitor.__enter__()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()
        return self

    def _listen(self) -> None:
        try:
            while True:
                self.seen.append(self._monitor.connection.read_response())
        except (redis.ConnectionError, OSError, ValueError, AttributeError):
            pass  # Closed.

    def __exit__(self, *_: object) -> None:
        self._monitor.connection.disconnect()
        self._thread.join(5)
        self._client.close()

    @property
    def text(self) -> str:
        return "\n".join(each.decode("utf-8", "replace") if isinstance(each, bytes) else each for each in self.seen)


def stored(fleet: Fleet) -> bytes:
    """All that Redis holds, whatever its type."""
    return b"\n".join(key + (fleet.redis.dump(key) or b"") for key in fleet.redis.keys("*"))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("headers", [{"x_sluice_key": KEY}, {"cf_aig_authorization": f"Bearer {KEY}"}])
def test_the_brought_key_is_used_and_crosses_unreadable(keyed, upstream, stream, headers):
    with Monitor(keyed.redis_server.url) as monitor:
        response = keyed.post(CHAT, body_of(CHAT, "openai/gpt-5", stream=stream), key=BROUGHT, **headers)
        until(lambda: "brought_key" in monitor.text, "the job was seen on its way")
        held = stored(keyed)

    assert response.status_code == 200
    assert upstream.last.headers["authorization"] == f"Bearer {BROUGHT}"
    assert "sluice:q:" in monitor.text
    for place in (monitor.text, held.decode("latin-1"), *(each.log.read_text() for each in [*keyed.apis, *keyed.workers])):
        assert "canary" not in place


def test_a_waiting_job_holds_it_unreadable(tmp_path: Path, upstream: RecordingUpstream):
    with fleet(tmp_path, workers=0, SLUICE_SECRET=SECRET, OPENAI_BASE_URL=f"{upstream.url}/v1") as found:
        answers = []
        asked = threading.Thread(
            target=lambda: answers.append(found.post(CHAT, body_of(CHAT, "openai/gpt-5"), key=BROUGHT, x_sluice_key=KEY))
        )
        asked.start()
        until(lambda: found.waiting() == 1, "the job waits")
        held = b"\n".join(found.redis.get(key) for key in found.redis.keys("*:request"))
        found.start_worker()
        found.ready()
        asked.join(120)

    assert b"brought_key" in held
    assert b"canary" not in held
    assert answers[0].status_code == 200
    assert upstream.last.headers["authorization"] == f"Bearer {BROUGHT}"


def test_the_next_request_is_called_with_our_own_key_again(keyed, upstream):
    keyed.post(CHAT, body_of(CHAT, "openai/gpt-5"), key=BROUGHT, x_sluice_key=KEY)
    keyed.post(CHAT, body_of(CHAT, "openai/gpt-5"))

    assert upstream.last.headers["authorization"] == "Bearer sk-upstream-openai"


def test_a_provider_that_is_off_is_usable_with_a_brought_key(keyed, upstream):
    assert keyed.post(CHAT, body_of(CHAT, "groq/llama-x")).status_code == 404

    response = keyed.post(CHAT, body_of(CHAT, "groq/llama-x"), key=BROUGHT, x_sluice_key=KEY)

    assert response.status_code == 200
    assert upstream.last.path == "/openai/v1/chat/completions"


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("stream", [False, True])
def test_a_refused_brought_key_is_the_client_s_to_mend(keyed, dialect, stream):
    response = keyed.post(dialect, body_of(dialect, "openai/gpt-5", stream=stream), key=REFUSED_KEY, x_sluice_key=KEY)

    assert response.status_code == 401
    message = response.json()["error"]["message"]
    assert "this request sent" in message
    assert REFUSED_KEY not in response.text
    assert sse_events(response.text) == []


def test_the_sdk_says_so_with_its_own_exception(keyed):
    client = OpenAI(
        base_url=f"{keyed.url}/v1", api_key=REFUSED_KEY, default_headers={"x-sluice-key": KEY}, max_retries=0, timeout=120
    )

    with client, pytest.raises(AuthenticationError, match="this request sent"):
        client.chat.completions.create(model="openai/gpt-5", messages=[{"role": "user", "content": "hi"}])


def test_a_brought_key_does_not_let_anybody_in(keyed):
    assert keyed.post(CHAT, body_of(CHAT, "openai/gpt-5"), key=BROUGHT, x_sluice_key="sk-wrong").status_code == 401
    assert keyed.post(CHAT, body_of(CHAT, "openai/gpt-5"), key=BROUGHT).status_code == 401


def test_without_a_secret_a_brought_key_is_refused_with_the_setting_s_name(shared):
    response = shared.post(CHAT, body_of(CHAT, "openai/demo-n1-d0"), key=BROUGHT, x_sluice_key=KEY)

    assert response.status_code == 400
    assert "SLUICE_SECRET" in response.json()["error"]["message"]
    assert shared.waiting() == 0


def test_a_worker_with_another_secret_says_what_is_wrong(tmp_path: Path, upstream: RecordingUpstream):
    with fleet(tmp_path, workers=0, SLUICE_SECRET=SECRET, OPENAI_BASE_URL=f"{upstream.url}/v1") as found:
        found.settings["SLUICE_SECRET"] = "another secret of these tests, 32 bytes"
        found.start_worker()
        found.ready()

        response = found.post(CHAT, body_of(CHAT, "openai/gpt-5"), key=BROUGHT, x_sluice_key=KEY)

    assert response.status_code == 500
    assert response.json()["error"]["code"] == "secrets_differ"
