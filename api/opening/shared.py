"""How do identical requests that run at the same time share one upstream call?

The job and its log belong to none of them. Each request has a generation of its own, which reads that log: it has its own id,
record and disconnect policy, and ends by itself. Requests share a job only if their policies are the same too: then the log's
policy is that of all who read it.
"""

import contextlib
from dataclasses import replace

from api.intake.accepted import AcceptedRequest, request_summary
from api.relay.viewer import Viewer
from api.services import ApiServices
from common.canonical.errors import StoreUnavailable
from common.canonical.job import CacheOrder, Policy
from common.channel.base import Opening, stop_failure
from common.queue.jobs import Sharing
from common.redis import keyspace
from common.redis.client import ms


def sharing_of(accepted: AcceptedRequest, services: ApiServices) -> Sharing | None:
    """Return how a request may share a job; None if it may not. Also tell the job how its answer is cached."""
    job, plan = accepted.job, accepted.cache
    if plan is None or not accepted.cache_key:
        return None
    if plan.may_store:
        job.cache = CacheOrder(accepted.cache_key, ms(plan.ttl_s), job.generation_id, plan.has_limit)
    if not plan.may_join:
        return None
    policy = f"{job.policy}:{job.grace_s:g}:{accepted.job_class}"
    summary = request_summary(accepted, "join")
    return Sharing(keyspace.flight(accepted.cache_key, policy), job.generation_id, summary)


def own_opening(accepted: AcceptedRequest, opening: Opening) -> Opening:
    """Return what the request's own generation is opened with, beside the log that it reads."""
    return replace(opening, owner=accepted.principal.id)


async def leave_shared(viewer: Viewer, accepted: AcceptedRequest, services: ApiServices) -> None:
    """Report that a client of a shared log has its answer, or has left before its end."""
    with contextlib.suppress(StoreUnavailable):
        await services.queue.free_slots(viewer.reader_id, accepted.charges)
        if accepted.job.policy is Policy.STOP and not viewer.has_ended:
            failed = stop_failure(viewer.leave_reason)
            await services.channel.part(viewer.reader_id, viewer.generation_id, failed, is_readable=False)
