"""What is sent in an attempt, and which pump turns its answer into the client's?

If the wire is also the client's dialect, bodies and bytes pass unchanged. Otherwise both are translated.
"""

from collections.abc import Callable, Mapping
from typing import Any

import orjson

from common.canonical.events import Usage, subtract_usage
from common.canonical.job import Job
from common.config.groups.models import ModelSettings
from common.config.settings import Settings
from common.dialects import DIALECTS
from common.dialects.base import Dialect, ReplyInfo
from common.dialects.openai_responses.compaction import asks_for_compaction
from common.metering.attempt_cost import Attempt, total_cost
from common.metering.pricing import Cost
from workers.outcome import ActiveJob, CallResult, Total
from workers.providers import FAMILIES
from workers.providers.base import Deployment, FamilyWire, UpstreamRequest, Wire
from workers.providers.shared.refused_thoughts import THOUGHTS, without_thoughts
from workers.providers.shared.shape import ClientCalls
from workers.providers.shared.tool_names import has_other_names
from workers.providers.shared.without_tools import must_lose_tools
from workers.transcode.echoed_prefill import Unechoed, echoed_prefill
from workers.transcode.guarded_pump import guarded
from workers.transcode.output_guardrails import OutputGuard
from workers.transcode.pump import Decoding, Pump
from workers.transcode.pumps import Folding, FoldingWhole, Passing, PassingWhole, Translating

# The upstream request of an attempt, and the pump that turns its answer into the client's.
Prepared = tuple[UpstreamRequest, Pump]
_OWN = ("openai", "azure-openai")  # Whose clients speak these dialects to them without Sluice too.


Prepare = Callable[[ReplyInfo, OutputGuard | None], Prepared]


def message_count(body: Mapping[str, Any]) -> int:
    turns = body.get("messages") or body.get("input")  # ``input`` is the Responses API's field; a text there is one message.
    return len(turns) if isinstance(turns, list) else 1


def reply_info(active_job: ActiveJob, result: CallResult, total: Total, settings: Settings) -> ReplyInfo:
    job = active_job.job
    return ReplyInfo(
        job.generation_id,
        job.model,
        job.created_s,
        result.deployment.provider,
        orjson.loads(job.body),
        active_job.elapsed_ms,
        lambda usage: _cost_of(usage, result, total, settings),
    )


def _cost_of(usage: Usage, result: CallResult, total: Total, settings: ModelSettings) -> Cost | None:
    """Return the cost that the client sees together with its usage. Each attempt has its own price."""
    own, deployment = subtract_usage(usage, total.spent), result.deployment
    tail = (
        [Attempt(deployment.provider, deployment.model, own).apply_prices(settings.prices)]
        if any(own.to_dict().values())
        else []
    )
    return total_cost([*total.attempts_before(result), *tail])


def family_of(job: Job, deployment: Deployment) -> FamilyWire | None:
    """Return the wire if it is also the client's dialect: then bodies pass unchanged."""
    family = FAMILIES.get(deployment.wire)
    return family if family is not None and family.dialect == job.dialect else None


def _must_summarize(body: Mapping[str, Any], deployment: Deployment, guard: OutputGuard | None) -> bool:
    """Whether the client asks for a compaction that its vendor does not make, or that no guardrail could read."""
    return asks_for_compaction(body) and (guard is not None or deployment.provider not in _OWN)


def _must_lose_tools(body: Mapping[str, Any], deployment: Deployment) -> bool:
    """Whether the client's tools, and calls of its history, would be refused. OpenAI's own clients get its own words."""
    is_passed = deployment.wire != "openai-chat" or deployment.provider in _OWN
    return not is_passed and must_lose_tools(body, deployment.facts)


def _echoed_in_family(body: Mapping[str, Any], dialect: Dialect, deployment: Deployment) -> str:
    """Return the prefill that the vendor will repeat. A client that marks it itself knows its vendor, and expects that."""
    messages = body.get("messages")
    last = messages[-1] if isinstance(messages, list) and messages else None
    if deployment.wire != "openai-chat" or not isinstance(last, dict) or last.get("role") != "assistant" or "prefix" in last:
        return ""
    return echoed_prefill(dialect.parse(body), deployment)


def prepare_request(
    job: Job, wire: Wire, deployment: Deployment, info: ReplyInfo, guard: OutputGuard | None = None
) -> Prepared:
    dialect = DIALECTS[job.dialect]
    family = family_of(job, deployment)
    if family is None or _must_summarize(info.body, deployment, guard) or _must_lose_tools(info.body, deployment):
        parsed = dialect.parse(info.body)
        if deployment.refuses_thoughts:
            parsed = without_thoughts(parsed)
            parsed.dropped = [*parsed.dropped, THOUGHTS]
        decoding: Decoding = ClientCalls(wire, parsed, deployment.facts, job.generation_id)
        if prefill := echoed_prefill(parsed, deployment):
            decoding = Unechoed(decoding, prefill)
        pump = (Translating if job.stream else Folding)(decoding, dialect, parsed, info)
        request = wire.build_request(parsed, deployment)
        request.dropped = [*parsed.dropped, *(parsed.names.get(name, name) for name in request.dropped)]
        return request, guarded(pump, guard)
    request = family.pass_request(info.body, job.headers, deployment)
    has_renamed = deployment.wire == "openai-chat" and has_other_names(info.body, deployment.facts)
    prefill = _echoed_in_family(info.body, dialect, deployment)
    if guard is None and not has_renamed and not prefill:
        return request, (Passing if job.stream else PassingWhole)(family, dialect, info)
    # Bytes that pass unchanged cannot be filtered, and have the vendor's names of tools. So the answer is decoded and encoded.
    parsed = dialect.parse(info.body)
    answers: Decoding = ClientCalls(wire, parsed, deployment.facts, job.generation_id) if has_renamed else wire
    if prefill:
        answers = Unechoed(answers, prefill)
    return request, guarded((Translating if job.stream else FoldingWhole)(answers, dialect, parsed, info), guard)
