"""How does a worker run one generation, from claim to end?

The job on one screen: fence the log; call the route's deployments until one has output (failures before that commit point are
not visible to the client); pass its bytes on; end the log. This is the twin of ``api/generate.py``.

What belongs here: the order of these steps, and what each outcome does to the log. What does not: how bytes are translated
(``transcode/pumps.py``), when an attempt is repeated (``attempt/retries.py``), how an answer continues after it broke off
(``continuation``), and how frames are stored (``publish/publisher.py``).
"""

import asyncio
import secrets
from contextlib import suppress
from typing import NoReturn

import structlog

from common.canonical.errors import ErrorKind, Failed, GatewayError, StoreUnavailable
from common.canonical.job import Job, Policy
from common.channel.base import Claim, Fenced, Stop, WriteStatus, stop_failure
from common.limits.charges import Settlement
from common.metering.attempt_cost import unpack
from common.queue.jobs import POISON_DEATHS, UNUSED, ClaimedJob
from common.queue.worker import HandBack, Postponed, UnusableJob
from workers.attempt.background_answers import cancel
from workers.attempt.call import call
from workers.attempt.failover import call_deployments
from workers.attempt.token_count import count
from workers.continuation.continuation import LOSSES
from workers.continuation.continue_answer import LOST, continue_answer, finish_if_whole, finish_stopped, read_back
from workers.ending import end, measure, settle_ended
from workers.metering.charging import fill_prompt_tokens
from workers.outcome import ActiveJob, Total
from workers.run_context import RunContext
from workers.services import Services
from workers.upstream.deployments import deployments

log = structlog.get_logger()

_POISON = Failed(
    ErrorKind.WORKER_LOST,
    f"{POISON_DEATHS} workers were lost on this request. Do not send it again as it is.",
    code="poison_job",
)
# Redis lost frames that we no longer have.
_FRAMES_LOST = Failed(
    ErrorKind.INTERNAL, "A part of the answer was lost in a failover. Send the request again.", code="frames_lost"
)


async def run_generation(claimed: ClaimedJob, services: Services) -> Settlement:
    """Run one claimed job to the end of its log. Return what it used of its principal's limits.

    Returns when this claim has nothing left to do: it ended the log, or another process ended or claimed the job. If the task
    is cancelled from outside, the log stays open for the next claim.

    Raises:
        HandBack: Redis did not answer; nothing was written.
        SetAside: the job has killed its workers; its log has an end.
        Postponed: the upstream must be called later; only the fence was written.
    """
    if claimed.deaths >= POISON_DEATHS:
        await _end_poison(claimed, services)
    claim = Claim(claimed.generation_id, claimed.epoch, claimed.token or secrets.token_hex(8))
    fenced = claimed.fenced or await _fence(claim, claimed, services)
    if fenced.answer.status is not WriteStatus.OK:
        # Another process ended it, it expired, or it was claimed again: only the settlement is left to do.
        return await settle_ended(claimed.generation_id, services)

    task = asyncio.current_task()
    assert task is not None
    job = _read_job(fenced, claimed.generation_id)
    active_job = ActiveJob(job, claimed.waited_ms / 1000, claimed.is_background)
    total = Total(attempt_count=claimed.attempts)
    with services.publisher.writer(claim, fenced.answer.last, task.cancel) as writer:
        context = RunContext(active_job, total, writer, services)
        try:
            await _answer(context, claimed, fenced)
        except Postponed:
            with suppress(StoreUnavailable):  # Store what its calls have cost so far. The next heartbeat would come too late.
                await services.channel.heartbeat([claim], [writer.packed_attempts])
            raise
        except GatewayError as error:
            total.failed = error.failed
        except asyncio.CancelledError:
            if not (writer.lost or writer.has_hole or writer.stop is not Stop.NO):
                raise  # The worker stops. The next claim continues the job.
            task.uncancel()
            if writer.lost:
                return UNUSED
            if writer.stop is Stop.NO:
                total.failed = _FRAMES_LOST
            elif not await finish_stopped(context):
                total.failed = stop_failure(writer.stop)
        except Exception:  # The outermost frame of a job: its log must get an end, and ours the traceback.
            log.exception("generation_broke", generation_id=claimed.generation_id)
            total.failed = Failed(ErrorKind.INTERNAL, "The gateway failed on this request. The cause is in its log.")
        await measure(context, fenced)
        settlement = await end(context)
    if (total.failed or total.is_cut) and total.background_answer and not writer.lost:
        await cancel(total.background_answer, services.upstream)
    return settlement


