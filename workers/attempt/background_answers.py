"""How is an answer stopped that runs on at its provider when nobody reads it?"""

import asyncio

import structlog

from common.canonical.errors import GatewayError
from workers.outcome import RunsOn
from workers.providers import WIRES
from workers.providers.base import BackgroundWire, Deployment
from workers.upstream.http_client import Upstream

log = structlog.get_logger()

CANCEL_S = 5.0  # In all. The client has its end by then, but a worker that drains waits for it.


async def cancel(answer: RunsOn, upstream: Upstream) -> None:
    """Stop it, so that nobody pays for what nobody reads: best effort."""
    reason = ""
    try:
        async with asyncio.timeout(CANCEL_S):
            for deployment in answer.deployments:
                status = await _ask(answer.answer_id, deployment, upstream)
                if 200 <= status < 300:
                    return
                reason = f"status {status}"
    except (GatewayError, TimeoutError) as error:
        reason = str(error) or "no answer in time"
    log.warning("upstream_not_cancelled", provider=answer.deployments[0].provider, reason=reason)


async def _ask(answer_id: str, deployment: Deployment, upstream: Upstream) -> int:
    """Return the status of the provider's answer."""
    wire = WIRES[deployment.wire]
    assert isinstance(wire, BackgroundWire)
    async with upstream.open(wire.cancel_request(answer_id, deployment), deployment.provider, is_stream=False) as answer:
        return answer.status
