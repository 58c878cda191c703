"""What does an upstream's error mean?

There are two cases: an answer with an error status, and an error inside a stream that began with 200. If there is a status, it
decides. Clients see the parts of the upstream's text for which their dialect has fields. Keys and account names in it are
redacted, and an answer about our own key is never shown.
"""

import math
import re
import time
from collections.abc import Iterable, Mapping
from email.utils import parsedate_to_datetime
from typing import Any

from common.canonical.errors import ErrorKind, Failed
from common.dialects.shared.anthropic_words import STATUS_OF_TYPE
from common.dialects.shared.openai_errors import STATUS_OF_WORD
from common.sse import BYTE_ORDER_MARK
from workers.providers.shared.error_words import find_kind
from workers.providers.shared.loose_json import dict_of, list_of, read_json, text_of

# The code of an answer that came but cannot be read. A second one from the same address would cost again, and be no better.
UNREADABLE = "upstream_unreadable"
_MESSAGE_CHARS_MAX = 2000
_WAIT_S_MAX = 366 * 86_400  # A longer wait cannot be meant, and is ignored.
_SECRET_CHARS_MIN = 8  # A shorter key, such as that of a local server, may be an ordinary word.
_LOOKED_AT_BYTES_MAX = 16_384  # Of a body that may not be JSON. A longer error says the important part at its start.
# Gemini and xAI answer a wrong key with 400.
_KEY_IS_AT_FAULT = re.compile(rb"api_key_invalid|(?:invalid|incorrect)[ _]api[ _]key|api key not valid", re.IGNORECASE)
_ACCOUNT = re.compile(r"\b(?:sk|xai|gsk|org|proj|team|user|acct)[-_][\w*-]{6,}|\bAIza[\w-]{10,}")

_QUOTA_SPENT = (
    "The account at the provider has no quota or credit left. If the key is the gateway's own, its operator must add credit."
)
_CREDENTIALS = (
    "The provider refused the key that it was called with. If the key is the gateway's own, its operator must check it."
)


def read_error(status: int, headers: Mapping[str, str], body: bytes) -> Failed:
    """Return the failure for an answer with an error status; see ``Wire.read_error``."""
    body = body[:_LOOKED_AT_BYTES_MAX] if len(body) > _LOOKED_AT_BYTES_MAX else body
    if status in (401, 402, 403) or (status == 400 and _KEY_IS_AT_FAULT.search(body)):
        return credentials_refused()
    try:
        payload = read_json(body)
    except ValueError:
        payload = None
    wait_s = _retry_after_s(headers)
    return _failed(status, payload, _retry_delay_s(payload) if wait_s is None else wait_s)


def error_in_stream(payload: object) -> Failed:
    """Return the failure for an error event. Its status is the one in the event, or follows from its type and code."""
    words = _words(payload)
    status = words.status or _status_of(words)
    if status in (401, 402, 403):
        return credentials_refused()
    return _failed(status, payload, _retry_delay_s(payload))


def no_answer(payload: object) -> Failed:
    """Return the failure for JSON without an answer: an error in another format than its wire's, or unreadable data."""
    words = _words(payload)
    return error_in_stream(payload) if words.message or words.status else unreadable_answer("it holds no answer")


def empty_answer() -> Failed:
    """Return the failure for an answer without any content whose end does not explain it. A repetition often helps."""
    message = "The provider's answer is empty: it has no text and no tool call, and nothing says why. Try again."
    return Failed(ErrorKind.UPSTREAM_PROTOCOL, message, code="empty_answer")


def failed_answer(reason: str) -> Failed:
    """Return the failure for an answer that its model ended as a failure, in the vendor's word. A repetition often helps."""
    message = f"The model failed on this answer: the provider ended it with {reason}. Try again."
    return Failed(ErrorKind.UPSTREAM_PROTOCOL, message, code="failed_answer")


