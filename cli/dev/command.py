"""How does all of Sluice run on one machine, for a first look and for development?

Redis, the demo provider, one API and some workers each run as a process of their own, as in production. This process watches
them. It restarts a process that dies, and says so in the terminal. If a process keeps dying, everything ends. All of them end
with this process, however it ends. This process owns the API's port and lends the socket to the API, so no other program can
answer there.
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
from common.process.process import COMMAND, die_with_parent
from common.sse import SseCutter, read_block
from common.vendors.model_names import MODEL_NAMES

READY_TIMEOUT_S = 30
DRAIN_S = 3  # After Ctrl-C nobody wants to wait for a minute.
RESTART_PAUSE_S = 1.0
EARLY_S, EARLY_MAX = 5.0, 3  # A process that ends this soon after its start, this many times in a row, would do so for ever.
WATCHED = ("api", "workers", "common", "cli", "demo_provider")
NO_REDIS = (
    "! No Redis server was found: using fakeredis, for a first look only. Install redis-server: the extra `embedded` has one "
    f"for some versions of Python and some machines only, and not here (Python {sys.version_info[0]}.{sys.version_info[1]})."
)
DEMO_KEY = "sk-demo"  # Everybody knows it, so it is valid on loopback only.
DEMO_PRICE = Price(input_usd_per_mtok=1, output_usd_per_mtok=4)  # An invented price, so that reports show a cost.
REASON_CHARS_MAX = 500


@dataclass(slots=True)
class DevProcess:
    """One process of the dev setup. ``consequence`` is what the terminal says about its death.

    ``errors`` is the file for its standard error; None: the terminal, where its log appears. ``fd`` is a socket lent to it.
    """

    name: str
    args: list[str]
    env: dict[str, str]
    consequence: str
    errors: Path | None
    fd: int | None = None
    process: subprocess.Popen[bytes] = field(init=False)
    _started_at: float = field(init=False)
    _early_ends: int = field(init=False, default=0)

    def start(self) -> None:
        self._started_at = time.monotonic()
        errors = self.errors.open("wb") if self.errors else None
        self.process = subprocess.Popen(  # noqa: S603 - Our own commands.
            [*COMMAND, *self.args],
            env={**os.environ, **self.env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL if self.errors else None,
            stderr=errors,
            pass_fds=() if self.fd is None else (self.fd,),
            start_new_session=True,  # Ctrl-C reaches only this process, which then stops the others in order.
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
        """Start the process again, and print_line so in the terminal.

        Raises:
            RuntimeError: it does not stay alive.
        """
        self._early_ends = self._early_ends + 1 if time.monotonic() - self._started_at < EARLY_S else 0
        if self._early_ends >= EARLY_MAX:
            raise RuntimeError(f"{self.name} ended {EARLY_MAX} times right after its start: {self.reason()}")
        print_line(f"! {self.name} ended ({_exit_text(self.process.returncode)}): {self.consequence}. Starting it again.")
        time.sleep(RESTART_PAUSE_S)
        self.start()

    def reason(self) -> str:
        """Return the last line that the process printed before its end."""
        lines = self.errors.read_text(errors="replace").strip().splitlines() if self.errors else []
        reason = lines[-1][:REASON_CHARS_MAX] if lines else _exit_text(self.process.returncode)
        return reason.rstrip(".") + "."


def run(settings: Settings, *, host: str, workers: int, once: bool, reload: bool, verbose: bool) -> int:
    """Run until Ctrl-C, or (``once``) until the sample answer is complete. Return the exit status."""
    for sig in (signal.SIGTERM, signal.SIGINT):  # A shell that starts us in the background makes us ignore SIGINT.
        signal.signal(sig, _interrupt)
    _bypass_proxies_on_this_machine()
    for doubt in find_doubts(settings):
        print_line(f"! {doubt.problem} {doubt.mend}")
    address, key = local_url(host, settings.port), key_for(settings, host)
    try:
        with bind(host, settings.port, port_option="--port or SLUICE_PORT", host_option="--host") as listener:
            listener.listen()
            if once and not workers:
                raise RuntimeError(
                    "--once streams an answer, but with --workers 0 no worker can give one: leave out one of them."
                )
            with EmbeddedRedis() as redis:
                if not redis.is_real:
                    print_line(NO_REDIS)
                processes = make_processes(settings, redis, workers, listener, key, verbose=verbose)
                try:
                    return _run(processes, redis, settings, address, key, once=once, reload=reload)
                finally:
                    _stop(processes)
    except KeyboardInterrupt:
        print_line("\nStopped.")
        return 0
    except (RuntimeError, CannotListen) as error:
        print_line(f"! {error}")
        return 2 if isinstance(error, CannotListen) else 1  # As the other commands.


def _run(
    processes: list[DevProcess],
    redis: EmbeddedRedis,
    settings: Settings,
    address: str,
    key: str,
    *,
    once: bool,
    reload: bool,
) -> int:
    for process in processes:
        process.start()
    _await_ready(processes, address)
    if any(process.args[0] == "worker" for process in processes):
        # In a thread beside the watch: if the workers die, the request would take a minute to fail.
        sample = ThreadPoolExecutor(1).submit(stream_sample, address, key)
        watch(processes, redis, reload=reload, until=sample.done)
        if once:
            return 0 if sample.result() else 1
    else:
        print_line("! No worker: every request waits for one, and gets 504. Leave out --workers 0 to get answers.")
    _welcome(settings, address, key, redis.url, _database_url(redis))
    watch(processes, redis, reload=reload, until=lambda: False)
    return 0


def _bypass_proxies_on_this_machine() -> None:
    """Use no proxy of the environment for requests to this machine: this command's own, and the workers' to the demo."""
    direct = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = f"{direct},127.0.0.1".strip(",")


def print_line(line: str) -> None:
    click.echo(line)
    sys.stdout.flush()


def key_for(settings: AccessSettings, host: str) -> str:
    """Return a key that the API accepts: the first one in the settings, or one for this setup."""
    if settings.api_keys:
        return settings.api_keys[0].get_secret_value()
    return DEMO_KEY if is_loopback(host) else f"{DEMO_KEY}-{secrets.token_hex(16)}"


def make_processes(
    settings: Settings, redis: EmbeddedRedis, workers: int, listener: socket, key: str, *, verbose: bool
) -> list[DevProcess]:
    demo_port = free_port()
    prices = {f"demo/{name}": DEMO_PRICE for name in MODEL_NAMES["demo"]} | settings.prices
    env = {
        "SLUICE_REDIS_URL": redis.url,
        "SLUICE_DATABASE_URL": _database_url(redis),
        "SLUICE_API_DRAIN_S": str(DRAIN_S),
        "SLUICE_WORKER_DRAIN_S": str(DRAIN_S),
        "SLUICE_SECRET": settings.secret.get_secret_value() if settings.secret else secrets.token_hex(32),
        "SLUICE_PRICES": orjson.dumps({name: price.model_dump(mode="json") for name, price in prices.items()}).decode(),
        # REDIS_URL alone turns the cache on for one dialect; beside the SLUICE_REDIS_URL above it would not.
        "SLUICE_CACHE_DIALECTS": orjson.dumps(
            {name: rule.model_dump(exclude_none=True) for name, rule in settings.cache_dialects.items()}
        ).decode(),
        "DEMO_BASE_URL": f"http://127.0.0.1:{demo_port}/v1",
        **({} if settings.api_keys else {"SLUICE_API_KEYS": key}),
    }

    def make(name: str, args: list[str], consequence: str, fd: int | None = None) -> DevProcess:
        return DevProcess(name, args, env, consequence, None if verbose else redis.folder / f"{name}.err", fd)

    workers_text = f"{workers} workers" if workers != 1 else "one worker"
    print_line(f"Starting Redis, the demo provider, one API and {workers_text} …")
    host, port = listener.getsockname()[:2]
    api_options = ["--host", host, "--port", str(port), "--fd", str(listener.fileno())]
    lost = "another worker takes over its unfinished jobs within 8 s; answers that had begun continue if their model can"
    waits = "new requests wait, and open connections are cut; clients that keep their event ids can resume"
    return [
        make("the demo provider", ["demo-provider", "--port", str(demo_port)], "its open answers break off"),
        make("the API", ["api", *api_options], waits, listener.fileno()),
        *(make(f"worker {n + 1}", ["worker", "--host", "127.0.0.1", "--port", "0"], lost) for n in range(workers)),
    ]


def _database_url(redis: EmbeddedRedis) -> str:
    return f"sqlite:///{redis.folder}/sluice.db"


def _await_ready(processes: list[DevProcess], address: str) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    with httpx.Client(trust_env=False, timeout=1) as client:  # No proxy: for it, 127.0.0.1 may be another machine.
        while time.monotonic() < deadline:
            for process in processes:
                if process.process.poll() is not None:
                    raise RuntimeError(f"{process.name} did not start: {process.reason()} `sluice doctor` may tell more.")
            try:
                if client.get(f"{address}/readyz").status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            time.sleep(0.05)
    raise RuntimeError(f"The API was not ready within {READY_TIMEOUT_S} s. Run with --verbose to see its log.")


def stream_sample(address: str, key: str) -> bool:
    """Stream one answer through the whole path to the terminal. Return whether it was complete."""
    body = {"model": "demo", "stream": True, "messages": [{"role": "user", "content": "What does a sluice do?"}]}
    headers = {"authorization": f"Bearer {key}"}
    print_line("\nOne answer through the whole path, provider → worker → Redis → API → here:\n")
    try:
        with (
            httpx.Client(trust_env=False, timeout=60) as client,
            client.stream("POST", f"{address}/v1/chat/completions", json=body, headers=headers) as response,
        ):
            return _print_answer(response)
    except httpx.HTTPError as error:
        print_line(f"\n! The answer broke off: {type(error).__name__}.")
        return False


def _print_answer(response: httpx.Response) -> bool:
    if response.status_code != 200:
        response.read()
        print_line(f"! {response.status_code}: {response.text}")
        return False
    is_complete = False
    for data in _events(response):
        if data == "[DONE]":
            is_complete = True
            continue
        chunk = orjson.loads(data)
        if "error" in chunk:
            print_line(f"\n! {chunk['error']['message']}")
            return False
        for choice in chunk["choices"]:
            click.echo(choice["delta"].get("content") or "", nl=False)
            sys.stdout.flush()
    print_line("\n")
    return is_complete


def _events(response: httpx.Response) -> Iterator[str]:
    cutter = SseCutter(bytes_max=MIB)
    for piece in response.iter_bytes():
        for block in cutter.feed(piece):
            yield read_block(block)[1].decode()


def _welcome(settings: Settings, address: str, key: str, redis_url: str, database_url: str) -> None:
    body = '{"model":"demo","stream":true,"messages":[{"role":"user","content":"Hello"}]}'
    print_line(f"Playground:  {address}/#key={key}")
    print_line("Try it:")
    print_line(f"  curl -N {address}/v1/chat/completions -H 'Authorization: Bearer {key}' \\")
    print_line(f"    -H 'Content-Type: application/json' -d '{body}'")
    other_providers = [provider for provider in available(settings) if provider != "demo"]
    if other_providers:
        print_line(f"Configured providers: {', '.join(other_providers)}.")
    else:
        print_line("For a real provider, set its key (OPENAI_API_KEY or ANTHROPIC_API_KEY) and start again.")
    print_line("Keys: set SLUICE_ADMIN_KEYS and use /admin/keys (docs/access.md); `sluice keys` needs a Redis of your own.")
    print_line(f"Usage: SLUICE_DATABASE_URL={database_url} sluice usage")
    print_line(f"Cache: SLUICE_REDIS_URL='{redis_url}' SLUICE_DATABASE_URL={database_url} sluice cache stats")
    print_line("Ctrl-C stops everything.\n")


def watch(processes: list[DevProcess], redis: EmbeddedRedis, *, reload: bool, until: Callable[[], bool]) -> None:
    """Restart processes that die, and (``reload``) those whose source has changed, until ``until`` or an interrupt."""
    seen = _newest_source()
    while not until():
        time.sleep(0.1)
        if redis.process and redis.process.poll() is not None:
            print_line("! Redis ended: until it is back, new requests get 503 and running answers wait. Starting it again.")
            time.sleep(RESTART_PAUSE_S)
            redis.start()
            print_line("  Redis is back, with its data.")
        for process in processes:
            if process.process.poll() is not None:
                process.restart()
        if reload and (newest := _newest_source()) != seen:
            seen = newest
            print_line("  Source changed: restarting the API and the workers.")
            for process in processes[1:]:
                process.stop(DRAIN_S + 2)
                process.start()


def _exit_text(status: int) -> str:
    return f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"


def _stop(processes: list[DevProcess]) -> None:
    started = [process for process in processes if hasattr(process, "process")]
    for process in started:  # Signal all of them first, so that their grace periods run in parallel.
        if process.process.poll() is None:
            process.process.send_signal(signal.SIGCONT)
            process.process.terminate()
    for process in started:
        process.stop(DRAIN_S + 4)


def _newest_source() -> float:
    root = Path(__file__).parents[2]
    return max(path.stat().st_mtime for name in WATCHED for path in (root / name).rglob("*") if path.is_file())


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
