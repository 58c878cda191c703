"""How does an answer go on that broke off behind its commit point?

The log is read back: what the client has, and what the tries so far have cost. Where that is plain text, and the route has
a model that can go on with its own words (``common/vendors/prefill.py``), the rest is asked for and encoded behind it. The
same for a worker that was lost and an upstream that was.

Not continued: what the next call could not be told, or the client would not read as one answer. Tool calls, thinking in
progress, refusals, several choices, log probabilities, JSON, citations, and whatever the other wire cannot express.
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
from common.config.settings import Settings
from common.dialects import DIALECTS
from common.dialects.base import Dialect, Progress, ReplyInfo
from common.metering.attempt_cost import Attempt
from common.metering.token_estimate import estimate_text_tokens, estimate_tokens, fill_usage
from common.sse import split_blocks
from common.vendors.prefill import Prefill, find_prefill
from workers.providers import WIRES
from workers.providers.base import BackgroundWire, Deployment, FamilyWire, UpstreamRequest
from workers.transcode.continuing import Continuing, Rereading
from workers.transcode.guarded_pump import guarded
from workers.transcode.output_guardrails import OutputGuard
from workers.transcode.pumps import Pump
from workers.transcode.splice import Splice
from workers.upstream.deployments import deployments

CONTINUATIONS_MAX = 3
LOSSES = frozenset(kind for kind in ErrorKind if kind.is_loss)
_GO_ON = (
    "Your last message was cut off by a technical fault. Go on exactly where it stopped, in the middle of a word if it stopped "
    "there: repeat nothing, announce nothing, and change neither language nor format."
)


@dataclass(slots=True)
class Past:
    """What the log tells of an answer that broke off.

    ``attempts`` are all that count, ``spent`` is the usage of those whose output the client has, ``tries`` the number of all
    tries, and ``count`` that of the continuations among them.
    ``ttft_ms`` is when the first of them began to speak.
    """

    request: GenerationRequest
    progress: Progress
    spent: Usage
    attempts: list[Attempt]
    count: int
    tries: int
    ttft_ms: int | None
    blocks: list[bytes]
    provider: str
    upstream_id: str

    @property
    def said_tokens(self) -> int:
        return estimate_text_tokens(self.progress.text)

    @property
    def may_go_on(self) -> bool:
        asked = self.request
        return (
            self.progress.is_plain
            and self.count < CONTINUATIONS_MAX
            and not (asked.choices > 1 or asked.response_format or asked.opaque)
        )

    def ending(self) -> tuple[FinishReason, bytes] | None:
        """Return why the answer is over and what its client lacks of the end, where the upstream had finished it."""
        progress = self.progress
        if progress.finished is None:
            return None
        return progress.finished.reason, progress.encoder.encode(Completed(self.spent))


def read_past(job: Job, frames: list[Frame], reported: Usage | None, info: ReplyInfo) -> Past:
    """Return what a log tells; ``reported`` is the usage that the last try's upstream told before it broke off."""
    dialect = DIALECTS[job.dialect]
    request = dialect.parse(orjson.loads(job.body))
    transcript = Transcript.from_frames(frames, job.dialect, is_stream=True)
    first, (*before, last) = transcript.attempts[0].head, transcript.attempts
    head, count = last.head, last.head.continuations
    blocks = [block for piece in transcript.data() for block in split_blocks(piece)]
    progress = _progress(dialect, request, info, blocks)
    is_whole, told = _judged(job, request, progress, blocks)
    if progress.finished and not is_whole:
        # One choice of several has, or the reason is a failure: its client has been told, and no text fits behind that.
        progress.finished, progress.is_plain = None, False
    if count > 0 and not is_whole:
        told = None
    final = (told or progress.usage) if progress.finished else None
    if final:
        spent, tried = final, subtract_usage(final, head.spent)
    else:
        tried = fill_usage(
            reported or told,
            lambda: estimate_tokens(request) + estimate_text_tokens(transcript.text(before)),
            estimate_text_tokens(transcript.text([last])),
        )
        spent = add_usage(head.spent, tried) or tried
    attempt = Attempt(head.provider, head.upstream_model, tried, is_estimated=final is None)
    return Past(
        request,
        progress,
        spent,
        [*head.attempts, attempt],
        count,
        tries=head.attempt_count or 1,
        ttft_ms=first.ttft_ms,
        blocks=blocks,
        provider=head.provider,
        upstream_id=head.upstream_id,
    )


def _progress(dialect: Dialect, request: GenerationRequest, info: ReplyInfo, blocks: list[bytes]) -> Progress:
    if not blocks:  # Whatever was said before the first event that a client can see is said anew.
        return Progress("", is_plain=True, encoder=dialect.encoder(request, info))
    return dialect.resume(request, info, blocks)


