"""What do ``sluice records`` and ``sluice doctor`` say of what could not be processed, and of a Redis that refuses?"""

import json
from collections.abc import Iterator

import pytest
from click.testing import CliRunner, Result
from redis import Redis

from cli.dev.embedded_redis import free_port
from cli.doctor.finding import Finding
from cli.doctor.redis_checks import examine_cache, examine_redis
from cli.main import main
from common.config.settings import Settings
from common.ledger.set_aside import pack
from common.redis import keyspace


@pytest.fixture
def server(redis_server) -> Iterator[Redis]:
    client = Redis.from_url(redis_server.url)
    client.flushall()
    yield client
    client.close()


@pytest.fixture
def sluice(redis_server, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLUICE_REDIS_URL", redis_server.url)

    def run(*args: str) -> Result:
        return CliRunner().invoke(main, args)

    return run


def keep(server: Redis, *names: str) -> None:
    for name in names:
        server.lpush(keyspace.UNREADABLE, pack(name, f"why {name}\x1b[2J", 1_700_000_000_000, {b"end": b"{}"}))


def test_what_is_set_aside_is_listed_shown_and_dropped(server, sluice):
    keep(server, "gen_1", "gen_2", "gen_3")

    listed = sluice("records", "list").output
    shown = json.loads(sluice("records", "show", "gen_2").output)
    dropped = sluice("records", "drop", "gen_2")
    rest = sluice("records", "drop", "--all")

    assert [line.split()[2] for line in listed.splitlines()] == ["gen_3", "gen_2", "gen_1"]
    assert "2023-11-14T22:13:20Z" in listed
    assert "\x1b" not in listed
    assert (shown["id"], shown["record"]) == ("gen_2", {"end": "{}"})
    assert (dropped.exit_code, dropped.output) == (0, "1 dropped.\n")
    assert (rest.exit_code, rest.output) == (0, "2 dropped.\n")
    assert server.llen(keyspace.UNREADABLE) == 0


def test_a_request_that_shared_a_log_finds_what_is_kept_of_it(server, sluice):
    server.lpush(keyspace.UNREADABLE, pack("gen_log", "why", 1_700_000_000_000, {}, ["gen_own"]))

    shown = json.loads(sluice("records", "show", "gen_own").output)

    assert (shown["id"], shown["sharers"]) == ("gen_log", ["gen_own"])


def test_what_is_no_entry_is_listed_and_can_be_dropped(server, sluice):
    server.lpush(keyspace.UNREADABLE, b"\xff{")

    assert "cannot be read" in sluice("records", "list").output
    assert sluice("records", "drop", "--all").exit_code == 0


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("show", "gen_9"), "sluice records list"),
        (("drop",), "--all"),
        (("drop", "gen_1", "--all"), "--all"),
    ],
)
def test_a_command_that_cannot_be_says_what_to_do(server, sluice, args, words):
    found = sluice("records", *args)

    assert found.exit_code != 0
    assert words in found.output


def test_dropping_what_is_not_there_is_said(server, sluice):
    found = sluice("records", "drop", "gen_9")

    assert (found.exit_code, found.output) == (1, "0 dropped.\n")


def test_a_redis_that_cannot_be_used_is_one_line(monkeypatch, sluice):
    monkeypatch.setenv("SLUICE_REDIS_URL", "redis://127.0.0.1:9/0")

    found = sluice("records", "list")

    assert found.exit_code == 1
    assert "Redis cannot be used" in found.output
    assert "Traceback" not in found.output


# The doctor


async def examined(url: str, *, is_running: bool = True) -> list[Finding]:
    return await examine_redis(Settings(redis_url=url), is_running=is_running)


async def test_the_doctor_tells_what_is_set_aside(server, redis_server):
    keep(server, "gen_1")

    (finding,) = [each for each in await examined(redis_server.url) if "set aside" in each.summary]

    assert finding.level == "wrong"
    assert "sluice records list" in finding.fix


@pytest.mark.parametrize(("workers", "is_running", "level"), [(1, True, "ok"), (0, True, "wrong"), (0, False, "note")])
async def test_the_doctor_tells_whether_anybody_works(server, redis_server, workers, is_running, level):
    if workers:
        seconds, _ = server.time()
        server.zadd(keyspace.WORKERS, {"one": seconds * 1000})

    (finding,) = [each for each in await examined(redis_server.url, is_running=is_running) if "jobs" in each.summary]

    assert finding.level == level


