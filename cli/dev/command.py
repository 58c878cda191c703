"""How does the whole of Sluice run on one machine, for a first look and for development?

Redis, the demo provider, one API and some workers, each a process of its own as in production, watched: one that dies is
started again, and the terminal says so; one that cannot stay alive ends all. All of them end with this process, however it
ends. The API's port is held by this process, which lends it to the API: nobody else can answer there.
"""

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from socket import socket

import click
import httpx
import orjson

from api.auth.authenticator import is_loopback
from cli.dev.embedded_redis import EmbeddedRedis, free_port
from common.config.groups.access import AccessSettings
from common.config.model_routes import available
from common.config.setting_doubts import find_doubts
from common.config.settings import MIB, Settings
from common.metering.pricing import Price
from common.process.listening import CannotListen, bind, local_url
from common.process.process import die_with_parent
from common.sse import SseCutter, read_block
from common.vendors.model_names import MODEL_NAMES

READY_TIMEOUT_S = 30
DRAIN_S = 3  # On Ctrl-C nobody wants to wait a minute.
RESTART_PAUSE_S = 1.0
EARLY_S, EARLY_MAX = 5.0, 3  # What ends so soon after its start, so many times in a row, would do so for ever.
WATCHED = ("api", "workers", "common", "cli", "demo_provider")
DEMO_KEY = "sk-demo"  # Everybody knows it: it is good on loopback alone.
DEMO_PRICE = Price(input_usd_per_mtok=1, output_usd_per_mtok=4)  # Made up, so that there is a cost to see.
REASON_CHARS_MAX = 500


