"""What do an answer's headers say about the quota of the key that was used?

Each vendor counts in its own way, and says so in the headers of any answer. If they say that nothing remains, we need not make
the call that would be refused. There are these families of headers:

- OpenAI, Groq: ``x-ratelimit-remaining-requests: 0``, ``x-ratelimit-reset-requests: 6m0s`` (a duration), the same for tokens;
- Anthropic: ``anthropic-ratelimit-requests-remaining: 0``, ``…-reset: 2026-11-21T12:00:00Z``, and for (input-, output-)tokens;
- Cerebras: ``x-ratelimit-remaining-tokens-minute: 0``, ``x-ratelimit-reset-tokens-minute: 23.84`` (seconds);
- Together: ``x-ratelimit-reset: 2`` (seconds), OpenRouter: ``x-ratelimit-reset: 1759845420000`` (ms of the epoch);
- Azure, Mistral and xAI say what remains, but not when there is more. The 429 that follows says it.

The first two refill continuously, and their reset is the time when *all* of the quota is back: recorded resets grow with usage
(1 of 1,000 requests a day: 1m26.4s). Waiting for all of it would leave most of a quota unused, so we wait for a part of it.
``retry-after`` is read only from refusals (``providers/shared/errors.py``): Together sends it with every answer.

Sources: https://platform.openai.com/docs/guides/rate-limits, https://docs.anthropic.com/en/api/rate-limits,
https://console.groq.com/docs/rate-limits
"""

import math
import re
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

# A quota for images says nothing about calls without images.
_REMAINING = re.compile(
    r"(?:x-ratelimit-remaining(?:-{0})?|anthropic-ratelimit-{0}-remaining)".format(
        r"(?:(?:input-|output-)?tokens|requests)(?:-(?:second|minute|hour|day))?"
    )
)
_DURATION = re.compile(r"(?:\d{1,9}(?:\.\d{1,12})?(?:h|ms|m|s|us|µs|ns))+")
_DURATION_PART = re.compile(r"([\d.]{1,22})(h|ms|m|s|us|µs|ns)")
_SECONDS_IN = {"h": 3600, "m": 60, "s": 1, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
# A larger number is a time: seconds of the epoch, or milliseconds.
_EPOCH_S_MIN, _EPOCH_MS_MIN = 1e9, 1e11
_WAIT_S_MAX = 366 * 86_400  # A longer wait cannot be meant, and is ignored.
_REFILL_SHARE = 1 / 60  # We call again when this share of a refilling quota is back, and at least one request.


def pause_s(headers: Mapping[str, str]) -> float:
    """Return for how many seconds the key should not be called; 0: it may be called. Header names are in lower case."""
    # Runs once per upstream call. Almost always nothing is used up.
    spent = [name for name, value in headers.items() if value == "0" and _REMAINING.fullmatch(name)]
    waits_s = [wait_s for name in spent if (wait_s := _until_more_s(name, headers)) <= _WAIT_S_MAX]
    return max(waits_s, default=0.0)


def _until_more_s(remaining: str, headers: Mapping[str, str]) -> float:
    text = headers.get(remaining.replace("remaining", "reset"), "")
    if _DURATION.fullmatch(text):
        reset_s = sum(float(number) * _SECONDS_IN[unit] for number, unit in _DURATION_PART.findall(text))
    elif (number := _number(text)) is not None:
        moment_s = number / 1000 if number >= _EPOCH_MS_MIN else number
        return max(0.0, moment_s - _now_s(headers)) if moment_s >= _EPOCH_S_MIN else number
    elif (moment := _moment_s(text)) is not None:
        reset_s = moment - _now_s(headers)
    else:
        return 0.0
    limit = _number(headers.get(remaining.replace("remaining", "limit"), ""))
    return max(0.0, reset_s) * (min(1.0, max(1 / limit, _REFILL_SHARE)) if limit else 1.0)


def _now_s(headers: Mapping[str, str]) -> float:
    """Return the time by the vendor's clock if it sends one, because ours may be wrong."""
    try:
        return parsedate_to_datetime(headers.get("date", "")).timestamp()
    except (ValueError, OverflowError):
        return time.time()


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 else None


def _moment_s(text: str) -> float | None:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    try:
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except OverflowError:
        return None
