"""How are a prompt's tokens counted?

By its provider where that can, otherwise by an estimate, which the response says in a header. A job like any other: tried
again and passed on as an answer would be, but with nothing to bill. Only Anthropic's clients ask for it, so there is one
shape of answer: https://docs.anthropic.com/en/api/messages-count-tokens
"""

import orjson

from common.canonical.errors import Failed, GatewayError
from common.canonical.generation import GenerationRequest
from common.canonical.job import Job
from common.channel.base import FrameKind
from common.dialects import DIALECTS
from common.metering.token_estimate import estimate_tokens
from common.records.head import Head
from workers.attempt.call import reply_headers
from workers.outcome import Reply
from workers.providers import WIRES
from workers.providers.base import TokenCounter
from workers.providers.shared.errors import blot_out, no_answer, not_json
from workers.providers.shared.loose_json import read_json
from workers.run_context import Running
from workers.services import Services
from workers.upstream.http_client import ERROR_BODY_BYTES_MAX

# What servers answer that speak a wire, but not its counting.
_NOT_SERVED = (404, 405, 501)


async def count(running: Running, reply: Reply) -> None:
    """Count a prompt's tokens and write the answer.

    Raises:
        GatewayError: the try failed.
    """
    job, writer = running.job, running.writer
    request = DIALECTS[job.dialect].parse(orjson.loads(job.body))
    reply.messages = len(request.messages)
    tokens = await _ask(job, request, reply, running.services)
    if tokens is None:
        tokens = estimate_tokens(request)
        reply.headers["x-sluice-estimated"] = "true"
    reply.is_committed = True
    writer.write_frame(FrameKind.HEAD, Head(headers=reply.headers).pack())
    writer.write_frame(FrameKind.DATA, orjson.dumps({"input_tokens": tokens}))


async def _ask(job: Job, request: GenerationRequest, reply: Reply, services: Services) -> int | None:
    """Return the provider's own count, None where it does not count."""
    deployment, wire = reply.deployment, WIRES[reply.deployment.wire]
    if not isinstance(wire, TokenCounter):
        return None
    asking = wire.count_request(request, orjson.loads(job.body), job.headers, deployment)
    status = 0  # No answer at all.
    try:
        # As quick as a stream must be to begin: nothing is generated.
        async with services.upstream.open(asking, deployment.provider, is_stream=True) as answer:
            status = answer.status
            reply.headers = reply_headers(asking, answer)
            body = await answer.whole(ERROR_BODY_BYTES_MAX)
    finally:
        services.metrics.upstream_calls.labels(deployment.provider, status).inc()
    if 200 <= status < 300:
        tokens = wire.read_count(body)
        if tokens is None:
            raise GatewayError.from_failed(_no_count(body))
        return tokens
    failed = wire.read_error(status, answer.headers, body)
    blot_out(failed, deployment.secrets)
    if status in _NOT_SERVED and deployment.model not in failed.message:
        return None  # It is the path that is unknown; of a model that is, the message has the name.
    raise GatewayError.from_failed(failed)


def _no_count(body: bytes) -> Failed:
    try:
        return no_answer(read_json(body))
    except ValueError:
        return not_json(body)
