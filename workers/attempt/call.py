"""How is one try made: one upstream call, its answer into the log?

Start-up events are held back until the first one with output, the commit point: until then a failure is raised, and may be
retried unseen. From then on every read goes into the log as it comes.
"""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any

import orjson
import structlog

from common.canonical.errors import ErrorKind, Failed, GatewayError
from common.canonical.events import Completed, Usage, subtract_usage
from common.canonical.job import Job
from common.channel.base import FrameKind
from common.config.groups.models import ModelSettings
from common.config.settings import KIB, Settings
from common.dialects import DIALECTS
from common.dialects.base import ReplyInfo
from common.metering.attempt_cost import Attempt, total_cost
from common.metering.pricing import Cost
from common.records.head import Head
from common.sse import BYTE_ORDER_MARK, SseCutter, cut, first_events, read_block
from workers.attempt.answer_kind import is_stream
from workers.attempt.background_answers import cancel
from workers.metering.charging import attempt_of, packed_note
from workers.outcome import Ask, Reply, RunsOn, Total
from workers.providers import FAMILIES, WIRES
from workers.providers.base import Deployment, UpstreamRequest, Wire
from workers.providers.shared.errors import UNREADABLE, blot_out, note_wait
from workers.providers.shared.loose_json import NestedTooDeeply, read_json
from workers.publish.large_answers import LARGE_BYTES, too_large
from workers.publish.writer import FRAME_BYTES_MAX
from workers.run_context import Running
from workers.transcode.guarded_pump import guarded
from workers.transcode.output_guardrails import OutputGuard
from workers.transcode.pumps import Folding, FoldingWhole, Passing, PassingWhole, Pump, Translating
from workers.upstream.errors import redirected
from workers.upstream.http_client import ERROR_BODY_BYTES_MAX, UpstreamAnswer

log = structlog.get_logger()

START_EVENTS = 6  # So many come before the first output, or with it.
START_EVENTS_MAX = 64
START_BYTES_MAX = 256 * KIB
PASSED_BACK = ("cf-aig-",)  # Cloudflare AI Gateway's own: cache status, log id.
PASSED_BACK_CHARS_MAX = 1024
TAIL_S = 2.0  # What may follow a finish, usage and an end mark, comes at once or not at all.
_BEGINS_AN_EVENT = re.compile(rb"(?:data|event|id|retry)?:|[a-z]{1,5}$")  # Its first line, or the beginning of that.
READ_TO_END_S = 1.0  # A finished answer's last bytes follow at once; waiting for them lets the connection be used again.


# The upstream request of a try, and what turns its answer into the client's.
Prepared = tuple[UpstreamRequest, Pump]


async def call(
    running: Running, reply: Reply, prepare: Callable[[ReplyInfo, OutputGuard | None], Prepared] | None = None
) -> None:
    """Call a deployment once and write what it answers; ``prepare`` is another way to ask it than as the client did.

    Raises:
        GatewayError: the call failed; ``reply.is_committed`` tells whether the client has seen a part of it.
    """
    job, total, services, deployment = running.job, running.total, running.services, reply.deployment
    wire = WIRES[deployment.wire]
    info = reply_info(running.ask, reply, total, services.settings)
    reply.messages = message_count(info.body)
    guard = services.guards.of(job) if job.guardrails else None  # It decides which pump there is, and no more.
    request, pump = prepare(info, guard) if prepare else prepare_as_asked(job, wire, deployment, info, guard)
    status = 0  # No answer at all.
    reply.is_reread = request.method == "GET"
    if not reply.is_reread:
        if reply.runs_on:
            await cancel(reply.runs_on, services.upstream)  # This call is instead of it.
            reply.runs_on = None
        running.writer.note = packed_note(total.attempts, job, deployment)
    try:
        async with services.upstream.open(request, deployment.provider, is_stream=pump.is_stream) as answer:
            status = answer.status
            services.quota.hear(deployment, answer.headers)
            reply.headers = reply_headers(request, answer)
            # Behind what other calls have said it has only the rest.
            reply.upstream_id = "" if total.spent else answer.headers.get("x-generation-id", "")
            if not 200 <= status < 300:
                raise await _refusal(answer, wire, deployment)
            await Transfer(running, reply, answer, pump).take()
            await pump.after()
    except GatewayError as error:
        blot_out(error.failed, deployment.secrets)
        raise
    finally:
        services.metrics.upstream_calls.labels(deployment.provider, status).inc()
        pump.close()
        _note_end(reply, pump)
        reply.attempt = attempt_of(job, reply, request, pump, status, services.settings)
        if reply.attempt and pump.has_absurd_usage:
            services.metrics.absurd_usage.labels(deployment.provider).inc()
            log.warning("usage_absurd", provider=deployment.provider, model=deployment.model)


