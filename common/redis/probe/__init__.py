"""Does Redis accept every command that Sluice needs?

The pulse knows whether Redis answers. A Redis that answers may still be full, read-only, without a command, or may forbid one.
So the probe does what the work does, each time on a new connection: it logs in, writes, runs a script with every command that
Sluice sends, waits on a list, runs a transaction, subscribes, publishes and waits for the message. Each process probes every
``PROBE_S``, and `sluice doctor` probes once. Requests do not wait for it.
"""

import asyncio
import hashlib
import secrets
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

import hiredis
import structlog
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisError

from common.canonical.errors import StoreRefused
from common.process.loop_lag import lag_aware_timeout
from common.process.process import supervised
from common.process.rhythm import next_turn
from common.redis import keyspace
from common.redis.client import COMMAND_TIMEOUT_S, Client
from common.redis.errors import REDIS_ERRORS, error_text, is_refusal
from common.redis.pipe import Pipe
from common.redis.pulse import Pulse

log = structlog.get_logger()

PROBE_S = 2.0
UNANSWERED_MAX = 3  # A busy machine may be slow once.
BLOCK_S = "0.05"  # How long BLPOP waits where the script could not fill its list.
LISTED_MAX = 8  # Commands named of those that are refused with the same message.

_SOURCE = (Path(__file__).parent / "try_all.lua").read_text()
_SHA = hashlib.sha1(_SOURCE.encode()).hexdigest()  # noqa: S324 - Redis names scripts by SHA-1.
FIXED_KEYS = (
    *(
        keyspace.ENQUEUED,
        keyspace.DELAYED,
        keyspace.RUNNING,
        keyspace.BELL,
        keyspace.BELL_BACKGROUND,
        keyspace.ENDED,
        keyspace.WORKERS,
    ),
    *(keyspace.BOOKKEEPER, keyspace.SPENT_LOADED, keyspace.CONFIG_RELOAD, keyspace.STORED_CONFIG, keyspace.STORED_REVISION),
    *(keyspace.UNREADABLE, keyspace.PAUSED, keyspace.UNWELL, keyspace.KEYS_VERSION, keyspace.KEY_ORIGINS),
)

# Commands that no request needs on the way to its answer: they serve the bell, the ledger, lists and pages.
_OFF_THE_REQUEST_PATH = frozenset(
    ["BLPOP", "SCAN", "LRANGE", "LTRIM", "MGET", "HVALS", "ZREVRANK", "ZREVRANGE", "UNLINK", "PSETEX", "PERSIST", "PEXPIREAT"]
)


class Harm(StrEnum):
    """How much work stops where Redis refuses something."""

    NONE = "none"
    SOME = "some"  # Work continues, but slower, or only as long as the present connections last.
    ALL = "all"


class Problem(NamedTuple):
    """A refusal of Redis, with its own message. ``subject`` names the refused commands or keys."""

    message: str
    subject: str
    harm: Harm = Harm.ALL

    def __str__(self) -> str:
        return f"{self.message} ({self.subject})"


class Probe:
    """The probe of one process. It logs its problems when they change."""

    def __init__(self, redis: Client, pulse: Pulse) -> None:
        self._redis = redis
        self._pulse = pulse
        self._task: asyncio.Task[None] | None = None
        self._unanswered = 0
        self._problems: tuple[Problem, ...] = ()
        self.refusal: StoreRefused | None = None  # Why no request can be processed; None where requests can be.

    def start(self) -> None:
        self._task = supervised(self._run, "probe")

    async def stop(self) -> None:
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def problems(self) -> list[str]:
        """Return what is wrong with Redis, for operators. Empty where nothing is wrong."""
        if not self._pulse.is_up:
            return [self._pulse.problem]
        return [str(problem) for problem in self._problems if problem.harm is not Harm.NONE]

    async def _run(self) -> None:
        while True:
            if self._pulse.is_up:
                self.record(await try_all(self._redis))
            await next_turn(PROBE_S)

    def record(self, problems: Sequence[Problem] | None) -> None:
        if not self._pulse.is_up:
            return  # The pulse has reported it. A lost connection says nothing about what Redis accepts.
        if problems is None:
            self._unanswered += 1
            problems = [_UNANSWERED] if self._unanswered >= UNANSWERED_MAX else self._problems
        else:
            self._unanswered = 0
        before, self._problems = self._problems, tuple(problems)
        self.refusal = next((StoreRefused(problem.message) for problem in problems if problem.harm is Harm.ALL), None)
        if before == self._problems:
            return
        if problems:
            write = log.info if all(problem.harm is Harm.NONE for problem in problems) else log.warning
            write("redis_refuses", problems=[str(problem) for problem in problems])
        else:
            log.info("redis_serves")


_UNANSWERED = Problem(
    "it answers, but not to all of Sluice's commands within two seconds", f"{UNANSWERED_MAX} times in a row", Harm.SOME
)


async def try_all(redis: Client) -> list[Problem] | None:
    """Return what Redis refuses. None where the connection was lost, or no answer came, before it refused anything."""
    connection: _Connection | None = None
    problems: list[Problem] = []
    try:
        async with lag_aware_timeout(COMMAND_TIMEOUT_S):
            connection = await _Connection.open(redis)
            problems += await _try_commands(connection)
            problems += await _try_channel(connection, redis)
    except REDIS_ERRORS as error:
        # The process' own connection leaves a replica, perhaps while the channel is tried. What was refused before stays true.
        if not problems:
            return [Problem(error_text(error), "login", Harm.SOME)] if is_refusal(error) else None
    finally:
        if connection:
            connection.close()
    return _merge_problems(problems)


