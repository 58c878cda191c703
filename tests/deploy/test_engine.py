"""Does docker-compose.yml do on a real engine what deploy/README.md says?

Each test needs a running engine and the Compose plugin. Without an image registry, `.ci/stand-ins/build` makes the images.
"""

import asyncio
import json
import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
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
            "SLUICE_RELAY_SUBNET": "10.213.78.0/24",
            "SLUICE_HEALTH_INTERVAL": "2s",
            "SLUICE_NOFILE": str(min(65536, int(limit) if limit.isdigit() else 65536)),
            "SLUICE_OVERLOAD_LAG_MS": "0",  # The machine of the tests is busy with others.
            "SLUICE_OVERLOAD_CLAIM_MS": "0",
        }

    def write_env(self, **more: str) -> None:
        self.settings |= more
        (self.folder / ".env").write_text("".join(f"{name}={value}\n" for name, value in self.settings.items()))

    def run(self, command: str) -> str:
        """Run a command as a person would, in the folder. Return what it printed."""
        done = subprocess.run(["bash", "-c", command], cwd=self.folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        return done.stdout

    async def stream(self, session: aiohttp.ClientSession, tokens: int) -> str:
        """Ask for a stream of 100 ms a token. Return how it ended."""
        body = {"model": f"demo-n{tokens}-d100", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
        async with session.post(f"{self.url}/v1/chat/completions", json=body, headers=AUTH) as response:
            if response.status != 200:
                return f"{response.status} {(await response.json())['error']['code']}"
            events = [event.data for event in sse_events((await response.read()).decode()) if event.data]
        chunks = [json.loads(event) for event in events if event.startswith("{")]
        errors = [chunk["error"]["code"] for chunk in chunks if "error" in chunk]
        text = "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c.get("choices"))
        if errors:
            return f"{errors[0]} after a part" if answer(tokens).startswith(text) else "other text"
        return "complete" if text == answer(tokens) and events[-1] == "[DONE]" else "cut without a word"

    async def under_load(self, command: str, *, lanes: int = 20, tokens: int = 30, once: bool = False) -> Counter[str]:
        """Run a command while streams run. A new one begins as one ends, until the command is done, unless ``once``."""
        ends: Counter[str] = Counter()
        done = asyncio.Event()

        async def lane(session: aiohttp.ClientSession) -> None:
            while True:
                ends[await self.stream(session, tokens)] += 1
                if once or done.is_set():
                    return

        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=300)) as session:
            running = [asyncio.ensure_future(lane(session)) for _ in range(lanes)]
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
    stack.run("docker compose up -d --no-recreate --wait --scale api=2 --scale worker=2")
    stack.write_env(SLUICE_LOG_LEVEL="warning")

    ends = await stack.under_load("deploy/update.sh")

    assert set(ends) == {"complete"}, ends
    for service in ("api", "worker"):
        assert stack.run(f"docker compose exec -T {service} printenv SLUICE_LOG_LEVEL").strip() == "warning"
        assert len(stack.run(f"docker compose ps -q {service}").split()) == 2


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
        "docker compose up -d --no-recreate --wait --scale worker=3 --scale api=2",
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
    files = "COMPOSE_FILE=docker-compose.yml:docker-compose.secure.yml"
    stack.run(f"{files} docker compose up -d --wait")

    assert await stack.under_load("true", once=True) == {"complete": 20}
    assert "All is well." in stack.run(f"{files} docker compose run --rm cli doctor")
    code = "import ctypes; c = ctypes.CDLL(None, use_errno=True); print(c.inotify_init(), ctypes.get_errno())"
    assert stack.run(f'docker compose exec -T api python -c "{code}"').split() == ["-1", "1"]
    stack.run("docker compose up -d --wait")


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
