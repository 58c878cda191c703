"""How does a worker run one generation, from claim to end?

The job on one screen: fence the log, call the route's deployments until one has output (unseen by the client: the commit
point), then pass its bytes on, and end the log. The twin of ``api/generate.py``.

The rule for what belongs here: the order of these steps, and what each outcome does to the log. How bytes are translated
is ``pumps``, when a try is repeated ``tries``, how frames are stored ``publisher``. Not solved here: going on after a
break behind the commit point; such a generation ends with an error event.
"""

import asyncio
import secrets
import time
from dataclasses import asdict

import orjson
import structlog

from common.channel.base import ChannelUnavailable, Claim, Fenced, FrameKind, Stop, Verdict
from common.errors import ErrorKind, Failed, GatewayError
from common.job import Job
from common.queue.jobs import ClaimedJob
from common.queue.worker import HandBack
from workers.call import Outcome, Services, call
from workers.publisher import Writer
from workers.routing import deployments
from workers.tries import Tries

log = structlog.get_logger()

POISON_CLAIMS = 3  # Claims in a row that got nowhere: the job kills its workers, and must not kill more.


async def run_generation(claimed: ClaimedJob, services: Services) -> None:
    """Run one claimed job to the end of its log.

    Returns once this claim has nothing left to do: it ended the log, or somebody else has ended or claimed it. Cancelled
    from outside: the log stays open for the next claim.

    Raises:
        HandBack: Redis could not be asked; nothing was written.
    """
    claim = Claim(claimed.generation_id, claimed.epoch, secrets.token_hex(8))
    try:
        fenced = await services.channel.fence(claim, is_handover=claimed.is_handover)
    except ChannelUnavailable as error:
        raise HandBack(str(error)) from error
    if fenced.answer.verdict is not Verdict.OK:
        return  # Ended by somebody else, expired, or claimed anew: nothing is left to do.

    task = asyncio.current_task()
    assert task is not None
    with services.publisher.writer(claim, fenced.answer.last, task.cancel) as writer:
        outcome = Outcome(claimed.waited_ms / 1000)
        try:
            await _answer(claimed, fenced, writer, outcome, services)
        except GatewayError as error:
            outcome.failed = error.failed
        except asyncio.CancelledError:
            if not (writer.lost or writer.has_hole or writer.stop is not Stop.NO):
                raise  # The worker stops: the next claim goes on.
            task.uncancel()
            if writer.lost:
                return
            outcome.failed = _stopped(writer.stop)
        except Exception:
            log.exception("generation_broke", generation_id=claimed.generation_id)
            outcome.failed = Failed(ErrorKind.INTERNAL, "The gateway failed on this request. Its operators have been told.")
        await _end(writer, outcome, services)


async def _answer(claimed: ClaimedJob, fenced: Fenced, writer: Writer, outcome: Outcome, services: Services) -> None:
    """Write the answer's head and data; what is raised becomes the log's end."""
    job = _read_job(fenced)
    structlog.contextvars.bind_contextvars(generation_id=job.generation_id, request_id=job.request_id, dialect=job.dialect)
    outcome.model, outcome.dialect = job.model, job.dialect
    writer.watch_listeners(job.policy, job.grace_s)
    _refuse_what_cannot_run(claimed, fenced)
    services.metrics.queue_wait.observe(claimed.waited_ms / 1000)
    try:
        async with asyncio.timeout(services.settings.total_timeout_s):
            await _try_deployments(job, writer, outcome, services)
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
    if fenced.has_head:
        raise GatewayError(
            ErrorKind.WORKER_LOST,
            "The worker was lost in the middle of the answer. Send the request again.",
            code="worker_lost",
        )
    if fenced.barren > POISON_CLAIMS:
        raise GatewayError(
            ErrorKind.WORKER_LOST, f"{POISON_CLAIMS} workers in a row were lost on this request.", code="poison_job"
        )
    if claimed.is_late:
        raise GatewayError(
            ErrorKind.DEADLINE_EXCEEDED, "No worker was free in time. Try again later.", code="deadline_exceeded"
        )


async def _try_deployments(job: Job, writer: Writer, outcome: Outcome, services: Services) -> None:
    tries = Tries(deployments(job.model, services.settings), services.settings.retry_after_max_s)
    while True:
        outcome.tries, outcome.provider = tries.count, tries.deployment.provider
        try:
            return await call(job, tries.deployment, writer, outcome, services)
        except GatewayError as error:
            wait_s = None if outcome.is_committed else tries.after(error.failed)
            services.metrics.errors.labels(error.failed.kind).inc()
            log.info("try_failed", kind=error.failed.kind, status=error.failed.status, tries=outcome.tries, wait_s=wait_s)
            if wait_s is None:
                raise
        services.metrics.retries.labels(outcome.provider).inc()
        await asyncio.sleep(wait_s)


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


async def _end(writer: Writer, outcome: Outcome, services: Services) -> None:
    """Append the end and wait until the log has it; from then on the job is over."""
    failed = outcome.failed
    if failed and failed.retry_after_s is not None:
        failed.retry_after_s = min(failed.retry_after_s, services.settings.retry_after_max_s)
    end = {
        "error": failed.to_dict() if failed else None,
        "finish_reason": outcome.finish_reason,
        "usage": asdict(outcome.usage) if outcome.usage else None,
    }
    writer.write_frame(FrameKind.END, orjson.dumps(end))
    writer.ignore_stop()  # Whatever is asked now, the answer is already given.
    await writer.flushed()
    if not writer.lost:
        _report(outcome, services)


def _report(outcome: Outcome, services: Services) -> None:
    metrics, usage = services.metrics, outcome.usage
    what = outcome.failed.kind if outcome.failed else "completed"
    metrics.generations.labels(outcome.dialect, outcome.provider, what).inc()
    if usage:
        for kind, count in asdict(usage).items():
            metrics.tokens.labels(outcome.provider, kind.removesuffix("_tokens")).inc(count)
    log.info(
        "generation_ended",
        outcome=what,
        code=outcome.failed.code if outcome.failed else None,  # Not the message: a provider's may quote the prompt.
        model=outcome.model,
        provider=outcome.provider,
        messages=outcome.messages,
        tries=outcome.tries,
        input_tokens=usage.input_tokens if usage else None,
        output_tokens=usage.output_tokens if usage else None,
        output_events=outcome.output_events,
        ttft_ms=outcome.ttft_ms,
        duration_ms=round((time.monotonic() - outcome.began_at + outcome.waited_s) * 1000),
    )