def _judged(job: Job, request: GenerationRequest, progress: Progress, blocks: list[bytes]) -> tuple[bool, Usage | None]:
    """Return whether the client has a whole answer, and what it was told of the usage.

    A dialect that is also a wire is judged by that wire's decoder, as the upstream was: such bytes may be a vendor's own.
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
    """One deployment that can go on with an answer: it still has it (``reattaches``), takes a prefill, or (None) is asked."""

    deployment: Deployment
    prefill: Prefill | None = None
    reattaches: bool = False

    def prepare(
        self, past: Past, dialect: Dialect, info: ReplyInfo, guard: OutputGuard | None = None
    ) -> tuple[UpstreamRequest, Pump]:
        """Return the upstream request for the rest, and what turns its answer into the client's.

        Each try needs an encoder of its own: one that failed may have moved its on.

        Raises:
            GatewayError: INVALID_REQUEST, the wire cannot express the client's request.
        """
        wire = WIRES[self.deployment.wire]
        progress = _progress(dialect, past.request, info, past.blocks)
        if self.reattaches:
            # It reports the usage of the whole answer itself. What comes again is filtered again, from its start: so it
            # begins with what the client has.
            splice = Splice(past.progress.text, is_whole=True)
            return _reading_again(self.deployment, past), guarded(Rereading(wire, progress, splice, past.request), guard)
        rest = self._request(past)
        upstream = wire.build_request(rest, self._deployment())
        if self.prefill:
            upstream.body = _marked(upstream.body, self.prefill)
        splice = Splice(past.progress.text, echoes=bool(self.prefill and self.prefill.echoes))
        pump = Continuing(wire, progress, splice, past.spent, estimate_tokens(rest))
        return upstream, guarded(pump, guard, known_text=past.progress.text)

    def _deployment(self) -> Deployment:
        if self.prefill is None or not self.prefill.path:
            return self.deployment
        base_url = self.deployment.base_url.removesuffix("/v1").removesuffix(self.prefill.path) + self.prefill.path
        return replace(self.deployment, base_url=base_url)

    def _request(self, past: Past) -> GenerationRequest:
        text, asked = past.progress.text.rstrip(), past.request
        if not text:
            return asked
        messages = list(asked.messages)
        last = messages[-1]
        if last.role is Role.ASSISTANT and last.parts and isinstance(last.parts[-1], TextPart):
            # The client began the answer itself: its words and the model's are one text.
            text = last.parts[-1].text + past.progress.text
            messages[-1] = Message(Role.ASSISTANT, [*last.parts[:-1], TextPart(text.rstrip())])
        else:
            messages.append(Message(Role.ASSISTANT, [TextPart(text)]))
        if self.prefill is None:
            messages.append(Message(Role.USER, [TextPart(_GO_ON)]))
        limit = asked.max_output_tokens
        # What it thought is said; a prefill and thinking exclude each other at Anthropic.
        return replace(
            asked,
            messages=messages,
            max_output_tokens=max(1, limit - past.said_tokens) if limit else None,
            reasoning=None,
        )


def _reading_again(deployment: Deployment, past: Past) -> UpstreamRequest:
    wire = WIRES[deployment.wire]
    if deployment.in_background and isinstance(wire, BackgroundWire):
        return wire.reread_request(past.upstream_id, deployment)
    headers = {**deployment.headers, "accept": "text/event-stream", "accept-encoding": "identity"}
    if deployment.api_key:
        headers["authorization"] = f"Bearer {deployment.api_key}"
    return UpstreamRequest(deployment.url(f"/generations/{quote(past.upstream_id, safe='')}"), headers, b"", method="GET")


def _marked(body: bytes, prefill: Prefill) -> bytes:
    if not (prefill.message or prefill.body):
        return body
    fields: dict[str, Any] = orjson.loads(body)
    fields["messages"][-1] |= prefill.message
    return orjson.dumps({**fields, **prefill.body})


def reattachable(job: Job, past: Past, settings: Settings) -> list[Deployment]:
    """Return the deployments that may still have an answer: those of the provider that gave it, one per key."""
    if not past.upstream_id or settings.provider(past.provider).continuation != "reattach":
        return []
    return [found for found in deployments(job, settings) if found.provider == past.provider]


def continuations(job: Job, past: Past, settings: Settings) -> list[list[Continuation]]:
    """Return how the route can go on with an answer: rounds, the exact ways first, the others in the route's own order."""
    # A round each: where one key does not know the answer, another may.
    exact = [[Continuation(deployment, reattaches=True)] for deployment in reattachable(job, past, settings)]
    found = []
    for deployment in deployments(job, settings, for_rest=True):
        chosen = settings.provider(deployment.provider).continuation
        prefill = find_prefill(deployment.provider, deployment.model, deployment.wire, chosen)
        if not past.progress.text:
            found.append(Continuation(deployment))
        elif prefill or chosen == "instruction":
            found.append(Continuation(deployment, prefill))
    return [*exact, found] if found else exact
