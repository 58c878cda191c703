"""What an answer took that broke off is read from what its client was sent."""

from typing import Any

import orjson
import pytest

from common.canonical.events import Usage
from common.canonical.job import Job, Policy
from common.channel.base import Frame, FrameId, FrameKind
from common.channel.transcript import Transcript
from common.dialects import DIALECTS
from common.metering.attempt_cost import total_usage
from common.metering.token_estimate import estimate_text_tokens, estimate_tokens
from workers.metering.charging import fill_gaps
from workers.metering.partial_usage import Partial, read_partial

HEAD = {"status": 200, "provider": "demo", "tries": 2, "spent": None}
TEXT = "A sluice is a small gate that lets water through. "


def frames(*items: tuple[FrameKind, bytes]) -> list[Frame]:
    return [Frame(FrameId(1, n), kind, data) for n, (kind, data) in enumerate(items)]


def head(**fields: Any) -> tuple[FrameKind, bytes]:
    return FrameKind.HEAD, orjson.dumps({**HEAD, **fields})


def said(text: str, dialect: str = "openai-chat") -> tuple[FrameKind, bytes]:
    event: dict[str, Any] = {"choices": [{"index": 0, "delta": {"content": text}}]}
    if dialect == "anthropic-messages":
        event = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}}
        return FrameKind.DATA, b"event: content_block_delta\ndata: " + orjson.dumps(event) + b"\n\n"
    if dialect == "agentary":
        event = {"token": text}
    if dialect == "unified":
        event = {"content": text}
    return FrameKind.DATA, b"data: " + orjson.dumps(event) + b"\n\n"


def job(dialect: str = "openai-chat", **body: Any) -> bytes:
    asked = {"model": "demo", "max_tokens": 100, "messages": [{"role": "user", "content": "What does a sluice do?"}], **body}
    return Job("gen_1", "req_1", dialect, "demo", True, Policy.STOP, 0.0, 0, body=orjson.dumps(asked)).pack()


def read(dialect: str, log: list[Frame], request: bytes | None, *, is_stream: bool) -> Partial | None:
    return read_partial(Transcript.from_frames(log, dialect, is_stream=is_stream), request)


def taken(found: Partial) -> Usage:
    """Of all attempts."""
    return total_usage(found.attempts)


def asked_tokens(packed: bytes) -> int:
    found = Job.unpack(packed)
    return estimate_tokens(DIALECTS[found.dialect].parse(orjson.loads(found.body)))


@pytest.mark.parametrize("dialect", ["openai-chat", "anthropic-messages", "agentary", "unified"])
def test_what_was_said_is_counted_however_it_was_cut(dialect: str):
    whole = read(dialect, frames(head(), said(TEXT * 4, dialect)), None, is_stream=True)
    pieces = read(dialect, frames(head(), *(said(word + " ", dialect) for word in (TEXT * 4).split())), None, is_stream=True)

    assert taken(whole).output_tokens == taken(pieces).output_tokens == estimate_text_tokens(TEXT * 4)


def test_what_was_asked_is_counted_from_the_request():
    packed = job()

    found = read("openai-chat", frames(head(), said("Hi")), packed, is_stream=True)

    assert taken(found).input_tokens == asked_tokens(packed) > 5
    assert found.head.attempt_count == 2


@pytest.mark.parametrize("request_", [None, b"", b"nonsense", b'{"format": 99}\n{}'])
def test_a_request_that_is_gone_or_unreadable_counts_for_nothing(request_: bytes | None):
    found = read("openai-chat", frames(head(), said("Hi")), request_, is_stream=True)

    assert taken(found) == Usage(0, 1)


def test_an_answer_that_never_began_took_nothing():
    assert read("openai-chat", frames((FrameKind.FENCE, b"0-0")), job(), is_stream=True) is None
    assert read("openai-chat", [], None, is_stream=True) is None


def test_what_the_upstream_told_at_its_start_is_taken():
    start = {"type": "message_start", "message": {"id": "m", "model": "c", "usage": {"input_tokens": 321, "output_tokens": 1}}}
    told = FrameKind.DATA, b"event: message_start\ndata: " + orjson.dumps(start) + b"\n\n"

    found = read("anthropic-messages", frames(head(), told, said(TEXT, "anthropic-messages")), job(), is_stream=True)

    assert taken(found).input_tokens == 321
    assert taken(found).output_tokens == estimate_text_tokens(TEXT)


def test_tool_calls_count():
    delta = {"tool_calls": [{"index": 0, "id": "c", "function": {"name": "look", "arguments": '{"where": "everywhere"}'}}]}
    call = FrameKind.DATA, b"data: " + orjson.dumps({"choices": [{"index": 0, "delta": delta}]}) + b"\n\n"

    found = read("openai-chat", frames(head(), call), None, is_stream=True)

    assert taken(found).output_tokens >= 6


def test_a_continuation_costs_what_was_spent_before_and_what_it_had_to_read_again():
    packed = job()
    spent = {"input_tokens": 100, "output_tokens": 50, "cache_read_tokens": 1, "cache_write_tokens": 2, "reasoning_tokens": 3}
    log = frames(head(), said(TEXT), head(spent=spent, tries=3, continuations=1), said("more"))

    found = read("openai-chat", log, packed, is_stream=True)

    assert taken(found) == Usage(100 + asked_tokens(packed) + estimate_text_tokens(TEXT), 51, 1, 2, 3)
    assert found.head.attempt_count == 3


def test_a_body_that_was_begun_twice_counts_once():
    body = orjson.dumps({"choices": [{"index": 0, "message": {"content": TEXT}}], "usage": None})
    log = frames(head(), (FrameKind.DATA, body), head(tries=2), (FrameKind.DATA, body[:20]), (FrameKind.DATA, body[20:]))

    found = read("openai-chat", log, None, is_stream=False)

    assert taken(found).output_tokens == estimate_text_tokens(TEXT)


def test_a_body_that_was_cut_is_no_reason_to_fail():
    found = read("openai-chat", frames(head(), (FrameKind.DATA, b'{"choices": [')), None, is_stream=False)

    assert taken(found) == Usage(0, 0)


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (None, Usage(10, 20)),
        (Usage(7, 1, 3), Usage(7, 20, 3)),
        (Usage(0, 30), Usage(10, 30)),
    ],
)
def test_what_was_told_wins_as_far_as_it_goes(told: Usage | None, expected: Usage):
    assert fill_gaps(told, Usage(10, 20)) == expected
