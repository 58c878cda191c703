"""Do the compose files do on a real engine what deploy/README.md says?

Each test needs a running engine and the Compose plugin. Without an image registry, `.ci/stand-ins/build` makes the images.
"""

import asyncio
import contextlib
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import aiohttp
import httpx
import pytest

from cli.dev.embedded_redis import free_port
from demo_provider.script import answer
from tests.support.fleet import ROOT, sse_events

KEY = "k-of-the-engine-tests"
AUTH = {"authorization": f"Bearer {KEY}"}
IMAGE_MB_MAX = 160  # Of our own layers.
COPIED = ("api", "cli", "common", "demo_provider", "workers", "deploy", "pyproject.toml", "constraints.txt", ".dockerignore")


def has_engine() -> bool:
    if shutil.which("docker") is None:
        return False
    tried = [["docker", "info"], ["docker", "compose", "version"], ["docker", "image", "inspect", "python:3.12-slim"]]
    return all(subprocess.run(command, capture_output=True, check=False).returncode == 0 for command in tried)


pytestmark = [pytest.mark.skipif(not has_engine(), reason="no engine with Compose and the images"), pytest.mark.timeout(900)]


class Stack:
    """A copy of what is deployed, with a project, an address and an .env of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        for name in (*COPIED, *(path.name for path in ROOT.glob("docker-compose*.yml"))):
            source = ROOT / name
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, folder / name, ignore=ignored) if source.is_dir() else shutil.copy(source, folder / name)
        limit = self.run("docker run --rm --entrypoint sh python:3.12-slim -c 'ulimit -Hn'").strip()
        self.settings = {
            "COMPOSE_PROJECT_NAME": f"sluice-test-{os.getpid()}",
            "SLUICE_IMAGE": "sluice:test",
            "SLUICE_PUBLISH": f"127.0.0.1:{self.port}",
            "SLUICE_RELAY_SUBNET": f"10.213.{100 + os.getpid() % 100}.0/24",  # Two runs at the same time do not meet.
            "SLUICE_HEALTH_INTERVAL": "2s",
            "SLUICE_NOFILE": str(min(65536, int(limit) if limit.isdigit() else 65536)),
            "SLUICE_OVERLOAD_LAG_MS": "0",  # The machine of the tests is busy with others.
            "SLUICE_OVERLOAD_CLAIM_MS": "0",
        }

    def write_env(self, **more: str) -> None:
        self.settings |= more
        (self.folder / ".env").write_text("".join(f"{name}={value}\n" for name, value in self.settings.items()))

    @contextlib.contextmanager
    def with_settings(self, **more: str) -> Iterator[None]:
        """Run it with other settings, and afterwards as before."""
        before = dict(self.settings)
        try:
            self.write_env(**more)
            self.run("docker compose up -d --wait")
            yield
        finally:
            self.settings = before
            self.write_env()
            self.run("docker compose up -d --wait")

    def run(self, command: str) -> str:
        """Run a command as a person would, in the folder. Return what it printed."""
        done = subprocess.run(["bash", "-c", command], cwd=self.folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        return done.stdout

    async def stream(self, session: aiohttp.ClientSession, tokens: int, url: str) -> str:
        """Ask for a stream of 100 ms a token. Return how it ended."""
        body = {"model": f"demo-n{tokens}-d100", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
        async with session.post(f"{url}/v1/chat/completions", json=body, headers=AUTH) as response:
            if response.status != 200:
                return f"{response.status} {(await response.json())['error']['code']}"
            events = [event.data for event in sse_events((await response.read()).decode()) if event.data]
        chunks = [json.loads(event) for event in events if event.startswith("{")]
        errors = [chunk["error"]["code"] for chunk in chunks if "error" in chunk]
        text = "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c.get("choices"))
        if errors:
            return f"{errors[0]} after a part" if answer(tokens).startswith(text) else "other text"
        return "complete" if text == answer(tokens) and events[-1] == "[DONE]" else "cut without a word"

    async def whole(self, session: aiohttp.ClientSession, url: str) -> str:
        """Ask for a short answer in one piece. Return how it ended."""
        body = {"model": "demo-n3-d10", "messages": [{"role": "user", "content": "hi"}]}
        async with session.post(f"{url}/v1/chat/completions", json=body, headers=AUTH) as response:
            said = await response.json()
        if response.status != 200:
            return f"{response.status} {said['error']['code']}"
        return "complete" if said["choices"][0]["message"]["content"] == answer(3) else "other text"

    async def under_load(
        self,
        command: str,
        *,
        lanes: int = 20,
        tokens: int = 30,
        once: bool = False,
        short_lanes: int = 0,
        url: str = "",
        trust: ssl.SSLContext | bool = True,
    ) -> Counter[str]:
        """Run a command while streams run. A new one begins as one ends, until the command is done, unless ``once``.

        In ``short_lanes``, each short stream is followed by a short answer in one piece. Each request has its own connection.
        """
        ends: Counter[str] = Counter()
        done = asyncio.Event()

        async def lane(session: aiohttp.ClientSession) -> None:
            while True:
                ends[await self.stream(session, tokens, url or self.url)] += 1
                if once or done.is_set():
                    return

        async def short_lane(session: aiohttp.ClientSession) -> None:
            while not done.is_set():
                ends[await self.stream(session, 3, url or self.url)] += 1
                ends[await self.whole(session, url or self.url)] += 1

        connector = aiohttp.TCPConnector(limit=0, force_close=True, ssl=trust)
        async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=300)) as session:
            running = [asyncio.ensure_future(lane(session)) for _ in range(lanes)]
            running += [asyncio.ensure_future(short_lane(session)) for _ in range(short_lanes)]
            await asyncio.sleep(2)  # They run for longer than this; nothing is asserted about it.
            await asyncio.to_thread(self.run, command)
            done.set()
            await asyncio.gather(*running)
        return ends


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    found = Stack(tmp_path_factory.mktemp("stack"))
    found.write_env(SLUICE_API_KEYS=KEY, COMPOSE_PROFILES="demo", DEMO_BASE_URL="http://demo:8090/v1")
    try:
        found.run("docker compose build -q api && docker compose up -d --wait")
        yield found
    finally:
        subprocess.run(["docker", "compose", "down", "-v", "-t", "5"], cwd=found.folder, capture_output=True, check=False)


async def test_streams_come_through_it(stack: Stack):
    assert await stack.under_load("true", once=True) == {"complete": 20}


def test_doctor_has_nothing_to_say_against_it(stack: Stack):
    assert "All is well." in stack.run("docker compose run --rm cli doctor")


def test_a_provider_s_address_without_its_path_is_found_by_doctor(stack: Stack):
    said = subprocess.run(
        ["docker", "compose", "run", "--rm", "-e", "DEMO_BASE_URL=http://demo:8090", "cli", "doctor"],
        cwd=stack.folder,
        capture_output=True,
        text=True,
        check=False,
    )

    assert said.returncode == 1
    assert "DEMO_BASE_URL" in said.stdout


@pytest.mark.parametrize("service", ["nginx", "api", "worker", "redis", "postgres"])
def test_each_process_is_confined(stack: Stack, service: str):
    status = stack.run(f"docker compose exec -T {service} cat /proc/1/status")
    facts = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)

    assert facts["Uid"].split()[0] != "0"
    assert int(facts["CapEff"], 16) == int(facts["CapBnd"], 16) == 0
    assert facts["NoNewPrivs"].strip() == "1"
    assert facts["Seccomp"].strip() == "2"
    tried = stack.run(f"docker compose exec -T {service} sh -c 'touch /here 2>&1; true'")
    assert "Read-only file system" in tried


def test_the_image_is_small_and_has_no_pip(stack: Stack):
    layers = stack.run(
        "docker history --format '{{.Size}} {{.CreatedBy}}' --no-trunc sluice:test | sed '/CMD \\[\"python3\"\\]/,$d'"
    )
    units = {"B": 1e-6, "kB": 1e-3, "MB": 1.0, "GB": 1e3}
    sizes = [re.match(r"([\d.]+)(B|kB|MB|GB) ", line) for line in layers.splitlines()]

    assert sum(float(size[1]) * units[size[2]] for size in sizes if size) < IMAGE_MB_MAX
    for python in ("python", "python3", "/usr/bin/python3", "/usr/local/bin/python3"):
        stack.run(f"docker run --rm --entrypoint sh sluice:test -c '! command -v {python} || ! {python} -m pip --version'")


def test_each_client_has_its_own_address_and_cannot_choose_it(stack: Stack):
    wrong = [
        httpx.get(f"{stack.url}/v1/models", headers={"authorization": "Bearer wrong", "x-forwarded-for": f"198.51.100.{i}"})
        for i in range(40)
    ]

    assert [response.status_code for response in wrong].count(429) >= 9  # 30 guesses are answered.


def test_operators_pages_are_inside_alone(stack: Stack):
    for path in ("/admin/keys", "/metrics", "/stats"):
        assert httpx.get(f"{stack.url}{path}", headers=AUTH).status_code == 404
    assert "sluice_" in stack.run(
        "docker compose exec -T worker python -c \"import urllib.request as u; print(u.urlopen('http://api:8080/metrics').read())\""
    )


def test_redis_and_the_database_want_a_password(stack: Stack):
    assert "NOAUTH" in stack.run("docker compose exec -T redis redis-cli get sluice:q:turn 2>&1")
    code = (
        "import asyncio, asyncpg; asyncio.run(asyncpg.connect(host='postgres', user='sluice', database='sluice', password='x'))"
    )
    said = stack.run(f'docker compose exec -T api python -c "{code}" 2>&1 || true')
    assert "password authentication failed" in said


@pytest.mark.long
async def test_an_update_refuses_cuts_and_hangs_nobody(stack: Stack):
    """Also with one API, whose address nginx must forget: then every other request goes there first."""
    stack.write_env(SLUICE_WORKER_REPLICAS="2")
    stack.run("docker compose up -d --no-recreate --wait")
    stack.write_env(SLUICE_LOG_LEVEL="warning")

    ends = await stack.under_load("deploy/update.sh", lanes=5, short_lanes=3)

    assert set(ends) == {"complete"}, ends
    for service, number in {"api": 1, "worker": 2}.items():
        assert stack.run(f"docker compose exec -T {service} printenv SLUICE_LOG_LEVEL").strip() == "warning"
        assert len(stack.run(f"docker compose ps -q {service}").split()) == number


@pytest.mark.long
def test_a_changed_setting_leaves_alone_what_does_not_use_it(stack: Stack):
    """Neither ``update.sh`` nor what it says afterwards, nor ``up -d``."""
    stack.run("docker compose up -d --wait")
    before = stack.run("docker compose ps -q redis postgres nginx")
    stack.write_env(SLUICE_LOG_LEVEL="info")

    stack.run("docker compose up -d --wait")
    assert stack.run("docker compose ps -q redis postgres nginx") == before
    stack.write_env(SLUICE_LOG_LEVEL="warning")
    said = stack.run("docker compose up -d --no-recreate --wait --scale worker=3 && deploy/update.sh --no-build")

    assert "worker: 3 replicas, as before." in said
    assert "still running as before" not in said
    tiers = stack.run("docker compose ps -q api worker").split()
    stack.write_env(SLUICE_WORKER_REPLICAS="3")
    stack.run("docker compose up -d --wait")
    assert stack.run("docker compose ps -q api worker").split() == tiers
    stack.write_env(SLUICE_REDIS_MAXMEMORY="1gb")
    assert "--no-deps redis\n" in stack.run("deploy/update.sh --no-build")
    assert stack.run("docker compose ps -q redis postgres nginx") == before
    stack.run("docker compose up -d --no-deps --wait redis")


@pytest.mark.long
async def test_an_update_that_does_not_start_leaves_the_old_version_running(stack: Stack):
    before = stack.run("docker compose ps -q api worker")
    good = stack.settings.get("SLUICE_KEEP_ALIVE_S", "15")
    stack.write_env(SLUICE_KEEP_ALIVE_S="nonsense")

    said = stack.run("! deploy/update.sh --no-build 2>&1")

    stack.write_env(SLUICE_KEEP_ALIVE_S=good)
    assert "SLUICE_KEEP_ALIVE_S" in said
    assert stack.run("docker compose ps -q api worker") == before


@pytest.mark.long
async def test_scaling_a_killed_worker_and_a_reload_of_nginx_lose_nothing(stack: Stack):
    commands = [
        "SLUICE_WORKER_REPLICAS=3 SLUICE_API_REPLICAS=2 docker compose up -d --no-recreate --wait",
        "docker kill $(docker compose ps -q worker | head -n 1)",
        "docker compose kill -s HUP nginx",
    ]

    ends = await stack.under_load(" && sleep 1 && ".join(commands))

    assert set(ends) == {"complete"}, ends


@pytest.mark.long
async def test_a_restart_of_redis_cuts_no_stream_and_new_requests_are_told_to_come_back(stack: Stack):
    assert await stack.under_load("docker compose restart redis", once=True, tokens=60) == {"complete": 20}
    ends = await stack.under_load("docker compose restart redis")

    assert set(ends) - {"503 store_unavailable"} == {"complete"}, ends


@pytest.mark.long
async def test_the_profile_for_system_calls_is_enough_and_refuses_the_rest(stack: Stack):
    with stack.with_settings(COMPOSE_FILE="docker-compose.yml:docker-compose.secure.yml"):
        assert await stack.under_load("true", once=True) == {"complete": 20}
        assert "All is well." in stack.run("docker compose run --rm cli doctor")
        code = "import ctypes; c = ctypes.CDLL(None, use_errno=True); print(c.inotify_init(), ctypes.get_errno())"
        assert stack.run(f'docker compose exec -T api python -c "{code}"').split() == ["-1", "1"]
        away = "import socket; socket.create_connection(('demo', 8090), 3)"
        stack.run(f'! docker compose exec -T api python -c "{away}" 2>&1')


@pytest.mark.long
async def test_a_new_certificate_is_served_and_a_hundred_streams_go_on(stack: Stack):
    port = free_port()
    first = make_certificate(stack.folder / "tls")
    tls = {"SLUICE_TLS_FOLDER": "./tls", "SLUICE_PUBLISH_TLS": f"127.0.0.1:{port}"}
    with stack.with_settings(COMPOSE_FILE="docker-compose.yml:docker-compose.tls.yml", **tls):
        assert httpx.get(f"{stack.url}/readyz").status_code == 308
        assert protocol_of(port, first) == "h2"
        body = json.dumps({"model": "demo-n5", "stream": True, "messages": [{"role": "user", "content": "hi"}]})
        client = f"curl -sSN --http2 --cacert tls/tls.crt https://127.0.0.1:{port}/v1/chat/completions"
        said = stack.run(f"{client} -i -H 'authorization: Bearer {KEY}' -H 'content-type: application/json' -d '{body}'")
        assert said.startswith("HTTP/2 200")
        assert "strict-transport-security: max-age=31536000" in said
        assert said.rstrip().endswith("data: [DONE]")

        renewal = "mv tls/new.crt tls/tls.crt && mv tls/new.key tls/tls.key && docker compose kill -s HUP nginx"
        second = make_certificate(stack.folder / "tls", "new")
        ends = await stack.under_load(
            renewal, lanes=100, tokens=80, once=True, url=f"https://127.0.0.1:{port}", trust=context(first)
        )

        assert ends == {"complete": 100}
        assert protocol_of(port, second) == "h2"


def context(certificate: str) -> ssl.SSLContext:
    """Trust this certificate alone."""
    return ssl.create_default_context(cadata=certificate)


def make_certificate(folder: Path, name: str = "tls") -> str:
    """Write a certificate that nginx's user may read, and return it."""
    folder.mkdir(exist_ok=True)
    key, certificate = folder / f"{name}.key", folder / f"{name}.crt"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject]
    subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    key.chmod(0o644)
    return certificate.read_text()


