"""What does an upstream call count for, from the moment its request was sent?

Called at the end of each attempt, whatever ended it. What the upstream reported is taken, as far as it can be believed; what it
did not is estimated and marked, from the log where there is one. A prompt that was sent counts, since the provider has read
it; a request that the upstream refused does not.
"""

from collections import Counter

import orjson

from common.canonical.errors import ErrorKind, Failed, GatewayError
from common.canonical.events import Completed, Usage
from common.canonical.generation import GenerationRequest
from common.canonical.job import Job
from common.config.groups.models import ModelSettings
from common.dialects import DIALECTS
from common.limits.charges import BudgetAccount, Settlement
from common.metering.attempt_cost import Attempt, nano_usd, pack, total_usage
from common.metering.token_estimate import estimate_tokens, fill_usage, reserved_tokens
from workers.metering.partial_usage import Partial
from workers.outcome import Reply, Total
from workers.providers.base import Deployment, UpstreamRequest
from workers.providers.shared.figures import name_of
from workers.providers.shared.loose_json import dict_of
from workers.transcode.pumps import Pump

ANSWER_TOKENS_MAX = 1_000_000  # No model's answer is longer, whatever a request allows.


def charge_attempt(
    job: Job, reply: Reply, request: UpstreamRequest, pump: Pump, status: int, settings: ModelSettings
) -> Attempt | None:
    """Return what a call that has ended counts for; None: for nothing. ``status`` is the upstream's, 0 for no answer at all."""
    if not request.is_sent or _is_refusal(status, pump) or (reply.is_reread and pump.usage is None):
        return None
    attempt = _attempt(job, reply.deployment, pump, is_cut=reply.is_cut and pump.is_stream)
    attempt.has_brought_key = reply.deployment.client_pays
    return attempt.apply_prices(settings.prices)


def _is_refusal(status: int, pump: Pump) -> bool:
    """Whether the upstream refused the request: by its status, or in a stream before it had said anything."""
    if status and not 200 <= status < 300:
        return True
    failed = pump.terminal
    has_said_so = isinstance(failed, Failed) and (failed.status is not None or failed.kind is ErrorKind.UPSTREAM_CREDENTIALS)
    return has_said_so and not pump.output_events and pump.usage is None


def _attempt(job: Job, deployment: Deployment, pump: Pump, *, is_cut: bool) -> Attempt:
    """Return what an attempt took; ``is_cut``: a guardrail ended it, and its pump has estimated what was not reported."""
    reported, is_whole = pump.usage, isinstance(pump.terminal, Completed)
    if reported and is_whole and not _has_false_zero(reported, pump):
        is_estimated = is_cut or pump.is_estimated or pump.has_absurd_usage
        return Attempt(deployment.provider, deployment.model, reported, is_estimated=is_estimated)
    is_rough = pump.gives_stream
    if reported is None and pump.has_absurd_usage:
        # Nothing in the report can be believed, and what it hides may be large: as much as the request could take at most.
        usage, is_rough = _largest_usage(job), False
        usage.output_tokens = max(usage.output_tokens, pump.seen_tokens)
    else:
        usage = fill_gaps(reported, Usage(pump.prompt_tokens or prompt_tokens_of(job), pump.seen_tokens))
    usage.model = usage.model or pump.started.model or ""
    usage.service_tier = usage.service_tier or pump.started.service_tier or requested_tier(job)
    return Attempt(deployment.provider, deployment.model, usage, is_estimated=True, is_rough=is_rough)


def _has_false_zero(reported: Usage, pump: Pump) -> bool:
    """Whether a report has a zero that is no count: no prompt is empty, nor is an answer of which something was seen. Servers
    that do not count fill their reports with zeros, or tell a sum alone."""
    return not reported.input_tokens or (not reported.output_tokens and pump.output_events > 0)


def apply_estimate(partial: Partial, total: Total, settings: ModelSettings) -> None:
    """Take over what the log tells: of this claim's own attempt, or of those of the claims before."""
    last = partial.attempts[-1]
    if total.is_committed:  # This claim's own: what its upstream has reported is better than any estimate.
        total.refine_last_attempt(fill_gaps(total.reported, last.usage or Usage()), settings.prices)
        return
    total.restore_past(partial.attempts, partial.head.ttft_ms, settings.prices)
    total.provider, total.upstream_model = last.provider, last.model


def settle_attempts(attempts: list[Attempt], settings: ModelSettings) -> Settlement:
    """Return what attempts took: all tokens, and the cost of what our own keys paid for."""
    usage = total_usage(attempts)
    shares: Counter[str] = Counter()
    for attempt in attempts:
        if attempt.cost and not attempt.has_brought_key:
            shares[attempt.provider] += nano_usd(attempt.cost.total_usd)
    return Settlement(
        tokens=usage.input_tokens + usage.output_tokens if usage else 0,
        cost_nano_usd=shares.total(),
        shares=[
            (BudgetAccount("provider", name, settings.provider(name).budget), nano) for name, nano in shares.items() if name
        ],
    )


def pack_with_current(attempts: list[Attempt], job: Job, deployment: Deployment) -> bytes:
    """Return what the next claim must know if this worker is lost in the call that it makes now."""
    tier = requested_tier(job)
    current = Attempt(deployment.provider, deployment.model, has_brought_key=deployment.client_pays, service_tier=tier)
    return pack([*attempts, current])


def fill_gaps(reported: Usage | None, estimated: Usage) -> Usage:
    """Return what was reported, and where that does not go far enough the estimate: some report at the beginning, or never."""
    return fill_usage(reported, lambda: estimated.input_tokens, estimated.output_tokens) if reported else estimated


def fill_prompt_tokens(attempts: list[Attempt], job: Job | None) -> list[Attempt]:
    """Return attempts with the prompt of those of which no more is known, by estimate; without their job it is not known."""
    for attempt in attempts:
        if attempt.usage is None and job:
            attempt.usage = Usage(prompt_tokens_of(job), service_tier=attempt.service_tier)
            attempt.is_estimated = True
    return [attempt for attempt in attempts if attempt.usage]


def requested_tier(job: Job) -> str:
    """Return the service tier that the request asks for, as far as it does."""
    # Nearly no request names one, and to look through a long body for it takes longer than to find that out.
    if b'"service_tier"' not in job.body:
        return ""
    tier = dict_of(orjson.loads(job.body)).get("service_tier")
    return name_of(tier)


def prompt_tokens_of(job: Job) -> int:
    """Return about how many tokens a job's prompt has; 0 where it cannot be read."""
    request = _request(job)
    return estimate_tokens(request) if request else 0


def _largest_usage(job: Job) -> Usage:
    """Return the most that a job may take, as far as that can be told before it runs."""
    request = _request(job)
    if request is None:
        return Usage()
    input_tokens = estimate_tokens(request)
    return Usage(input_tokens, min(reserved_tokens(request) - input_tokens, ANSWER_TOKENS_MAX))


def _request(job: Job) -> GenerationRequest | None:
    try:
        return DIALECTS[job.dialect].parse(orjson.loads(job.body))
    except (ValueError, TypeError, KeyError, GatewayError):
        return None