async def _fence(claim: Claim, claimed: ClaimedJob, services: Services) -> Fenced:
    try:
        return await services.channel.fence(claim, is_handover=claimed.is_handover, was_postponed=claimed.was_postponed)
    except StoreUnavailable as error:
        raise HandBack(str(error)) from error


async def _end_poison(claimed: ClaimedJob, services: Services) -> NoReturn:
    """End the log of a job that has killed its workers. Its data is not read: reading it may be what kills them."""
    try:
        await services.channel.end_unowned(claimed.generation_id, secrets.token_hex(8), _POISON)
    except StoreUnavailable as error:
        raise HandBack(str(error)) from error
    except Exception:  # Its log is broken too. Clients that read it learn that it is lost.
        log.exception("poison_not_ended", generation_id=claimed.generation_id)
    services.metrics.errors.labels(_POISON.kind).inc()
    raise UnusableJob(f"{POISON_DEATHS} workers were lost on it")


async def _answer(context: RunContext, claimed: ClaimedJob, fenced: Fenced) -> None:
    """Write the answer's head and data. An exception becomes the end of the log."""
    job, services = context.job, context.services
    structlog.contextvars.bind_contextvars(generation_id=job.generation_id, request_id=job.request_id, dialect=job.dialect)
    if not job.dialect:
        raise GatewayError(ErrorKind.INTERNAL, "The stored request cannot be read. Send it again.")
    context.total.attempts = [
        attempt.apply_prices(context.settings.prices) for attempt in fill_prompt_tokens(unpack(fenced.note), job)
    ]
    context.writer.watch_listeners(job.policy, job.grace_s)
    if fenced.answer.stop is not Stop.NO and fenced.has_head and job.stream:
        with suppress(GatewayError):
            past = await read_back(context, LOST)  # Its upstream may still run, and must be stopped too.
            if finish_if_whole(context, past):
                return  # Its client has all of it. Only the end is missing.
    _refuse_what_cannot_run(claimed, fenced)
    if not claimed.was_postponed:
        services.metrics.queue_wait.observe(claimed.waited_ms / 1000)
    try:
        async with asyncio.timeout(context.settings.total_timeout_s):
            await _run(context, fenced)
    except TimeoutError as error:
        raise GatewayError(
            ErrorKind.DEADLINE_EXCEEDED, "The answer took longer than the gateway allows.", code="deadline_exceeded"
        ) from error


def _read_job(fenced: Fenced, generation_id: str) -> Job:
    """Return the job. One without a dialect means that the stored request cannot be read."""
    try:
        return Job.unpack(fenced.request or b"")
    except (ValueError, TypeError):
        return Job(generation_id, "", "", "", False, Policy.DETACH, 0.0, 0)


def _refuse_what_cannot_run(claimed: ClaimedJob, fenced: Fenced) -> None:
    if fenced.answer.stop is not Stop.NO:
        raise GatewayError.from_failed(stop_failure(fenced.answer.stop))
    if fenced.empty_claims > POISON_DEATHS:
        raise GatewayError.from_failed(_POISON)
    if claimed.is_late:
        raise GatewayError(
            ErrorKind.DEADLINE_EXCEEDED, "No worker was free in time. Try again later.", code="deadline_exceeded"
        )


async def _run(context: RunContext, fenced: Fenced) -> None:
    """Answer, and continue an answer that breaks off. A body that is not streamed starts over: its client has seen nothing."""
    job = context.job
    failure = LOST if fenced.has_head and job.stream else None
    is_first = True  # With another configuration, it is tried only once more.
    while True:
        try:
            if failure is None:
                lineup = context.router.line_up(job, deployments(job, context.settings))
                return await call_deployments(context, lineup, count if job.operation == "count_tokens" else call)
            return await continue_answer(context, failure)
        except GatewayError as error:
            if is_first and not context.total.is_committed and await context.use_other_settings(error.failed.kind):
                is_first = False
                continue
            if not (job.stream and context.total.is_committed and error.failed.kind in LOSSES):
                raise
            failure = error.failed
