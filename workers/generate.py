"""How does a worker run one generation, from claim to end?

The job on one screen: fence the log, call the route's deployments until one has output (unseen by the client: the commit
point), then pass its bytes on, and end the log. The twin of ``api/generate.py``.

The rule for what belongs here: the order of these steps, and what each outcome does to the log. How bytes are translated
is ``pumps``, when a try is repeated ``tries``, how an answer goes on that broke off behind the commit point
``continuation``, how frames are stored ``publisher``.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any, NoReturn

import orjson
import structlog

from common.canonical.errors import ErrorKind, Failed, GatewayError
from common.canonical.events import COUNTS
from common.canonical.job import Job
from common.channel.base import ChannelUnavailable, Claim, Fenced, Frame, FrameKind, Stop, Verdict
from common.dialects import DIALECTS
from common.limits.charges import Settlement
from common.metering.attempts import attempts_in, merged, total_cost, total_usage, unpack
from common.queue.jobs import UNUSED, ClaimedJob
from common.queue.worker import HandBack, Postponed, SetAside
from common.redis.client import RedisUnavailable
from workers.attempt.background_answers import RunsOn, cancel
from workers.attempt.call import Outcome, Services, call, reply_info
from workers.attempt.charging import settlement_of, take_measure, with_prompt
from workers.attempt.count import count
from workers.attempt.failed_attempts import report
from workers.attempt.patience import patience, postpone
from workers.attempt.tries import Tries
from workers.continuation.continuation import LOSSES, Continuation, Past, continuations, read_frames, read_past, reattachable
from workers.ledger.partial_usage import read_partial
from workers.providers.base import Deployment
from workers.publish.publisher import PAUSE_WHILE_AWAY_S, Writer
from workers.quota.gate import Demand, Refused
from workers.upstream.deployments import deployments

log = structlog.get_logger()

_LOST = Failed(
    ErrorKind.WORKER_LOST, "The worker was lost in the middle of the answer. Send the request again.", code="worker_lost"
)
Run = Callable[[Deployment, Writer, Outcome, Services], Awaitable[None]]
POISON_DEATHS = 3  # So many workers died on it: the job kills its workers, and must not kill more.
_POISON = Failed(
    ErrorKind.WORKER_LOST,
    f"{POISON_DEATHS} workers were lost on this request. Do not send it again as it is.",
    code="poison_job",
)


async def run_generation(claimed: ClaimedJob, services: Services) -> Settlement:
    """Run one claimed job to the end of its log; returns what it took of its principal's limits.

    Returns once this claim has nothing left to do: it ended the log, or somebody else has ended or claimed it. Cancelled
    from outside: the log stays open for the next claim.

    Raises:
        HandBack: Redis could not be asked; nothing was written.
        SetAside: the job has killed its workers; its log has an end.
        Postponed: the upstream is to be called later; nothing but the fence was written.
    """
    if claimed.deaths >= POISON_DEATHS:
        await _end_poison(claimed, services)
    claim = Claim(claimed.generation_id, claimed.epoch, secrets.token_hex(8))
    try:
        fenced = await services.channel.fence(claim, is_handover=claimed.is_handover, was_postponed=claimed.was_postponed)
    except ChannelUnavailable as error:
        raise HandBack(str(error)) from error
    if fenced.answer.verdict is not Verdict.OK:
        # Ended by somebody else, expired, or claimed anew: nothing is left to do but to settle.
        return await _settle_ended(claimed.generation_id, services)

    task = asyncio.current_task()
    assert task is not None
    with services.publisher.writer(claim, fenced.answer.last, task.cancel) as writer:
        outcome = Outcome(claimed.waited_ms / 1000, claimed.is_background)
        outcome.tries = outcome.tries_before = claimed.attempts
        try:
            await _answer(claimed, fenced, writer, outcome, services)
        except Postponed:
            with suppress(ChannelUnavailable):  # What its calls have cost so far; the next heartbeat would come too late.
                await services.channel.heartbeat([claim], [writer.note])
            raise
        except GatewayError as error:
            outcome.failed = error.failed
        except asyncio.CancelledError:
            if not (writer.lost or writer.has_hole or writer.stop is not Stop.NO):
                raise  # The worker stops: the next claim goes on.
            task.uncancel()
            if writer.lost:
                return UNUSED
            outcome.failed = _stopped(writer.stop)
        except Exception:
            log.exception("generation_broke", generation_id=claimed.generation_id)
            outcome.failed = Failed(ErrorKind.INTERNAL, "The gateway failed on this request. Its operators have been told.")
        await _measure(fenced, writer, outcome, services)
        settlement = await _end(writer, outcome, services)
    if (outcome.failed or outcome.is_cut) and outcome.runs_on and not writer.lost:
        await cancel(outcome.runs_on, services.upstream)
    return settlement


async def _end_poison(claimed: ClaimedJob, services: Services) -> NoReturn:
    """End the log of a job that has killed its workers, perhaps after its end, by nothing that is computed from its data."""
    try:
        await services.channel.end_unowned(claimed.generation_id, secrets.token_hex(8), _POISON)
    except ChannelUnavailable as error:
        raise HandBack(str(error)) from error
    except Exception:  # Its log is broken too: whoever reads it is told that it is lost.
        log.exception("poison_not_ended", generation_id=claimed.generation_id)
    services.metrics.errors.labels(_POISON.kind).inc()
    raise SetAside(f"{POISON_DEATHS} workers were lost on it")


async def _answer(claimed: ClaimedJob, fenced: Fenced, writer: Writer, outcome: Outcome, services: Services) -> None:
    """Write the answer's head and data; what is raised becomes the log's end."""
    job = _read_job(fenced)
    structlog.contextvars.bind_contextvars(generation_id=job.generation_id, request_id=job.request_id, dialect=job.dialect)
    outcome.model, outcome.dialect, outcome.is_stream = job.model, job.dialect, job.stream
    outcome.attempts = [each.priced(services.settings.prices) for each in with_prompt(unpack(fenced.note), job)]
    writer.watch_listeners(job.policy, job.grace_s)
    if fenced.answer.stop is not Stop.NO and fenced.has_head and job.stream:
        with suppress(GatewayError):
            await _past(job, _LOST, writer, outcome, services)  # Its upstream may run on, and is to be stopped too.
    _refuse_what_cannot_run(claimed, fenced)
    if not claimed.was_postponed:
        services.metrics.queue_wait.observe(claimed.waited_ms / 1000)
    try:
        async with asyncio.timeout(services.settings.total_timeout_s):
            await _run(job, fenced, writer, outcome, services)
    except TimeoutError as error:
        raise GatewayError(
            ErrorKind.DEADLINE_EXCEEDED, "The answer took longer than the gateway allows.", code="deadline_exceeded"
        ) from error


def _read_job(fenced: Fenced) -> Job:
    try:
        return Job.unpack(fenced.request or b"")
    except (ValueError, TypeError) as error:
        raise GatewayError(ErrorKind.INTERNAL, "The stored request cannot be read. Send it again.") from error


def _refuse_what_cannot_run(claimed: ClaimedJob, fenced: Fenced) -> None:
    if fenced.answer.stop is not Stop.NO:
        raise GatewayError.of(_stopped(fenced.answer.stop))
    if fenced.barren > POISON_DEATHS:
        raise GatewayError.of(_POISON)
    if claimed.is_late:
        raise GatewayError(
            ErrorKind.DEADLINE_EXCEEDED, "No worker was free in time. Try again later.", code="deadline_exceeded"
        )


async def _run(job: Job, fenced: Fenced, writer: Writer, outcome: Outcome, services: Services) -> None:
    """Answer, and go on with an answer that breaks off. A body that is not streamed starts over: nobody has seen any of it."""
    run = partial(count if job.operation == "count_tokens" else call, job)
    lost = _LOST if fenced.has_head and job.stream else None
    while True:
        try:
            if lost is None:
                return await _try_deployments(job, deployments(job, services.settings), run, writer, outcome, services)
            return await _go_on(job, lost, writer, outcome, services)
        except GatewayError as error:
            if not (job.stream and outcome.is_committed and error.failed.kind in LOSSES):
                raise
            lost = error.failed


async def _go_on(job: Job, lost: Failed, writer: Writer, outcome: Outcome, services: Services) -> None:
    """Write the rest of an answer that broke off behind its commit point; where there is no way to get it, raise ``lost``."""
    await writer.flushed()
    past = await _past(job, lost, writer, outcome, services)
    outcome.spent, outcome.is_committed = past.spent, False
    outcome.attempts = [each.priced(services.settings.prices) for each in merged(past.attempts, outcome.attempts)]
    outcome.ttft_ms, outcome.tries_before, outcome.tries = past.ttft_ms, past.tries, past.tries
    outcome.is_reread, outcome.knows_past = False, True
    if ending := past.ending():
        outcome.finish_reason, rest = ending
        outcome.last_data = rest or past.blocks[-1]
        return writer.write(rest)
    rounds = continuations(job, past, services.settings) if past.may_go_on else []
    if not rounds:
        raise GatewayError.of(lost)
    outcome.continuations = past.count + 1
    log.info("generation_continued", reason=lost.kind, continuations=outcome.continuations)
    services.metrics.continuations.labels(lost.kind).inc()

    for ways in rounds:
        if await _try_ways(job, past, ways, writer, outcome, services):
            return None
        outcome.tries_before = outcome.tries
    raise GatewayError.of(lost)


async def _try_ways(
    job: Job, past: Past, ways: list[Continuation], writer: Writer, outcome: Outcome, services: Services
) -> bool:
    """Return whether one of these ways has brought the rest of an answer. Raises where it brought a part of it."""
    outcome.spent = None if ways[0].reattaches else past.spent

    async def run(deployment: Deployment, writer: Writer, outcome: Outcome, services: Services) -> None:
        way = next(way for way in ways if way.deployment is deployment)
        dialect = DIALECTS[job.dialect]
        await call(job, deployment, writer, outcome, services, lambda info, guard: way.prepare(past, dialect, info, guard))

    try:
        await _try_deployments(job, [way.deployment for way in ways], run, writer, outcome, services)
    except GatewayError:
        if outcome.is_committed:
            raise
        return False
    return True


async def _past(job: Job, lost: Failed, writer: Writer, outcome: Outcome, services: Services) -> Past:
    """Return what the log tells, and note what else it does: where the answer came from, and whether it runs on there."""
    frames = await _frames(job, lost, services)
    writer.stored_bytes = sum(len(frame.data) for frame in frames)
    found = deployments(job, services.settings)
    past = read_past(job, frames, outcome.reported, reply_info(job, found[0], outcome, services.settings))
    outcome.note(found[0])
    past.attempts[-1].has_brought_key = found[0].client_pays
    keyed = [each for each in reattachable(job, past, services.settings) if each.in_background]
    if keyed and not outcome.runs_on:
        outcome.runs_on = RunsOn(past.upstream_id, keyed)
    return past


async def _frames(job: Job, lost: Failed, services: Services) -> list[Frame]:
    """Return the log, for which Redis may be away as long as for the frames of an answer."""
    try:
        async with asyncio.timeout(services.settings.worker_buffer_s):
            while True:
                with suppress(ChannelUnavailable):
                    return await read_frames(services.channel, job.generation_id)
                await asyncio.sleep(PAUSE_WHILE_AWAY_S)
    except TimeoutError as error:
        raise GatewayError.of(lost) from error


async def _try_deployments(
    job: Job, among: list[Deployment], run: Run, writer: Writer, outcome: Outcome, services: Services
) -> None:
    quota, demand = services.quota, Demand(job)
    tries = Tries(quota.affordable(among), *patience(job, outcome, services.settings))
    while True:
        deployment = tries.deployment
        outcome.note(deployment)
        try:
            async with quota.admitted(demand, deployment) as taken:
                tries.begin()
                outcome.tries = outcome.tries_before + tries.count
                outcome.reported, outcome.output_events = None, 0
                try:
                    return await run(deployment, writer, outcome, services)
                finally:
                    is_whole = outcome.finish_reason is not None
                    taken.note(outcome.reported, outcome.output_events, is_whole=is_whole)
        except Refused as refusal:
            wait_s, is_asked_to_wait = tries.refused(refusal.wait_s, refusal.look_s), True
            if wait_s is None:
                services.metrics.errors.labels(refusal.failed.kind).inc()
                raise GatewayError.of(refusal.given_up(tries.soonest_s)) from refusal
        except GatewayError as error:
            failed = _blamed(error.failed, job, deployment.provider)
            quota.note_failure(demand, deployment, failed)
            wait_s = None if outcome.is_committed else tries.after(failed)
            report(error, failed, deployment, outcome.tries, wait_s, services.metrics)
            if wait_s is None:
                failed.retry_after_s = tries.resumes_in_s or failed.retry_after_s
                raise GatewayError.of(failed) from error
            services.metrics.retries.labels(tries.deployment.provider).inc()
            is_asked_to_wait = failed.retry_after_s is not None
        if is_asked_to_wait:
            postpone(wait_s, tries.soonest_s, outcome, services.settings)
        await asyncio.sleep(wait_s)


def _blamed(failed: Failed, job: Job, provider: str) -> Failed:
    """A refused key of ours is ours to mend, one that the request brought the client's."""
    if failed.kind is not ErrorKind.UPSTREAM_CREDENTIALS or job.brought_key is None:
        return failed
    message = f"The provider {provider} refused the key that this request brought for it. Check that key."
    return Failed(failed.kind, message, status=401, code="invalid_api_key")


