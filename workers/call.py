"""How is one try made: one upstream call, its answer into the log?

Start-up events are held back until the first one with output, the commit point: until then a failure is raised, and may be
retried unseen. From then on every read goes into the log as it comes.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import orjson

from common.channel.base import Channel, FrameKind
from common.dialects import DIALECTS
from common.dialects.base import ReplyInfo
from common.errors import ErrorKind, Failed, GatewayError
from common.events import Completed, Usage, summed
from common.job import Job
from common.pricing import price
from common.responses import ResponseStore
from common.settings import KIB, Settings
from common.sse import SseCutter, cut, first_events
from workers.background import RunsOn, cancel
from workers.guarding import GuardedWire, OutputGuard, OutputGuards
from workers.metrics import Metrics
from workers.providers import FAMILIES, WIRES
from workers.providers.base import Deployment, UpstreamRequest, Wire
from workers.providers.errors import blot_out
from workers.publisher import FRAME_BYTES_MAX, Publisher, Writer
from workers.pumps import Folding, FoldingWhole, Passing, PassingWhole, Pump, Translating
from workers.quota.gate import Quota
from workers.upstream import ERROR_BODY_BYTES_MAX, Upstream, UpstreamAnswer

MEASURED_MAX = 2  # Logs that are read back at a time, when an API dies and all of its clients have left at once.
START_EVENTS = 6  # So many come before the first output, or with it.
START_EVENTS_MAX = 64
START_BYTES_MAX = 256 * KIB
PASSED_BACK = ("cf-aig-",)  # Cloudflare AI Gateway's own: cache status, log id.
PASSED_BACK_CHARS_MAX = 1024
GUARDED_BYTES_MAX = 16 * KIB  # A whole answer for guardrails to look through on the loop: some milliseconds.
READ_TO_END_S = 1.0  # A finished answer's last bytes follow at once; waiting for them lets the connection be used again.


@dataclass(slots=True)
class Services:
    """What running a generation needs; one per process."""

    settings: Settings
    channel: Channel
    publisher: Publisher
    upstream: Upstream
    metrics: Metrics
    responses: ResponseStore
    quota: Quota
    guards: OutputGuards
    measuring: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MEASURED_MAX))


@dataclass(slots=True)
class Outcome:
    """What is known of a generation as it runs; ``failed`` None means completed."""

    waited_s: float
    began_at: float = field(default_factory=time.monotonic)
    dialect: str = ""
    provider: str = ""
    upstream_model: str = ""
    model: str = ""
    messages: int = 0
    tries: int = 0
    is_committed: bool = False
    ttft_ms: int | None = None
    output_events: int = 0
    finish_reason: str | None = None
    usage: Usage | None = None  # Of all tries whose output the client has.
    reported: Usage | None = None  # By the last try's upstream.
    spent: Usage | None = None  # By the tries before it that broke off; what they did not report is estimated.
    is_estimated: bool = False
    has_brought_key: bool = False  # Whether the client pays, with a key that it brought.
    continuations: int = 0
    upstream_id: str = ""  # What an upstream that can be read again calls the answer.
    in_background: bool = False  # Whether that is the provider's id for one that it runs in the background,
    runs_on: RunsOn | None = None  # and that one, until its end is seen.
    tries_before: int = 0  # The last continuation, by this worker or another.
    is_cut: bool = False  # Whether a guardrail ended it before its upstream did.
    failed: Failed | None = None
    last_data: bytes = b""  # The client bytes that came last: a stream's last events, or a whole body.
    reply_headers: dict[str, str] = field(default_factory=dict)

    def note(self, deployment: Deployment) -> None:
        """Note who answers, or is about to, and who pays for it."""
        self.provider, self.upstream_model = deployment.provider, deployment.model
        self.has_brought_key = deployment.client_pays

    def elapsed_ms(self) -> int:
        """Return the time since the request was enqueued."""
        return round((time.monotonic() - self.began_at + self.waited_s) * 1000)


# The upstream request of a try, and what turns its answer into the client's.
Prepared = tuple[UpstreamRequest, Pump]


async def call(
    job: Job,
    deployment: Deployment,
    writer: Writer,
    outcome: Outcome,
    services: Services,
    prepare: Callable[[ReplyInfo, OutputGuard | None], Prepared] | None = None,
) -> None:
    """Call a deployment once and write what it answers; ``prepare`` is another way to ask it than as the client did.

    Raises:
        GatewayError: the try failed; ``outcome.is_committed`` tells whether the client has seen a part of it.
    """
    wire = WIRES[deployment.wire]
    info = reply_info(job, deployment, outcome, services.settings)
    guard = services.guards.of(job) if job.guardrails else None
    request, pump = prepare(info, guard) if prepare else _prepare(job, wire, deployment, info, guard)
    calls = services.metrics.upstream_calls
    status = 0  # No answer at all.
    if outcome.runs_on and request.method == "POST":
        await cancel(outcome.runs_on, services.upstream)  # This call is instead of it.
        outcome.runs_on = None
    try:
        async with services.upstream.open(request, deployment.provider, is_stream=pump.is_stream) as answer:
            status = answer.status
            services.quota.hear(deployment, answer.headers)
            outcome.reply_headers = reply_headers(request, answer)
            # Behind what other tries have said it has only the rest.
            outcome.upstream_id = "" if outcome.spent else answer.headers.get("x-generation-id", "")
            outcome.in_background = deployment.in_background
            if not 200 <= status < 300:
                body = await answer.whole(ERROR_BODY_BYTES_MAX)
                raise GatewayError.of(wire.read_error(status, answer.headers, body))
            if pump.is_stream:
                # A task of its own: each wake-up of this one goes through all the frames above first.
                await asyncio.create_task(_stream(answer, pump, guard, writer, outcome, services))
            else:
                await _whole(answer, pump, guard, writer, outcome, services)
            if guard:
                await guard.watch()
    except GatewayError as error:
        blot_out(error.failed, deployment.secrets)
        raise
    finally:
        calls.labels(deployment.provider, status).inc()
        if deployment.in_background and pump.upstream_id:
            is_over = isinstance(pump.terminal, Completed) and not (guard and guard.is_cut)
            outcome.runs_on = None if is_over else RunsOn(pump.upstream_id, [deployment])
        outcome.output_events, outcome.finish_reason = pump.output_events, pump.finish_reason
        outcome.reported, outcome.usage = pump.usage, summed(outcome.spent, pump.usage)
        if guard:
            guard.report()
            outcome.is_cut = guard.is_cut
            outcome.is_estimated = outcome.is_estimated or (guard.is_cut and pump.is_stream)


def reply_headers(request: UpstreamRequest, answer: UpstreamAnswer) -> dict[str, str]:
    """Return what the client's response says besides: what was left out on the way, and what a gateway told."""
    headers = {name: value for name, value in answer.headers.items() if name.startswith(PASSED_BACK) and _may_be_said(value)}
    if request.dropped:
        headers["x-sluice-dropped"] = ", ".join(request.dropped)
    return headers


