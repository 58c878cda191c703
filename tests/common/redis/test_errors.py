"""What an error of Redis means, and what of its words is shown."""

import pytest
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError

from common.canonical.errors import StoreRefused
from common.redis.errors import as_unavailable, error_text, is_refusal

SHA = "a" * 40

REFUSALS = [
    (NoPermissionError("this user has no permissions to run the 'evalsha' command"), "NOPERM this user"),
    (OutOfMemoryError("command not allowed when used memory > 'maxmemory'."), "OOM command"),
    (ReadOnlyError("You can't write against a read only replica."), "READONLY You"),
    (BusyLoadingError("Redis is loading the dataset in memory"), "LOADING Redis"),
    (AuthenticationError("invalid username-password pair or user is disabled."), "WRONGPASS invalid"),
    (ResponseError("NOPERM this user has no permissions to access one of the channels"), "NOPERM this user"),
    (ResponseError("MISCONF Redis is configured to save RDB snapshots"), "MISCONF Redis"),
    (ResponseError("unknown command 'EVALSHA', with args beginning with: 'a prompt' "), "unknown command 'EVALSHA'"),
    (ResponseError(f"Unknown Redis command called from script script: {SHA}, on @user_script:1."), "Unknown Redis command"),
    (
        ResponseError(f"Error running script (call to f_{SHA}): @user_script:1: @user_script: 1: -READONLY You can't write"),
        "READONLY You can't write",
    ),
    (
        ResponseError(f"The user executing the script can't run this command or subcommand script: {SHA}, on @user_script:9."),
        "The user executing the script can't run this command or subcommand",
    ),
    (ResponseError("ACL failure in script: User x has no permissions to run the 'xadd' command"), "ACL failure in script"),
]


@pytest.mark.parametrize(("error", "words"), REFUSALS, ids=[words for _, words in REFUSALS])
def test_what_a_server_that_answers_refuses_is_a_refusal_in_its_own_words(error, words):
    found = as_unavailable(error)

    assert isinstance(found, StoreRefused)
    assert str(found).startswith(words)
    assert SHA not in str(found)
    assert "prompt" not in str(found)


@pytest.mark.parametrize("error", [RedisConnectionError("refused"), TimeoutError(), OSError("reset")])
def test_silence_is_no_refusal(error):
    assert as_unavailable(error)
    assert not is_refusal(error)


@pytest.mark.parametrize("text", ["WRONGTYPE Operation against a key", "ERR value is not an integer or out of range"])
def test_what_is_wrong_with_one_key_is_neither(text):
    assert as_unavailable(ResponseError(text)) is None
    assert not is_refusal(ResponseError(text))


def test_a_refusal_is_found_behind_what_it_caused():
    error = RuntimeError("could not")
    error.__cause__ = NoPermissionError("no")

    assert is_refusal(error)


def test_what_a_unix_socket_s_connection_hides_is_found():
    error = RedisConnectionError("invalid username-password pair or user is disabled.")
    error.__cause__ = AuthenticationError("invalid username-password pair or user is disabled.")

    assert str(as_unavailable(error)) == error_text(error) == "WRONGPASS invalid username-password pair or user is disabled."
    assert isinstance(as_unavailable(error), StoreRefused)


def test_words_are_one_line_and_bounded():
    assert error_text(ResponseError("a\n b" * 1000)).startswith("a ba b")
    assert len(error_text(ResponseError("x" * 10_000))) <= 300
