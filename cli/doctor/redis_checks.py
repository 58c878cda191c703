"""Does Redis do for Sluice what it needs, does anybody work, and what could not be processed?

By the same probe as in every process (``common/redis/probe``), with the same settings: what is tried is what the work does.
"""

import asyncio
import time
from typing import Any
from urllib.parse import unquote, urlsplit

from redis.asyncio import Redis

from cli.doctor.finding import Finding, Level
from common.config.groups.queue import QueueSettings
from common.config.settings import MIB
from common.process.redaction import shown_url
from common.queue.jobs import ALIVE_S, is_old_bookkeeper
from common.redis import keyspace
from common.redis.client import COMMAND_TIMEOUT_S, Client, connect
from common.redis.errors import REDIS_ERRORS, error_text, is_refusal
from common.redis.probe import Harm, Problem, try_all

PUBSUB_HARD_LIMIT_WANTED = 64 * MIB
RULES_MEND = "See docs/operating.md for all that Sluice needs of Redis."


async def examine_redis(settings: QueueSettings, *, is_running: bool) -> list[Finding]:
    """``is_running``: an API takes requests already, so that there must be workers."""
    redis = connect(settings.redis_url)
    where = shown_url(settings.redis_url)
    try:
        async with asyncio.timeout(COMMAND_TIMEOUT_S):
            await redis.execute_command("PING")
    except REDIS_ERRORS as error:
        await redis.aclose()
        return [_unreachable(where, error)]
    try:
        return [
            *await _server(redis, where),
            *await _work(redis, settings.redis_url),
            *await _fleet(redis, is_running=is_running),
        ]
    finally:
        await redis.aclose()


def _unreachable(where: str, error: Exception) -> Finding:
    if is_refusal(error):
        words = error_text(error)
        return Finding("wrong", f"Redis refuses us at {where}: {words}", _mend(Problem(words, "login"), "USER"))
    mend = "Start it (redis-server --appendonly yes), or point SLUICE_REDIS_URL at yours. `sluice dev` brings its own."
    return Finding("wrong", f"Redis does not answer at {where}: {type(error).__name__}.", mend)


async def _ask(redis: Redis, *command: Any) -> Any:
    """Return an answer; None where Redis does not give it, which the probe tells where it matters."""
    try:
        async with asyncio.timeout(COMMAND_TIMEOUT_S):
            return await redis.execute_command(*command)  # type: ignore[no-untyped-call]  # redis-py.
    except REDIS_ERRORS:
        return None


async def _server(redis: Client, where: str) -> list[Finding]:
    info = await _ask(redis, "INFO")
    version = info["redis_version"] if info else "of an unknown version"
    found = [Finding("ok", f"Redis {version} answers at {where}.")]
    if info and tuple(map(int, version.split(".")[:2])) < (6, 2):
        found.append(Finding("wrong", "Redis is older than 6.2.", "Install 6.2 or newer."))
    return found + _settings(await _ask(redis, "CONFIG GET", "*"))


def _settings(config: dict[str, str] | None) -> list[Finding]:
    if config is None:
        return [Finding("note", "Redis does not show its settings; make sure of noeviction and appendonly.")]
    found = []
    if config.get("maxmemory-policy") != "noeviction":
        mend = "CONFIG SET maxmemory-policy noeviction"
        found.append(Finding("wrong", f"Redis may evict keys ({config.get('maxmemory-policy')}): answers would be lost.", mend))
    if config.get("appendonly") != "yes":
        found.append(Finding("note", "Redis is not appendonly: a restart loses running answers.", "CONFIG SET appendonly yes"))
    if (limit := _pubsub_hard_limit(config.get("client-output-buffer-limit", ""))) and limit < PUBSUB_HARD_LIMIT_WANTED:
        mend = "The API sets it where Redis lets it; else CONFIG SET client-output-buffer-limit 'pubsub 256mb 64mb 60'"
        found.append(Finding("note", f"Redis cuts a subscriber past {limit // MIB} MiB.", mend))
    return found or [Finding("ok", "Redis keeps what it is given: noeviction, appendonly.")]


