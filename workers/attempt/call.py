"""How is one attempt made: one upstream call, with its answer copied into the log?

The events at the start are held back until the first one with output. That is the commit point. A failure before it is raised
and can be retried without the client noticing. After it, each read goes into the log as it comes.
"""

import asyncio
import re
import time
from collections.abc import Awaitable
from contextlib import suppress
from dataclasses import replace
from urllib.parse import quote

import structlog

from common.canonical.errors import ErrorKind, Failed, GatewayError
from common.canonical.events import Completed, FinishReason
from common.channel.base import FrameKind
from common.config.settings import KIB
from common.records.head import Head
from common.sse import BYTE_ORDER_MARK, SseCutter, cut, first_events, read_block
from workers.attempt.answer_kind import is_stream
from workers.attempt.background_answers import cancel
from workers.attempt.prepare import Prepare, family_of, message_count, prepare_request, reply_info
from workers.attempt.reply_headers import add_left_out, reply_headers
from workers.metering.charging import charge_attempt, pack_with_running
from workers.outcome import ActiveJob, BackgroundAnswer, CallResult, Total
from workers.providers import WIRES
from workers.providers.base import Deployment, Wire
from workers.providers.shared.error_words import is_cut_answer
from workers.providers.shared.errors import UNREADABLE, redact_secrets, set_retry_after
from workers.providers.shared.loose_json import NestedTooDeeply, read_json
from workers.providers.shared.refused_thoughts import refuses_compactions, refuses_thoughts
from workers.publish.large_answers import LARGE_BYTES, answer_too_large
from workers.publish.writer import FRAME_BYTES_MAX
from workers.quota.health import name_of
from workers.routing.lineup import NAMED_REASONS
from workers.run_context import RunContext
from workers.transcode.pump import Pump
from workers.transcode.pumps import Passing, PassingWhole
from workers.upstream.errors import redirected
from workers.upstream.http_client import ERROR_BODY_BYTES_MAX, UpstreamAnswer
from workers.upstream.refused_summaries import refuses_summary

log = structlog.get_logger()

START_EVENTS = 6  # An answer usually has at most this many events up to its first output.
START_EVENTS_MAX = 64
START_BYTES_MAX = 256 * KIB
TAIL_S = 2.0  # Only usage and an end mark may follow a finish. They come at once or not at all.
_EVENT_START = re.compile(rb"(?:data|event|id|retry)?:|[a-z]{1,5}$")  # An event's first line, or the start of that line.
_REFUSED = (FinishReason.CONTENT_FILTER, FinishReason.REFUSAL)
READ_TO_END_S = 1.0  # A finished answer's last bytes follow at once. If we wait for them, the connection can be used again.


async def call(context: RunContext, result: CallResult, prepare: Prepare | None = None) -> None:
    """Call a deployment and write its answer into the log: once, or again if it refused only something about the reasoning.

    Args:
        prepare: Builds the upstream request, where it is not simply the client's own request.
    Raises:
        GatewayError: the call failed. ``result.is_committed``: whether the client has seen a part of the answer.
    """
    result.deployment = context.services.refused_summaries.apply(result.deployment)
    while True:
        try:
            return await _call_once(context, result, prepare)
        except GatewayError as error:
            changed = None if result.is_committed else _without_refused(context, result.deployment, error.failed)
            if changed is None:
                raise
            result.deployment = changed


def _without_refused(context: RunContext, deployment: Deployment, failed: Failed) -> Deployment | None:
    """Return the deployment that gets no more of what it has refused; None: it refused something else, or gets none already."""
    is_passed = family_of(context.job, deployment) is not None  # The client itself asked for a summary, in its words.
    if refuses_summary(failed) and not (deployment.refuses_summaries or is_passed):
        log.warning("summary_refused", provider=deployment.provider, model=deployment.model, key=deployment.key_label)
        context.services.refused_summaries.record(deployment)
        return context.services.refused_summaries.apply(deployment)
    if refuses_thoughts(failed) and not deployment.refuses_thoughts:
        log.warning("thoughts_refused", provider=deployment.provider, model=deployment.model, key=deployment.key_label)
        return replace(deployment, refuses_thoughts=True)
    if refuses_compactions(failed, context.job.body) and not deployment.refuses_compactions:
        log.warning("compactions_refused", provider=deployment.provider, model=deployment.model, key=deployment.key_label)
        return replace(deployment, refuses_compactions=True)
    return None


