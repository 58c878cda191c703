"""What does a Redis error mean: is Redis unavailable, does it refuse the command, or is it a bug of ours?"""

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

from common.canonical.errors import StoreRefused, StoreUnavailable

REDIS_ERRORS = (RedisError, OSError, TimeoutError)  # What redis-py, sockets and our own timeouts raise.
WORDS_MAX = 300
_POOL_IS_EMPTY = "Too many connections"  # redis-py's message. Versions before 6 have no exception class for it.

# Errors of a live server that cannot or may not serve us: it is full, still loading, just demoted, or it lacks a permission or
# a command. The error of a command inside a script follows a dash in the script's error (Redis 6.2), or begins it (Redis 7).
_REFUSAL = re.compile(
    r"(?:^(?:ERR )?|-)(?:OOM|MISCONF|LOADING|READONLY|NOREPLICAS|MASTERDOWN|CLUSTERDOWN|TRYAGAIN|UNKILLABLE|BUSY|NOPERM|NOAUTH"
    r"|WRONGPASS|DENIED|EXECABORT|UNBLOCKED) "
    r"|\b[Uu]nknown (?:Redis )?command|user executing the script can't|ACL failure in script|has no permissions"
    r"|max number of clients|DB index is out of range"
)
# redis-py removes the code from the message and raises a class for it.
_CODES: dict[type[RedisError], str] = {
    OutOfMemoryError: "OOM",
    ReadOnlyError: "READONLY",
    NoPermissionError: "NOPERM",
    BusyLoadingError: "LOADING",
    AuthenticationError: "WRONGPASS",
    AuthorizationError: "NOPERM",
}
_CODED = tuple(_CODES)
# The place in the script is of no use to an operator, and a command's arguments may contain a client's text.
_NOISE = re.compile(
    r"^(?:ERR )?Error running script \(call to \w+\): |@?user_script: ?\d+: -?"
    r"|,? script: [0-9a-f]{40}.*|, with args beginning .*",
    re.DOTALL,
)


class NoConnectionFree(StoreUnavailable):
    """All connections that this process may open to Redis are in use. The process is busy; Redis may not be."""


def as_unavailable(error: BaseException) -> StoreUnavailable | None:
    """Convert an error of redis-py or a socket; None where it is a bug of ours, or concerns one record only."""
    error = _unwrapped(error)
    if isinstance(error, _CODED) or (isinstance(error, RedisError) and _REFUSAL.search(str(error))):
        return StoreRefused(error_text(error))
    if isinstance(error, RedisConnectionError) and str(error) == _POOL_IS_EMPTY:
        return NoConnectionFree(str(error))
    # NoScriptError is no bug: a script that was just loaded is missing after a failover, because another server answers.
    is_our_bug = isinstance(error, ResponseError) and not isinstance(error, NoScriptError)
    if isinstance(error, REDIS_ERRORS) and not is_our_bug:
        return StoreUnavailable(f"{type(error).__name__}: {str(error).rstrip('.')}")  # A part of a sentence.
    return None


class redis_errors:
    """Turn what redis-py and sockets raise into ``StoreUnavailable``. Bugs of ours pass unchanged.

    It is a class, like ``contextlib.suppress``: a generator would cost several times as much.
    """

    __slots__ = ()

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if isinstance(error, REDIS_ERRORS) and (unavailable := as_unavailable(error)):
            raise unavailable from error


def _unwrapped(error: BaseException) -> BaseException:
    """Return the login error that redis-py wraps in a connection error on a Unix socket, else the error itself."""
    is_wrapped = isinstance(error, RedisConnectionError) and isinstance(error.__cause__, RedisError)
    return error.__cause__ if is_wrapped and error.__cause__ else error


def is_refusal(error: BaseException | None) -> bool:
    """Whether an error, or one of its causes, says that Redis answered and refused."""
    while error is not None:
        if isinstance(error, StoreRefused) or isinstance(as_unavailable(error), StoreRefused):
            return True
        error = error.__cause__
    return False


def error_text(error: BaseException) -> str:
    """Return Redis' own message on one line, without the command's arguments.

    >>> words_of(NoPermissionError("this user has no permissions to run the 'xadd' command"))
    "NOPERM this user has no permissions to run the 'xadd' command"
    >>> words_of(ResponseError("unknown command 'HGETALL', with args beginning with: 'a', "))
    "unknown command 'HGETALL'"
    """
    error = _unwrapped(error)
    text = _NOISE.sub("", str(error)).strip().removeprefix("ERR ")
    code = next((code for kind, code in _CODES.items() if isinstance(error, kind)), "")
    return " ".join((text if text.startswith(code) else f"{code} {text}").split())[:WORDS_MAX]