def protocol_of(port: int, certificate: str) -> str | None:
    """Return what the server agrees to speak with a client of HTTP/2 that trusts this certificate."""
    trust = context(certificate)
    trust.set_alpn_protocols(["h2", "http/1.1"])
    with socket.create_connection(("127.0.0.1", port)) as plain, trust.wrap_socket(plain, server_hostname="localhost") as tls:
        return tls.selected_alpn_protocol()


@pytest.mark.long
async def test_secrets_are_read_from_files_and_are_in_no_container_s_description(stack: Stack):
    client_key, vendor_key = "k-of-a-client-in-a-file", "sk-of-a-vendor-in-a-file"
    (stack.folder / "secrets").mkdir()
    (stack.folder / "secrets" / "api_keys").write_text(f"{KEY},{client_key}\n")
    (stack.folder / "secrets" / "openai_api_key").write_text(f"{vendor_key}\n")
    stack.run("chmod 700 secrets && chown -R 10001 secrets")
    files = "docker-compose.yml:docker-compose.secrets.yml"
    with stack.with_settings(COMPOSE_FILE=files, SLUICE_API_KEYS="", OPENAI_BASE_URL="http://demo:8090/v1"):
        described = stack.run("docker inspect $(docker compose ps -aq)")
        assert not [secret for secret in (KEY, client_key, vendor_key) if secret in described]

        body = {"model": "openai/demo-n5", "messages": [{"role": "user", "content": "hi"}]}
        ask = partial(httpx.post, f"{stack.url}/v1/chat/completions", json=body)
        assert ask(headers={"authorization": "Bearer another-key-of-nobody"}).status_code == 401
        with_key = {"authorization": f"Bearer {client_key}"}
        assert ask(headers=with_key).json()["choices"][0]["message"]["content"] == answer(5)
        revoke = f"import urllib.request as u; u.urlopen(u.Request('http://demo:8090/revoke?key={vendor_key}', method='POST'))"
        stack.run(f'docker compose exec -T worker python -c "{revoke}"')
        assert ask(headers=with_key).status_code >= 400  # It was that key.