def not_json(body: bytes) -> Failed:
    """Return the failure for a body that is not JSON. Its first line may be JSON that says why there is no answer."""
    if body.removeprefix(BYTE_ORDER_MARK).lstrip().startswith(b"<"):
        return unreadable_answer("it is an HTML page, not an answer; check the provider's base URL")
    try:
        payload = read_json(body.lstrip().split(b"\n", 1)[0][:_LOOKED_AT_BYTES_MAX])
    except ValueError:
        return unreadable_answer("not JSON")
    return no_answer(payload) if dict_of(payload).get("error") else unreadable_answer("not JSON")


def set_retry_after(failed: Failed, headers: Mapping[str, str]) -> None:
    """Set the wait of a rate limit inside an answer's body from the answer's headers, as for a 429 status."""
    if failed.kind is ErrorKind.UPSTREAM_RATE_LIMITED and failed.retry_after_s is None:
        failed.retry_after_s = _retry_after_s(headers)


def redact_secrets(failed: Failed, secrets: Iterable[str]) -> None:
    """Remove our secrets from an upstream's text that repeats them, even if the text was cut within a secret."""
    for secret in secrets:
        for name in ("message", "type", "code", "param"):
            text = getattr(failed, name)
            if not text or len(secret) < _SECRET_CHARS_MIN:
                continue
            text = text.replace(secret, "…")
            cut = next((n for n in range(len(secret) - 1, _SECRET_CHARS_MIN - 1, -1) if text.endswith(secret[:n])), 0)
            setattr(failed, name, text[: len(text) - cut])


def credentials_refused() -> Failed:
    return Failed(ErrorKind.UPSTREAM_CREDENTIALS, _CREDENTIALS)


def unreadable_answer(reason: str) -> Failed:
    return Failed(ErrorKind.UPSTREAM_PROTOCOL, f"The provider's answer could not be read: {reason}.")


def cut_short() -> Failed:
    message = "The provider's answer ended before it was complete."
    return Failed(ErrorKind.UPSTREAM_UNAVAILABLE, message, code="upstream_cut")


class _Words:
    """The words of an error. Every vendor puts them into other fields."""

    def __init__(self, error: dict[str, Any], outer: dict[str, Any]) -> None:
        message = next((candidate for candidate in _messages(error, outer) if isinstance(candidate, str) and candidate), "")
        self.message = _ACCOUNT.sub("…", message[: 2 * _MESSAGE_CHARS_MAX])[:_MESSAGE_CHARS_MAX]
        self.type = _word(error.get("type")) or _word(error.get("error_type"))  # ``error_type`` is Cohere's.
        # Google's ``code`` is the HTTP status, and its ``status`` is the word for it.
        self.code = text_of(error.get("status"))[:200] or _word(error.get("code")) or _word(outer.get("code"))
        self.param = _word(error.get("param"))
        # OpenRouter has ``code``, Groq ``status_code``; the others are what web frameworks write beside a message.
        named = [fields.get(name) for fields in (error, outer) for name in ("status_code", "code", "status", "statusCode")]
        self.status = next(filter(None, map(_status, named)), None)


def _words(payload: object) -> _Words:
    outer = _outer(payload)
    return _Words(dict_of(outer.get("error")) or outer, outer)


def _outer(payload: object) -> dict[str, Any]:
    """Return the error's object. Google puts it into a list if the request was for a stream that is not an event stream."""
    return dict_of(payload[0] if isinstance(payload, list) and payload else payload)


def _messages(error: dict[str, Any], outer: dict[str, Any]) -> list[object]:
    first = dict_of(next(iter(list_of(outer.get("errors"))), None))  # Cloudflare's.
    named = [fields.get(name) for fields in (error, outer, first) for name in ("message", "detail", "msg")]
    return [*named[:2], outer.get("error"), *named[2:]]


def _word(value: object) -> str | None:
    """Return a code, which may be a word or a number. The type "error" says nothing about the kind of error."""
    if isinstance(value, bool) or not isinstance(value, str | int) or value in ("", "error"):
        return None
    return str(value)[:200]