def _stopped(stop: Stop) -> Failed:
    """What a stop flag means to whoever still looks; no flag: Redis lost frames that we no longer hold."""
    match stop:
        case Stop.CANCELLED:
            return Failed(ErrorKind.CANCELLED, "The generation was stopped.", code="cancelled")
        case Stop.LEFT:
            return Failed(ErrorKind.CANCELLED, "The generation was stopped: its client left.", code="cancelled")
        case Stop.NO:
            return Failed(
                ErrorKind.INTERNAL,
                "A part of the answer was lost in a failover. Send the request again.",
                code="frames_lost",
            )


async def _measure(fenced: Fenced, writer: Writer, outcome: Outcome, services: Services) -> None:
    """Estimate from the log what an answer took whose upstream did not report it, or whose worker was lost.

    An answer that broke off is paid for as far as it came: whoever leaves early pays for what he got.
    """
    is_rough = outcome.is_committed and bool(outcome.attempts) and outcome.attempts[-1].is_rough
    is_of_others = fenced.has_head and not (outcome.knows_past or outcome.is_committed)
    if not (is_rough or is_of_others) or not outcome.dialect:
        return
    writer.ignore_stop()  # It ends already.
    await writer.flushed()
    if writer.lost:
        return
    try:
        async with services.measuring:
            frames = await read_frames(services.channel, writer.claim.generation_id)
            read = partial(read_partial, outcome.dialect, frames, fenced.request, is_stream=outcome.is_stream)
            found = await asyncio.to_thread(read)
    except ChannelUnavailable:
        return  # The number of events must do.
    except Exception:  # The bytes may be any provider's, and the answer must have its end.
        log.exception("usage_not_estimated", generation_id=writer.claim.generation_id)
        return
    if found:
        take_measure(found, outcome, services.settings)