def _pubsub_hard_limit(setting: str) -> int:
    words = setting.split()
    return int(words[words.index("pubsub") + 1]) if "pubsub" in words else 0


async def _work(redis: Client, url: str) -> list[Finding]:
    """What the work does, tried."""
    problems = await try_all(redis)
    if problems is None:
        return [Finding("wrong", "Redis answers, but not all that Sluice asks, within two seconds.", RULES_MEND)]
    user = unquote(urlsplit(url).username or "") or "default"
    levels: dict[Harm, Level] = {Harm.NONE: "note", Harm.SOME: "wrong", Harm.ALL: "wrong"}
    found = [Finding(levels[each.harm], f"Redis refuses: {each}", _mend(each, user)) for each in problems]
    return found or [Finding("ok", "Redis takes all commands that Sluice sends, and delivers what is published.")]


def _mend(problem: Problem, user: str) -> str:
    """Return what to do about a refusal, by Redis' own words."""
    words = problem.message.lower()
    commands = " ".join(f"+{what.split()[0].lower()}" for what in problem.subject.split(", ") if what.split()[0].isupper())
    mends = [
        ("channel", f"ACL SETUSER {user} '&{{gen_*'"),
        ("keys", f"ACL SETUSER {user} '~sluice:*' '~{{gen_*'"),
        (
            "invalid username-password",
            "Check user and password in SLUICE_REDIS_URL (ACL SETUSER USER on '>PASSWORD').",
        ),
        ("noauth", "Put the password into SLUICE_REDIS_URL: redis://:PASSWORD@host:port/0."),
        ("called without any password", "Take the password out of SLUICE_REDIS_URL: this Redis has none."),
        ("unknown", "Take the lines with rename-command for these out of redis.conf, or use a Redis that has them."),
        ("oom ", "Give it more memory: CONFIG SET maxmemory SIZE. Logs free theirs a minute after their end."),
        ("readonly ", "It is a replica. Point SLUICE_REDIS_URL at the master, or make it one: REPLICAOF NO ONE"),
        ("misconf ", "Its disk is full or broken: mend that; CONFIG SET stop-writes-on-bgsave-error no goes on without."),
        ("noreplicas ", "Its replicas are away; CONFIG SET min-replicas-to-write 0 goes on without them."),
        ("loading ", "Wait until it has loaded its data."),
        ("max number of clients", "CONFIG SET maxclients 10000"),
    ]
    for mark, mend in mends:
        if mark in words:
            return mend
    if "can't run this command" in words or "permission" in words:
        return f"ACL SETUSER {user} {commands}".rstrip()
    return RULES_MEND


async def _fleet(redis: Client, *, is_running: bool) -> list[Finding]:
    now_ms = await _ask(redis, "TIME")
    since = (now_ms[0] if now_ms else time.time()) - ALIVE_S
    alive = await _ask(redis, "ZCOUNT", keyspace.WORKERS, int(since * 1000), "+inf") or 0
    bookkeeper = await _ask(redis, "GET", keyspace.BOOKKEEPER)
    aside = await _ask(redis, "LLEN", keyspace.UNREADABLE)
    found = [
        Finding("ok", f"{alive} worker{'s take' if alive != 1 else ' takes'} jobs.")
        if alive
        else Finding("ok", "A worker of the version before takes jobs.")
        if is_old_bookkeeper(bookkeeper)
        else Finding(
            "wrong" if is_running else "note",
            "No worker takes jobs: requests would wait for one, and fail with 504.",
            "Start one with `sluice worker`.",
        )
    ]
    if aside:
        mend = "See `sluice records list`; `sluice records drop` forgets them."
        found.append(Finding("wrong", f"{aside} jobs or records could not be processed, and are set aside.", mend))
    return found