def _note_end(reply: Reply, pump: Pump) -> None:
    """Note what an answer has come to, however it ended."""
    reply.output_events, reply.finish_reason, reply.usage = pump.output_events, pump.finish_reason, pump.usage
    reply.is_cut = pump.is_cut
    if reply.deployment.in_background and pump.upstream_id:
        is_over = isinstance(pump.terminal, Completed) and not reply.is_cut
        reply.runs_on = None if is_over else RunsOn(pump.upstream_id, [reply.deployment])


def reply_headers(request: UpstreamRequest, answer: UpstreamAnswer) -> dict[str, str]:
    """Return what the client's response says besides: what was left out on the way, and what a gateway told."""
    headers = {name: value for name, value in answer.headers.items() if name.startswith(PASSED_BACK) and _may_be_said(value)}
    if request.dropped:
        headers["x-sluice-dropped"] = ", ".join(request.dropped)
    return headers


def _may_be_said(value: str) -> bool:
    """Whether a header's value is one that any server would send and any client read: the upstream may say anything."""
    return value.isascii() and value.isprintable() and len(value) <= PASSED_BACK_CHARS_MAX


def message_count(body: Mapping[str, Any]) -> int:
    turns = body.get("messages") or body.get("input")  # Of the latter, the Responses' name for it, text alone is one.
    return len(turns) if isinstance(turns, list) else 1


def reply_info(ask: Ask, reply: Reply, total: Total, settings: Settings) -> ReplyInfo:
    job = ask.job
    return ReplyInfo(
        job.generation_id,
        job.model,
        job.created_s,
        reply.deployment.provider,
        orjson.loads(job.body),
        ask.elapsed_ms,
        lambda usage: _cost_of(usage, reply, total, settings),
    )


def _cost_of(usage: Usage, reply: Reply, total: Total, settings: ModelSettings) -> Cost | None:
    """Return what an answer has cost whose usage the client is told: each attempt by itself."""
    own, deployment = subtract_usage(usage, total.spent), reply.deployment
    last = (
        [Attempt(deployment.provider, deployment.model, own).apply_prices(settings.prices)]
        if any(own.to_dict().values())
        else []
    )
    return total_cost([*total.before(reply), *last])


def prepare_as_asked(
    job: Job, wire: Wire, deployment: Deployment, info: ReplyInfo, guard: OutputGuard | None = None
) -> Prepared:
    dialect = DIALECTS[job.dialect]
    family = FAMILIES.get(deployment.wire)
    if family is None or family.dialect != job.dialect:
        parsed = dialect.parse(info.body)
        pump = (Translating if job.stream else Folding)(wire, dialect, parsed, info)
        request = wire.build_request(parsed, deployment)
        request.dropped = [*parsed.dropped, *(parsed.names.get(name, name) for name in request.dropped)]
        return request, guarded(pump, guard)
    request = family.pass_request(info.body, job.headers, deployment)
    if guard is None:
        return request, (Passing if job.stream else PassingWhole)(family, dialect, info)
    # Bytes that pass cannot be filtered: the answer is decoded, and encoded anew.
    parsed = dialect.parse(info.body)
    return request, guarded((Translating if job.stream else FoldingWhole)(wire, dialect, parsed, info), guard)


