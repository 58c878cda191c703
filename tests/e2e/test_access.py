"""Credentials of every kind on two replicas: who is let in, to what, and for how long."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest

from common.redis.keyspace import KEYS_VERSION
from common.redis.pulse import PULSE_INTERVAL_S, PULSE_TIMEOUT_S
from tests.support.fleet import CHAT, KEY, MESSAGES, PATH_OF, ROOT, Fleet, body_of, fleet, headers_of, until

JWT_SECRET = "a secret of at least thirty-two bytes"
MODEL = "openai/demo-n3-d1"
OTHER_MODEL = "anthropic/demo-n3-d1"
ADMIN = {"authorization": "Bearer admin-key"}


@pytest.fixture(scope="module")
def replicas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("access")
    settings = {
        "SLUICE_SECRET": "a long random text that all processes share",
        "SLUICE_DATABASE_URL": f"sqlite:///{folder}/s.db",
        "SLUICE_ADMIN_KEYS": "admin-key",
        "SLUICE_JWT_SECRET": JWT_SECRET,
        "SLUICE_ALIASES": json.dumps({"both": [OTHER_MODEL, MODEL]}),
        "SLUICE_TENANTS": json.dumps({"acme": {"providers": ["openai"]}}),
        "SLUICE_REFUSED_CREDENTIALS_MAX": "1000",
    }
    with fleet(folder, apis=2, **settings) as found:
        yield found


def sluice(found: Fleet, *words: str) -> dict[str, Any]:
    """Run ``sluice keys`` as an operator would, in a process of its own."""
    command = [sys.executable, "-m", "cli.main", "keys", *words, "--json"]
    done = subprocess.run(
        command, env={**os.environ, **found.env()}, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def made(found: Fleet, **body: Any) -> dict[str, Any]:
    response = found.client.post(f"{found.url}/admin/keys", headers=ADMIN, json=body)
    assert response.status_code == 201, response.text
    return response.json()


def ask(found: Fleet, key: str, model: str = MODEL, *, replica: int = 0, dialect: str = CHAT, **headers: str) -> httpx.Response:
    url = f"http://127.0.0.1:{found.ports[replica]}{PATH_OF[dialect]}"
    return found.client.post(url, json=body_of(dialect, model), headers=headers_of(key, **headers))


def statuses(found: Fleet, key: str) -> list[int]:
    return [ask(found, key, replica=replica).status_code for replica in (0, 1)]


def token(**claims: Any) -> str:
    return jwt.encode({"sub": "ann", "exp": time.time() + 60, **claims}, JWT_SECRET)


def test_a_key_from_the_terminal_is_good_on_every_replica_and_a_revoked_one_on_none(replicas: Fleet):
    told = sluice(replicas, "create", "--name", "e2e")
    assert statuses(replicas, told["key"]) == [200, 200]

    sluice(replicas, "disable", told["id"])
    until(lambda: statuses(replicas, told["key"]) == [401, 401], "a disabled key is refused everywhere")

    sluice(replicas, "enable", told["id"])
    until(lambda: statuses(replicas, told["key"]) == [200, 200], "an enabled key is good everywhere")

    sluice(replicas, "delete", told["id"], "--yes")
    until(lambda: statuses(replicas, told["key"]) == [401, 401], "a deleted key is refused everywhere")


def test_a_read_token_goes_with_the_key_that_gave_it_away(replicas: Fleet):
    told = made(replicas)
    url = f"{replicas.url}/v1/generations"
    started = replicas.client.post(url, json=body_of(CHAT, MODEL), headers=headers_of(told["key"])).json()
    events_url = replicas.url + started["events_url"]
    assert replicas.client.get(events_url).status_code == 200

    sluice(replicas, "disable", told["id"])

    until(lambda: replicas.client.get(events_url).status_code == 401, "nobody reads for a revoked key")


def test_no_process_believes_in_a_key_for_longer_than_two_seconds():
    assert PULSE_INTERVAL_S + PULSE_TIMEOUT_S <= 2  # Or else its pulse says that Redis is away, and nobody is let in.


def test_a_rotation_keeps_what_belongs_to_the_key(replicas: Fleet):
    old = made(replicas)
    started = ask(replicas, old["key"], x_disconnect="detach")
    generation = f"{replicas.url}/v1/generations/{started.headers['x-generation-id']}"

    new = sluice(replicas, "rotate", old["id"], "--overlap", "10m")
    until(lambda: statuses(replicas, new["key"]) == [200, 200], "the new text is good")

    read = replicas.client.get(generation, headers=headers_of(new["key"], accept="application/json"))
    stranger = replicas.client.get(generation, headers=headers_of(KEY, accept="application/json"))
    assert statuses(replicas, old["key"]) == [200, 200]
    assert (read.status_code, read.json()["status"]) == (200, "completed")
    assert stranger.status_code == 404


def test_a_key_is_good_for_its_models_its_dialects_and_its_providers(replicas: Fleet):
    by_model = made(replicas, access={"models": [MODEL]})["key"]
    by_dialect = made(replicas, access={"dialects": [CHAT]})["key"]
    by_provider = made(replicas, access={"providers": ["openai"]})["key"]

    good = [ask(replicas, key) for key in (by_model, by_dialect, by_provider)]
    bad = [
        ask(replicas, by_model, OTHER_MODEL),
        ask(replicas, by_dialect, dialect=MESSAGES),
        ask(replicas, by_provider, OTHER_MODEL),
    ]

    assert [answer.status_code for answer in good] == [200] * 3
    assert [answer.status_code for answer in bad] == [403] * 3
    codes = [bad[0].json()["error"]["code"], bad[1].json()["error"]["type"], bad[2].json()["error"]["code"]]
    assert codes == ["model_not_allowed", "permission_error", "provider_not_allowed"]


def test_in_agentary_a_model_that_is_not_allowed_is_an_invalid_one(replicas: Fleet):
    key = made(replicas, access={"models": ["something-else"]})["key"]
    body = body_of(CHAT, "demo-n3-d1")

    answer = replicas.client.post(f"{replicas.url}/api/openai", json=body, headers=headers_of(key))

    assert (answer.status_code, answer.json()["error"]) == (400, "Invalid model")


def test_the_worker_keeps_to_the_providers_that_are_allowed(replicas: Fleet):
    key = made(replicas, access={"providers": ["openai"]})["key"]
    before = len(replicas.upstream_requests())

    answer = ask(replicas, key, "both")  # Anthropic's is the first of its targets.

    asked = replicas.upstream_requests()[before:]
    assert answer.status_code == 200
    assert [each["path"] for each in asked] == ["/v1/chat/completions"]


def test_only_what_a_key_may_use_is_listed(replicas: Fleet):
    key = made(replicas, access={"models": ["both", MODEL]})["key"]

    listed = replicas.client.get(f"{replicas.url}/v1/models", headers=headers_of(key)).json()

    assert {each["id"] for each in listed["data"]} == {"both", MODEL}
    for name, status in ((MODEL, 200), ("both", 200), ("openai/another", 403)):
        assert replicas.client.get(f"{replicas.url}/v1/models/{name}", headers=headers_of(key)).status_code == status
    assert replicas.client.get(f"{replicas.url}/v1/models/{MODEL}").status_code == 401


def test_a_key_s_disconnect_policy_is_that_of_its_requests(replicas: Fleet):
    key = made(replicas, access={"disconnect": "detach"})["key"]

    left = ask(replicas, key)

    said = replicas.redis.hgetall(f"{{{left.headers['x-generation-id']}}}:state")
    assert said[b"policy"] == b"detach"


def test_a_token_lets_in_by_its_scopes_and_with_its_tenant_s_rules(replicas: Fleet):
    mine = {"x_disconnect": "detach"}
    started = ask(replicas, token(tenant="acme"), **mine)
    generation = f"{replicas.url}/v1/generations/{started.headers['x-generation-id']}"

    def read(**claims: Any) -> int:
        headers = headers_of(token(**claims), accept="application/json")
        return replicas.client.get(generation, headers=headers).status_code

    assert started.status_code == 200
    assert ask(replicas, token(tenant="acme"), OTHER_MODEL).status_code == 403
    assert ask(replicas, token(scope="read")).status_code == 403
    assert ask(replicas, token(exp=1)).status_code == 401
    assert ask(replicas, jwt.encode({"sub": "ann", "exp": 9e9}, None, "none")).status_code == 401
    assert read(tenant="acme") == 200
    assert read(tenant="acme", scope="read") == 200
    assert read(tenant="acme", scope="generate") == 403
    assert read(tenant="other") == 404
    assert read(tenant="acme", sub="bob") == 404


def test_a_key_that_redis_lost_is_still_good_for_the_database_knows_it(replicas: Fleet):
    told = made(replicas)
    assert statuses(replicas, told["key"]) == [200, 200]

    replicas.redis.delete(f"sluice:key:{told['id']}", KEYS_VERSION)

    record = f"sluice:key:{told['id']}"
    until(lambda: statuses(replicas, told["key"]) == [200, 200] and replicas.redis.exists(record), "asked the database")


def test_while_the_database_is_away_every_known_key_is_good(tmp_path: Path):
    database = tmp_path / "s.db"
    with fleet(
        tmp_path, SLUICE_SECRET="s" * 32, SLUICE_DATABASE_URL=f"sqlite:///{database}", SLUICE_ADMIN_KEYS="admin-key"
    ) as own:
        told = made(own)
        database.rename(tmp_path / "elsewhere.db")
        own.apis[0].stop()
        own.start_api()
        own.ready()

        assert ask(own, told["key"], replica=1).status_code == 200


def test_refusals_are_counted_by_reason_and_a_flood_is_blocked_though_not_for_good_keys(tmp_path: Path):
    settings = {"SLUICE_REFUSED_CREDENTIALS_MAX": "3", "SLUICE_SECRET": "s" * 32}
    with fleet(tmp_path, workers=1, **settings) as own:
        assert ask(own, KEY).status_code == 200
        made_up = "sk_sluice_0123456789ab_" + "x" * 38
        answers = [ask(own, made_up) for _ in range(6)]

        assert [answer.status_code for answer in answers] == [401] * 4 + [429] * 2
        assert 0 < int(answers[-1].headers["retry-after"]) <= 60
        assert answers[-1].json()["error"]["code"] == "too_many_refused_credentials"
        assert ask(own, KEY).status_code == 200
        metrics = own.metrics(own.ports[0])
        assert metrics['sluice_refused_credentials_total{reason="malformed"}'] == 4
        assert metrics['sluice_refused_credentials_total{reason="blocked"}'] == 2
        assert own.redis.keys("sluice:key:*") == []


@pytest.mark.parametrize(("proxies", "is_believed"), [("127.0.0.1", True), ("", False), ("192.0.2.1", False)])
def test_only_a_trusted_proxy_is_believed_about_who_asks(tmp_path: Path, proxies: str, is_believed: bool):
    settings = {"SLUICE_TRUSTED_PROXIES": proxies, "SLUICE_REFUSED_CREDENTIALS_MAX": "1"}
    with fleet(tmp_path, workers=0, **settings) as own:
        # A client adds what it likes in front; the proxy adds whom it got the request from.
        said = [ask(own, "wrong", x_forwarded_for=f"198.51.100.{n}, 203.0.113.9").status_code for n in range(3)]
        other = ask(own, "wrong", x_forwarded_for="203.0.113.10").status_code

        assert said == [401, 401, 429]
        assert other == (401 if is_believed else 429)


def test_over_tls_at_a_trusted_proxy_browsers_are_told_to_stay_there(tmp_path: Path):
    with fleet(tmp_path, workers=0, SLUICE_TRUSTED_PROXIES="127.0.0.1") as own:
        answer = own.client.get(f"{own.url}/livez", headers={"x-forwarded-proto": "https"})

        assert "strict-transport-security" in answer.headers