def _may_be_said(value: str) -> bool:
    """Whether a header's value is one that any server would send and any client read: the upstream may say anything."""
    return value.isascii() and value.isprintable() and len(value) <= PASSED_BACK_CHARS_MAX


def reply_info(job: Job, deployment: Deployment, outcome: Outcome, settings: Settings) -> ReplyInfo:
    body = orjson.loads(job.body)
    turns = body.get("messages") or body.get("input")  # Of the latter, the Responses' name for it, text alone is one.
    outcome.messages = len(turns) if isinstance(turns, list) else 1
    return ReplyInfo(
        job.generation_id,
        job.model,
        job.created_s,
        deployment.provider,
        body,
        outcome.elapsed_ms,
        lambda usage: price(usage, deployment.provider, deployment.model, settings.prices),
    )


def _prepare(job: Job, wire: Wire, deployment: Deployment, info: ReplyInfo, guard: OutputGuard | None = None) -> Prepared:
    body = info.body
    dialect = DIALECTS[job.dialect]
    family = FAMILIES.get(deployment.wire)
    if family and family.dialect == job.dialect:
        request = family.pass_request(body, job.headers, deployment)
        if guard is None:
            return request, Passing(family, info) if job.stream else PassingWhole(family, info)
        # Bytes that pass cannot be filtered: the answer is decoded, and encoded anew.
        parsed = dialect.parse(body)
        return request, (Translating if job.stream else FoldingWhole)(GuardedWire(wire, guard, parsed), dialect, parsed, info)
    parsed = dialect.parse(body)
    source = GuardedWire(wire, guard, parsed) if guard else wire
    pump = (Translating if job.stream else Folding)(source, dialect, parsed, info)
    request = wire.build_request(parsed, deployment)
    request.dropped = [*parsed.dropped, *(parsed.names.get(name, name) for name in request.dropped)]
    return request, pump