async def _try_commands(connection: "_Connection") -> list[Problem]:
    name = secrets.token_hex(4)
    prefix = f"{keyspace.QUEUE_PREFIX}probe:{name}:"
    touched = [*FIXED_KEYS, *_families(f"gen_probe{name}")]
    commands: list[tuple[Any, ...]] = [
        ("PING",),
        ("SCRIPT", "LOAD", _SOURCE),
        ("EVALSHA", _SHA, 0, prefix, keyspace.live(f"gen_probe{name}"), *touched),
        ("RPUSH", prefix + "bell", 1),
        ("PEXPIRE", prefix + "bell", 10_000),
        ("BLPOP", prefix + "bell", BLOCK_S),
        ("MULTI",),
        ("GET", prefix + "text"),
        ("EXEC",),
        ("DEL", prefix + "bell"),
    ]
    answers = await connection.run(*commands)
    problems = [
        Problem(error_text(answer), _command_name(command), _harm_of_refusal(command[0]))
        for command, answer in zip(commands, answers, strict=True)
        if isinstance(answer, Exception) and not isinstance(answer, NoScriptError)  # SCRIPT LOAD has failed then.
    ]
    refused = answers[2] if isinstance(answers[2], list) else []
    for command_and_key, message in zip(refused[::2], refused[1::2], strict=True):
        problems.append(_script_problem(command_and_key.decode(), message.decode(errors="replace"), prefix, name))
    # EXEC fails because a command in the transaction was refused. That command is the problem.
    return [problem for problem in problems if not problem.message.startswith("EXECABORT")] or problems


def _harm_of_refusal(command: str) -> Harm:
    return Harm.NONE if command == "INFO" else Harm.SOME if command in _OFF_THE_REQUEST_PATH else Harm.ALL


def _command_name(command: tuple[Any, ...]) -> str:
    return "SCRIPT LOAD" if command[0] == "SCRIPT" else command[0]


def _script_problem(command_and_key: str, message: str, prefix: str, name: str) -> Problem:
    """Return a refusal that the script reported. It names the command, or the key where only that key may be forbidden."""
    command, _, key = command_and_key.partition(" ")
    subject = key.replace(f"probe{name}", "…") if command == "EXISTS" and not key.startswith(prefix) else command
    return Problem(error_text(RedisError(message)), subject, _harm_of_refusal(command))


async def _try_channel(connection: "_Connection", redis: Client) -> list[Problem]:
    """Subscribe, publish and receive, as an API and a worker do together."""
    channel = keyspace.live(f"gen_probe{secrets.token_hex(4)}")
    (subscribed,) = await connection.run(("SUBSCRIBE", channel))
    if isinstance(subscribed, Exception):
        return [Problem(error_text(subscribed), "SUBSCRIBE")]
    (published,) = await redis.exchanges.run([_packed(("PUBLISH", channel, "probe"))])
    if isinstance(published, Exception):
        return [Problem(error_text(published), "PUBLISH")]
    await connection.receive()
    (unsubscribed,) = await connection.run(("UNSUBSCRIBE", channel))
    return [Problem(error_text(unsubscribed), "UNSUBSCRIBE")] if isinstance(unsubscribed, Exception) else []


def _families(generation_id: str) -> list[str]:
    """Return one key of each family whose names contain an id, such as a generation's. None of them exists."""
    generation_keys = (
        keyspace.state,
        keyspace.log,
        keyspace.viewers,
        keyspace.request,
        keyspace.response_request,
        keyspace.response,
    )
    names = [key(generation_id) for key in (*generation_keys, keyspace.tombstone, keyspace.record)]
    queued = ("job:", "waiting:interactive:", "rotation:", "recent:", "once:", "health:")
    names += [f"{keyspace.QUEUE_PREFIX}{family}{generation_id}" for family in queued]
    scoped = ("key", generation_id)
    return [
        *names,
        keyspace.limit(*scoped, "requests"),
        keyspace.slots(*scoped),
        keyspace.spent(*scoped, "d"),
        keyspace.managed_key(generation_id),
    ]


def _merge_problems(problems: list[Problem]) -> list[Problem]:
    """Merge problems with the same message into one that names all their subjects."""
    groups: dict[tuple[str, Harm], list[str]] = {}
    for message, subject, harm in problems:
        groups.setdefault((message, harm), []).append(subject)
    return [Problem(message, _list_some(subjects), harm) for (message, harm), subjects in groups.items()]


def _list_some(subjects: list[str]) -> str:
    more = len(subjects) - LISTED_MAX
    return ", ".join(subjects[:LISTED_MAX]) + (f" and {more} more" if more > 0 else "")


def _packed(command: tuple[Any, ...]) -> bytes:
    return bytes(hiredis.pack_command(command))


class _Connection:
    """One connection that returns its answers in order. Every method may raise redis-py's ``ConnectionError``."""

    _pipe: Pipe

    def __init__(self) -> None:
        self._answers: asyncio.Queue[Any] = asyncio.Queue()

    @classmethod
    async def open(cls, redis: Client) -> "_Connection":
        connection = cls()
        lost = RedisConnectionError("the connection was lost")
        connection._pipe = await redis.open_pipe(connection._answers.put_nowait, lambda: connection._answers.put_nowait(lost))
        connection._pipe.leaves = False  # The probe reports a replica's refusals.
        return connection

    async def run(self, *commands: tuple[Any, ...]) -> list[Any]:
        self._pipe.send(b"".join(map(_packed, commands)))
        return [await self.receive() for _ in commands]

    async def receive(self) -> Any:
        answer = await self._answers.get()
        if isinstance(answer, RedisConnectionError):
            raise answer
        return answer

    def close(self) -> None:
        self._pipe.close()
