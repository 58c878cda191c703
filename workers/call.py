"""How is one try made: one upstream call, its answer into the log?

Start-up events are held back until the first one with output, the commit point: until then a failure is raised, and may be
retried unseen. From then on every read goes into the log as it comes.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from dataclasses import dataclass, field

import orjson

from common.channel.base import Channel, FrameKind
from common.dialects import DIALECTS
from common.dialects.base import ReplyInfo
from common.errors import ErrorKind, Failed, GatewayError
from common.events import Completed, Usage
from common.job import Job
from common.settings import KIB, Settings
from common.sse import SseCutter
from common.vendors import VENDORS
from workers.metrics import Metrics
from workers.providers import WIRES
from workers.providers.base import Deployment, UpstreamRequest, Wire
from workers.publisher import FRAME_BYTES_MAX, Publisher, Writer
from workers.pumps import Folding, Passing, PassingWhole, Pump, Translating
from workers.upstream import ERROR_BODY_BYTES_MAX, Upstream, UpstreamAnswer

START_EVENTS_MAX = 64
START_BYTES_MAX = 256 * KIB
READ_TO_END_S = 1.0  # A finished answer's last bytes follow at once; waiting for them lets the connection be used again.
HEAD = orjson.dumps({"status": 200})


@dataclass(slots=True)
class Services:
    """What running a generation needs; one per process."""

    settings: Settings
    channel: Channel
    publisher: Publisher
    upstream: Upstream
    metrics: Metrics


@dataclass(slots=True)
class Outcome:
    """What is known of a generation as it runs; ``failed`` None means completed."""

    waited_s: float
    began_at: float = field(default_factory=time.monotonic)
    dialect: str = ""
    provider: str = ""
    model: str = ""
    messages: int = 0
    tries: int = 0
    is_committed: bool = False
    ttft_ms: int | None = None
    output_events: int = 0
    finish_reason: str | None = None
    usage: Usage | None = None
    failed: Failed | None = None


async def call(job: Job, deployment: Deployment, writer: Writer, outcome: Outcome, services: Services) -> None:
    """Call a deployment once and write what it answers.

    Raises:
        GatewayError: the try failed; ``outcome.is_committed`` tells whether the client has seen a part of it.
    """
    wire = WIRES[VENDORS[deployment.provider].wire]
    request, pump = _prepare(job, wire, deployment, outcome)
    calls = services.metrics.upstream_calls
    status = 0  # No answer at all.
    try:
        async with services.upstream.open(request, deployment.provider, is_stream=pump.is_stream) as answer:
            status = answer.status
            if not 200 <= status < 300:
                body = await answer.whole(ERROR_BODY_BYTES_MAX)
                raise GatewayError.of(wire.read_error(status, answer.headers, body))
            if pump.is_stream:
                await _stream(answer, pump, writer, outcome, services)
            else:
                await _whole(answer, pump, writer, outcome, services)
    finally:
        calls.labels(deployment.provider, status).inc()
        outcome.output_events, outcome.usage, outcome.finish_reason = pump.output_events, pump.usage, pump.finish_reason


def _prepare(job: Job, wire: Wire, deployment: Deployment, outcome: Outcome) -> tuple[UpstreamRequest, Pump]:
    """Return the upstream request, and what turns its answer into the client's."""
    body = orjson.loads(job.body)
    outcome.messages = len(body["messages"])
    if wire.dialect == job.dialect:
        request = wire.pass_request(body, job.headers, deployment)
        return request, Passing(wire, body) if job.stream else PassingWhole(wire)
    dialect = DIALECTS[job.dialect]
    parsed = dialect.parse(body)
    info = ReplyInfo(job.generation_id, job.model, job.created_s)
    pump = (Translating if job.stream else Folding)(wire, dialect, parsed, info)
    return wire.build_request(parsed, deployment), pump


async def _stream(answer: UpstreamAnswer, pump: Pump, writer: Writer, outcome: Outcome, services: Services) -> None:
    cutter = SseCutter(services.settings.upstream_event_bytes_max)
    observe_gap = services.metrics.token_gap.observe
    held = bytearray()
    read_at = 0.0
    async with aclosing(answer.chunks()) as chunks:
        async for chunk in chunks:
            # Hot path: once per upstream read.
            data = _feed(pump, cutter, chunk)
            now = time.monotonic()
            if not outcome.is_committed:
                held += data
                if pump.has_output or len(held) > START_BYTES_MAX or held.count(b"\n\n") > START_EVENTS_MAX:
                    _commit(writer, pump, outcome, services, bytes(held))
                if pump.output_events:
                    answer.has_begun()
            elif data:
                writer.write(data, is_urgent=pump.terminal is not None)
                observe_gap(now - read_at)
                if writer.is_outrunning:
                    await writer.flushed()
            read_at = now
            if pump.terminal:
                break
        if isinstance(pump.terminal, Completed):
            await _read_to_end(chunks)
    last = _last(pump, cutter)
    if not outcome.is_committed:
        _commit(writer, pump, outcome, services, bytes(held) + last)
    elif last:
        writer.write(last)
    _raise_failure(pump)


async def _whole(answer: UpstreamAnswer, pump: Pump, writer: Writer, outcome: Outcome, services: Services) -> None:
    data = pump.feed([await answer.whole(services.settings.upstream_body_bytes_max)])
    _commit(writer, pump, outcome, services, data)


def _feed(pump: Pump, cutter: SseCutter, chunk: bytes) -> bytes:
    try:
        blocks = cutter.feed(chunk)
    except ValueError as error:
        raise GatewayError(ErrorKind.UPSTREAM_PROTOCOL, f"The provider sent {error}.") from error
    return pump.feed(blocks)


def _last(pump: Pump, cutter: SseCutter) -> bytes:
    """What the end of the upstream's bytes adds, an event without its blank line included."""
    rest = cutter.end()
    said = pump.feed([rest.rstrip(b"\r\n") + b"\n\n"]) if rest.strip() else b""
    return said + pump.end()


def _commit(writer: Writer, pump: Pump, outcome: Outcome, services: Services, held: bytes) -> None:
    """The commit point: nothing is retried from here on, and the client sees what was held back."""
    _raise_failure(pump)
    outcome.is_committed = True
    ttft_s = time.monotonic() - outcome.began_at + outcome.waited_s
    outcome.ttft_ms = round(ttft_s * 1000)
    services.metrics.ttft.labels(outcome.provider).observe(ttft_s)
    writer.write_frame(FrameKind.HEAD, HEAD)
    # A stream's frame holds whole events, so it is cut nowhere; a JSON body may be cut anywhere.
    size = len(held) if pump.gives_stream else FRAME_BYTES_MAX
    for start in range(0, len(held), size or 1):
        writer.write_frame(FrameKind.DATA, held[start : start + size])


def _raise_failure(pump: Pump) -> None:
    if isinstance(pump.terminal, Failed):
        raise GatewayError.of(pump.terminal)


async def _read_to_end(chunks: AsyncIterator[bytes]) -> None:
    with suppress(GatewayError, TimeoutError):
        async with asyncio.timeout(READ_TO_END_S):
            async for _ in chunks:
                pass