async def _call_once(context: RunContext, result: CallResult, prepare: Prepare | None) -> None:
    job, total, services, settings = context.job, context.total, context.services, context.settings
    deployment = result.deployment
    wire = WIRES[deployment.wire]
    info = reply_info(context.active_job, result, total, settings)
    result.messages = message_count(info.body)
    guard = context.guards.for_job(job) if job.guardrails else None  # It only affects which pump is used.
    request, pump = prepare(info, guard) if prepare else prepare_request(job, wire, deployment, info, guard)
    status = 0  # No answer at all.
    result.is_reread = request.method == "GET"
    if not result.is_reread:
        if result.background_answer:
            await cancel(result.background_answer, services.upstream)  # This call replaces it.
            result.background_answer = None
        context.writer.packed_attempts = pack_with_running(total, job)

    def charge() -> None:
        _record_result(result, pump)
        result.attempt = charge_attempt(job, result, request, pump, status, settings)

    result.charge, result.dropped = charge, request.dropped
    try:
        async with services.upstream.open(request, deployment.provider, is_stream=pump.is_stream) as answer:
            status = answer.status
            services.quota.read_headers(deployment, answer.headers)
            result.headers = reply_headers(request, answer, deployment)
            # After other calls have written a part of the answer, this call has only the rest, so it cannot be read again.
            result.upstream_id = "" if total.spent else answer.headers.get("x-generation-id", "")
            transfer = Transfer(context, result, answer, pump)
            if 200 <= status < 300:
                await transfer.run()
            else:
                body = b"" if 300 <= status < 400 else await answer.read_body(ERROR_BODY_BYTES_MAX)
                failure = _refusal(answer, body, wire, deployment)
                # A client of the same family knows these words, and gets them.
                if isinstance(pump, Passing | PassingWhole) or not is_cut_answer(failure.failed.message):
                    raise failure
                await transfer.write_body(body)
            await pump.after_written()
    except GatewayError as error:
        redact_secrets(error.failed, deployment.secrets)
        raise
    finally:
        services.metrics.upstream_calls.labels(deployment.provider, status).inc()
        pump.close()
        charge()
        if result.attempt and pump.has_absurd_usage:
            services.metrics.absurd_usage.labels(deployment.provider).inc()
            log.warning("usage_absurd", provider=deployment.provider, model=deployment.model)


def _record_result(result: CallResult, pump: Pump) -> None:
    """Copy the pump's state into the result, however the answer ended."""
    result.output_events, result.finish_reason, result.usage = pump.output_events, pump.finish_reason, pump.usage
    result.is_cut, result.left_out = pump.is_cut, [*pump.left_out]
    if result.deployment.in_background and pump.upstream_id:
        is_over = isinstance(pump.terminal, Completed) and not result.is_cut
        result.background_answer = None if is_over else BackgroundAnswer(pump.upstream_id, [result.deployment])


def _refusal(answer: UpstreamAnswer, body: bytes, wire: Wire, deployment: Deployment) -> GatewayError:
    """Return the failure for an answer whose status is not a success."""
    if 300 <= answer.status < 400:
        return redirected(deployment.provider, answer.status, answer.headers.get("location", ""))
    return GatewayError.from_failed(wire.read_error(answer.status, answer.headers, body))


