"""How does the whole of Sluice run on one machine, for a first look and for development?

Redis, the demo provider, one API and some workers, each a process of its own as in production, watched: one that dies is
started again, and the terminal says so. All of them end with this process, however it ends.
"""

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import click
import httpx
import orjson

from cli.embedded_redis import EmbeddedRedis, free_port
from common.process import die_with_parent
from common.routes import available
from common.settings import MIB, Settings
from common.sse import SseCutter, read_block

READY_TIMEOUT_S = 30
DRAIN_S = 3  # On Ctrl-C nobody wants to wait a minute.
RESTART_PAUSE_S = 1.0
WATCHED = ("api", "workers", "common", "cli")
DEMO_KEY = "sk-demo"  # Any key works while none is set: the API listens on loopback alone.


@dataclass(slots=True)
class Part:
    """One process of the dev setup. ``consequence`` is what the terminal says of its death."""

    name: str
    args: list[str]
    env: dict[str, str]
    consequence: str
    is_quiet: bool
    process: subprocess.Popen[bytes] = field(init=False)

    def start(self) -> None:
        self.process = subprocess.Popen(  # noqa: S603 - Our own commands.
            [sys.executable, "-m", "cli.main", *self.args],
            env={**os.environ, **self.env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL if self.is_quiet else None,
            start_new_session=True,  # Ctrl-C reaches this process alone, which then stops them in order.
            preexec_fn=die_with_parent,
        )

    def stop(self, grace_s: float) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
            try:
                self.process.wait(grace_s)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def run(settings: Settings, *, workers: int, once: bool, reload: bool, verbose: bool) -> int:
    """Run until Ctrl-C, or (``once``) until the sample answer is complete; returns the exit status."""
    for sig in (signal.SIGTERM, signal.SIGINT):  # A shell that starts us in the background has SIGINT ignored.
        signal.signal(sig, _interrupt)
    _reach_this_machine_directly()
    parts: list[Part] = []
    try:
        with EmbeddedRedis() as redis:
            if not redis.is_real:
                say("! No Redis server was found: using fakeredis, which is for a first look only. Install redis-server.")
            parts = _start_parts(settings, redis, workers, verbose)
            try:
                _await_ready(parts, settings)
                is_complete = stream_sample(_address(settings), _key(settings))
                if once:
                    return 0 if is_complete else 1
                _welcome(settings)
                _watch(parts, redis, settings, reload=reload)
            finally:
                _stop(parts)
    except KeyboardInterrupt:
        say("\nStopped.")
        return 0
    except RuntimeError as error:
        say(f"! {error}")
        return 1
    return 0


def _reach_this_machine_directly() -> None:
    """No proxy of the environment leads to what runs here: not this command's requests to the API, not workers' to the demo."""
    direct = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = f"{direct},127.0.0.1".strip(",")


def say(line: str) -> None:
    click.echo(line)
    sys.stdout.flush()


def _address(settings: Settings) -> str:
    return f"http://127.0.0.1:{settings.port}"


def _key(settings: Settings) -> str:
    return settings.api_keys[0].get_secret_value() if settings.api_keys else DEMO_KEY


def _start_parts(settings: Settings, redis: EmbeddedRedis, workers: int, verbose: bool) -> list[Part]:
    demo_port = free_port()
    env = {
        "SLUICE_REDIS_URL": redis.url,
        "SLUICE_DATABASE_URL": f"sqlite:///{redis.folder}/sluice.db",
        "SLUICE_HOST": "127.0.0.1",
        "SLUICE_PORT": str(settings.port),
        "SLUICE_API_DRAIN_S": str(DRAIN_S),
        "SLUICE_WORKER_DRAIN_S": str(DRAIN_S),
        "SLUICE_SECRET": settings.secret.get_secret_value() if settings.secret else secrets.token_hex(32),
        "DEMO_BASE_URL": f"http://127.0.0.1:{demo_port}/v1",
        **_open(settings),
    }
    say("Starting Redis, the demo provider, one API and " + (f"{workers} workers" if workers != 1 else "one worker") + " …")
    demo = Part(
        "the demo provider", ["demo-provider", "--port", str(demo_port)], env, "its open answers break off", not verbose
    )
    api = Part("the API", ["api"], env, "open connections are cut; clients that keep their ids can resume", not verbose)
    lost = "another worker takes its unfinished jobs over within 8 s; those that had begun go on where their model can"
    parts = [demo, api, *(Part(f"worker {n + 1}", ["worker"], env, lost, not verbose) for n in range(workers))]
    for part in parts:
        part.start()
    return parts


def _open(settings: Settings) -> dict[str, str]:
    """Where the settings know of nobody who may ask, anybody on this machine may, and without the limits of the internet."""
    if settings.api_keys or settings.jwt_secret or settings.jwt_jwks_url:
        return {}
    limits = {scope: found.model_dump(mode="json") for scope, found in settings.limits.items()}
    return {"SLUICE_AUTH": "none", "SLUICE_LIMITS": orjson.dumps({"address": {}, **limits}).decode()}


def _await_ready(parts: list[Part], settings: Settings) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline:
        for part in parts:
            if part.process.poll() is not None:
                raise RuntimeError(
                    f"{part.name} did not start (exit status {part.process.returncode}). "
                    f"If port {settings.port} is taken, choose another with SLUICE_PORT. `sluice doctor` may tell more."
                )
        try:
            if httpx.get(f"{_address(settings)}/readyz", timeout=1).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.05)
    raise RuntimeError(f"The API was not ready within {READY_TIMEOUT_S} s. Run with --verbose to see its log.")


