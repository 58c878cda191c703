"""How an upstream's errors are read, on every wire."""

import orjson
import pytest

from common.canonical.errors import ErrorKind, Failed
from tests.support.upstreams.recordings import Recording, parameters
from workers.providers import WIRES
from workers.providers.base import Wire
from workers.providers.shared import errors
from workers.providers.shared.errors import set_retry_after

wires = pytest.mark.parametrize("wire", WIRES.values(), ids=WIRES.keys())


@wires
@pytest.mark.parametrize(
    ("status", "body", "kind", "shown"),
    [
        (401, b'{"error":{"message":"Incorrect API key provided: sk-secret"}}', ErrorKind.UPSTREAM_CREDENTIALS, 502),
        (402, b'{"error":{"message":"Insufficient Balance"}}', ErrorKind.UPSTREAM_CREDENTIALS, 502),
        (403, b"", ErrorKind.UPSTREAM_CREDENTIALS, 502),
        (400, b'{"code":"x","error":"Incorrect API key provided: xai-secret"}', ErrorKind.UPSTREAM_CREDENTIALS, 502),
        (400, b'{"error":{"details":[{"reason":"API_KEY_INVALID"}]}}', ErrorKind.UPSTREAM_CREDENTIALS, 502),
        (400, b'{"error":{"message":"no"}}', ErrorKind.UPSTREAM_REJECTED, 400),
        (404, b'{"detail":"Not Found"}', ErrorKind.UPSTREAM_REJECTED, 404),
        (408, b"", ErrorKind.UPSTREAM_TIMEOUT, 504),
        (409, b"", ErrorKind.UPSTREAM_UNAVAILABLE, 409),
        (413, b"<html>too large</html>", ErrorKind.UPSTREAM_REJECTED, 413),
        (422, b'{"detail":[{"loc":["body"]}]}', ErrorKind.UPSTREAM_REJECTED, 422),
        (429, b'{"object":"error","message":"slow down","code":"1300"}', ErrorKind.UPSTREAM_RATE_LIMITED, 429),
        (500, b"", ErrorKind.UPSTREAM_UNAVAILABLE, 500),
        (503, b"not json", ErrorKind.UPSTREAM_UNAVAILABLE, 503),
        (504, b"", ErrorKind.UPSTREAM_TIMEOUT, 504),
        (529, b'{"type":"error","error":{"type":"overloaded_error"}}', ErrorKind.UPSTREAM_UNAVAILABLE, 529),
        (302, b"", ErrorKind.UPSTREAM_PROTOCOL, 502),
    ],
)
def test_error_statuses_become_kinds(wire: Wire, status: int, body: bytes, kind: ErrorKind, shown: int) -> None:
    failed = wire.read_error(status, {}, body)

    assert (failed.kind, failed.http_status) == (kind, shown)
    assert "secret" not in failed.message


@wires
def test_words_of_an_error_are_kept_and_bounded(wire: Wire) -> None:
    message = "Limit reached in organization org-AbCdEf123456 " + "x" * 5000
    body = orjson.dumps({"error": {"message": message, "type": "tokens", "code": 1300, "param": "model"}})

    failed = wire.read_error(429, {}, body)

    assert failed.message.startswith("Limit reached in organization … x")
    assert len(failed.message) <= 2000
    assert (failed.type, failed.code, failed.param) == ("tokens", "1300", "model")


@wires
@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        ({}, None),
        ({"Retry-After": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "1", "retry-after-ms": "250"}, 0.25),
        ({"retry-after": "Fri, 31 Dec 1999 23:59:59 GMT"}, 0.0),
        ({"retry-after": "Fri, 31 Dec 1999 23:59:59 GMT", "date": "Fri, 31 Dec 1999 23:59:49 GMT"}, 10.0),
    ],
)
def test_retry_after_is_read_in_all_its_forms(wire: Wire, headers: dict[str, str], wait_s: float | None) -> None:
    assert wire.read_error(503, headers, b"").retry_after_s == wait_s


@pytest.mark.parametrize("recording", [*parameters(is_error=True), *parameters(is_error=True, is_stream=False)])
def test_recorded_errors_are_read(recording: Recording) -> None:
    failed = WIRES[recording.wire].read_error(recording.status, recording.headers, recording.body)

    if recording.status == 401 or b"API_KEY_INVALID" in recording.body:
        assert failed.kind is ErrorKind.UPSTREAM_CREDENTIALS
    else:
        assert failed.status == recording.status
        # The vendor's own message, wherever it stood.
        body = orjson.loads(recording.body)
        error = body.get("error", body)  # Cohere has none.
        assert failed.message == (error if isinstance(error, str) else error["message"])


KEY = "a-key-of-no-known-shape"


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (f"The key {KEY} may not do this.", "The key … may not do this."),
        (f"{KEY}{KEY}", "……"),
        (f"The key {KEY[:-3]}", "The key "),  # Where the words were cut.
        (f"The key {KEY[:4]}", f"The key {KEY[:4]}"),
        ("Nothing of the kind.", "Nothing of the kind."),
    ],
)
def test_the_key_that_an_upstream_repeats_is_blotted_out(said: str, told: str):
    failed = Failed(ErrorKind.UPSTREAM_REJECTED, said, type=said, code=said, param=said)

    errors.redact_secrets(failed, [KEY, ""])

    assert (failed.message, failed.type, failed.code, failed.param) == (told, told, told, told)


@pytest.mark.parametrize(
    ("code", "logged"),
    [
        ("rate_limit_exceeded", "rate_limit_exceeded"),
        ("INVALID_ARGUMENT", "INVALID_ARGUMENT"),
        ("context-length.v2", "context-length.v2"),
        ("Refused: tell me a secret", None),
        ("x" * 65, None),
        (None, None),
    ],
)
def test_a_code_that_is_a_sentence_is_not_logged(code: str | None, logged: str | None):
    assert Failed(ErrorKind.UPSTREAM_REJECTED, "no", code=code).logged_code == logged


def test_a_limit_told_in_a_body_is_waited_for_as_its_headers_say():
    limited, told, other = (Failed(kind, "") for kind in [ErrorKind.UPSTREAM_RATE_LIMITED] * 2 + [ErrorKind.UPSTREAM_REJECTED])
    told.retry_after_s = 3.0

    for failed in (limited, told, other):
        set_retry_after(failed, {"retry-after": "7"})

    assert [failed.retry_after_s for failed in (limited, told, other)] == [7.0, 3.0, None]