class Transfer:
    """Copies the bytes of one answer from the upstream into the log."""

    def __init__(self, context: RunContext, result: CallResult, answer: UpstreamAnswer, pump: Pump) -> None:
        self._context, self._result, self._answer, self._pump = context, result, answer, pump
        self._writer, self._settings = context.writer, context.settings

    async def run(self) -> None:
        """Copy the answer as what it is, a stream or one body, even if the request asked for the other.

        Raises:
            GatewayError: the answer broke off, or cannot be read.
        """
        answer = self._answer
        beginning = await answer.read_beginning()
        try:
            if is_stream(answer.headers.get("content-type", ""), beginning, is_asked=self._pump.is_stream):
                # In its own task: each wake-up of this task would first run through all the frames above.
                await asyncio.create_task(self.copy_stream())
            else:
                await self.copy_body()
        except GatewayError as error:
            set_retry_after(error.failed, answer.headers)
            raise

    async def copy_stream(self) -> None:
        """Copy the upstream's events into the log as they come.

        All of it is one coroutine on purpose: a nested one would add a frame to each wake-up.
        """
        answer, pump, result, writer = self._answer, self._pump, self._result, self._writer
        observe_gap = self._context.services.metrics.token_gap.observe
        cutter = SseCutter(self._settings.upstream_event_bytes_max)
        large_bytes = min(LARGE_BYTES, self._settings.answer_bytes_max)
        held, data, read_at, has_begun = bytearray(), b"", 0.0, False
        read_error: GatewayError | None = None
        while True:
            # Hot path: once per upstream read.
            try:
                chunk = await answer.read(may_linger=result.is_committed)
            except GatewayError as error:
                read_error = error
                break
            if not chunk:
                break
            data = _feed_chunk(pump, cutter, chunk)
            now = time.monotonic()
            if result.is_committed:
                if data:
                    writer.write(data, is_urgent=pump.terminal is not None)
                    observe_gap(now - read_at)
                    if writer.must_wait:
                        await writer.wait_for_room()
            else:  # Also for all of an answer that its client gets as one body.
                held += data
                if pump.has_output or len(held) > START_BYTES_MAX or held.count(b"\n\n") > START_EVENTS_MAX:
                    self._commit(bytes(held))
                if pump.has_activity and not has_begun:
                    has_begun = True
                    answer.mark_begun()
                    self._claim()
                if pump.held_bytes > large_bytes:
                    await writer.reserve_room(pump.held_bytes)
            read_at = now
            if pump.terminal:
                break
            if pump.is_whole:
                answer.mark_finished(TAIL_S)
        await self._end_stream(cutter, bytes(held), data, read_error)

    async def _end_stream(self, cutter: SseCutter, held: bytes, data: bytes, read_error: GatewayError | None) -> None:
        """Write what follows the last read. ``data``: the client's bytes of that read."""
        tail = await self._read_tail(cutter, read_error)
        if not self._result.is_committed:
            await self._commit_all(held + tail)
        elif tail:
            self._writer.write(tail)
        self._result.last_data = tail or data
        _raise_if_failed(self._pump)

    async def copy_body(self) -> None:
        answer_bytes_max = self._settings.answer_bytes_max

        def make_room(size: int) -> Awaitable[None]:
            return self._writer.reserve_room(min(size, answer_bytes_max))  # The client's version may be smaller.

        body = await self._answer.read_body(self._settings.upstream_body_bytes_max, make_room)
        await self.write_body(body.removeprefix(BYTE_ORDER_MARK))

    async def write_body(self, body: bytes) -> None:
        """Write an answer that is one body."""
        pump, answer_bytes_max = self._pump, self._settings.answer_bytes_max
        # A long body takes a while, so a thread does it, and other streams continue meanwhile.
        is_long = len(body) > pump.loop_bytes_max
        data = await asyncio.to_thread(pump.feed_whole, body) if is_long else pump.feed_whole(body)
        if pump.awaits_verdict:
            data += await pump.release_held()
        del body  # From here on only the client's version is in memory.
        if len(data) > answer_bytes_max:
            raise answer_too_large(answer_bytes_max)
        self._result.last_data = data if self._context.job.dialect == "openai-responses" else b""
        await self._commit_all(data)

    async def _read_tail(self, cutter: SseCutter, read_error: GatewayError | None) -> bytes:
        """Return what the client still gets at the end of the upstream's bytes.

        Raises:
            GatewayError: ``read_error``, unless the upstream had already finished: then nothing of the answer is missing.
        """
        pump = self._pump
        if isinstance(pump.terminal, Completed) and not pump.is_cut:
            await _read_to_end(self._answer)
        tail = pump.feed(final_blocks(cutter.end()))
        if read_error and not pump.is_whole:
            raise read_error
        tail += pump.end()
        if pump.awaits_verdict:
            tail += await pump.release_held()
        return tail

    def _record_answer(self) -> None:
        """Record that the deployment has begun to answer, for the order in which later requests call deployments."""
        services, result, total = self._context.services, self._result, self._context.total
        services.quota.health.record_begun(result.deployment)
        services.traffic.record_ttft(name_of(result.deployment), time.monotonic() - result.began_at)
        if result.route_reason:
            target = f"{result.deployment.provider}/{result.deployment.model}"
            reason = f"; reason={result.route_reason}" if result.route_reason in NAMED_REASONS else ""
            result.headers["x-sluice-route"] = f"{quote(target, safe='/:@')}; attempts={total.attempt_count}{reason}"

    def _commit(self, held: bytes) -> None:
        """Pass the commit point: from now on nothing is retried, and the client sees what was held back."""
        _raise_if_failed(self._pump)
        self._check_refusal()
        self._claim()
        active_job, result, total, writer = self._context.active_job, self._result, self._context.total, self._writer
        result.is_committed = True
        self._record_answer()
        if not self._pump.gives_stream:
            add_left_out(result.headers, self._pump.left_out)
        writer.packed_attempts = b""  # From now on the log has this information.
        if result.deployment.in_background:
            result.upstream_id = self._pump.upstream_id
        result.ttft_ms = total.ttft_ms
        if result.ttft_ms is None:
            result.ttft_ms = active_job.elapsed_ms()
            self._context.services.metrics.ttft.labels(total.provider).observe(result.ttft_ms / 1000)
        writer.write_frame(FrameKind.HEAD, build_head(active_job, result, total).pack())
        if held:
            writer.write_frame(FrameKind.DATA, held)

    def _claim(self) -> None:
        """Let this call answer, if another one runs at the same time."""
        if self._result.race:
            self._result.race.claim(self._result)

    def _check_refusal(self) -> None:
        """Raise if the vendor ended the answer as refused before any output, and another model may answer instead."""
        pump, can_replace = self._pump, self._result.can_replace_refusal
        if can_replace and pump.finish_reason in _REFUSED and not pump.output_events and can_replace():
            message = "The provider's content policy ended the answer before it began."
            raise GatewayError(ErrorKind.CONTENT_POLICY_VIOLATION, message)

    async def _commit_all(self, data: bytes) -> None:
        """Commit a complete answer. A large one is written in several frames."""
        is_large = len(data) > FRAME_BYTES_MAX
        self._commit(b"" if is_large else data)
        if is_large:
            await self._writer.write_all(data, cut=event_end if self._pump.gives_stream else _piece_end)


