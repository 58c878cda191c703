from dataclasses import replace

import orjson
import pytest

from api.routes.generation_records import record, status_of
from common.canonical.errors import ErrorKind, Failed
from common.canonical.job import Policy
from common.channel.base import START, Append, Claim, Frame, FrameId, FrameKind, Opening, State
from common.channel.memory import MemoryChannel
from common.channel.transcript import read_answer_text
from common.records.end import End
from common.records.head import Head

G = "gen_1"
TOLD = {"provider": "openai", "tries": 2, "queue_wait_ms": 3, "ttft_ms": 40}


def state(last: FrameId = START, end: object = None, head: object = None, stream: bool = True) -> State:
    frames = {
        "head": Head.unpack(orjson.dumps(head)) if head else None,
        "end": End.unpack(orjson.dumps(end)) if end else None,
    }
    return State("me", "openai-chat", stream, "m", 1, Policy.STOP, last, has_ended=end is not None, **frames)


def ended(kind: ErrorKind | None, **told: object) -> State:
    return state(FrameId(1, 9), {"error": Failed(kind, "why", code="c").to_dict() if kind else None, **told})


@pytest.mark.parametrize(
    ("found", "status"),
    [
        (state(), "queued"),
        (state(FrameId(1, 0)), "running"),
        (ended(None), "completed"),
        (ended(ErrorKind.CANCELLED), "cancelled"),
        (ended(ErrorKind.WORKER_LOST), "failed"),
    ],
)
def test_the_status_is_read_off_the_log(found: State, status: str):
    assert status_of(found) == status


@pytest.mark.parametrize(("claims", "takeovers"), [(0, 0), (1, 0), (3, 2)])
def test_takeovers_are_the_claims_after_the_first(claims: int, takeovers: int):
    assert record(G, replace(state(), claims=claims))["takeovers"] == takeovers


def test_the_record_tells_what_is_known_so_far():
    waiting, running = record(G, state()), record(G, state(FrameId(1, 2), head={**TOLD, "status": 200, "headers": {"x": "y"}}))
    whole = record(G, ended(None, **TOLD, duration_ms=90, usage={"input_tokens": 1}, cost=None, finish_reason="stop"))
    failed = record(G, ended(ErrorKind.UPSTREAM_TIMEOUT, **TOLD))

    assert (waiting["provider"], waiting["tries"], waiting["usage"], waiting["error"]) == (None, 0, None, None)
    assert (running["provider"], running["tries"]) == ("openai", 2)
    assert running["timings"] == {"queue_wait_ms": 3, "ttft_ms": 40, "duration_ms": None}
    assert "headers" not in running
    assert whole["timings"]["duration_ms"] == 90
    assert (whole["usage"]["input_tokens"], whole["finish_reason"]) == (1, "stop")
    assert failed["error"] == {"kind": "upstream_timeout", "message": "why", "code": "c"}
    assert whole.keys() == waiting.keys() == failed.keys()


async def log(*claims: list[bytes], stream: bool) -> MemoryChannel:
    """A channel with a log of these claims' data."""
    channel = MemoryChannel()
    await channel.open(G, Opening("me", "openai-chat", stream, "m", 1, Policy.STOP, 0, 60, 600, b""), "r")
    last = FrameId(0, 0)
    for epoch, data in enumerate(claims, start=1):
        claim = Claim(G, epoch, f"t{epoch}")
        last = (await channel.fence(claim, is_handover=False)).answer.last
        frames = [Frame(FrameId(epoch, n), FrameKind.DATA, each) for n, each in enumerate(data, start=1)]
        await channel.append([Append(claim, FrameId(epoch, 0), frames)])
    assert last
    return channel


async def text(channel: MemoryChannel) -> str:
    (found,) = await channel.describe([G], "me")
    assert isinstance(found, State)
    return await read_answer_text(channel, G, found.dialect, is_stream=found.stream)


def delta(content: str) -> bytes:
    return b'data: {"choices":[{"index":0,"delta":{"content":%b}}]}\n\n' % orjson.dumps(content)


async def test_the_text_of_a_stream_goes_on_over_claims_and_batches():
    pieces = [f"{n} " for n in range(450)]

    channel = await log([delta(piece) for piece in pieces], [delta("on")], stream=True)

    assert await text(channel) == "".join(pieces) + "on"


async def test_a_body_is_read_once_it_is_whole_and_from_the_last_claim_alone():
    body = orjson.dumps({"choices": [{"index": 0, "message": {"content": "hi"}}]})

    assert await text(await log([body[:9]], stream=False)) == ""
    assert await text(await log([body[:9]], [body[:20], body[20:]], stream=False)) == "hi"