def _status(value: object) -> int | None:
    number = int(value) if isinstance(value, str) and re.fullmatch(r"\d{3}", value, re.ASCII) else value
    return number if isinstance(number, int) and 400 <= number <= 599 else None


_STATUS_OF_WORD = {**STATUS_OF_TYPE, **STATUS_OF_WORD, "rate_limited": 429}  # The last is Mistral's.


def _status_of(words: _Words) -> int:
    return _STATUS_OF_WORD.get(words.code or "") or _STATUS_OF_WORD.get(words.type or "") or 502


def _failed(status: int, payload: object, retry_after_s: float | None) -> Failed:
    words = _words(payload)
    fields: dict[str, Any] = {"type": words.type, "code": words.code, "param": words.param}
    kind = find_kind(status, (words.code, words.type), words.message)
    if kind is ErrorKind.UPSTREAM_QUOTA_SPENT:
        return Failed(kind, words.message or _QUOTA_SPENT, kind.status, code="insufficient_quota")
    if kind is not None:
        # The dialect's own code for the kind, instead of the vendor's: clients decide by it what to do.
        message = words.message or f"The provider refused the request (HTTP status {status})."
        # The vendor's own status stays, except for an overflow: agents know it by 400 alone.
        own_status = kind.status if kind is ErrorKind.CONTEXT_LENGTH_EXCEEDED or status >= 500 else status
        return Failed(kind, message, own_status, param=words.param)
    if status == 429:
        message = words.message or "The provider's rate limit is reached. Try again later."
        return Failed(ErrorKind.UPSTREAM_RATE_LIMITED, message, status, **fields, retry_after_s=retry_after_s)
    if status in (408, 504):
        message = words.message or "The provider took too long to answer. Try again."
        # The status distinguishes it from an upstream that sent nothing: it is called again. A 408 would blame the client.
        return Failed(ErrorKind.UPSTREAM_TIMEOUT, message, 504, **fields, retry_after_s=retry_after_s)
    if status in (409, 499) or status >= 500:
        message = words.message or f"The provider could not answer (HTTP status {status}). Try again later."
        status = 502 if status == 499 else status  # Google itself cancelled: 499 would say that the client has left.
        return Failed(ErrorKind.UPSTREAM_UNAVAILABLE, message, status, **fields, retry_after_s=retry_after_s)
    if status >= 400:
        message = words.message or f"The provider refused the request (HTTP status {status})."
        return Failed(ErrorKind.UPSTREAM_REJECTED, message, status, **fields)
    return unreadable_answer(f"HTTP status {status}")


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Return how many seconds the upstream asks us to wait. If both headers are there, the one in milliseconds is used."""
    named = {name.lower(): value for name, value in headers.items()}
    wait_ms, wait = _number(named.get("retry-after-ms")), named.get("retry-after")
    if wait_ms is not None:
        return _wait(wait_ms / 1000)
    wait_s = _number(wait)
    if wait_s is not None or wait is None:
        return _wait(wait_s)
    until_s = _date_s(wait)
    # The upstream's own clock, if it sends it: ours may be wrong.
    now_s = _date_s(named.get("date", "")) or time.time()
    return _wait(until_s - now_s) if until_s is not None else None


def _wait(seconds: float | None) -> float | None:
    return None if seconds is None or seconds > _WAIT_S_MAX else max(0.0, seconds)


def _retry_delay_s(payload: object) -> float | None:
    """The same in Google's format: among the details, as "34.4s"."""
    for detail in list_of(dict_of(_outer(payload).get("error")).get("details")):
        delay = text_of(dict_of(detail).get("retryDelay"))
        if delay.endswith("s"):
            return _wait(_number(delay[:-1]))
    return None


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return max(0.0, number) if math.isfinite(number) else None


def _date_s(text: str) -> float | None:
    try:
        return parsedate_to_datetime(text).timestamp()
    except (ValueError, OverflowError):
        return None
