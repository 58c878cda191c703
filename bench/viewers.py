"""What does an event cost for each of the many viewers of one answer, and with nginx's own pub/sub module?

One generation, read by many clients through one API while it runs: ``GET /v1/generations/{id}``. Beside it, where it is
installed, nchan (Debian's libnginx-mod-nchan): a module in C that sends what is published on a channel to all its listeners.
Everything is charged: for Sluice the API, the worker and Redis, for nginx its worker process.
"""

import asyncio
import contextlib
import secrets
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

from bench.run import KEY, OURS, Machine, Outcome, await_ok, send_raw, stop
from cli.dev.embedded_redis import free_port

VIEWERS = (500, 2000)
TOKENS, PACE_MS, HEAD_START_S = 200, 20, 3
EVENT = b'data: {"choices": [{"index": 0, "delta":{"content":"hello"}, "finish_reason": null}], "model": "bench", "id": "1"}'
NCHAN = Path("/usr/lib/nginx/modules/ngx_nchan_module.so")
_CONFIG = """
load_module {module};
daemon off; worker_processes 1; worker_rlimit_nofile 20000; pid {folder}/pid; error_log {folder}/log;
events {{ worker_connections 16000; }}
http {{ access_log off; server {{ listen 127.0.0.1:{port} backlog=4096;
  location = /ready {{ return 204; }}
  location ~ /sub/(\\w+)$ {{ nchan_subscriber eventsource; nchan_channel_id $1; nchan_subscriber_first_message newest; }}
  location ~ /pub/(\\w+)$ {{ nchan_publisher; nchan_channel_id $1; }} }} }}
"""


async def measure_viewers(under_test: Machine) -> int:
    """Print what an event costs per viewer. Return the number of viewers that did not get the whole answer."""
    failed = 0
    print(f"\nviewers: one answer of {TOKENS} tokens, {PACE_MS} ms apart, read by many clients at once")
    with _nginx() as nginx:
        for count in VIEWERS:
            before = under_test.cpu_s()
            outcomes = await _view(under_test, count)
            after = under_test.cpu_s()
            costs_us = {name: (after[name] - before[name]) * 1e6 / (count * TOKENS) for name in OURS}
            broken = sum(not (outcome.is_complete and outcome.tokens == TOKENS) for outcome in outcomes)
            parts = " + ".join(f"{name} {costs_us[name]:.1f}" for name in OURS)
            print(
                f"  {count:5}  CPU per token and viewer  {sum(costs_us.values()):.1f} us = {parts}   errors {broken} of {count}"
            )
            failed += broken
            if nginx:
                await _measure_nchan(*nginx, count)
        if not nginx:
            print("  nchan is not installed")
    return failed


async def _view(under_test: Machine, count: int) -> list[Outcome]:
    model = f"demo-n{TOKENS}-d{PACE_MS}-f{HEAD_START_S * 1000}"
    body = {"model": model, "stream": True, "messages": [{"role": "user", "content": secrets.token_hex(8)}]}
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{under_test.api_port}", timeout=15) as client:
        started = await client.post("/v1/generations", json=body, headers={"authorization": f"Bearer {KEY}"})
    path = f"/v1/generations/{started.json()['id']}"
    return await asyncio.gather(*(send_raw(under_test.api_port, "GET", path) for _ in range(count)))


@contextlib.contextmanager
def _nginx() -> Iterator[tuple[int, int] | None]:
    """Yield the port of an nginx with nchan, and the process id of its worker; None where it is not installed."""
    if not NCHAN.exists():
        yield None
        return
    port = free_port()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        config = Path(folder) / "nginx.conf"
        config.write_text(_CONFIG.format(module=NCHAN, folder=folder, port=port))
        master = subprocess.Popen(["nginx", "-c", config])
        stack.callback(stop, master)
        await_ok(f"http://127.0.0.1:{port}/ready")
        children = Path(f"/proc/{master.pid}/task/{master.pid}/children").read_text().split()
        yield port, int(children[0])


async def _measure_nchan(port: int, pid: int, count: int) -> None:
    """Print what an event costs per viewer where it is published once, and nchan sends it to all."""
    name = f"c{count}"
    before = time.clock_gettime((~pid << 3) | 2)
    viewers = [
        asyncio.create_task(send_raw(port, "GET", f"/sub/{name}", headers="accept: text/event-stream\r\n"))
        for _ in range(count)
    ]
    await asyncio.sleep(HEAD_START_S)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=15) as client:
        for _ in range(TOKENS):
            began_at = time.monotonic()
            await client.post(f"/pub/{name}", content=EVENT.removeprefix(b"data: "))
            await asyncio.sleep(max(0.0, PACE_MS / 1000 - (time.monotonic() - began_at)))
        await client.delete(f"/pub/{name}")  # Ends its subscribers.
    tokens = sum(outcome.tokens for outcome in await asyncio.gather(*viewers))
    cost_us = (time.clock_gettime((~pid << 3) | 2) - before) * 1e6 / max(tokens, 1)
    print(f"         nchan                     {cost_us:.1f} us   ({tokens / count:.0f} tokens for each)")