@pytest.mark.long
def test_every_command_of_the_page_works(stack: Stack):
    """In the page's order. The first start is in the fixture; ``update.sh`` and ``down`` are in other tests."""
    page = (ROOT / "deploy" / "README.md").read_text().replace("\\\n", "")
    lines = re.findall(r"^ {4,6}((?:echo|docker|curl|deploy/).*)$", page, re.MULTILINE)
    commands = [line.split("    #")[0].split("   #")[0].strip() for line in lines]
    elsewhere = ("echo ", "deploy/update.sh", "docker compose down", "docker compose up -d --build --wait")

    for command in commands:
        if not command.startswith(elsewhere):
            here = command.replace("YOUR_KEY", KEY).replace("gpt-5-mini", "demo").replace("http://127.0.0.1:8080", stack.url)
            stack.run(here.replace("exec redis", "exec -T redis"))

    assert len(commands) >= 16


async def test_down_ends_long_streams_with_their_event_and_short_ones_complete(stack: Stack):
    stack.write_env(SLUICE_API_DRAIN_S="8")
    stack.run("docker compose up -d --wait")

    async with asyncio.TaskGroup() as group:
        down = group.create_task(stack.under_load("docker compose down", tokens=300, once=True))
        short = group.create_task(stack.under_load("true", tokens=60, once=True))

    assert down.result() == {"gateway_restarting after a part": 20}
    assert short.result() == {"complete": 20}
