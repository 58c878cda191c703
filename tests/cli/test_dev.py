import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest
from pydantic import SecretStr

from cli.dev import command as dev
from common.config.settings import Settings


class Redis:
    url = "redis://127.0.0.1:1"
    folder = Path("/nowhere")


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as found:
        yield found


def parts(listener: socket.socket, key: str = "sk-demo", **settings: Any) -> list[dev.DevProcess]:
    return dev.make_processes(Settings(**settings), Redis(), 2, listener, key, verbose=False)  # type: ignore[arg-type]  # What it tells is all.


@pytest.mark.parametrize("secret", [None, SecretStr("one's own, and long enough for anybody")])
def test_both_tiers_get_one_secret(listener, secret):
    secrets = {part.env["SLUICE_SECRET"] for part in parts(listener, secret=secret)}

    assert len(secrets) == 1
    assert secrets == {secret.get_secret_value()} if secret else len(secrets.pop()) == 64


def test_both_tiers_get_one_database_that_goes_with_the_setup(listener):
    assert {part.env["SLUICE_DATABASE_URL"] for part in parts(listener)} == {"sqlite:////nowhere/sluice.db"}


def test_the_demo_s_models_have_a_price_beside_those_of_the_settings(listener):
    own = {"openai/x": {"input_usd_per_mtok": 7, "output_usd_per_mtok": 8}}

    (prices,) = {part.env["SLUICE_PRICES"] for part in parts(listener, prices=own)}

    assert orjson.loads(prices).keys() > {"demo/demo", "openai/x"}
    assert Settings(prices=orjson.loads(prices)).prices["openai/x"] == Settings(prices=own).prices["openai/x"]


def test_redis_url_alone_turns_the_cache_on_as_without_dev(listener, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:2")
    rules = Settings().cache_dialects
    assert rules["unified"].ttl_s == 600

    for part in parts(listener):
        with monkeypatch.context() as child:
            for name, value in part.env.items():
                child.setenv(name, value)
            assert (Settings().cache_dialects, Settings().redis_url) == (rules, Redis.url)


def test_a_key_of_the_settings_is_used_and_no_other_is_good(listener):
    own = Settings(api_keys="sk-one,sk-two")

    assert dev.key_for(own, "127.0.0.1") == "sk-one"
    assert not any("SLUICE_API_KEYS" in part.env for part in parts(listener, api_keys="sk-one"))


def test_the_key_that_everybody_knows_is_good_on_loopback_alone(listener):
    assert dev.key_for(Settings(), "127.0.0.1") == "sk-demo"
    assert {part.env["SLUICE_API_KEYS"] for part in parts(listener)} == {"sk-demo"}
    off_loopback = {dev.key_for(Settings(), "0.0.0.0") for _ in range(2)}
    assert len(off_loopback) == 2
    assert all(len(key) > 32 for key in off_loopback)


def test_the_api_is_lent_the_socket_that_dev_holds(listener):
    _, api, *workers = parts(listener)

    assert api.fd == listener.fileno()
    assert api.args[-2:] == ["--fd", str(listener.fileno())]
    assert all(worker.fd is None and worker.args[-2:] == ["--port", "0"] for worker in workers)


def test_a_process_that_does_not_stay_alive_ends_dev_with_its_reason(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(dev, "RESTART_PAUSE_S", 0)
    script = "import sys; sys.exit('its disk is full')"
    monkeypatch.setattr(
        dev.DevProcess,
        "start",
        lambda part: setattr(part, "process", run(script, part.errors)) or setattr(part, "_started_at", dev.time.monotonic()),
    )
    part = dev.DevProcess("worker 1", [], {}, "nothing is lost", tmp_path / "err")
    part.start()

    class NoRedis:
        process = None

    with pytest.raises(RuntimeError, match="worker 1 ended 3 times right after its start: its disk is full"):
        dev.watch([part], NoRedis(), reload=False, until=lambda: part.process.wait() is None)  # type: ignore[arg-type]

    assert capsys.readouterr().out.count("Starting it again") == 2


def run(script: str, errors: Path | None) -> subprocess.Popen[bytes]:
    assert errors
    with errors.open("wb") as out:
        return subprocess.Popen([sys.executable, "-c", script], stderr=out)


@pytest.mark.parametrize(
    ("settings", "words", "expected"),
    [({"once": True, "workers": 0}, "--workers 0", 1), ({"once": True, "workers": 1}, "is used by another process", 2)],
)
def test_what_cannot_come_to_an_answer_ends_at_once(listener, monkeypatch, capsys, settings, words, expected):
    monkeypatch.setattr(dev, "EmbeddedRedis", lambda: pytest.fail("nothing must be started"))
    monkeypatch.setattr(dev.signal, "signal", lambda *_: None)
    port = listener.getsockname()[1] if settings["workers"] else 65_000
    if not settings["workers"]:
        monkeypatch.setattr(dev, "bind", lambda *_, **__: socket.create_server(("127.0.0.1", 0)))

    status = dev.run(Settings(port=port), host="127.0.0.1", reload=False, verbose=False, **settings)

    assert status == expected
    assert capsys.readouterr().out.count(words) == 1
