"""How is a request's body read, within its limits?"""

import re
from typing import Any

import orjson
from starlette.requests import Request

from api.server.body_budget import BodyBudget, in_thread_if_large
from api.server.http_errors import refusal_in
from api.server.numbers import parse_integer
from common.canonical.errors import ErrorKind, GatewayError
from common.config.groups.server import ServerSettings

# The escape of a first half of a character without the second half, and of a second half without the first.
_FIRST_HALF = re.compile(rb"(?<!\\)((?:\\\\)*\\)u[dD][89abAB]..(?!\\u[dD][c-fC-F])")
_SECOND_HALF = re.compile(rb"(?<!\\)(?<!\\u[dD][89abAB]..)((?:\\\\)*\\)u[dD][c-fC-F]..")
# Everything needed to count values: an escape, a quote, and the characters before a value, except before the first in a list.
_MARK = re.compile(rb'\\.|[",\[{]', re.DOTALL)


async def read_json(request: Request, settings: ServerSettings, budget: BodyBudget) -> tuple[bytes | bytearray, dict[str, Any]]:
    """Return a JSON object body, as bytes and parsed. The caller must release what ``budget`` holds for it.

    Raises:
        GatewayError: UNSUPPORTED_MEDIA_TYPE, REQUEST_TOO_LARGE, INVALID_REQUEST; OVERLOADED if the budget has no room; the
            reason for which the connection refuses the rest; CANCELLED if the client left meanwhile.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json" and not media_type.endswith("+json"):
        problem = f"is {media_type[:80]!r}" if media_type else "is missing"
        raise GatewayError(
            ErrorKind.UNSUPPORTED_MEDIA_TYPE,
            f"The content type {problem}. Send 'Content-Type: application/json'.",
            code="unsupported_media_type",
        )
    coding = request.headers.get("content-encoding", "identity").strip().lower()
    if coding not in ("identity", ""):
        # A few compressed bytes may expand to gigabytes. Of the clients that we know, only Codex compresses, and only if it is
        # signed in to ChatGPT. With an API key it does not.
        raise GatewayError(
            ErrorKind.UNSUPPORTED_MEDIA_TYPE,
            f"The content encoding {coding[:80]!r} is not supported. Send the body uncompressed, without 'Content-Encoding'.",
            code="unsupported_content_encoding",
        )
    raw = await _read(request, settings.body_bytes_max, budget)
    await budget.wait_for_turn(request.scope, len(raw))
    return await in_thread_if_large(len(raw), _parse_text, raw, settings.json_depth_max, settings.json_values_max)


def _parse_text(raw: bytes | bytearray, depth_max: int, values_max: int) -> tuple[bytes | bytearray, dict[str, Any]]:
    """Return the body, as bytes and parsed. Halves of characters are replaced: some clients cut a text within an emoji."""
    try:
        return raw, parse_json(raw, depth_max, values_max)
    except GatewayError as error:
        if error.failed.code != "invalid_json":
            raise
        whole = _SECOND_HALF.sub(rb"\1ufffd", _FIRST_HALF.sub(rb"\1ufffd", raw))
        if whole == raw:
            raise
        return whole, parse_json(whole, depth_max, values_max)


def parse_json(raw: bytes | bytearray, depth_max: int, values_max: int) -> dict[str, Any]:
    _check_values(raw, values_max)
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise _invalid(f"The body is not valid JSON: {error}.", "invalid_json") from error
    if not isinstance(body, dict):
        raise _invalid("The body must be a JSON object.", "invalid_json")
    _check_depth(body, depth_max)
    return body


async def _read(request: Request, bytes_max: int, budget: BodyBudget) -> bytes | bytearray:
    declared = 0
    if (text := request.headers.get("content-length")) is not None:
        if (length := parse_integer(text, 0, bytes_max)) is None:
            raise _too_large(bytes_max)
        declared = length
        budget.hold(request.scope, declared)
    body, more = bytearray(), True
    while more:
        message = await request.receive()
        if refusal := refusal_in(request.scope):
            raise GatewayError.from_failed(refusal)
        if message["type"] == "http.disconnect":
            raise GatewayError(ErrorKind.CANCELLED, "The client left before its request was complete.")
        piece, more = message.get("body", b""), message.get("more_body", False)
        size = len(body) + len(piece)
        if size > bytes_max:
            raise _too_large(bytes_max)
        if size > declared:
            budget.hold(request.scope, size)
        if not (more or body):
            return bytes(piece)  # Nearly every body.
        body += piece  # One block that grows. Separate pieces would spread over the heap, and keep it from shrinking.
    return body


def _too_large(bytes_max: int) -> GatewayError:
    return GatewayError(
        ErrorKind.REQUEST_TOO_LARGE,
        f"The body is larger than {bytes_max} bytes. Send less, or smaller images.",
        code="request_too_large",
    )


def _check_values(raw: bytes | bytearray, values_max: int) -> None:
    """Refuse JSON that needs seconds and thirty times its size to parse, such as ten million empty lists in 30 MB."""
    if len(raw) <= values_max or sum(_count(raw, mark, values_max) for mark in (b",", b"[", b"{")) <= values_max:
        return  # Nearly every body.
    count, is_string = 0, False
    for match in _MARK.finditer(raw):
        mark = match[0]
        if mark == b'"':
            is_string = not is_string
        elif not is_string:
            count += 1
        if count > values_max:
            raise _invalid(f"The body holds more than {values_max} values.", "json_too_many_values")


def _count(raw: bytes | bytearray, mark: bytes, count_max: int) -> int:
    """Return how often a byte occurs, or ``count_max`` + 1. ``bytes.count`` would keep all other threads waiting."""
    count, at = 0, raw.find(mark)
    while at >= 0 and count <= count_max:
        count, at = count + 1, raw.find(mark, at + 1)
    return count


def _check_depth(body: dict[str, Any], depth_max: int) -> None:
    level: list[Any] = [body]
    for _ in range(depth_max):
        level = [
            child
            for node in level
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, dict | list)
        ]
        if not level:
            return
    raise _invalid(f"The body is nested more than {depth_max} levels deep.", "json_too_deep")


def _invalid(message: str, code: str) -> GatewayError:
    return GatewayError(ErrorKind.INVALID_REQUEST, message, code=code)
