"""How a body's text is read."""

import time

import pytest

from api.server.body import _parse_text
from common.canonical.errors import GatewayError


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (rb'{"a":"x\ud83d y"}', "x\ufffd y"),
        (rb'{"a":"\uDE00"}', "\ufffd"),
        (rb'{"a":"\ud83d\ud83d\ude00"}', "\ufffd😀"),
        (rb'{"a":"\ud83d\ude00\ude00"}', "😀\ufffd"),
        (rb'{"a":"\\\ud83d"}', "\\\ufffd"),
        (rb'{"a":"\\ud83d\ud83d"}', "\\ud83d\ufffd"),
    ],
)
def test_half_a_character_is_replaced_in_the_bytes_too(raw, text):
    whole, body = _parse_text(raw, 64, 1000)

    assert body == {"a": text}
    assert len(whole) == len(raw)  # What the budget holds for the body stays right.


@pytest.mark.parametrize("raw", [rb'{"a":"\ud83d\ude00"}', rb'{"a":"\\ud83d"}'])
def test_whole_characters_stay_as_they_came(raw):
    assert _parse_text(raw, 64, 1000)[0] is raw


@pytest.mark.parametrize("text", [b"\\", rb"\ud83d", rb"\ude00", rb"\ud83"])
def test_what_is_no_json_is_refused_quickly(text):
    began = time.monotonic()

    with pytest.raises(GatewayError, match="not valid JSON"):
        _parse_text(b'{"a":"' + text * 30_000, 64, 1000)

    assert time.monotonic() - began < 2
