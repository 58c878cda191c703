"""A real browser, driven over the DevTools protocol, with just the functions that the tests need.

Source: https://chromedevtools.github.io/devtools-protocol/
"""

import asyncio
import contextlib
import json
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp

from tests.support.fleet import until

START_S = 120
STOP_S = 10
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--window-size=900,1000",
    "--remote-debugging-port=0",
)


@contextlib.contextmanager
def browser(folder: Path, *flags: str) -> Iterator[str]:
    """Yield the address of a new browser's DevTools. Its profile is in ``folder``."""
    profile = folder / "profile"
    with (folder / "chromium.log").open("ab") as log:
        process = subprocess.Popen(
            [shutil.which("chromium") or "chromium", *FLAGS, *flags, f"--user-data-dir={profile}", "about:blank"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        port = until(lambda: _port(profile) or process.poll() is not None, "chromium has started", within_s=START_S)
        assert process.poll() is None, (folder / "chromium.log").read_text()
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _port(profile: Path) -> int:
    """Return the port when it is written; 0 before that."""
    try:
        return int((profile / "DevToolsActivePort").read_text().split()[0])
    except (FileNotFoundError, IndexError):
        return 0


class Page:
    """One tab. ``complaints`` are the browser's reports about the page: console errors, exceptions, policy violations."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._loaded = asyncio.Event()
        self.complaints: list[str] = []

    async def call(self, method: str, **params: object) -> dict[str, Any]:
        number = len(self._answers)
        self._answers[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": params})
        async with asyncio.timeout(START_S):
            answer = await self._answers[number]
        assert "error" not in answer, answer
        return answer["result"]

    async def open(self, url: str) -> None:
        """Return once the page has loaded."""
        self._loaded.clear()
        await self.call("Page.navigate", url=url)
        async with asyncio.timeout(START_S):
            await self._loaded.wait()

    async def run(self, expression: str) -> Any:
        """Return the value of a JavaScript expression in the page."""
        answer = await self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    async def until(self, expression: str, within_s: float = 20) -> Any:
        """Return the expression's value as soon as it is true."""
        async with asyncio.timeout(within_s):
            while not (value := await self.run(expression)):
                await asyncio.sleep(0.02)
        return value

    async def listen(self) -> None:
        async for message in self._socket:
            data = json.loads(message.data)
            if "id" in data:
                self._answers[data["id"]].set_result(data)
                continue
            params = data["params"]
            match data["method"]:
                case "Page.loadEventFired":
                    self._loaded.set()
                case "Runtime.exceptionThrown":
                    self.complaints.append(params["exceptionDetails"]["text"])
                case "Runtime.consoleAPICalled" if params["type"] in ("error", "warning", "assert"):
                    self.complaints.append(str(params["args"]))
                case "Log.entryAdded" if params["entry"]["level"] in ("error", "warning"):
                    self.complaints.append(params["entry"]["text"])


@contextlib.asynccontextmanager
async def new_page(devtools: str) -> AsyncIterator[Page]:
    """Open a tab and close it again."""
    async with aiohttp.ClientSession() as session:
        async with session.put(f"{devtools}/json/new?about:blank") as response:
            tab = await response.json()
        async with session.ws_connect(tab["webSocketDebuggerUrl"], max_msg_size=0) as socket:
            page = Page(socket)
            listening = asyncio.create_task(page.listen())
            try:
                for domain in ("Page", "Runtime", "Log"):
                    await page.call(f"{domain}.enable")
                yield page
            finally:
                listening.cancel()
                await asyncio.gather(listening, return_exceptions=True)
        async with session.get(f"{devtools}/json/close/{tab['id']}"):
            pass
