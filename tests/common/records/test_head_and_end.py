"""What the first and the last frame say is read as it was written, and as the version before wrote it."""

import json
from decimal import Decimal
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.canonical.errors import ErrorKind, Failed
from common.canonical.events import Usage
from common.metering.attempt_cost import Attempt
from common.metering.pricing import Cost
from common.records.end import End, pack_failure, unpack_failure
from common.records.head import Head

ATTEMPT = Attempt("openai", "gpt-5", Usage(7, 3), Cost(Decimal("1.5"), Decimal("0.25")), has_brought_key=True)
HEAD = Head(200, {"x": "y"}, "openai", "gpt-5", 2, 3, 40, 1, Usage(5, 2), [ATTEMPT], "chatcmpl-1", "failover")
END = End(
    Failed(ErrorKind.UPSTREAM_TIMEOUT, "why", code="c").to_dict(),
    "stop",
    Usage(7, 3, 1, 2, 3),
    is_estimated=True,
    provider="openai",
    upstream_model="gpt-5",
    has_byok_key=True,
    continuations=1,
    attempt_count=2,
    queue_wait_ms=3,
    ttft_ms=40,
    duration_ms=90,
    cost=ATTEMPT.cost,
    saved=Cost(Decimal("2"), Decimal("3")),
    attempts=[ATTEMPT],
    left_out=["images"],
    route_reason="failover",
)


def test_both_are_read_as_they_were_written():
    assert Head.unpack(HEAD.pack()) == HEAD
    assert End.unpack(END.pack()) == END
    assert (Head.unpack(Head().pack()), End.unpack(End().pack())) == (Head(), End())


def test_every_field_is_kept():
    """Each value above differs from what a missing one is read as, so that none can be forgotten."""
    for whole, empty in ((HEAD, Head(status=0)), (END, End(has_attempts=False))):
        assert [name for name in whole.__slots__ if getattr(whole, name) == getattr(empty, name)] == []


def test_a_head_of_the_version_before_tells_what_was_spent_as_one_attempt():
    told = {
        "status": 200,
        "headers": {},
        "provider": "openai",
        "upstream_model": "gpt-5",
        "tries": 2,
        "spent": {"input_tokens": 5},
    }

    head = Head.unpack(orjson.dumps(told))

    assert head.spent == Usage(5)
    assert [(each.usage, each.is_estimated) for each in head.attempts] == [(Usage(5), True)]


def test_an_end_of_the_version_before_tells_its_sum_as_one_attempt():
    told = {"error": None, "usage": {"input_tokens": 5, "output_tokens": 1}, "provider": "p", "cost": ATTEMPT.cost.to_dict()}

    end = End.unpack(orjson.dumps(told))

    assert not end.has_attempts
    assert [(each.provider, each.usage, each.cost) for each in end.attempts] == [("p", Usage(5, 1), ATTEMPT.cost)]


def test_fields_of_a_newer_version_are_passed_over():
    assert Head.unpack(orjson.dumps({**orjson.loads(HEAD.pack()), "format": 9, "new": 1})) == HEAD
    assert End.unpack(orjson.dumps({**orjson.loads(END.pack()), "format": 9, "new": [1]})) == END


def test_who_is_no_worker_tells_the_error_alone():
    failed = Failed(ErrorKind.WORKER_LOST, "It was lost.", code="worker_lost")

    assert unpack_failure(pack_failure(failed)) == End.unpack(pack_failure(failed)).failed == failed
    assert End.unpack(pack_failure(failed)).duration_ms is None
    assert unpack_failure(End().pack()) is None


@pytest.mark.parametrize("packed", [b"", b"null", b"[]", b'"x"', b"{"])
@pytest.mark.parametrize("kind", [Head, End])
def test_what_is_no_object_is_refused(kind: type[Head] | type[End], packed: bytes):
    with pytest.raises(ValueError):
        kind.unpack(packed)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=5,
)
FIELDS = sorted({*orjson.loads(HEAD.pack()), *orjson.loads(END.pack())})


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(FIELDS, ANYTHING)))
def test_whatever_they_say_what_is_read_can_be_written_and_read_again(told: dict[str, Any]):
    packed = json.dumps(told).encode(errors="replace")
    for kind in (Head, End):
        found = kind.unpack(packed)
        if all(isinstance(value, str) for value in getattr(found, "headers", {}).values()):
            found.pack()