def build_head(active_job: ActiveJob, result: CallResult, total: Total) -> Head:
    return Head(
        headers=result.headers,
        provider=total.provider,
        upstream_model=total.upstream_model,
        attempt_count=max(result.number, total.attempt_count),  # A hedge that did not answer is counted too.
        queue_wait_ms=round(active_job.waited_s * 1000),
        ttft_ms=result.ttft_ms,
        continuations=total.continuations,
        spent=total.spent,
        attempts=total.attempts_before(result),
        upstream_id=result.upstream_id,
        route_reason=result.route_reason or total.route_reason,
    )


def _piece_end(data: bytes, start: int) -> int:
    """Return where a frame ends. A JSON body may be cut anywhere."""
    return start + FRAME_BYTES_MAX


def event_end(data: bytes, start: int) -> int:
    """Return where a frame ends. A frame of a stream holds only complete events."""
    index = data.find(b"\n\n", start + FRAME_BYTES_MAX)
    return index + 2 if index >= 0 else len(data)


def _feed_chunk(pump: Pump, cutter: SseCutter, chunk: bytes) -> bytes:
    try:
        run = cutter.gather(chunk)
    except ValueError as error:
        raise GatewayError(ErrorKind.UPSTREAM_PROTOCOL, f"The provider sent {error}.", code=UNREADABLE) from error
    data = b""
    if not pump.has_output:
        # Before the first output, each event is decoded. After it, this same read may contain the rest of the answer.
        start = first_events(run, START_EVENTS)
        data, run = pump.feed(cut(run[:start])), run[start:]
    size = pump.pass_head(run)
    if size == len(run):
        return data + run
    return data + run[:size] + pump.feed(cut(run[size:]))


def final_blocks(rest: bytes) -> list[bytes]:
    """Return the last event if only its blank line is missing. An event that was cut in the middle is dropped."""
    if not rest.strip():
        return []
    completed = rest.rstrip(b"\r\n") + b"\n\n"
    if not _EVENT_START.match(rest):
        return [completed]  # An HTML page or a bare error: its decoder finds out which.
    return [block for block in cut(completed) if _can_be_read(read_block(block)[1])]


def _can_be_read(data: bytes) -> bool:
    try:
        read_json(data)
    except NestedTooDeeply:
        return True
    except ValueError:
        return data == b"[DONE]"
    return True


def _raise_if_failed(pump: Pump) -> None:
    if isinstance(pump.terminal, Failed):
        raise GatewayError.from_failed(pump.terminal)


async def _read_to_end(answer: UpstreamAnswer) -> None:
    with suppress(GatewayError, TimeoutError):
        async with asyncio.timeout(READ_TO_END_S):
            while await answer.read():
                pass