async def _refusal(answer: UpstreamAnswer, wire: Wire, deployment: Deployment) -> GatewayError:
    """Return what an answer means that has none of the statuses of success."""
    if 300 <= answer.status < 400:
        return redirected(deployment.provider, answer.status, answer.headers.get("location", ""))
    return GatewayError.from_failed(wire.read_error(answer.status, answer.headers, await answer.whole(ERROR_BODY_BYTES_MAX)))


class Transfer:
    """The bytes of one answer, on their way from the upstream into the log."""

    def __init__(self, running: Running, reply: Reply, answer: UpstreamAnswer, pump: Pump) -> None:
        self._running, self._reply, self._answer, self._pump = running, reply, answer, pump
        self._writer, self._settings = running.writer, running.settings

    async def take(self) -> None:
        """Take an answer for what it is, a stream or a whole one, whichever was asked for.

        Raises:
            GatewayError: it broke off, or cannot be read.
        """
        answer = self._answer
        beginning = await answer.beginning()
        try:
            if is_stream(answer.headers.get("content-type", ""), beginning, is_asked=self._pump.is_stream):
                # A task of its own: each wake-up of this one goes through all the frames above first.
                await asyncio.create_task(self.stream())
            else:
                await self.whole()
        except GatewayError as error:
            note_wait(error.failed, answer.headers)
            raise

    async def stream(self) -> None:
        answer, pump, reply, writer = self._answer, self._pump, self._reply, self._writer
        cutter = SseCutter(self._settings.upstream_event_bytes_max)
        observe_gap = self._running.services.metrics.token_gap.observe
        held, data, large_at = bytearray(), b"", min(LARGE_BYTES, self._settings.answer_bytes_max)
        read_at = 0.0
        lost: GatewayError | None = None
        while True:
            # Hot path: once per upstream read.
            try:
                chunk = await answer.read(may_linger=reply.is_committed)
            except GatewayError as error:
                lost = error
                break
            if not chunk:
                break
            data = _feed(pump, cutter, chunk)
            now = time.monotonic()
            if reply.is_committed:
                if data:
                    writer.write(data, is_urgent=pump.terminal is not None)
                    observe_gap(now - read_at)
                    if writer.must_wait:
                        await writer.have_room()
            else:
                held += data
                if pump.has_output or len(held) > START_BYTES_MAX or held.count(b"\n\n") > START_EVENTS_MAX:
                    self._commit(bytes(held))
                if pump.has_heard:
                    answer.has_begun()
                if pump.held_bytes > large_at:
                    await writer.expect(pump.held_bytes)
            read_at = now
            if pump.terminal:
                break
            if pump.is_whole:
                answer.has_finished(TAIL_S)
        last = await self._last(cutter, lost)
        if not reply.is_committed:
            await self._commit_whole(bytes(held) + last)
        elif last:
            writer.write(last)
        reply.last_data = last or data
        _raise_failure(pump)

    async def whole(self) -> None:
        pump, answer_bytes_max = self._pump, self._settings.answer_bytes_max

        def make_room(size: int) -> Awaitable[None]:
            return self._writer.expect(min(size, answer_bytes_max))  # The client's own bytes may be fewer.

        body = (await self._answer.whole(self._settings.upstream_body_bytes_max, make_room)).removeprefix(BYTE_ORDER_MARK)
        # What takes a while is done where the others go on meanwhile.
        is_long = len(body) > pump.loop_bytes_max
        data = await asyncio.to_thread(pump.feed_whole, body) if is_long else pump.feed_whole(body)
        if pump.waits:
            data += await pump.settle()
        del body  # From here on there is the client's own alone.
        if len(data) > answer_bytes_max:
            raise too_large(answer_bytes_max)
        self._reply.last_data = data if self._running.job.dialect == "openai-responses" else b""
        await self._commit_whole(data)

    async def _last(self, cutter: SseCutter, lost: GatewayError | None) -> bytes:
        """Return what the end of the upstream's bytes adds for the client.

        Raises:
            GatewayError: ``lost``, how the reading failed, unless the upstream had finished: then nothing of it is missing.
        """
        pump = self._pump
        if isinstance(pump.terminal, Completed) and not pump.is_cut:
            await _read_to_end(self._answer)
        last = pump.feed(last_blocks(cutter.end()))
        if lost and not pump.is_whole:
            raise lost
        last += pump.end()
        if pump.waits:
            last += await pump.settle()
        return last

    def _commit(self, held: bytes) -> None:
        """The commit point: nothing is retried from here on, and the client sees what was held back."""
        _raise_failure(self._pump)
        ask, reply, total, writer = self._running.ask, self._reply, self._running.total, self._writer
        reply.is_committed = True
        writer.note = b""  # From now on the log tells.
        if reply.deployment.in_background:
            reply.upstream_id = self._pump.upstream_id
        reply.ttft_ms = total.ttft_ms
        if reply.ttft_ms is None:
            reply.ttft_ms = ask.elapsed_ms()
            self._running.services.metrics.ttft.labels(total.provider).observe(reply.ttft_ms / 1000)
        writer.write_frame(FrameKind.HEAD, head_of(ask, reply, total).pack())
        if held:
            writer.write_frame(FrameKind.DATA, held)

    async def _commit_whole(self, data: bytes) -> None:
        """The same where all of the answer is there: one that is large is written in frames."""
        is_large = len(data) > FRAME_BYTES_MAX
        self._commit(b"" if is_large else data)
        if is_large:
            await self._writer.write_all(data, cut=event_end if self._pump.gives_stream else _piece_end)


