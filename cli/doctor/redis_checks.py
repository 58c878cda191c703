"""Does Redis do what Sluice needs, are there workers, and which jobs or records could not be processed?

It uses the same probe as every process (``common/redis/probe``), with the same settings: it tries the commands that Sluice
uses.
"""

import asyncio
import time
from typing import Any
from urllib.parse import unquote, urlsplit

from redis.asyncio import Redis

from cli.doctor.finding import Finding, Level
from common.cache.inventory import Inventory
from common.canonical.errors import StoreUnavailable
from common.config.groups.queue import QueueSettings
from common.config.settings import MIB, Settings
from common.process.redaction import shown_url
from common.queue.jobs import ALIVE_S, is_old_bookkeeper
from common.redis import keyspace
from common.redis.client import COMMAND_TIMEOUT_S, Client, connect
from common.redis.errors import REDIS_ERRORS, error_text, is_refusal
from common.redis.probe import Harm, Problem, try_all

PUBSUB_HARD_LIMIT_WANTED = 64 * MIB
_CACHE_VARIABLE = "SLUICE_CACHE_REDIS_URL"
RULES_FIX = "See docs/operating.md for everything that Sluice needs from Redis."


async def examine_redis(settings: QueueSettings, *, is_running: bool) -> list[Finding]:
    """Return what is right and wrong with Redis. ``is_running``: an API accepts requests already, so there must be workers."""
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


async def examine_cache(settings: Settings) -> list[Finding]:
    """Return what is right and wrong with the cache's own Redis. Empty where the cache has none."""
    if settings.cache_redis_url is None:
        return []
    redis, where = connect(settings.cache_redis_url), shown_url(settings.cache_redis_url)
    try:
        await Inventory(redis, settings).try_all()
        config = await _query(redis, "CONFIG GET", "maxmemory-policy")
    except StoreUnavailable as error:
        if not is_refusal(error):
            fix = f"Start it, or correct {_CACHE_VARIABLE}. Until then requests run uncached."
            return [Finding("wrong", f"The cache's Redis does not answer at {where}: {error}.", fix)]
        fix = _fix(Problem(str(error), "the cache"), _user(settings.cache_redis_url), _CACHE_VARIABLE)
        return [Finding("wrong", f"The cache's Redis refuses us at {where}: {error}", fix)]
    finally:
        await redis.aclose()
    findings = [Finding("ok", f"The cache's Redis answers at {where}.")]
    if config and config["maxmemory-policy"] != "noeviction":
        summary = (
            f"The cache's Redis may evict keys ({config['maxmemory-policy']}): `sluice cache` may then not know all answers."
        )
        findings.append(
            Finding("note", summary, "CONFIG SET maxmemory-policy noeviction; SLUICE_CACHE_BYTES_MAX is the bound.")
        )
    return findings


def _user(url: str) -> str:
    return unquote(urlsplit(url).username or "") or "default"


def _unreachable(where: str, error: Exception) -> Finding:
    if is_refusal(error):
        words = error_text(error)
        return Finding("wrong", f"Redis refuses us at {where}: {words}", _fix(Problem(words, "login"), "USER"))
    fix = "Start it (redis-server --appendonly yes), or point SLUICE_REDIS_URL at yours. `sluice dev` starts its own."
    return Finding("wrong", f"Redis does not answer at {where}: {type(error).__name__}.", fix)


async def _query(redis: Redis, *command: Any) -> Any:
    """Return the reply to a command; None if Redis does not give one. The probe reports that where it matters."""
    try:
        async with asyncio.timeout(COMMAND_TIMEOUT_S):
            return await redis.execute_command(*command)  # type: ignore[no-untyped-call]  # redis-py.
    except REDIS_ERRORS:
        return None


async def _server(redis: Client, where: str) -> list[Finding]:
    info = await _query(redis, "INFO")
    version = info["redis_version"] if info else "of an unknown version"
    findings = [Finding("ok", f"Redis {version} answers at {where}.")]
    if info and tuple(map(int, version.split(".")[:2])) < (6, 2):
        findings.append(Finding("wrong", "Redis is older than 6.2.", "Install 6.2 or newer."))
    return findings + _settings(await _query(redis, "CONFIG GET", "*"))