async def _end(writer: Writer, outcome: Outcome, services: Services) -> Settlement:
    """Append the end and wait until the log has it; from then on the job is over, and what it took is known."""
    failed = outcome.failed
    if failed and failed.retry_after_s is not None:
        failed.retry_after_s = min(failed.retry_after_s, services.settings.retry_after_max_s)
    end = {
        "error": failed.to_dict() if failed else None,
        "finish_reason": outcome.finish_reason,
        **_told(outcome),
    }
    writer.ignore_stop()  # Whatever is asked now, the answer is already given.
    is_kept = await _keep_response(writer, outcome, services)
    writer.write_frame(FrameKind.END, orjson.dumps(end))
    await writer.flushed()
    if not is_kept:
        await _keep_response(writer, outcome, services)  # Redis is back, for it has taken the end.
    if not writer.lost:
        _report(outcome, services)
    return settlement_of(outcome.attempts, services.settings)


async def _settle_ended(generation_id: str, services: Services) -> Settlement:
    """Return what a generation took whose end is in the log already: its worker was lost before it could settle."""
    try:
        record = await services.channel.record(generation_id)
    except ChannelUnavailable as error:
        raise HandBack(str(error)) from error
    return settlement_of(attempts_in(orjson.loads(record.end)), services.settings) if record else UNUSED


