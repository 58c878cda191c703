"""What is set aside can be read, whatever is wrong with it."""

import orjson
import pytest

from common.ledger.set_aside import SetAsideEntry, pack, unpack


def test_a_record_is_read_as_it_was_kept():
    raw = pack("gen_1", "why", 5, {b"end": b"{}", b"asked": b"\xff"})

    assert unpack(raw) == SetAsideEntry("record", "gen_1", "why", 5, {"end": "{}", "asked": "\N{REPLACEMENT CHARACTER}"})


def test_an_entry_of_the_version_before_is_read():
    raw = orjson.dumps({"id": "gen_1", "reason": "why", "record": {"end": "{}"}})

    assert unpack(raw) == SetAsideEntry("record", "gen_1", "why", None, {"end": "{}"})


def test_those_who_shared_its_log_are_kept_with_it():
    assert unpack(pack("gen_1", "why", 5, {}, ["gen_2"])).sharers == ["gen_2"]
    assert unpack(orjson.dumps({"id": "gen_1", "sharers": 7})).sharers == []


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\xff\xfe",
        b"[1]",
        b"7",
        b"null",
        b'{"id": 1}',
        b'{"kind": "job", "id": "gen_1", "reason": "\xff", "at_ms": 1e400, "record": []}',
        b'{"id": "x", "at_ms": NaN}',
    ],
)
def test_what_is_no_entry_is_shown_as_one(raw):
    entry = unpack(raw)

    assert entry.raw == raw
    assert entry.kind in ("job", "record")
    assert isinstance(entry.record, dict)