def stream_sample(address: str, key: str) -> bool:
    """Stream one answer through the whole path to the terminal; returns whether it came to its end."""
    body = {"model": "demo", "stream": True, "messages": [{"role": "user", "content": "What does a sluice do?"}]}
    say("\nOne answer through the whole path, provider → worker → Redis → API → here:\n")
    is_complete = False
    with httpx.stream(
        "POST", f"{address}/v1/chat/completions", json=body, headers={"authorization": f"Bearer {key}"}, timeout=60
    ) as response:
        if response.status_code != 200:
            response.read()
            say(f"! {response.status_code}: {response.text}")
            return False
        for data in _events(response):
            if data == "[DONE]":
                is_complete = True
                continue
            chunk = orjson.loads(data)
            if "error" in chunk:
                say(f"\n! {chunk['error']['message']}")
                return False
            for choice in chunk["choices"]:
                click.echo(choice["delta"].get("content") or "", nl=False)
                sys.stdout.flush()
    say("\n")
    return is_complete


def _events(response: httpx.Response) -> Iterator[str]:
    cutter = SseCutter(bytes_max=MIB)
    for piece in response.iter_bytes():
        for block in cutter.feed(piece):
            yield read_block(block)[1].decode()


def _welcome(settings: Settings) -> None:
    address, key = _address(settings), _key(settings)
    body = '{"model":"demo","stream":true,"messages":[{"role":"user","content":"Hello"}]}'
    say(f"Playground:  {address}/" + (f"#key={key}" if settings.api_keys else ""))
    say("Try it:")
    say(f"  curl -N {address}/v1/chat/completions -H 'Authorization: Bearer {key}' \\")
    say(f"    -H 'Content-Type: application/json' -d '{body}'")
    others = [provider for provider in available(settings) if provider != "demo"]
    if others:
        say(f"Configured providers: {', '.join(others)}.")
    else:
        say("For a real provider, set its key (OPENAI_API_KEY or ANTHROPIC_API_KEY) and start again.")
    say("Ctrl-C stops everything.\n")


def _watch(parts: list[Part], redis: EmbeddedRedis, settings: Settings, *, reload: bool) -> None:
    """Start again what dies, and (``reload``) what has changed, until interrupted."""
    seen = _newest_source()
    while True:
        time.sleep(0.25)
        if redis.process and redis.process.poll() is not None:
            say("! Redis ended: new requests get 503 until it is back, running answers wait. Starting it again.")
            time.sleep(RESTART_PAUSE_S)
            redis.start()
            say("  Redis is back, with its data.")
        for part in parts:
            if part.process.poll() is not None:
                say(f"! {part.name} ended ({_how(part.process.returncode)}): {part.consequence}. Starting it again.")
                time.sleep(RESTART_PAUSE_S)
                part.start()
        if reload and (newest := _newest_source()) != seen:
            seen = newest
            say("  Source changed: restarting the API and the workers.")
            for part in parts[1:]:
                part.stop(DRAIN_S + 2)
                part.start()


def _how(status: int) -> str:
    return f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"


def _stop(parts: list[Part]) -> None:
    for part in parts:  # All at once first, so that their graces run side by side.
        if part.process.poll() is None:
            part.process.send_signal(signal.SIGCONT)
            part.process.terminate()
    for part in parts:
        part.stop(DRAIN_S + 4)


def _newest_source() -> float:
    root = Path(__file__).parent.parent
    return max(path.stat().st_mtime for name in WATCHED for path in (root / name).rglob("*") if path.is_file())


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
