"""How can an answer continue that broke off after its commit point?

The log is read back: what the client has, and what the attempts so far have cost. If the answer is plain text, and the route
has a model that can continue it (``common/vendors/prefill.py``), we ask for the rest and encode it after the first part. It is
the same for a lost worker and for a lost upstream.

Not continued is what we cannot pass to the next call, or what the client would not read as one answer: tool calls, unfinished
reasoning, refusals, several choices, log probabilities, JSON, citations, and all that the other wire cannot express.
"""

from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote

import orjson

from common.canonical.errors import ErrorKind
from common.canonical.events import Completed, FinishReason, Usage, add_usage, subtract_usage
from common.canonical.generation import GenerationRequest, Message, Role, TextPart
from common.canonical.job import Job
from common.channel.base import Frame
from common.channel.transcript import Transcript
from common.config.model_routes import fallbacks_of
from common.config.settings import Settings
from common.dialects import DIALECTS
from common.dialects.base import Dialect, Progress, ReplyInfo
from common.metering.attempt_cost import Attempt
from common.metering.token_estimate import estimate_text_tokens, estimate_tokens, fill_usage
from common.sse import split_blocks
from common.vendors.prefill import Prefill, find_prefill
from workers.providers import WIRES
from workers.providers.base import BackgroundWire, Deployment, FamilyWire, UpstreamRequest
from workers.providers.shared.shape import ClientCalls
from workers.transcode.continuing import Continuing, Rereading
from workers.transcode.guarded_pump import guarded
from workers.transcode.output_guardrails import OutputGuard
from workers.transcode.pump import Pump
from workers.transcode.splice import Splice
from workers.upstream.deployments import deployments

CONTINUATIONS_MAX = 3
LOSSES = frozenset(kind for kind in ErrorKind if kind.is_loss)
_CONTINUE_PROMPT = (
    "Your last message was cut off by a technical fault. Go on exactly where it stopped, in the middle of a word if it stopped "
    "there: repeat nothing, announce nothing, and change neither language nor format."
)


@dataclass(slots=True)
class Past:
    """What the log says about an answer that broke off.

    ``attempts``: those that have usage. ``spent``: the usage of those whose output the client has. ``attempt_count``: the
    number of all attempts. ``continuation_count``: the number of continuations among them. ``ttft_ms``: the time of the first
    output.
    """

    request: GenerationRequest
    progress: Progress
    spent: Usage
    attempts: list[Attempt]
    continuation_count: int
    attempt_count: int
    ttft_ms: int | None
    blocks: list[bytes]
    provider: str
    upstream_id: str
    route_reason: str = ""

    @property
    def text_tokens(self) -> int:
        return estimate_text_tokens(self.progress.text)

    @property
    def can_continue(self) -> bool:
        request = self.request
        return (
            self.progress.is_plain
            and self.continuation_count < CONTINUATIONS_MAX
            and not (request.choices > 1 or request.response_format or request.opaque)
        )

    def ending(self) -> tuple[FinishReason, bytes] | None:
        """Return the finish reason and the client's missing last bytes, if the upstream had finished the answer."""
        progress = self.progress
        if progress.finished is None:
            return None
        return progress.finished.reason, progress.encoder.encode(Completed(self.spent))


def read_past(job: Job, frames: list[Frame], reported: Usage | None, info: ReplyInfo) -> Past:
    """Return what a log says. ``reported``: the usage that the last attempt's upstream reported before it broke off."""
    dialect = DIALECTS[job.dialect]
    request = dialect.parse(orjson.loads(job.body))
    transcript = Transcript.from_frames(frames, job.dialect, is_stream=True)
    first, (*before, last) = transcript.attempts[0].head, transcript.attempts
    head, continuation_count = last.head, last.head.continuations
    blocks = [block for piece in transcript.data() for block in split_blocks(piece)]
    progress = _resume_progress(dialect, request, info, blocks)
    is_whole, client_usage = _client_view(job, request, progress, blocks)
    if progress.finished and not is_whole:
        # Only one of several choices has finished, or the reason is a failure. The client has seen it, so no text may follow.
        progress.finished, progress.is_plain = None, False
    if continuation_count > 0 and not is_whole:
        client_usage = None
    final = (client_usage or progress.usage) if progress.finished else None
    if final:
        spent, usage = final, subtract_usage(final, head.spent)
    else:
        usage = fill_usage(
            reported or client_usage,
            lambda: estimate_tokens(request) + estimate_text_tokens(transcript.text(before)),
            estimate_text_tokens(transcript.text([last])),
        )
        spent = add_usage(head.spent, usage) or usage
    attempt = Attempt(head.provider, head.upstream_model, usage, is_estimated=final is None)
    return Past(
        request,
        progress,
        spent,
        [*head.attempts, attempt],
        continuation_count,
        attempt_count=head.attempt_count or 1,
        ttft_ms=first.ttft_ms,
        blocks=blocks,
        provider=head.provider,
        upstream_id=head.upstream_id,
        route_reason=head.route_reason,
    )


def _resume_progress(dialect: Dialect, request: GenerationRequest, info: ReplyInfo, blocks: list[bytes]) -> Progress:
    if not blocks:  # The client has seen no event yet, so the answer starts again.
        return Progress("", is_plain=True, encoder=dialect.encoder(request, info))
    return dialect.resume(request, info, blocks)


def _client_view(job: Job, request: GenerationRequest, progress: Progress, blocks: list[bytes]) -> tuple[bool, Usage | None]:
    """Return whether the client has a complete answer, and the usage that it has seen.

    If the dialect is also a wire, that wire's decoder reads the bytes, because they may be a vendor's own.
    """
    wire = WIRES.get(job.dialect)
    if not isinstance(wire, FamilyWire):
        return progress.finished is not None, None
    decoder = wire.decoder(request.choices)
    for block in blocks:
        decoder.decode(block)
    return decoder.is_whole, decoder.usage


