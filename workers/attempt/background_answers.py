"""How does a worker stop an answer that still runs at its provider after nobody reads it any more?"""

import asyncio

import structlog

from common.canonical.errors import GatewayError
from workers.outcome import BackgroundAnswer
from workers.providers import WIRES
from workers.providers.base import BackgroundWire, Deployment
from workers.upstream.http_client import Upstream

log = structlog.get_logger()

CANCEL_S = 5.0  # For all attempts together. The client already has its end, but a worker that drains waits for this.


async def cancel(answer: BackgroundAnswer, upstream: Upstream) -> None:
    """Cancel the answer at its provider, so that nobody pays for what nobody reads. Best effort: a failure is only logged."""
    reason = ""
    try:
        async with asyncio.timeout(CANCEL_S):
            for deployment in answer.deployments:
                status = await _send_cancel(answer.answer_id, deployment, upstream)
                if 200 <= status < 300:
                    return
                reason = f"status {status}"
    except (GatewayError, TimeoutError) as error:
        reason = str(error) or "no answer in time"
    log.warning("upstream_not_cancelled", provider=answer.deployments[0].provider, reason=reason)


async def _send_cancel(answer_id: str, deployment: Deployment, upstream: Upstream) -> int:
    """Return the status of the provider's answer."""
    wire = WIRES[deployment.wire]
    assert isinstance(wire, BackgroundWire)
    async with upstream.open(wire.cancel_request(answer_id, deployment), deployment.provider, is_stream=False) as answer:
        return answer.status