MENDS = {
    "-evalsha": "ACL SETUSER limited +evalsha",
    "-blpop -xadd": "+xadd",
    "resetchannels": "&{gen_*",
    "resetkeys": "~sluice:*",
}


@pytest.mark.parametrize("rules", MENDS)
async def test_the_doctor_says_how_to_mend_what_a_user_may_not(server, redis_server, rules):
    server.execute_command("ACL", "SETUSER", "limited", "reset", "on", ">pw", "~*", "allchannels", "+@all", *rules.split())

    found = await examined(redis_server.url.replace("unix://", "unix://limited:pw@"))

    wrong = [each for each in found if each.level == "wrong" and each.summary.startswith("Redis refuses")]
    assert wrong
    assert any(MENDS[rules] in each.fix for each in wrong)
    assert not any("pw" in each.summary + each.fix for each in found)


async def test_the_doctor_repeats_what_redis_says_to_a_login(redis_server):
    (finding,) = await examined(redis_server.url.replace("unix://", "unix://nobody:secretword@"))

    assert finding.level == "wrong"
    assert "invalid username-password" in finding.summary
    assert "SLUICE_REDIS_URL" in finding.fix
    assert "secretword" not in finding.summary + finding.fix


async def test_the_doctor_does_without_what_only_it_asks(server, redis_server):
    server.execute_command("ACL", "SETUSER", "limited", "reset", "on", ">pw", "~*", "allchannels", "+@all", "-info", "-config")

    found = await examined(redis_server.url.replace("unix://", "unix://limited:pw@"), is_running=False)

    assert [each for each in found if each.level == "wrong"] == []
    assert any("INFO" in each.summary for each in found if each.level == "note")


async def examined_cache(url: str | None) -> list[Finding]:
    return await examine_cache(Settings(cache_redis_url=url))


async def test_the_doctor_says_nothing_of_a_cache_without_a_redis_of_its_own():
    assert await examined_cache(None) == []


async def test_the_doctor_tries_what_the_cache_does_and_leaves_nothing(server, redis_server):
    (finding,) = await examined_cache(redis_server.url)

    assert finding.level == "ok"
    assert server.keys("sluice:cache:entry:*") == []
    assert server.hlen("sluice:cache:about") == 0


async def test_the_doctor_reports_that_the_cache_may_forget_what_it_has(server, redis_server):
    server.config_set("maxmemory-policy", "allkeys-lru")
    try:
        (_, finding) = await examined_cache(redis_server.url)
    finally:
        server.config_set("maxmemory-policy", "noeviction")

    assert finding.level == "note"
    assert "allkeys-lru" in finding.summary


async def test_the_doctor_reports_a_cache_that_is_away():
    (finding,) = await examined_cache(f"redis://:secretword@127.0.0.1:{free_port()}/0")

    assert finding.level == "wrong"
    assert "SLUICE_CACHE_REDIS_URL" in finding.fix
    assert ".." not in finding.summary
    assert "secretword" not in finding.summary + finding.fix


@pytest.mark.parametrize(
    ("rules", "mend"), [("-hscan", "docs/operating.md"), ("-get", "docs/operating.md"), ("resetkeys", "~sluice:*"), ("", None)]
)
async def test_the_doctor_says_what_the_cache_may_not_do(server, redis_server, rules, mend):
    server.execute_command("ACL", "SETUSER", "limited", "reset", "on", ">pw", "~*", "+@all", *rules.split())

    (finding,) = await examined_cache(redis_server.url.replace("unix://", "unix://limited:pw@"))

    assert finding.level == ("wrong" if mend else "ok")
    assert (mend or "") in finding.fix


async def test_the_doctor_names_the_variable_of_the_cache_where_its_password_is_wrong(redis_server):
    (finding,) = await examined_cache(redis_server.url.replace("unix://", "unix://nobody:secretword@"))

    assert "SLUICE_CACHE_REDIS_URL" in finding.fix
    assert "secretword" not in finding.summary + finding.fix