@dataclass(slots=True)
class Part:
    """One process of the dev setup. ``consequence`` is what the terminal says of its death.

    ``errors`` is the file that its standard error goes to; None: the terminal, with its log. ``fd`` is a socket lent to it.
    """

    name: str
    args: list[str]
    env: dict[str, str]
    consequence: str
    errors: Path | None
    fd: int | None = None
    process: subprocess.Popen[bytes] = field(init=False)
    _began_at: float = field(init=False)
    _early_ends: int = field(init=False, default=0)

    def start(self) -> None:
        self._began_at = time.monotonic()
        errors = self.errors.open("wb") if self.errors else None
        self.process = subprocess.Popen(  # noqa: S603 - Our own commands.
            [sys.executable, "-m", "cli.main", *self.args],
            env={**os.environ, **self.env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL if self.errors else None,
            stderr=errors,
            pass_fds=() if self.fd is None else (self.fd,),
            start_new_session=True,  # Ctrl-C reaches this process alone, which then stops them in order.
            preexec_fn=die_with_parent,
        )
        if errors:
            errors.close()

    def stop(self, grace_s: float) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
            try:
                self.process.wait(grace_s)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def restart(self) -> None:
        """Start it again, and say so.

        Raises:
            RuntimeError: it does not stay alive.
        """
        self._early_ends = self._early_ends + 1 if time.monotonic() - self._began_at < EARLY_S else 0
        if self._early_ends >= EARLY_MAX:
            raise RuntimeError(f"{self.name} ended {EARLY_MAX} times right after its start: {self.reason()}")
        say(f"! {self.name} ended ({_how(self.process.returncode)}): {self.consequence}. Starting it again.")
        time.sleep(RESTART_PAUSE_S)
        self.start()

    def reason(self) -> str:
        """Return the last thing that the process said of its end."""
        lines = self.errors.read_text(errors="replace").strip().splitlines() if self.errors else []
        reason = lines[-1][:REASON_CHARS_MAX] if lines else _how(self.process.returncode)
        return reason.rstrip(".") + "."


def run(settings: Settings, *, host: str, workers: int, once: bool, reload: bool, verbose: bool) -> int:
    """Run until Ctrl-C, or (``once``) until the sample answer is complete; returns the exit status."""
    for sig in (signal.SIGTERM, signal.SIGINT):  # A shell that starts us in the background has SIGINT ignored.
        signal.signal(sig, _interrupt)
    _reach_this_machine_directly()
    for doubt in find_doubts(settings):
        say(f"! {doubt.problem} {doubt.mend}")
    address, key = local_url(host, settings.port), key_for(settings, host)
    try:
        with bind(host, settings.port, port_option="--port or SLUICE_PORT", host_option="--host") as listener:
            listener.listen()
            if once and not workers:
                raise RuntimeError("--once streams an answer, which with --workers 0 nobody would give: leave out one of them.")
            with EmbeddedRedis() as redis:
                if not redis.is_real:
                    say("! No Redis server was found: using fakeredis, for a first look only. Install redis-server.")
                parts = parts_of(settings, redis, workers, listener, key, verbose=verbose)
                try:
                    return _run(parts, redis, settings, address, key, once=once, reload=reload)
                finally:
                    _stop(parts)
    except KeyboardInterrupt:
        say("\nStopped.")
        return 0
    except (RuntimeError, CannotListen) as error:
        say(f"! {error}")
        return 1


def _run(
    parts: list[Part], redis: EmbeddedRedis, settings: Settings, address: str, key: str, *, once: bool, reload: bool
) -> int:
    for part in parts:
        part.start()
    _await_ready(parts, address)
    if any(part.args[0] == "worker" for part in parts):
        # Beside the watch: an answer that nobody gives would take a minute to fail.
        sample = ThreadPoolExecutor(1).submit(stream_sample, address, key)
        watch(parts, redis, reload=reload, until=sample.done)
        if once:
            return 0 if sample.result() else 1
    else:
        say("! No worker: whatever is asked waits for one, and gets 504. Leave out --workers 0 for answers.")
    _welcome(settings, address, key)
    watch(parts, redis, reload=reload, until=lambda: False)
    return 0


def _reach_this_machine_directly() -> None:
    """No proxy of the environment leads to what runs here: not this command's requests to the API, not workers' to the demo."""
    direct = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = f"{direct},127.0.0.1".strip(",")


def say(line: str) -> None:
    click.echo(line)
    sys.stdout.flush()


def key_for(settings: AccessSettings, host: str) -> str:
    """Return a key that is good: the first of the settings', or one for this setup."""
    if settings.api_keys:
        return settings.api_keys[0].get_secret_value()
    return DEMO_KEY if is_loopback(host) else f"{DEMO_KEY}-{secrets.token_hex(16)}"


def parts_of(
    settings: Settings, redis: EmbeddedRedis, workers: int, listener: socket, key: str, *, verbose: bool
) -> list[Part]:
    demo_port = free_port()
    prices = {f"demo/{name}": DEMO_PRICE for name in MODEL_NAMES["demo"]} | settings.prices
    env = {
        "SLUICE_REDIS_URL": redis.url,
        "SLUICE_DATABASE_URL": f"sqlite:///{redis.folder}/sluice.db",
        "SLUICE_API_DRAIN_S": str(DRAIN_S),
        "SLUICE_WORKER_DRAIN_S": str(DRAIN_S),
        "SLUICE_SECRET": settings.secret.get_secret_value() if settings.secret else secrets.token_hex(32),
        "SLUICE_PRICES": orjson.dumps({name: each.model_dump(mode="json") for name, each in prices.items()}).decode(),
        "DEMO_BASE_URL": f"http://127.0.0.1:{demo_port}/v1",
        **({} if settings.api_keys else {"SLUICE_API_KEYS": key}),
    }

    def part(name: str, args: list[str], consequence: str, fd: int | None = None) -> Part:
        return Part(name, args, env, consequence, None if verbose else redis.folder / f"{name}.err", fd)

    say("Starting Redis, the demo provider, one API and " + (f"{workers} workers" if workers != 1 else "one worker") + " …")
    host, port = listener.getsockname()[:2]
    given = ["--host", host, "--port", str(port), "--fd", str(listener.fileno())]
    lost = "another worker takes its unfinished jobs over within 8 s; those that had begun go on where their model can"
    waits = "what is asked meanwhile waits, and open connections are cut; clients that keep their ids can resume"
    return [
        part("the demo provider", ["demo-provider", "--port", str(demo_port)], "its open answers break off"),
        part("the API", ["api", *given], waits, listener.fileno()),
        *(part(f"worker {n + 1}", ["worker", "--host", "127.0.0.1", "--port", "0"], lost) for n in range(workers)),
    ]


def _await_ready(parts: list[Part], address: str) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    with httpx.Client(trust_env=False, timeout=1) as client:  # No proxy: it could know another 127.0.0.1.
        while time.monotonic() < deadline:
            for part in parts:
                if part.process.poll() is not None:
                    raise RuntimeError(f"{part.name} did not start: {part.reason()} `sluice doctor` may tell more.")
            try:
                if client.get(f"{address}/readyz").status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            time.sleep(0.05)
    raise RuntimeError(f"The API was not ready within {READY_TIMEOUT_S} s. Run with --verbose to see its log.")


def stream_sample(address: str, key: str) -> bool:
    """Stream one answer through the whole path to the terminal; returns whether it came to its end."""
    body = {"model": "demo", "stream": True, "messages": [{"role": "user", "content": "What does a sluice do?"}]}
    headers = {"authorization": f"Bearer {key}"}
    say("\nOne answer through the whole path, provider → worker → Redis → API → here:\n")
    try:
        with (
            httpx.Client(trust_env=False, timeout=60) as client,
            client.stream("POST", f"{address}/v1/chat/completions", json=body, headers=headers) as response,
        ):
            return _print_answer(response)
    except httpx.HTTPError as error:
        say(f"\n! The answer broke off: {type(error).__name__}.")
        return False


def _print_answer(response: httpx.Response) -> bool:
    if response.status_code != 200:
        response.read()
        say(f"! {response.status_code}: {response.text}")
        return False
    is_complete = False
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


def _welcome(settings: Settings, address: str, key: str) -> None:
    body = '{"model":"demo","stream":true,"messages":[{"role":"user","content":"Hello"}]}'
    say(f"Playground:  {address}/#key={key}")
    say("Try it:")
    say(f"  curl -N {address}/v1/chat/completions -H 'Authorization: Bearer {key}' \\")
    say(f"    -H 'Content-Type: application/json' -d '{body}'")
    others = [provider for provider in available(settings) if provider != "demo"]
    if others:
        say(f"Configured providers: {', '.join(others)}.")
    else:
        say("For a real provider, set its key (OPENAI_API_KEY or ANTHROPIC_API_KEY) and start again.")
    say("Ctrl-C stops everything.\n")


def watch(parts: list[Part], redis: EmbeddedRedis, *, reload: bool, until: Callable[[], bool]) -> None:
    """Start again what dies, and (``reload``) what has changed, until it is over or interrupted."""
    seen = _newest_source()
    while not until():
        time.sleep(0.1)
        if redis.process and redis.process.poll() is not None:
            say("! Redis ended: new requests get 503 until it is back, running answers wait. Starting it again.")
            time.sleep(RESTART_PAUSE_S)
            redis.start()
            say("  Redis is back, with its data.")
        for part in parts:
            if part.process.poll() is not None:
                part.restart()
        if reload and (newest := _newest_source()) != seen:
            seen = newest
            say("  Source changed: restarting the API and the workers.")
            for part in parts[1:]:
                part.stop(DRAIN_S + 2)
                part.start()


def _how(status: int) -> str:
    return f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"


def _stop(parts: list[Part]) -> None:
    parts = [part for part in parts if hasattr(part, "process")]  # Others were never started.
    for part in parts:  # All at once first, so that their graces run side by side.
        if part.process.poll() is None:
            part.process.send_signal(signal.SIGCONT)
            part.process.terminate()
    for part in parts:
        part.stop(DRAIN_S + 4)


def _newest_source() -> float:
    root = Path(__file__).parents[2]
    return max(path.stat().st_mtime for name in WATCHED for path in (root / name).rglob("*") if path.is_file())


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