def _told(outcome: Outcome) -> dict[str, Any]:
    """What the generation's record tells besides: who answered, how long it took, and what it cost in US dollars, as text."""
    usage, cost = total_usage(outcome.attempts), total_cost(outcome.attempts)
    return {
        "usage": usage.to_dict() if usage else None,
        "estimated": any(attempt.is_estimated for attempt in outcome.attempts),
        "provider": outcome.provider or None,
        "upstream_model": outcome.upstream_model or None,
        "brought_key": outcome.has_brought_key,
        "continuations": outcome.continuations,
        "tries": outcome.tries,
        "queue_wait_ms": round(outcome.waited_s * 1000),
        "ttft_ms": outcome.ttft_ms,
        "duration_ms": outcome.elapsed_ms(),
        "cost": cost.to_dict() if cost else None,
        "attempts": [attempt.to_dict() for attempt in outcome.attempts],
    }


async def _keep_response(writer: Writer, outcome: Outcome, services: Services) -> bool:
    """Store what ``GET /v1/responses/{id}`` gives; returns whether there is nothing left to store."""
    if outcome.dialect != "openai-responses" or writer.lost:
        return True
    try:
        await services.responses.finish(writer.claim.generation_id, outcome.last_data, outcome.failed)
    except RedisUnavailable as error:
        log.warning("response_not_stored", generation_id=writer.claim.generation_id, error=str(error))
        return False
    return True


def _report(outcome: Outcome, services: Services) -> None:
    metrics, usage = services.metrics, total_usage(outcome.attempts)
    what = outcome.failed.kind if outcome.failed else "completed"
    metrics.generations.labels(outcome.dialect, outcome.provider, what).inc()
    for attempt in outcome.attempts:
        for name in COUNTS:
            if count := getattr(attempt.usage, name):
                metrics.tokens.labels(attempt.provider, name.removesuffix("_tokens")).inc(count)
    for provider in {attempt.provider for attempt in outcome.attempts if attempt.cost is None}:
        metrics.unpriced.labels(provider).inc()
    log.info(
        "generation_ended",
        outcome=what,
        code=outcome.failed.logged_code if outcome.failed else None,  # Not the message: a provider's may quote the prompt.
        model=outcome.model,
        provider=outcome.provider,
        messages=outcome.messages,
        tries=outcome.tries,
        input_tokens=usage.input_tokens if usage else None,
        output_tokens=usage.output_tokens if usage else None,
        output_events=outcome.output_events,
        ttft_ms=outcome.ttft_ms,
        duration_ms=outcome.elapsed_ms(),
    )
