"""Does a browser's own EventSource read a generation to its end, whatever happens to the connection?"""

import json
import re
import shutil
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from demo_provider.script import answer
from tests.support.clients.chromium import Page, browser, new_page
from tests.support.fleet import CHAT, ROOT, Fleet, body_of, fleet, headers_of
from tests.support.servers.cutting_proxy import CuttingProxy, cutting_proxy

pytestmark = pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")

# What a page does; `gone` is set where the browser gives up by itself, as it should once there is nothing left.
READ = """
window.seen = []; window.retries = 0; window.gone = false;
window.source = new EventSource(URL);
source.onmessage = (event) => seen.push([event.lastEventId, event.data]);
source.onerror = () => { if (source.readyState === EventSource.CLOSED) gone = true; else retries++; };
"""


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    settings = {
        "SLUICE_SECRET": "a secret of these tests, 32 bytes or more",
        "SLUICE_CORS_ORIGINS": "*",
        "SLUICE_HEARTBEAT_S": "0.2",
    }
    with fleet(tmp_path_factory.mktemp("gateway"), apis=3, **settings) as found:
        yield found


@pytest.fixture(scope="module")
def devtools(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with browser(tmp_path_factory.mktemp("chromium")) as address:
        yield address


@dataclass
class Reading:
    page: Page
    proxy: CuttingProxy

    async def start(self, url: str) -> None:
        await self.page.run(READ.replace("URL", json.dumps(url)))

    async def until_seen(self, count: int) -> None:
        await self.page.until(f"seen.length >= {count}")

    async def whole(self) -> tuple[str, list[str]]:
        """Return the text and the ids of all events, once the browser has given up."""
        await self.page.until("gone")
        seen: list[list[str]] = await self.page.run("seen")
        chunks: list[Any] = [json.loads(data) for _, data in seen if data != "[DONE]"]
        text = "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])
        assert seen[-1][1] == "[DONE]"
        return text, [id_ for id_, _ in seen]


@pytest.fixture
async def reading(devtools: str, gateway: Fleet) -> AsyncIterator[Reading]:
    """A page of a site of its own, which reaches the gateway through a proxy."""
    gateway.reset_demo()
    with cutting_proxy(gateway.ports[0]) as proxy:
        async with new_page(devtools) as page:
            await page.open(f"{gateway.demo_url}/stats")
            yield Reading(page, proxy)


async def test_the_example_of_the_documentation_reads_an_answer(reading: Reading, gateway: Fleet):
    (code,) = re.findall(r"```js\n(.*?)```", (ROOT / "docs" / "resuming.md").read_text(), re.DOTALL)
    url = events_url(gateway, reading.proxy, "n60-d10")
    await reading.page.run("document.body.textContent = ''")

    await reading.page.run(f"(() => {{ const eventsUrl = {json.dumps(url)}; {code} }})()")

    await reading.page.until(f"document.body.textContent.includes({json.dumps(answer(10))})")
    reading.proxy.cut()
    await reading.page.until(f"document.body.textContent === {json.dumps(answer(60))}")


def events_url(gateway: Fleet, proxy: CuttingProxy, spec: str) -> str:
    response = httpx.post(
        f"{gateway.url}/v1/generations", json=body_of(CHAT, f"openai/demo-{spec}"), headers=headers_of(), timeout=120
    )
    return f"http://127.0.0.1:{proxy.port}{response.json()['events_url']}"


async def test_it_reads_to_the_end_and_then_stops_asking(reading: Reading, gateway: Fleet):
    await reading.start(events_url(gateway, reading.proxy, "n40-d5"))

    text, ids = await reading.whole()

    assert text == answer(40)
    assert len(set(ids)) == len(ids)
    assert await reading.page.run("retries") == 1  # The end of the stream, which was then answered with 204.


async def test_after_each_cut_it_goes_on_where_it_was_on_any_replica(reading: Reading, gateway: Fleet):
    await reading.start(events_url(gateway, reading.proxy, "n300-d15"))

    for cut in range(2):
        await reading.until_seen(20 * (cut + 1) + await reading.page.run("seen.length"))
        reading.proxy.target = gateway.ports[(cut + 1) % 2]
        reading.proxy.cut()
        await reading.page.until(f"retries > {cut}")

    text, ids = await reading.whole()
    assert text == answer(300)
    assert len(set(ids)) == len(ids)
    assert gateway.stats()["requests"] == 1


async def test_a_replica_that_is_killed_is_survived(reading: Reading, gateway: Fleet):
    reading.proxy.target = gateway.ports[2]
    await reading.start(events_url(gateway, reading.proxy, "n200-d15"))
    await reading.until_seen(20)

    reading.proxy.target = gateway.ports[1]
    gateway.apis[2].kill()

    text, ids = await reading.whole()
    assert text == answer(200)
    assert len(set(ids)) == len(ids)


async def test_a_replica_that_drains_sends_its_readers_elsewhere(reading: Reading, gateway: Fleet, tmp_path):
    with fleet(tmp_path, apis=2, SLUICE_SECRET="a secret of these tests, 32 bytes or more", SLUICE_CORS_ORIGINS="*") as other:
        reading.proxy.target = other.ports[0]
        await reading.start(events_url(other, reading.proxy, "n200-d15"))
        await reading.until_seen(20)

        reading.proxy.target = other.ports[1]
        other.apis[0].stop()

        text, ids = await reading.whole()
    assert text == answer(200)
    assert len(set(ids)) == len(ids)