def _settings(config: dict[str, str] | None) -> list[Finding]:
    if config is None:
        return [Finding("note", "Redis does not show its settings: make sure that it has noeviction and appendonly.")]
    findings = []
    if config.get("maxmemory-policy") != "noeviction":
        summary = f"Redis may evict keys ({config.get('maxmemory-policy')}): answers would be lost."
        findings.append(Finding("wrong", summary, "CONFIG SET maxmemory-policy noeviction"))
    if config.get("appendonly") != "yes":
        summary = "Redis is not appendonly: a restart loses running answers."
        findings.append(Finding("note", summary, "CONFIG SET appendonly yes"))
    if (limit := _pubsub_hard_limit(config.get("client-output-buffer-limit", ""))) and limit < PUBSUB_HARD_LIMIT_WANTED:
        fix = "The API sets it where Redis allows that; else CONFIG SET client-output-buffer-limit 'pubsub 256mb 64mb 60'"
        findings.append(Finding("note", f"Redis disconnects a subscriber past {limit // MIB} MiB.", fix))
    return findings or [Finding("ok", "Redis keeps its data: noeviction, appendonly.")]


def _pubsub_hard_limit(setting: str) -> int:
    words = setting.split()
    return int(words[words.index("pubsub") + 1]) if "pubsub" in words else 0


async def _work(redis: Client, url: str) -> list[Finding]:
    """Try the commands that Sluice uses, and return what Redis refuses."""
    problems = await try_all(redis)
    if problems is None:
        return [Finding("wrong", "Redis answers, but not all commands of Sluice within two seconds.", RULES_FIX)]
    user = _user(url)
    levels: dict[Harm, Level] = {Harm.NONE: "note", Harm.SOME: "wrong", Harm.ALL: "wrong"}
    findings = [Finding(levels[problem.harm], f"Redis refuses: {problem}", _fix(problem, user)) for problem in problems]
    return findings or [Finding("ok", "Redis accepts all commands that Sluice sends, and delivers what is published.")]


def _fix(problem: Problem, user: str, variable: str = "SLUICE_REDIS_URL") -> str:
    """Return what to do about a refusal, depending on Redis's own words."""
    words = problem.message.lower()
    commands = " ".join(f"+{part.split()[0].lower()}" for part in problem.subject.split(", ") if part.split()[0].isupper())
    fixes = [
        ("channel", f"ACL SETUSER {user} '&{{gen_*'"),
        ("keys", f"ACL SETUSER {user} '~sluice:*' '~{{gen_*'"),
        (
            "invalid username-password",
            f"Check user and password in {variable} (ACL SETUSER USER on '>PASSWORD').",
        ),
        ("noauth", f"Put the password into {variable}: redis://:PASSWORD@host:port/0."),
        ("called without any password", f"Take the password out of {variable}: this Redis has none."),
        ("unknown", "Remove the lines with rename-command for these from redis.conf, or use a Redis that has them."),
        ("oom ", "Give it more memory: CONFIG SET maxmemory SIZE. Logs free their memory a minute after their end."),
        ("readonly ", f"It is a replica. Point {variable} at the master, or make it one: REPLICAOF NO ONE"),
        ("misconf ", "Its disk is full or broken: fix that. CONFIG SET stop-writes-on-bgsave-error no continues without it."),
        ("noreplicas ", "Its replicas are away. CONFIG SET min-replicas-to-write 0 continues without them."),
        ("loading ", "Wait until it has loaded its data."),
        ("max number of clients", "CONFIG SET maxclients 10000"),
    ]
    for mark, fix in fixes:
        if mark in words:
            return fix
    is_forbidden = "can't run this command" in words or "permission" in words
    return f"ACL SETUSER {user} {commands}" if is_forbidden and commands else RULES_FIX


async def _fleet(redis: Client, *, is_running: bool) -> list[Finding]:
    now_ms = await _query(redis, "TIME")
    since = (now_ms[0] if now_ms else time.time()) - ALIVE_S
    alive = await _query(redis, "ZCOUNT", keyspace.WORKERS, int(since * 1000), "+inf") or 0
    bookkeeper = await _query(redis, "GET", keyspace.BOOKKEEPER)
    set_aside = await _query(redis, "LLEN", keyspace.UNREADABLE)
    findings = [
        Finding("ok", f"{alive} worker{'s take' if alive != 1 else ' takes'} jobs.")
        if alive
        else Finding("ok", "A worker of the previous version takes jobs.")
        if is_old_bookkeeper(bookkeeper)
        else Finding(
            "wrong" if is_running else "note",
            "No worker takes jobs: requests would wait for one, and fail with 504.",
            "Start one with `sluice worker`.",
        )
    ]
    if set_aside:
        fix = "See `sluice records list`. `sluice records drop` deletes them."
        findings.append(Finding("wrong", f"{set_aside} jobs or records could not be processed, and are set aside.", fix))
    return findings
