"""How are Lua scripts loaded into Redis and run?

``Scripts`` runs the Lua files of one folder by name. It sends their SHA-1 and loads them again where Redis has lost them.
"""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hiredis
from redis.exceptions import NoScriptError, ResponseError

from common.redis.client import Client
from common.redis.errors import REDIS_ERRORS, as_unavailable, redis_errors

_PRELUDE = Path(__file__).parent / "prelude.lua"
# Declarations begin at a line's start, what belongs to them is indented.
_DECLARATION = re.compile(r"^local (?:function )?([\w, ]+)", re.MULTILINE)
_COMMENT = re.compile(r"--[^\n]*")
_ERRORS = {NoScriptError, ResponseError}  # The only error types that a pipe creates.

Call = tuple[str, Sequence[str], Sequence[Any]]  # A script's name, its keys, its arguments.


class Scripts:
    """The Lua files of one folder, by name.

    Each is sent with a prelude before it: what it uses of ``prelude.lua``, of the ``shared`` files of other rooms, and of the
    folder's files whose names begin with an underscore. Redis makes all functions of a script anew each time it runs. A script
    that contains the line ``-- PRELUDE`` has the prelude there instead.
    """

    def __init__(self, redis: Client, folder: Path, *shared: Path) -> None:
        self._redis = redis
        prelude = "".join(path.read_text() for path in [_PRELUDE, *shared, *sorted(folder.glob("_*.lua"))])
        self._sources = {path.stem: _with_prelude(path.read_text(), prelude) for path in folder.glob("[!_]*.lua")}
        self._shas = {name: hashlib.sha1(source.encode()).hexdigest() for name, source in self._sources.items()}  # noqa: S324 - Redis names scripts by SHA-1.

    async def run(self, name: str, keys: Sequence[str], args: Sequence[Any]) -> Any:
        """Run one script and return its answer.

        Raises:
            StoreUnavailable: there is no answer. It is unknown whether the script ran.
        """
        (answer,) = await self.run_many([(name, keys, args)])
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def run_many(self, calls: Sequence[Call]) -> list[Any]:
        """Run scripts in one pipeline and return their answers. A script that failed has its exception in its place.

        Raises:
            StoreUnavailable: there are no answers. It is unknown which scripts ran.
        """
        if not calls:
            return []
        answers = await self._send(calls)
        if _ERRORS.isdisjoint(map(type, answers)):
            return answers  # Hot path.
        missing = [index for index, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
        if missing:  # A restart or a failover emptied the script cache.
            await self._load({calls[index][0] for index in missing})
            for index, answer in zip(missing, await self._send([calls[index] for index in missing]), strict=True):
                answers[index] = answer
        return [as_unavailable(answer) or answer if isinstance(answer, Exception) else answer for answer in answers]

    async def _send(self, calls: Sequence[Call]) -> list[Any]:
        # Hot path: once per flush. redis-py's own pipeline costs several times as much per command. A plain try saves the
        # 0.3 µs of ``redis_errors``.
        shas = self._shas
        try:
            return await self._redis.exchanges.run(
                [hiredis.pack_command(("EVALSHA", shas[name], len(keys), *keys, *args)) for name, keys, args in calls]
            )
        except REDIS_ERRORS as error:
            raise as_unavailable(error) or error from error

    async def _load(self, names: set[str]) -> None:
        # On the connection that will run them: after a failover, our other connections may lead to another server.
        with redis_errors():
            commands: list[tuple[Any, ...]] = [("SCRIPT", "LOAD", self._sources[name]) for name in names]
            for answer in await self._redis.exchanges.run([hiredis.pack_command(command) for command in commands]):
                if isinstance(answer, Exception):
                    raise answer


def _with_prelude(source: str, prelude: str) -> str:
    before, _, after = source.rpartition("-- PRELUDE\n")
    return before + _used_by(after, prelude) + after


def _used_by(source: str, prelude: str) -> str:
    """Return the declarations of a prelude that a script uses, directly or through others."""
    declared = list(_DECLARATION.finditer(prelude))
    ends = [match.start() for match in declared[1:]] + [len(prelude)]
    used, pieces = _words(source), []
    for match, end in reversed(list(zip(declared, ends, strict=True))):  # A declaration uses only those before it.
        if used & _words(match[1]):
            piece = prelude[match.start() : end]
            used |= _words(piece)
            pieces.append(piece)
    return "".join(reversed(pieces))


def _words(source: str) -> set[str]:
    return set(re.findall(r"\w+", _COMMENT.sub("", source)))