@dataclass(frozen=True, slots=True)
class Continuation:
    """One deployment that can continue an answer.

    It still has the answer (``reattaches``), or it accepts a prefill, or (``prefill`` None) a prompt asks it to continue.
    """

    deployment: Deployment
    prefill: Prefill | None = None
    reattaches: bool = False

    def prepare(
        self, past: Past, dialect: Dialect, info: ReplyInfo, guard: OutputGuard | None = None
    ) -> tuple[UpstreamRequest, Pump]:
        """Return the upstream request for the rest, and the pump that turns its answer into the client's.

        Each attempt needs a new encoder: a failed attempt may have changed the state of its encoder.

        Raises:
            GatewayError: INVALID_REQUEST, the wire cannot express the client's request.
        """
        wire = WIRES[self.deployment.wire]
        decoding = ClientCalls(wire, past.request, self.deployment.facts, info.generation_id)
        progress = _resume_progress(dialect, past.request, info, past.blocks)
        if self.reattaches:
            # The upstream reports the usage of the whole answer itself. The answer comes again from its start, so guardrails
            # filter it again from its start.
            splice = Splice(past.progress.text, is_whole=True)
            return _reread_request(self.deployment, past), guarded(Rereading(decoding, progress, splice, past.request), guard)
        rest = self._request(past)
        upstream = wire.build_request(rest, self._deployment())
        if self.prefill:
            upstream.body = _add_prefill_fields(upstream.body, self.prefill)
        splice = Splice(past.progress.text, echoes=bool(self.prefill and self.prefill.echoes))
        pump = Continuing(decoding, progress, splice, past.spent, estimate_tokens(rest))
        return upstream, guarded(pump, guard, known_text=past.progress.text)

    def _deployment(self) -> Deployment:
        if self.prefill is None or not self.prefill.path:
            return self.deployment
        base_url = self.deployment.base_url.removesuffix("/v1").removesuffix(self.prefill.path) + self.prefill.path
        return replace(self.deployment, base_url=base_url)

    def _request(self, past: Past) -> GenerationRequest:
        text, request = past.progress.text.rstrip(), past.request
        if not text:
            return request
        messages = list(request.messages)
        last = messages[-1]
        if last.role is Role.ASSISTANT and last.parts and isinstance(last.parts[-1], TextPart):
            # The client began the answer itself: its text and the model's text are one.
            text = last.parts[-1].text + past.progress.text
            messages[-1] = Message(Role.ASSISTANT, [*last.parts[:-1], TextPart(text.rstrip())])
        else:
            messages.append(Message(Role.ASSISTANT, [TextPart(text)]))
        if self.prefill is None:
            messages.append(Message(Role.USER, [TextPart(_CONTINUE_PROMPT)]))
        limit = request.max_output_tokens
        # No reasoning: it is over, and Anthropic refuses a prefill together with thinking.
        return replace(
            request,
            messages=messages,
            max_output_tokens=max(1, limit - past.text_tokens) if limit else None,
            reasoning=None,
        )


def _reread_request(deployment: Deployment, past: Past) -> UpstreamRequest:
    wire = WIRES[deployment.wire]
    if deployment.in_background and isinstance(wire, BackgroundWire):
        return wire.reread_request(past.upstream_id, deployment)
    headers = {**deployment.headers, "accept": "text/event-stream", "accept-encoding": "identity"}
    if deployment.api_key:
        headers["authorization"] = f"Bearer {deployment.api_key}"
    return UpstreamRequest(deployment.url(f"/generations/{quote(past.upstream_id, safe='')}"), headers, b"", method="GET")


def _add_prefill_fields(body: bytes, prefill: Prefill) -> bytes:
    if not (prefill.message or prefill.body):
        return body
    fields: dict[str, Any] = orjson.loads(body)
    fields["messages"][-1] |= prefill.message
    return orjson.dumps({**fields, **prefill.body})


def find_reattachable(job: Job, past: Past, settings: Settings) -> list[Deployment]:
    """Return the deployments that may still have an answer: those of the provider that gave it, one for each key."""
    if not past.upstream_id or settings.provider(past.provider).continuation != "reattach":
        return []
    return [deployment for deployment in deployments(job, settings) if deployment.provider == past.provider]


def plan_rounds(job: Job, past: Past, settings: Settings) -> list[list[Continuation]]:
    """Return rounds of candidates that can continue an answer: exact ones first, then the others in the route's order."""
    # Each exact candidate is its own round: if one key does not know the answer, another may.
    exact_rounds = [[Continuation(deployment, reattaches=True)] for deployment in find_reattachable(job, past, settings)]
    candidates = []
    answered_by = f"{past.provider}/{past.attempts[-1].model}"
    fallbacks = fallbacks_of(job.model, settings)
    for deployment in deployments(job, settings, for_rest=True):
        target = f"{deployment.provider}/{deployment.model}"
        if fallbacks and target != answered_by and (target in fallbacks or answered_by in fallbacks):
            continue  # Where another model may only replace a whole answer, it does not write the rest of one.
        chosen = settings.provider(deployment.provider).continuation
        prefill = find_prefill(deployment.provider, deployment.model, deployment.wire, chosen)
        if not past.progress.text:
            candidates.append(Continuation(deployment))
        elif prefill or chosen == "instruction":
            candidates.append(Continuation(deployment, prefill))
    return [*exact_rounds, candidates] if candidates else exact_rounds
