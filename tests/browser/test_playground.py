"""Does the playground work in a real browser, under our content security policy?"""

import shutil
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest

from demo_provider.script import answer
from tests.support.clients.chromium import Page, browser, new_page
from tests.support.fleet import KEY, Fleet, fleet, until

pytestmark = pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")

# Notes how long the answer is each time that it changes.
WATCH = """
window.lengths = [];
new MutationObserver(() => window.lengths.push(document.getElementById("answer").textContent.length))
  .observe(document.getElementById("answer"), { subtree: true, childList: true, characterData: true });
"""
TEXT = "document.getElementById('answer').textContent"
STATUS = "document.getElementById('status').textContent"
IS_IDLE = "!document.getElementById('send').disabled && document.getElementById('stop').disabled"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with fleet(tmp_path_factory.mktemp("gateway")) as found:
        yield found


@pytest.fixture(scope="module")
def devtools(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with browser(tmp_path_factory.mktemp("chromium")) as address:
        yield address


@pytest.fixture
async def page(devtools: str, gateway: Fleet) -> AsyncIterator[Page]:
    """The playground, with a key that is right."""
    gateway.reset_demo()
    async with new_page(devtools) as opened:
        await opened.open(f"{gateway.url}/#key={KEY}")
        await opened.run(WATCH)
        yield opened


async def send(page: Page, model: str) -> None:
    await page.run(f"document.getElementById('model').value = '{model}'; document.getElementById('send').click()")


async def test_an_answer_grows_token_by_token(page: Page, gateway: Fleet):
    await send(page, "demo-n60-d50")
    await page.until("window.lengths.some((length) => length > 0)")
    stats = gateway.stats()
    is_busy = await page.run("document.getElementById('answer').ariaBusy")
    await page.until(IS_IDLE)

    assert (stats["open"], stats["completed"]) == (1, 0)  # Text was on the page while the provider still spoke.
    assert is_busy == "true"
    assert await page.run(TEXT) == answer(60)
    lengths = [length for length in await page.run("window.lengths") if length]
    assert lengths == sorted(lengths)
    assert len(set(lengths)) > 10
    assert (await page.run(STATUS)).endswith("60 tokens, complete")
    assert await page.run("document.getElementById('answer').ariaBusy") == "false"
    assert page.complaints == []


async def test_stop_closes_the_upstream(page: Page, gateway: Fleet):
    await send(page, "demo-n5000-d20")
    await page.until(TEXT)
    await page.run("document.getElementById('stop').click()")

    await page.until(IS_IDLE)
    until(lambda: gateway.stats()["aborted"] == 1, "the upstream is closed")
    assert gateway.stats()["open"] == 0
    assert (await page.run(STATUS)).endswith("stopped")
    assert page.complaints == []


async def test_a_page_that_closes_closes_the_upstream(devtools: str, gateway: Fleet):
    gateway.reset_demo()
    async with new_page(devtools) as page:
        await page.open(f"{gateway.url}/#key={KEY}")
        await send(page, "demo-n5000-d20")
        await page.until(TEXT)

    until(lambda: gateway.stats()["aborted"] == 1, "the upstream is closed")


async def test_an_error_before_the_first_token_is_shown(page: Page, gateway: Fleet):
    body = {"model": "demo-e400", "messages": [{"role": "user", "content": "hi"}]}
    refusal = httpx.post(f"{gateway.url}/v1/chat/completions", json=body, headers={"authorization": f"Bearer {KEY}"})
    assert refusal.status_code == 400

    await send(page, "demo-e400")

    await page.until(IS_IDLE)
    assert await page.run(STATUS) == f"failed: {refusal.json()['error']['message']}"
    assert await page.run("document.getElementById('status').className") == "error"


async def test_an_error_after_some_tokens_is_shown_beside_them(page: Page):
    await send(page, "demo-err5-d20")

    await page.until(f"{IS_IDLE} && {STATUS}.startsWith('failed: ')")
    assert (await page.run(TEXT)).startswith(answer(5))  # The gateway went on where it could, and each try broke off.
    assert page.complaints == []


async def test_a_wrong_key_is_said_and_a_right_one_mends_it(page: Page):
    await page.run("document.getElementById('key').value = 'sk-wrong'")
    await send(page, "demo-n3-d0")
    await page.until(f"{IS_IDLE} && {STATUS}.includes('API key is not valid')")

    await page.run(f"document.getElementById('key').value = '{KEY}'")
    await send(page, "demo-n3-d0")

    await page.until(f"{IS_IDLE} && {STATUS}.endsWith('complete')")
    assert await page.run(TEXT) == answer(3)
    assert await page.run("document.getElementById('status').className") == ""


async def test_every_control_has_a_name_and_the_keyboard_sends(page: Page):
    tree = (await page.call("Accessibility.getFullAXTree"))["nodes"]
    controls = [node for node in tree if node.get("role", {}).get("value") in ("button", "textbox")]
    assert {node["name"]["value"] for node in controls} == {"Model", "API key", "Message", "Send", "Stop"}

    await page.run("document.getElementById('model').value = 'demo-n3-d0'; document.getElementById('prompt').focus()")
    for kind in ("keyDown", "keyUp"):
        await page.call("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13, modifiers=2)

    await page.until(f"{IS_IDLE} && {STATUS}.endsWith('complete')")


async def test_the_policy_is_in_force(page: Page, gateway: Fleet):
    """Native fetch to the gateway works in the tests above; to anywhere else it must not."""
    blocked = await page.run(f"fetch('{gateway.demo_url}/stats', {{mode: 'no-cors'}}).then(() => 'sent', () => 'blocked')")

    assert blocked == "blocked"
    assert any("Content Security Policy" in complaint for complaint in page.complaints)
