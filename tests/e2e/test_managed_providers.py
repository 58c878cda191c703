"""Providers, keys and routes that are managed while real processes run."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.test_reload import Traffic
from tests.support.fleet import CHAT, ROOT, Fleet, body_of, fleet, headers_of, until

SECRET = "a-secret-that-all-processes-share-0"
OTHER_SECRET = "another-secret-for-all-processes-1"
ADMIN_KEY = "the-key-of-the-administrator"
MODEL = "demo-n5-d5"
KEY = "upstream-key-number-{}-abcd"


def sluice(gateway: Fleet, *args: str, key: str | None = None, **changed: str) -> Any:
    """Run a command, and return its JSON. ``key`` goes to its standard input."""
    ran = run(gateway, *args, "--json", *(("--key-file", "-") if key else ()), key=key, **changed)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def run(gateway: Fleet, *args: str, key: str | None = None, **changed: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **gateway.env(), **changed}
    command = [sys.executable, "-m", "cli.main", *args]
    return subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=False, input=key or "")


def add_lab(gateway: Fleet, number: int = 0) -> None:
    sluice(gateway, "providers", "add", "lab", "--base-url", f"{gateway.demo_url}/v1", key=KEY.format(number))
    until(lambda: status(gateway, f"lab/{MODEL}") == 200, "the provider is used")


def status(gateway: Fleet, model: str) -> int:
    return gateway.post(CHAT, body_of(CHAT, model)).status_code


def everywhere(gateway: Fleet, model: str) -> set[int]:
    """Return what all APIs say."""
    urls = [f"{api.url}/v1/chat/completions" for api in gateway.apis]
    return {gateway.client.post(url, json=body_of(CHAT, model), headers=headers_of()).status_code for url in urls}


def revoke(gateway: Fleet, key: str) -> None:
    gateway.client.post(f"{gateway.demo_url}/revoke", params={"key": key})


def admin(gateway: Fleet, method: str, path: str, body: Any = None) -> Any:
    headers = {"authorization": f"Bearer {ADMIN_KEY}"}
    return gateway.client.request(method, f"{gateway.url}/admin{path}", json=body, headers=headers)


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Fleet]:
    with fleet(tmp_path, apis=2, workers=2, SLUICE_SECRET=SECRET, SLUICE_ADMIN_KEYS=ADMIN_KEY) as found:
        yield found


def test_a_key_that_is_rotated_under_load_refuses_no_request(gateway: Fleet):
    """The vendor refuses the old key at once, while workers may still have only that one."""
    add_lab(gateway)
    traffic = Traffic(gateway, f"lab/{MODEL}", threads=8)
    try:
        for number in range(1, 5):
            sluice(gateway, "providers", "rotate", "lab", key=KEY.format(number))
            revoke(gateway, KEY.format(number - 1))
            traffic.more(30)
    finally:
        traffic.stop()

    assert traffic.failures == []
    (lab,) = sluice(gateway, "providers", "list")
    assert lab["keys"][0]["label"] == "…abcd"
    assert gateway.stats()["completed"] > 100


def test_a_provider_is_added_disabled_enabled_and_removed_without_a_restart(gateway: Fleet):
    assert status(gateway, f"lab/{MODEL}") == 404
    add_lab(gateway)

    sluice(gateway, "providers", "disable", "lab")
    until(lambda: everywhere(gateway, f"lab/{MODEL}") == {404}, "it is disabled")
    gateway.start_api()
    gateway.ready()
    assert everywhere(gateway, f"lab/{MODEL}") == {404}  # A restart does not enable it.
    sluice(gateway, "providers", "update", "lab", "--limits", '{"concurrent": 50}')
    sluice(gateway, "providers", "enable", "lab")
    until(lambda: everywhere(gateway, f"lab/{MODEL}") == {200}, "it is enabled, and has its key")
    sluice(gateway, "routes", "set", "fast", "--target", f"lab/{MODEL}")
    until(lambda: status(gateway, "fast") == 200, "the route is used")
    sluice(gateway, "routes", "remove", "fast", "--yes")
    sluice(gateway, "providers", "remove", "lab", "--yes")
    until(lambda: everywhere(gateway, "fast") | everywhere(gateway, f"lab/{MODEL}") == {404}, "both are gone")


def test_what_is_stored_serves_without_the_database_and_comes_back_after_redis_was_emptied(gateway: Fleet, tmp_path: Path):
    add_lab(gateway)
    database, aside = tmp_path / "sluice.db", tmp_path / "aside.db"
    database.rename(aside)
    database.mkdir()  # Nobody can open it.

    newcomer = gateway.start_worker()
    gateway.ready()
    for worker in gateway.workers[:2]:
        worker.stop()
    assert status(gateway, f"lab/{MODEL}") == 200

    database.rmdir()
    aside.rename(database)
    for name in gateway.redis.keys("sluice:config:stored*"):
        gateway.redis.delete(name)
    assert status(gateway, f"lab/{MODEL}") == 200  # Nobody forgets it meanwhile.
    until(lambda: gateway.redis.exists("sluice:config:stored"), "the bookkeeper has restored it")
    assert newcomer.is_alive


def test_files_and_environment_win_visibly(gateway: Fleet):
    sluice(gateway, "providers", "add", "openai", "--limits", '{"requests": 5}', key="a-stored-key-for-openai")

    (openai,) = sluice(gateway, "providers", "list")

    assert openai["overridden_by_settings"] == ["api_keys"]  # OPENAI_API_KEY. The limits are the stored ones.
    assert "overridden by settings: api_keys" in run(gateway, "config", "check").stdout


def test_a_vendor_without_the_key_that_it_needs_is_not_listed_as_on(gateway: Fleet):
    for name, key in (("groq", None), ("mistral", "a-key-for-mistral"), ("openai", None)):
        sluice(gateway, "providers", "add", name, key=key)
    rows = [line.split() for line in run(gateway, "providers", "list").stdout.splitlines()]
    assert rows[1:] == [["groq", "no", "key"], ["mistral", "on", *rows[2][2:]], ["openai", "on"]]  # OPENAI_API_KEY is set.


def test_the_admin_api_does_the_same(gateway: Fleet):
    body = {"name": "lab", "base_url": f"{gateway.demo_url}/v1", "api_keys": [KEY.format(1)]}
    assert admin(gateway, "POST", "/providers", body).status_code == 201
    assert admin(gateway, "POST", "/providers", body).status_code == 400
    assert admin(gateway, "PUT", "/routes/fast", {"targets": [f"lab/{MODEL}"]}).status_code == 200
    until(lambda: status(gateway, "fast") == 200, "it is used")

    rotated = admin(gateway, "POST", "/providers/lab/rotate", {"api_key": KEY.format(2), "overlap_s": 0}).json()
    assert ([key["label"] for key in rotated["keys"]], rotated["served"]) == (["…abcd"], True)
    revoke(gateway, KEY.format(1))
    assert status(gateway, "fast") == 200

    assert admin(gateway, "PATCH", "/routes/fast", {"disabled": True}).json()["disabled"] is True
    until(lambda: status(gateway, "fast") == 404, "the route is disabled")
    assert [row["name"] for row in admin(gateway, "GET", "/providers").json()["data"]] == ["lab"]
    assert admin(gateway, "DELETE", "/providers/lab").json()["removed"] is True
    assert admin(gateway, "GET", "/providers/lab").status_code == 404
    assert admin(gateway, "PATCH", "/providers/lab", {"disabled": True}).status_code == 404
    assert admin(gateway, "POST", "/providers", {"name": "lab2", "base_url": "ftp://x"}).status_code == 400
    in_settings = admin(gateway, "PATCH", "/providers/openai", {"disabled": True})
    assert (in_settings.status_code, "It is in the settings" in in_settings.text) == (404, True)
    assert "It is in the settings" in run(gateway, "providers", "rotate", "openai", "--key-file", "-", key="k").stderr
    with_login = admin(gateway, "POST", "/providers", {"name": "lab2", "base_url": "http://user:secret-word@127.0.0.1:1"})
    assert (with_login.status_code, "put the key into api_keys" in with_login.text) == (400, True)
    assert "secret-word" not in with_login.text
    to_nobody = admin(gateway, "PUT", "/routes/slow", {"targets": ["nosuch/x"]})
    assert (to_nobody.status_code, "There is no provider 'nosuch'" in to_nobody.text) == (400, True)
    assert "There is no provider 'nosuch'" in run(gateway, "routes", "set", "slow", "--target", "nosuch/x").stderr
    assert gateway.client.get(f"{gateway.url}/admin/providers").status_code == 401


def test_no_key_is_anywhere_in_clear(gateway: Fleet, tmp_path: Path):
    add_lab(gateway, 1)
    answers = [
        admin(gateway, "POST", "/providers/lab/rotate", {"api_key": KEY.format(2)}).text,
        admin(gateway, "GET", "/providers").text,
        admin(gateway, "GET", "/providers/lab").text,
        admin(gateway, "POST", "/providers", {"name": "bad", "api_keys": [KEY.format(3) + "\n"], "base_url": "x"}).text,
        run(gateway, "providers", "list").stdout,
        run(gateway, "providers", "add", "x", "--wire", KEY.format(4), key=KEY.format(4)).stdout,
        gateway.post(CHAT, body_of(CHAT, f"lab/{MODEL}")).text,
    ]
    for process in [*gateway.apis, *gateway.workers]:
        answers += [gateway.client.get(f"{process.url}{path}").text for path in ("/metrics", "/health")]
        answers.append(process.log.read_text())
    stored = [gateway.redis.dump(name) or b"" for name in gateway.redis.keys("*")]
    stored += [path.read_bytes() for path in tmp_path.glob("sluice.db*")]

    found = b"\n".join([*stored, *(answer.encode() for answer in answers)])
    assert b"upstream-key-number" not in found
    assert b"gAAAA" in b"".join(stored)  # It is there, encrypted.


def test_a_rotation_of_the_secret_keeps_what_is_stored(tmp_path: Path):
    with fleet(tmp_path, apis=1, workers=1, SLUICE_SECRET=SECRET) as gateway:
        add_lab(gateway)
        for process in [*gateway.apis, *gateway.workers]:
            process.stop()
        gateway.settings |= {"SLUICE_SECRET": OTHER_SECRET, "SLUICE_SECRET_PREVIOUS": SECRET}
        gateway.apis, gateway.workers = [], []
        gateway.start(apis=1, workers=1)
        assert status(gateway, f"lab/{MODEL}") == 200

        # The bookkeeper encrypts it anew, so that the previous secret can go.
        until(lambda: run(gateway, "providers", "list", SLUICE_SECRET_PREVIOUS="").stderr == "", "it is encrypted anew")
        wrong = run(gateway, "providers", "list", SLUICE_SECRET=SECRET, SLUICE_SECRET_PREVIOUS="")
        assert "another SLUICE_SECRET" in wrong.stderr


def test_a_process_with_another_secret_says_so_and_serves_the_rest(tmp_path: Path):
    with fleet(tmp_path, apis=1, workers=1, SLUICE_SECRET=SECRET) as gateway:
        add_lab(gateway)
        gateway.settings |= {"SLUICE_SECRET": OTHER_SECRET}
        stranger = gateway.start_api()
        gateway.ready()

        page = gateway.client.get(f"{stranger.url}/health")
        assert page.status_code == 200
        (problem,) = page.json()["problems"]
        assert ("managed at run time" in problem, "lab" in problem) == (True, False)  # Anybody can read this page.
        (logged,) = stranger.events("stored_settings_in_doubt")[0]["problems"]
        assert "provider lab" in logged and "SLUICE_SECRET" in logged
        assert gateway.client.get(f"{gateway.url}/health").json()["problems"] == []
        assert status(gateway, MODEL) == status(gateway, f"lab/{MODEL}") == 200
