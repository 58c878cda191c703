"""What usage and cost does an upstream call count for, once its request was sent?

It is called at the end of each attempt, however the attempt ended. It uses what the upstream reported, if the figures are
believable. The rest is estimated (from the log if there is one) and marked as estimated. A prompt that was sent counts, because
the provider has read it. A request that the upstream refused does not count.
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
from workers.outcome import CallResult, Total
from workers.providers.base import Deployment, UpstreamRequest
from workers.providers.shared.figures import clean_name
from workers.providers.shared.loose_json import dict_of
from workers.transcode.pump import Pump

ANSWER_TOKENS_MAX = 1_000_000  # No model's answer is longer, whatever a request allows.


def charge_attempt(
    job: Job, result: CallResult, request: UpstreamRequest, pump: Pump, status: int, settings: ModelSettings
) -> Attempt | None:
    """Return the usage and cost of a call that has ended; None: it counts for nothing.

    ``status``: the upstream's HTTP status, 0 if there was no answer at all.
    """
    if not request.is_sent or _is_refusal(status, pump) or (result.is_reread and pump.usage is None):
        return None
    attempt = _attempt(job, result.deployment, pump, is_cut=result.is_cut and pump.is_stream)
    attempt.has_brought_key = result.deployment.client_pays
    return attempt.apply_prices(settings.prices)


def _is_refusal(status: int, pump: Pump) -> bool:
    """Whether the upstream refused the request: by its status, or in a stream before any output."""
    if status and not 200 <= status < 300:
        return True
    failed = pump.terminal
    has_said_so = isinstance(failed, Failed) and (failed.status is not None or failed.kind is ErrorKind.UPSTREAM_CREDENTIALS)
    return has_said_so and not pump.output_events and pump.usage is None


def _attempt(job: Job, deployment: Deployment, pump: Pump, *, is_cut: bool) -> Attempt:
    """Return an attempt's usage. ``is_cut``: a guardrail ended it, and its pump has estimated what was not reported."""
    reported, is_whole = pump.usage, isinstance(pump.terminal, Completed)
    if reported and is_whole and not _has_false_zero(reported, pump):
        is_estimated = is_cut or pump.is_estimated or pump.has_absurd_usage
        return Attempt(deployment.provider, deployment.model, reported, is_estimated=is_estimated)
    is_rough = pump.gives_stream
    if reported is None and pump.has_absurd_usage:
        # The report is not believable, and the real usage may be large: we count the most that the request could use.
        usage, is_rough = _largest_usage(job), False
        usage.output_tokens = max(usage.output_tokens, pump.seen_tokens)
    else:
        usage = fill_gaps(reported, Usage(pump.prompt_tokens or prompt_tokens_of(job), pump.seen_tokens))
    usage.model = usage.model or pump.started.model or ""
    usage.service_tier = usage.service_tier or pump.started.service_tier or requested_tier(job)
    return Attempt(deployment.provider, deployment.model, usage, is_estimated=True, is_rough=is_rough)


def _has_false_zero(reported: Usage, pump: Pump) -> bool:
    """Whether a report has a zero that cannot be true: no prompt is empty, and an answer with output has output tokens.

    Servers that do not count fill their reports with zeros, or report only a sum.
    """
    return not reported.input_tokens or (not reported.output_tokens and pump.output_events > 0)


def apply_estimate(partial: Partial, total: Total, settings: ModelSettings) -> None:
    """Apply an estimate from the log: to this claim's own attempt, or for the attempts of earlier claims."""
    last = partial.attempts[-1]
    if total.is_committed:  # This claim's own attempt: what its upstream reported is better than any estimate.
        total.refine_last_attempt(fill_gaps(total.reported, last.usage or Usage()), settings.prices)
        return
    total.restore_past(partial.attempts, partial.head.ttft_ms, settings.prices)
    total.provider, total.upstream_model = last.provider, last.model


def settle_attempts(attempts: list[Attempt], settings: ModelSettings) -> Settlement:
    """Return what the attempts used: all tokens, and the cost that our own keys paid."""
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


def pack_with_running(total: Total, job: Job) -> bytes:
    """Return the attempts and the running calls, packed: the next claim needs them if this worker is lost meanwhile."""
    tier = requested_tier(job) if total.running else ""
    running = [
        Attempt(one.provider, one.model, has_brought_key=one.client_pays, service_tier=tier)
        for one in (result.deployment for result in total.running)
    ]
    return pack([*total.attempts, *running])


def fill_gaps(reported: Usage | None, estimated: Usage) -> Usage:
    """Return the reported usage, with estimates in its gaps: some upstreams report only at the beginning, or never."""
    return fill_usage(reported, lambda: estimated.input_tokens, estimated.output_tokens) if reported else estimated


def fill_prompt_tokens(attempts: list[Attempt], job: Job | None) -> list[Attempt]:
    """Return the attempts that have usage. An attempt without usage gets its prompt's estimated tokens, if there is a job."""
    for attempt in attempts:
        if attempt.usage is None and job:
            attempt.usage = Usage(prompt_tokens_of(job), service_tier=attempt.service_tier)
            attempt.is_estimated = True
    return [attempt for attempt in attempts if attempt.usage]


def requested_tier(job: Job) -> str:
    """Return the service tier that the request asks for; empty: none."""
    # Almost no request has one, and parsing a long body takes longer than this check.
    if b'"service_tier"' not in job.body:
        return ""
    tier = dict_of(orjson.loads(job.body)).get("service_tier")
    return clean_name(tier)


def prompt_tokens_of(job: Job) -> int:
    """Return about how many tokens a job's prompt has; 0 if it cannot be read."""
    request = requested(job)
    return estimate_tokens(request) if request else 0


def _largest_usage(job: Job) -> Usage:
    """Return the most that a job can use, as far as its request shows."""
    request = requested(job)
    if request is None:
        return Usage()
    input_tokens = estimate_tokens(request)
    return Usage(input_tokens, min(reserved_tokens(request) - input_tokens, ANSWER_TOKENS_MAX))


def requested(job: Job) -> GenerationRequest | None:
    """Return a job's request; None if it cannot be read."""
    try:
        return DIALECTS[job.dialect].parse(orjson.loads(job.body))
    except (ValueError, TypeError, KeyError, GatewayError):
        return None
