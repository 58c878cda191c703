"""How are a prompt's tokens counted?

The provider counts them if it can. Otherwise we estimate, and a response header says so. It is a job like any other: it is
retried and passed on like an answer, but there is nothing to bill. Only Anthropic's clients ask for it, so the answer has one
shape: https://docs.anthropic.com/en/api/messages-count-tokens
"""

import orjson

from common.canonical.errors import Failed, GatewayError
from common.canonical.generation import GenerationRequest
from common.canonical.job import Job
from common.channel.base import FrameKind
from common.dialects import DIALECTS
from common.metering.token_estimate import estimate_tokens
from common.records.head import Head
from workers.attempt.reply_headers import reply_headers
from workers.outcome import CallResult
from workers.providers import WIRES
from workers.providers.base import TokenCounter
from workers.providers.shared.errors import no_answer, not_json, redact_secrets
from workers.providers.shared.loose_json import read_json
from workers.run_context import RunContext
from workers.services import Services
from workers.upstream.http_client import ERROR_BODY_BYTES_MAX

# The statuses of servers that speak a wire, but do not have its counting endpoint.
_NOT_SERVED = (404, 405, 501)


async def count(context: RunContext, result: CallResult) -> None:
    """Count a prompt's tokens and write the answer.

    Raises:
        GatewayError: the attempt failed.
    """
    job, writer = context.job, context.writer
    request = DIALECTS[job.dialect].parse(orjson.loads(job.body))
    result.messages = len(request.messages)
    tokens = await _count_at_provider(job, request, result, context.services)
    if tokens is None:
        tokens = estimate_tokens(request)
        result.headers["x-sluice-estimated"] = "true"
    result.is_committed = True
    writer.write_frame(FrameKind.HEAD, Head(headers=result.headers).pack())
    writer.write_frame(FrameKind.DATA, orjson.dumps({"input_tokens": tokens}))


async def _count_at_provider(job: Job, request: GenerationRequest, result: CallResult, services: Services) -> int | None:
    """Return the provider's own count; None: it does not count tokens."""
    deployment, wire = result.deployment, WIRES[result.deployment.wire]
    if not isinstance(wire, TokenCounter):
        return None
    upstream_request = wire.count_request(request, orjson.loads(job.body), job.headers, deployment)
    status = 0  # No answer at all.
    try:
        # It gets the timeout of a stream's first token: nothing is generated, so the answer is quick.
        async with services.upstream.open(upstream_request, deployment.provider, is_stream=True) as answer:
            status = answer.status
            result.headers = reply_headers(upstream_request, answer, deployment)
            body = await answer.read_body(ERROR_BODY_BYTES_MAX)
    finally:
        services.metrics.upstream_calls.labels(deployment.provider, status).inc()
    if 200 <= status < 300:
        tokens = wire.read_count(body)
        if tokens is None:
            raise GatewayError.from_failed(_uncounted_failure(body))
        return tokens
    failed = wire.read_error(status, answer.headers, body)
    redact_secrets(failed, deployment.secrets)
    if status in _NOT_SERVED and deployment.model not in failed.message:
        return None  # The path is unknown. If the model were unknown, the message would contain its name.
    raise GatewayError.from_failed(failed)


def _uncounted_failure(body: bytes) -> Failed:
    try:
        return no_answer(read_json(body))
    except ValueError:
        return not_json(body)
