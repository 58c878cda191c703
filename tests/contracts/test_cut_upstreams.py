"""Is an upstream's answer whole, whichever dialect its client speaks, and however the upstream ends?

What vendors were seen to send is cut at its bytes, and goes through the worker's own loop to the clients of every dialect,
streamed and not. The verdict must be the same for all of them, at every cut and at every way to end.
"""

import random
import re
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from prometheus_client import CollectorRegistry

from common.canonical.errors import ErrorKind, GatewayError
from common.canonical.job import Job, Policy
from common.channel.base import FrameKind
from common.config.settings import Settings
from common.dialects import DIALECTS
from common.dialects.base import ReplyInfo
from tests.support.clients.every_dialect import CLIENTS, INFO
from tests.support.upstreams.recordings import Recording, parameters
from workers.attempt.call import TAIL_S, Transfer, final_blocks
from workers.attempt.prepare import prepare_request
from workers.metrics import Metrics
from workers.outcome import ActiveJob, CallResult, Total
from workers.providers import WIRES
from workers.providers.base import Deployment
from workers.routing.traffic import Traffic
from workers.run_context import RunContext
from workers.transcode.output_guardrails import OutputGuard, OutputGuards
from workers.transcode.pumps import Folding

TWO = DIALECTS["openai-chat"].parse({**CLIENTS["openai-chat"].body, "n": 2})
SERVICES: Any = SimpleNamespace(
    settings=Settings(_env_file=None),
    metrics=Metrics(CollectorRegistry()),
    quota=SimpleNamespace(health=SimpleNamespace(record_begun=lambda deployment: None)),
    traffic=Traffic(time.monotonic),
    guards=None,
    router=None,
)
JOB = Job("gen_1", "r", "openai-chat", "m", True, Policy.STOP, 0, 1)
DEPLOYMENT = Deployment("p", "http://x", "k", "m", "openai-chat")
TAIL_BYTES, SAMPLES = 120, 6  # Cuts at every byte of the last ones, and at so many before them.
ENDS = {
    "fin": None,
    "reset": GatewayError(ErrorKind.UPSTREAM_UNAVAILABLE, "reset"),
    "silence": GatewayError(ErrorKind.UPSTREAM_TIMEOUT, "silent"),
}
streams = pytest.mark.parametrize("recording", parameters())


class Answer:
    """An upstream's answer that has these bytes, and then ends so."""

    def __init__(self, body: bytes, end: GatewayError | None) -> None:
        self._chunks, self._end = [body] if body else [], end
        self.tail_s: float | None = None

    async def read(self, *, may_linger: bool = False) -> bytes:
        if self._chunks:
            return self._chunks.pop()
        if self._end:
            raise self._end
        return b""

    def mark_begun(self) -> None: ...

    def mark_finished(self, tail_s: float) -> None:
        self.tail_s = tail_s


class Writer:
    """What a client gets."""

    must_wait = False

    def __init__(self) -> None:
        self.body = b""

    def write(self, data: bytes, *, is_urgent: bool = False) -> None:
        self.body += data

    def write_frame(self, kind: FrameKind, data: bytes) -> None:
        self.body += data if kind is FrameKind.DATA else b""


def prepared(wire: str, dialect: str, *, is_stream: bool, guard: OutputGuard | None = None, **more: Any) -> Any:
    body = {**CLIENTS[dialect].body, "stream": is_stream, **more}
    job = Job("gen_1", "r", dialect, "m", is_stream, Policy.STOP, 0, 1, body=orjson.dumps(body))
    info = ReplyInfo(INFO.generation_id, INFO.model, INFO.created_s, INFO.provider, body)
    return prepare_request(job, WIRES[wire], Deployment("p", "http://x", "k", "m", wire), info, guard)[1]


async def run(pump: Any, answer: Answer) -> tuple[bool, bytes]:
    """Return whether the answer counts as whole, and what its client has then."""
    writer = Writer()
    try:
        context = RunContext(ActiveJob(JOB), Total(), writer, SERVICES)  # type: ignore[arg-type]
        await Transfer(context, CallResult(DEPLOYMENT), answer, pump).copy_stream()  # type: ignore[arg-type]
    except GatewayError as error:
        return False, str(error.failed.kind).encode()
    return True, writer.body


def pumps(wire: str) -> list[tuple[str, bool]]:
    """Every dialect, streamed and not; not: where its upstream is asked for a stream all the same."""
    family = getattr(WIRES[wire], "dialect", None)
    return [(name, is_stream) for name in DIALECTS for is_stream in (True, False) if is_stream or name != family]


def cuts(recording: Recording) -> list[int]:
    size = len(recording.body)
    if not recording.id.startswith("own."):  # There are many: only around the ends of their last events.
        ends = [match.end() for match in re.finditer(rb"\r?\n\r?\n", recording.body)][-3:]
        return sorted({0, size, *(end - back for end in ends for back in (0, 1, 3))})
    early = range(max(0, size - TAIL_BYTES))
    chosen = random.Random(recording.id).sample(early, min(SAMPLES, len(early)))
    return [*sorted(chosen), *range(max(0, size - TAIL_BYTES), size + 1)]


