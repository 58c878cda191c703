"""How does a worker run one generation, from claim to end?

The job on one screen: fence the log, call the route's deployments until one has output (unseen by the client: the commit
point), then pass its bytes on, and end the log. The twin of ``api/generate.py``.

The rule for what belongs here: the order of these steps, and what each outcome does to the log. How bytes are translated
is ``pumps``, when a try is repeated ``tries``, how an answer goes on that broke off behind the commit point
``continuation``, how frames are stored ``publisher``.
"""

import asyncio
import secrets
from contextlib import suppress
from typing import NoReturn

import structlog

from common.canonical.errors import ErrorKind, Failed, GatewayError, StoreUnavailable
from common.canonical.job import Job, Policy
from common.channel.base import Claim, Fenced, Stop, Verdict
from common.limits.charges import Settlement
from common.metering.attempt_cost import unpack
from common.queue.jobs import UNUSED, ClaimedJob
from common.queue.worker import HandBack, Postponed, SetAside
from workers.attempt.background_answers import cancel
from workers.attempt.call import call
from workers.attempt.failover import try_deployments
from workers.attempt.token_count import count
from workers.continuation.continuation import LOSSES
from workers.continuation.go_on import LOST, go_on, read_back
from workers.ending import end, measure, settle_ended
from workers.metering.charging import with_prompt
from workers.outcome import Ask, Total
from workers.run_context import Running
from workers.services import Services
from workers.upstream.deployments import deployments

log = structlog.get_logger()

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
    except StoreUnavailable as error:
        raise HandBack(str(error)) from error
    if fenced.answer.verdict is not Verdict.OK:
        # Ended by somebody else, expired, or claimed anew: nothing is left to do but to settle.
        return await settle_ended(claimed.generation_id, services)

    task = asyncio.current_task()
    assert task is not None
    job = _read_job(fenced, claimed.generation_id)
    ask = Ask(job, claimed.waited_ms / 1000, claimed.is_background)
    total = Total(tries=claimed.attempts)
    with services.publisher.writer(claim, fenced.answer.last, task.cancel) as writer:
        running = Running(ask, total, writer, services)
        try:
            await _answer(running, claimed, fenced)
        except Postponed:
            with suppress(StoreUnavailable):  # What its calls have cost so far; the next heartbeat would come too late.
                await services.channel.heartbeat([claim], [writer.note])
            raise
        except GatewayError as error:
            total.failed = error.failed
        except asyncio.CancelledError:
            if not (writer.lost or writer.has_hole or writer.stop is not Stop.NO):
                raise  # The worker stops: the next claim goes on.
            task.uncancel()
            if writer.lost:
                return UNUSED
            total.failed = _stopped(writer.stop)
        except Exception:
            log.exception("generation_broke", generation_id=claimed.generation_id)
            total.failed = Failed(ErrorKind.INTERNAL, "The gateway failed on this request. Its operators have been told.")
        await measure(running, fenced)
        settlement = await end(running)
    if (total.failed or total.is_cut) and total.runs_on and not writer.lost:
        await cancel(total.runs_on, services.upstream)
    return settlement


async def _end_poison(claimed: ClaimedJob, services: Services) -> NoReturn:
    """End the log of a job that has killed its workers, perhaps after its end, by nothing that is computed from its data."""
    try:
        await services.channel.end_unowned(claimed.generation_id, secrets.token_hex(8), _POISON)
    except StoreUnavailable as error:
        raise HandBack(str(error)) from error
    except Exception:  # Its log is broken too: whoever reads it is told that it is lost.
        log.exception("poison_not_ended", generation_id=claimed.generation_id)
    services.metrics.errors.labels(_POISON.kind).inc()
    raise SetAside(f"{POISON_DEATHS} workers were lost on it")


async def _answer(running: Running, claimed: ClaimedJob, fenced: Fenced) -> None:
    """Write the answer's head and data; what is raised becomes the log's end."""
    job, services = running.job, running.services
    structlog.contextvars.bind_contextvars(generation_id=job.generation_id, request_id=job.request_id, dialect=job.dialect)
    if not job.dialect:
        raise GatewayError(ErrorKind.INTERNAL, "The stored request cannot be read. Send it again.")
    running.total.attempts = [each.apply_prices(running.settings.prices) for each in with_prompt(unpack(fenced.note), job)]
    running.writer.watch_listeners(job.policy, job.grace_s)
    if fenced.answer.stop is not Stop.NO and fenced.has_head and job.stream:
        with suppress(GatewayError):
            await read_back(running, LOST)  # Its upstream may run on, and is to be stopped too.
    _refuse_what_cannot_run(claimed, fenced)
    if not claimed.was_postponed:
        services.metrics.queue_wait.observe(claimed.waited_ms / 1000)
    try:
        async with asyncio.timeout(services.settings.total_timeout_s):
            await _run(running, fenced)
    except TimeoutError as error:
        raise GatewayError(
            ErrorKind.DEADLINE_EXCEEDED, "The answer took longer than the gateway allows.", code="deadline_exceeded"
        ) from error


def _read_job(fenced: Fenced, generation_id: str) -> Job:
    """Return the job; one without a dialect stands for what cannot be read, and is told so by its end."""
    try:
        return Job.unpack(fenced.request or b"")
    except (ValueError, TypeError):
        return Job(generation_id, "", "", "", False, Policy.DETACH, 0.0, 0)


def _refuse_what_cannot_run(claimed: ClaimedJob, fenced: Fenced) -> None:
    if fenced.answer.stop is not Stop.NO:
        raise GatewayError.from_failed(_stopped(fenced.answer.stop))
    if fenced.barren > POISON_DEATHS:
        raise GatewayError.from_failed(_POISON)
    if claimed.is_late:
        raise GatewayError(
            ErrorKind.DEADLINE_EXCEEDED, "No worker was free in time. Try again later.", code="deadline_exceeded"
        )


async def _run(running: Running, fenced: Fenced) -> None:
    """Answer, and go on with an answer that breaks off. A body that is not streamed starts over: nobody has seen any of it."""
    job = running.job
    lost = LOST if fenced.has_head and job.stream else None
    while True:
        try:
            if lost is None:
                among = deployments(job, running.settings)
                return await try_deployments(running, among, count if job.operation == "count_tokens" else call)
            return await go_on(running, lost)
        except GatewayError as error:
            if not (job.stream and running.total.is_committed and error.failed.kind in LOSSES):
                raise
            lost = error.failed


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