def head_of(ask: Ask, reply: Reply, total: Total) -> Head:
    return Head(
        headers=reply.headers,
        provider=total.provider,
        upstream_model=total.upstream_model,
        tries=reply.number,
        queue_wait_ms=round(ask.waited_s * 1000),
        ttft_ms=reply.ttft_ms,
        continuations=total.continuations,
        spent=total.spent,
        attempts=total.before(reply),
        upstream_id=reply.upstream_id,
    )


def _piece_end(data: bytes, start: int) -> int:
    """A JSON body may be cut anywhere."""
    return start + FRAME_BYTES_MAX


def event_end(data: bytes, start: int) -> int:
    """A stream's frame holds whole events."""
    found = data.find(b"\n\n", start + FRAME_BYTES_MAX)
    return found + 2 if found >= 0 else len(data)


def _feed(pump: Pump, cutter: SseCutter, chunk: bytes) -> bytes:
    try:
        run = cutter.gather(chunk)
    except ValueError as error:
        raise GatewayError(ErrorKind.UPSTREAM_PROTOCOL, f"The provider sent {error}.", code=UNREADABLE) from error
    said = b""
    if not pump.has_output:
        # Nothing passes uncut before there is output, and behind it there may be a whole answer in this very read.
        start = first_events(run, START_EVENTS)
        said, run = pump.feed(cut(run[:start])), run[start:]
    size = pump.pass_head(run)
    if size == len(run):
        return said + run
    return said + run[:size] + pump.feed(cut(run[size:]))


def last_blocks(rest: bytes) -> list[bytes]:
    """Return the event that lacks nothing but its blank line; one that was cut within is none."""
    if not rest.strip():
        return []
    whole = rest.rstrip(b"\r\n") + b"\n\n"
    if not _BEGINS_AN_EVENT.match(rest):
        return [whole]  # A page or a bare error: its decoder says what it is.
    return [block for block in cut(whole) if _can_be_read(read_block(block)[1])]


def _can_be_read(data: bytes) -> bool:
    try:
        read_json(data)
    except NestedTooDeeply:
        return True
    except ValueError:
        return data == b"[DONE]"
    return True


def _raise_failure(pump: Pump) -> None:
    if isinstance(pump.terminal, Failed):
        raise GatewayError.from_failed(pump.terminal)


async def _read_to_end(answer: UpstreamAnswer) -> None:
    with suppress(GatewayError, TimeoutError):
        async with asyncio.timeout(READ_TO_END_S):
            while await answer.read():
                pass