@streams
async def test_every_dialect_has_the_same_verdict_at_every_cut(recording: Recording) -> None:
    # Old models of Google's give every chunk a reason to finish: then nothing but the end of the body tells.
    reasons = recording.body.replace(b" ", b"").count(b'"finishReason":"') if recording.wire == "gemini" else 1
    for end in ("fin", "reset") if reasons < 2 else ("fin",):
        verdicts: list[bool] = []
        for at in cuts(recording):
            found = {
                (await run(prepared(recording.wire, name, is_stream=is_stream), Answer(recording.body[:at], ENDS[end])))[0]
                for name, is_stream in pumps(recording.wire)
            }
            assert len(found) == 1, at
            verdicts += found
        # What has come later takes nothing back, but for an error that is the recording's own last word.
        assert verdicts == sorted(verdicts) or not verdicts[-1]


# What a finish is, and what may follow it

TEXT = b'data: {"id":"c","choices":[{"index":%d,"delta":{"content":"a"}}]}\n\n'
FINISH = b'data: {"id":"c","choices":[{"index":%d,"delta":{},"finish_reason":"stop"}]}\n\n'
DONE = b"data: [DONE]\n\n"
ends = pytest.mark.parametrize("end", ENDS)


@ends
@pytest.mark.parametrize("second", [b"", TEXT % 1], ids=["absent", "begun"])
async def test_an_answer_of_several_choices_is_whole_once_all_have_finished(end: str, second: bytes) -> None:
    for is_stream in (True, False):
        cut = TEXT % 0 + second + FINISH % 0
        for body, is_whole in ((cut, False), (cut + TEXT % 1 + FINISH % 1, True)):
            pump = Folding(WIRES["openai-chat"], DIALECTS["openai-chat"], TWO, INFO)
            if is_stream:
                pump = prepared("openai-chat", "openai-chat", is_stream=True, n=2)

            assert (await run(pump, Answer(body, ENDS[end])))[0] is is_whole


async def test_a_server_that_says_that_it_is_done_may_give_fewer_choices_than_it_was_asked_for() -> None:
    pump = prepared("openai-chat", "openai-chat", is_stream=True, n=2)

    assert await run(pump, Answer(TEXT % 0 + FINISH % 0 + DONE, None)) == (True, TEXT % 0 + FINISH % 0 + DONE)


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(
    "behind",
    [b"data: {half", b"data: {half\n\n", b"event: error\ndata: {}\n\n", b'data: {"error":{"message":"late"}}\n\n', b": x\n"],
)
async def test_what_comes_behind_the_finish_takes_nothing_back(dialect: str, behind: bytes) -> None:
    for end in ENDS.values():
        answer = Answer(TEXT % 0 + FINISH % 0 + behind, end)

        is_whole, body = await run(prepared("openai-chat", dialect, is_stream=True), answer)

        assert is_whole
        assert CLIENTS[dialect].read_stream(body).text == "a"


@pytest.mark.parametrize("reason", ["error", "insufficient_system_resource", "abort", "network_error"])
@ends
async def test_a_finish_that_says_that_it_failed_is_none(reason: str, end: str) -> None:
    body = TEXT % 0 + (FINISH % 0).replace(b'"stop"', f'"{reason}"'.encode())
    for name in DIALECTS:
        assert not (await run(prepared("openai-chat", name, is_stream=True), Answer(body, ENDS[end])))[0]


async def test_what_follows_a_finish_is_waited_for_only_shortly() -> None:
    for body, tail_s in ((TEXT % 0, None), (TEXT % 0 + FINISH % 0, TAIL_S)):
        answer = Answer(body, ENDS["silence"])

        await run(prepared("openai-chat", "anthropic-messages", is_stream=True), answer)

        assert answer.tail_s == tail_s


async def test_a_guarded_answer_is_judged_as_any_other() -> None:
    for body, is_whole in ((TEXT % 0, False), (TEXT % 0 + FINISH % 0, True)):
        for end in ENDS.values():
            job = replace(JOB, guardrails={"pii": "block"})
            guard = OutputGuards(SERVICES.settings, None, SERVICES.metrics).for_job(job)
            pump = prepared("openai-chat", "openai-chat", is_stream=True, guard=guard)

            assert (await run(pump, Answer(body, end)))[0] is is_whole


def test_a_reason_that_an_upstream_gives_with_every_piece_is_not_the_finish() -> None:
    decoder = WIRES["gemini"].decoder()
    piece = b'data: {"candidates":[{"content":{"parts":[{"text":"a"}]},"finishReason":"STOP"}]}\n\n'

    decoder.decode(piece)
    assert decoder.is_whole
    decoder.decode(piece)
    assert not decoder.is_whole


@pytest.mark.parametrize(
    ("rest", "blocks"),
    [
        (b"", []),
        (b"\n", []),
        (b"da", []),
        (b"data: ", []),
        (b'data: {"a":1', []),
        (b"data: [DON", []),
        (b": comment\n", []),
        (b"event: x\nda", []),
        (b'event: x\r\ndata: {"a":1}\r\n', [b'event: x\ndata: {"a":1}\n\n']),
        (b'data: {"a":1}', [b'data: {"a":1}\n\n']),
        (b"data:[DONE]\n", [b"data:[DONE]\n\n"]),
        (b"<html>", [b"<html>\n\n"]),
        (b'{"error": 1}', [b'{"error": 1}\n\n']),
    ],
)
def test_the_last_event_may_lack_its_blank_line_and_nothing_else(rest: bytes, blocks: list[bytes]) -> None:
    assert final_blocks(rest) == blocks
