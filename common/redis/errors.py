"""What does an error of Redis mean: is it away, does it refuse, or is it a fault of ours?"""

import re
from types import TracebackType

from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError

from common.canonical.errors import StoreRefuses, StoreUnavailable

REDIS_ERRORS = (RedisError, OSError, TimeoutError)  # What redis-py, a socket and our own time limits raise.
WORDS_MAX = 300
_POOL_IS_EMPTY = "Too many connections"  # redis-py's words; it has no class for it before 6.

# Answers of a live server that cannot or may not serve us: full, still loading, just demoted, without a permission or a
# command. What a script ran into stands behind a dash in the script's own error (6.2), or at its beginning (7).
_REFUSAL = re.compile(
    r"(?:^(?:ERR )?|-)(?:OOM|MISCONF|LOADING|READONLY|NOREPLICAS|MASTERDOWN|CLUSTERDOWN|TRYAGAIN|UNKILLABLE|BUSY|NOPERM|NOAUTH"
    r"|WRONGPASS|DENIED|EXECABORT|UNBLOCKED) "
    r"|\b[Uu]nknown (?:Redis )?command|user executing the script can't|ACL failure in script|has no permissions"
    r"|max number of clients|DB index is out of range"
)
# redis-py takes the code off the words, and makes a class of it.
_CODES: dict[type[RedisError], str] = {
    OutOfMemoryError: "OOM",
    ReadOnlyError: "READONLY",
    NoPermissionError: "NOPERM",
    BusyLoadingError: "LOADING",
    AuthenticationError: "WRONGPASS",
    AuthorizationError: "NOPERM",
}
_CODED = tuple(_CODES)
# Where in a script it happened tells an operator nothing, and a command's arguments may be a client's words.
_NOISE = re.compile(
    r"^(?:ERR )?Error running script \(call to \w+\): |@?user_script: ?\d+: -?"
    r"|,? script: [0-9a-f]{40}.*|, with args beginning .*",
    re.DOTALL,
)


class NoConnectionFree(StoreUnavailable):
    """All connections that this process may have to Redis are in use: it is busy, and Redis need not be."""


def as_unavailable(error: BaseException) -> StoreUnavailable | None:
    """Return what an error of redis-py or a socket means to us; None where it is a fault of our own, or of one record."""
    error = _unwrapped(error)
    if isinstance(error, _CODED) or (isinstance(error, RedisError) and _REFUSAL.search(str(error))):
        return StoreRefuses(words_of(error))
    if isinstance(error, RedisConnectionError) and str(error) == _POOL_IS_EMPTY:
        return NoConnectionFree(str(error))
    # A script that was loaded just now is missing where a failover came between: another server answers.
    is_a_fault = isinstance(error, ResponseError) and not isinstance(error, NoScriptError)
    if isinstance(error, REDIS_ERRORS) and not is_a_fault:
        return StoreUnavailable(f"{type(error).__name__}: {error}")
    return None


class redis_errors:
    """Turn what redis-py and sockets raise into ``StoreUnavailable``; a fault of our own passes as it is.

    A class, as ``contextlib.suppress`` is one: a generator would cost several times as much.
    """

    __slots__ = ()

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if isinstance(error, REDIS_ERRORS) and (meant := as_unavailable(error)):
            raise meant from error


def _unwrapped(error: BaseException) -> BaseException:
    """On a Unix socket redis-py makes a lost connection of whatever Redis says to the login."""
    is_wrapped = isinstance(error, RedisConnectionError) and isinstance(error.__cause__, RedisError)
    return error.__cause__ if is_wrapped and error.__cause__ else error


def is_refusal(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, is that Redis answered and refused."""
    while error is not None:
        if isinstance(error, StoreRefuses) or isinstance(as_unavailable(error), StoreRefuses):
            return True
        error = error.__cause__
    return False


def words_of(error: BaseException) -> str:
    """Return Redis' own words of an error, on one line, without what the command was about.

    >>> words_of(NoPermissionError("this user has no permissions to run the 'xadd' command"))
    "NOPERM this user has no permissions to run the 'xadd' command"
    >>> words_of(ResponseError("unknown command 'HGETALL', with args beginning with: 'a', "))
    "unknown command 'HGETALL'"
    """
    error = _unwrapped(error)
    text = _NOISE.sub("", str(error)).strip().removeprefix("ERR ")
    code = next((code for kind, code in _CODES.items() if isinstance(error, kind)), "")
    return " ".join((text if text.startswith(code) else f"{code} {text}").split())[:WORDS_MAX]