async def _stream(
    answer: UpstreamAnswer, pump: Pump, guard: OutputGuard | None, writer: Writer, outcome: Outcome, services: Services
) -> None:
    cutter = SseCutter(services.settings.upstream_event_bytes_max)
    observe_gap = services.metrics.token_gap.observe
    held, data = bytearray(), b""
    read_at = 0.0
    while chunk := await answer.read(may_linger=outcome.is_committed):
        # Hot path: once per upstream read.
        data = _feed(pump, cutter, chunk)
        now = time.monotonic()
        if outcome.is_committed:
            if data:
                writer.write(data, is_urgent=pump.terminal is not None)
                observe_gap(now - read_at)
                if writer.is_outrunning:
                    await writer.flushed()
        else:
            held += data
            if pump.has_output or len(held) > START_BYTES_MAX or held.count(b"\n\n") > START_EVENTS_MAX:
                _commit(writer, pump, outcome, services, bytes(held))
            if pump.output_events or (guard and guard.has_heard):
                answer.has_begun()
        read_at = now
        if pump.terminal or (guard and guard.waits):
            break
    if not (guard and guard.is_cut) and (isinstance(pump.terminal, Completed) or (guard and guard.waits)):
        await _read_to_end(answer)
    last = _last(pump, cutter)
    if guard and guard.waits:
        last += pump.release(await guard.judge())
    if not outcome.is_committed:
        _commit(writer, pump, outcome, services, bytes(held) + last)
    elif last:
        writer.write(last)
    outcome.last_data = last or data
    _raise_failure(pump)


async def _whole(
    answer: UpstreamAnswer, pump: Pump, guard: OutputGuard | None, writer: Writer, outcome: Outcome, services: Services
) -> None:
    body = await answer.whole(services.settings.upstream_body_bytes_max)
    # Looking through a long answer takes a while, in which the others go on.
    data = await asyncio.to_thread(pump.feed, [body]) if guard and len(body) > GUARDED_BYTES_MAX else pump.feed([body])
    if guard and guard.waits:
        data = pump.release(await guard.judge())
    outcome.last_data = data
    _commit(writer, pump, outcome, services, data)


def _feed(pump: Pump, cutter: SseCutter, chunk: bytes) -> bytes:
    try:
        run = cutter.gather(chunk)
    except ValueError as error:
        raise GatewayError(ErrorKind.UPSTREAM_PROTOCOL, f"The provider sent {error}.") from error
    said = b""
    if not pump.has_output:
        # Nothing passes uncut before there is output, and behind it there may be a whole answer in this very read.
        start = first_events(run, START_EVENTS)
        said, run = pump.feed(cut(run[:start])), run[start:]
    size = pump.pass_head(run)
    if size == len(run):
        return said + run
    return said + run[:size] + pump.feed(cut(run[size:]))


def _last(pump: Pump, cutter: SseCutter) -> bytes:
    """What the end of the upstream's bytes adds, an event without its blank line included."""
    rest = cutter.end()
    said = pump.feed([rest.rstrip(b"\r\n") + b"\n\n"]) if rest.strip() else b""
    return said + pump.end()


def _commit(writer: Writer, pump: Pump, outcome: Outcome, services: Services, held: bytes) -> None:
    """The commit point: nothing is retried from here on, and the client sees what was held back."""
    _raise_failure(pump)
    outcome.is_committed = True
    if outcome.in_background:
        outcome.upstream_id = pump.upstream_id
    if outcome.ttft_ms is None:
        outcome.ttft_ms = outcome.elapsed_ms()
        services.metrics.ttft.labels(outcome.provider).observe(outcome.ttft_ms / 1000)
    writer.write_frame(FrameKind.HEAD, head(outcome))
    # A stream's frame holds whole events, so it is cut nowhere; a JSON body may be cut anywhere.
    size = len(held) if pump.gives_stream else FRAME_BYTES_MAX
    for start in range(0, len(held), size or 1):
        writer.write_frame(FrameKind.DATA, held[start : start + size])


def head(outcome: Outcome) -> bytes:
    """Return the data of the head frame: the client's headers, and what the generation's record tells from now on.

    Every try that the client hears of begins with one. The first is the client's; the others tell the next claim what an
    answer has cost that went on.
    """
    return orjson.dumps(
        {
            "status": 200,
            "headers": outcome.reply_headers,
            "provider": outcome.provider,
            "upstream_model": outcome.upstream_model,
            "tries": outcome.tries,
            "queue_wait_ms": round(outcome.waited_s * 1000),
            "ttft_ms": outcome.ttft_ms,
            "continuations": outcome.continuations,
            "spent": outcome.spent.to_dict() if outcome.spent else None,
            "upstream_id": outcome.upstream_id,
        }
    )


def _raise_failure(pump: Pump) -> None:
    if isinstance(pump.terminal, Failed):
        raise GatewayError.of(pump.terminal)


async def _read_to_end(answer: UpstreamAnswer) -> None:
    with suppress(GatewayError, TimeoutError):
        async with asyncio.timeout(READ_TO_END_S):
            while await answer.read():
                pass
