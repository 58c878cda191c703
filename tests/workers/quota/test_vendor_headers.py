"""What do vendors say of their quotas?"""

import time
from datetime import UTC, datetime
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.upstreams.recordings import recordings
from workers.quota.vendor_headers import pause_s

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
DATE = {"date": format_datetime(NOON, usegmt=True)}


def spent(remaining: str, reset: str, limit: str = "") -> dict[str, str]:
    """Headers that say that nothing remains, in the shape of the vendor whose header's name this is."""
    found = {remaining: "0", remaining.replace("remaining", "reset"): reset}
    return found | ({remaining.replace("remaining", "limit"): limit} if limit else {}) | DATE


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        # OpenAI and Groq: all of it is back after the reset, a sixtieth of it after a sixtieth of that.
        (spent("x-ratelimit-remaining-requests", "1m0s", "500"), 1.0),
        (spent("x-ratelimit-remaining-tokens", "6m0s", "30000"), 6.0),
        (spent("x-ratelimit-remaining-requests", "24h0m0s", "1000"), 1440.0),
        # One of three requests is back after a third.
        (spent("x-ratelimit-remaining-requests", "60s", "3"), 20.0),
        (spent("x-ratelimit-remaining-requests", "1s", "1"), 1.0),
        # Where the limit is not told, how fast it refills is not known.
        (spent("x-ratelimit-remaining-requests", "1s"), 1.0),
        (spent("x-ratelimit-remaining-requests", "20ms"), 0.02),
        (spent("x-ratelimit-remaining-tokens", "1h32m9.6s"), 5529.6),
        (spent("anthropic-ratelimit-requests-remaining", "2026-11-21T12:01:00Z", "4000"), 1.0),
        (spent("anthropic-ratelimit-output-tokens-remaining", "2026-11-21T13:00:30+01:00", "8000"), 0.5),
        (spent("anthropic-ratelimit-tokens-remaining", "2026-11-21T12:00:06Z"), 6.0),
        # Cerebras, Together, OpenRouter: the window's end.
        (spent("x-ratelimit-remaining-tokens-minute", "23.84", "1000000"), 23.84),
        (spent("x-ratelimit-remaining-requests-day", "3563.75", "1440000"), 3563.75),
        (spent("x-ratelimit-remaining", "2", "30"), 2.0),
        (spent("x-ratelimit-remaining", str(int(NOON.timestamp() * 1000) + 7000), "20"), 7.0),
        (spent("x-ratelimit-remaining", str(int(NOON.timestamp()) + 7), "20"), 7.0),
        # Of several, the longest.
        (spent("x-ratelimit-remaining-requests", "2s") | spent("x-ratelimit-remaining-tokens", "9s"), 9.0),
    ],
)
def test_nothing_left_means_to_wait_until_there_is_more(headers, seconds):
    assert pause_s(headers) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"x-ratelimit-remaining-requests": "1", "x-ratelimit-reset-requests": "1m0s"},
        spent("x-ratelimit-remaining-requests", "0s", "500"),
        spent("anthropic-ratelimit-requests-remaining", "2026-11-21T11:59:00Z"),
        {"x-ratelimit-remaining-requests": "0", "x-ratelimit-remaining-tokens": "0"},  # Azure, xAI: never says when.
        {"x-ratelimit-remaining-req-minute": "0", "x-ratelimit-remaining-tokens-minute": "0"},  # Mistral.
        {"x-ratelimit-remaining-tokens": "-1", "x-ratelimit-limit-tokens": "-1", "x-ratelimit-reset-tokens": "0"},  # Azure.
        spent("x-ratelimit-remaining-input-images", "1m0s"),
        spent("x-ratelimit-remaining-requests", "soon"),
        {"retry-after": "2", "x-ratelimit-remaining": "59", "x-ratelimit-reset": "2"},  # Together, on every answer.
    ],
)
def test_what_does_not_say_both_that_nothing_is_left_and_until_when_says_nothing(headers):
    assert pause_s(headers) == 0.0


def test_without_a_date_our_own_clock_counts():
    in_a_minute = datetime.fromtimestamp(time.time() + 60, UTC).isoformat()
    headers = {"anthropic-ratelimit-requests-remaining": "0", "anthropic-ratelimit-requests-reset": in_a_minute}

    assert 0 < pause_s(headers) <= 60


@given(reset=st.text(max_size=40), limit=st.text(max_size=10), date=st.text(max_size=40))
def test_nonsense_never_raises(reset, limit, date):
    headers = {
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": reset,
        "x-ratelimit-limit-requests": limit,
        "anthropic-ratelimit-tokens-remaining": "0",
        "anthropic-ratelimit-tokens-reset": reset,
        "date": date,
    }

    assert pause_s(headers) >= 0


def _lowered(headers: dict[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def test_no_recorded_answer_with_some_quota_left_pauses_its_key():
    told = [_lowered(each.headers) for each in recordings() if each.status < 400]

    assert [headers for headers in told if pause_s(headers)] == []


def _spend(headers: dict[str, str]) -> dict[str, str]:
    return {name: "0" if "remaining" in name and "image" not in name else value for name, value in headers.items()}


def test_every_recorded_vendor_that_names_a_reset_is_understood_once_nothing_remains():
    told = [_lowered(each.headers) for each in recordings()]
    resets = [headers for headers in told if any("ratelimit" in name and "reset" in name for name in headers)]
    if not resets:
        pytest.skip("no recordings beside this repository")
    soon = ("0s", "0", "0ms")
    for headers in resets:
        named = [v for name, v in headers.items() if "ratelimit" in name and "reset" in name and "image" not in name]
        # Anthropic's resets are rounded to seconds, and mostly the moment of the answer.
        is_now = all(value in soon for value in named) or any("anthropic" in name for name in headers)
        if not is_now and "date" in headers:
            assert pause_s(_spend(headers)) > 0, headers
