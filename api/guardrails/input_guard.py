"""May a prompt pass, and what of it?

The input side of the guardrails, before anything is enqueued: on the texts of the client's body, whatever its dialect. Which
guardrails there are, and in what order, is said by ``common.guardrails.table``. What is to be replaced is replaced in the body
itself, for a same-family upstream gets that body; all else of it stays as it came. Refusals name the guardrail and never what
it found; the log has counts alone.
"""

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import structlog

from api.metrics import Metrics
from common.access.principal import GuardrailPolicy, Principal
from common.canonical.errors import ErrorKind, GatewayError
from common.config.guardrail_policy import Policies
from common.config.model_routes import Target
from common.config.settings import Settings
from common.guardrails.bodies import BodyTexts
from common.guardrails.custom import SEPARATOR, Action, Check, CustomGuardrails, GuardrailUnavailable, Verdict, join_texts
from common.guardrails.search import Findings, Prompt, Searches
from common.guardrails.table import CUSTOM, SIZE, Block, Guardrail, Mode, guardrails_for_side

log = structlog.get_logger()

LOOKED_AT_CHARS_MAX = 2_000_000  # A second or two of a processor; more is not looked through.
THREAD_CHARS_MIN = 8_000  # Past some milliseconds the loop is not kept: the expressions run without the interpreter's lock.
RETRY_AFTER_S = 5
ROWS = guardrails_for_side("input")


@dataclass(slots=True)
class _Review:
    """What is found in one prompt: ``counts`` by guardrail. ``refused`` says why it must not pass."""

    policy: GuardrailPolicy
    prompt: Prompt
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    slow: list[int] = field(default_factory=list)
    refused: GatewayError | None = None

    def blocks(self, row: Guardrail) -> bool:
        return self.policy.mode(row.name) is Mode.BLOCK

    def on(self) -> list[Guardrail]:
        return [row for row in ROWS if self.policy.mode(row.name) is not Mode.OFF]

    def count(self, row: Guardrail, counts: Counter[str]) -> None:
        if counts:
            self.counts[row.name] = self.counts.get(row.name, Counter()) + counts

    def refuse(self, row: Guardrail, found: str) -> None:
        self.refused = GatewayError(ErrorKind.INVALID_REQUEST, row.refusal.format(detail=found), code=row.code)

    def take(self, row: Guardrail, findings: Findings) -> None:
        """Count what a guardrail found, and where it blocks do what that means for it."""
        self.count(row, findings.counts)
        self.slow += findings.slow
        if not self.blocks(row):
            return
        if row.block is Block.REPLACE and findings.texts is not None:
            self.prompt.texts = findings.texts
        elif row.block is Block.REFUSE and findings.counts:
            self.refuse(row, findings.detail)

    def take_verdict(self, verdict: Verdict) -> None:
        """The same for what the operator's own guardrail says."""
        if verdict.action is Action.ALLOW:
            return
        self.count(CUSTOM, Counter({str(verdict.action): 1}))
        if not self.blocks(CUSTOM):
            return
        if verdict.action is Action.BLOCK:
            self.refuse(CUSTOM, f": {verdict.reason}" if verdict.reason else "")
        elif verdict.text is not None:
            self.prompt.texts = verdict.text.split(SEPARATOR) if self.prompt.texts else []


class InputGuard:
    """One per process. ``policy`` says what applies; ``check`` does it."""

    def __init__(self, settings: Settings, custom: CustomGuardrails | None, metrics: Metrics) -> None:
        self._custom = custom or CustomGuardrails()
        self._metrics = metrics
        self._policies = Policies(settings)
        self._searches = Searches(settings, "input")

    def policy(self, principal: Principal, sent: str, targets: list[Target]) -> GuardrailPolicy | None:
        """Return what applies to a request; see ``Policies.of``. None: nothing, and nothing is to be done."""
        return self._policies.of(principal, sent, targets)

    async def check(self, policy: GuardrailPolicy, body: dict[str, Any], *, model: str, tenant: str) -> bool:
        """Look through a body, replace in it what is to be replaced, and return whether that was anything.

        Raises:
            GatewayError: INVALID_REQUEST, it must not pass; OVERLOADED, the operator's own guardrail did not say.
        """
        found = BodyTexts.from_body(body)
        review = _Review(policy, Prompt(found.texts, found.roles, found.quoted, found.messages))
        try:
            await self._examine(review)
            if not review.refused and self._custom.is_needed(policy.mode(CUSTOM.name)):
                await self._ask(review, model, tenant)
        finally:
            self._report(review)
        if review.refused:
            raise review.refused
        found.replace(review.prompt.texts)
        return found.has_changed

    async def _examine(self, review: _Review) -> None:
        chars = review.prompt.chars
        if chars > THREAD_CHARS_MIN:
            await asyncio.to_thread(self._search, review, chars)
        else:
            self._search(review, chars)

    def _search(self, review: _Review, chars: int) -> None:
        """Hot path of a guarded request: all that needs no waiting. Runs beside the loop for long prompts."""
        for row in review.on():
            if review.refused or row.block is Block.VERDICT:
                break
            if row is not SIZE and chars > LOOKED_AT_CHARS_MAX:
                _leave_out(review, chars)
                break
            if search := self._searches.search(row):
                review.take(row, search.examine(review.prompt, row, blocks=review.blocks(row)))

    async def _ask(self, review: _Review, model: str, tenant: str) -> None:
        try:
            verdict = await self._custom.evaluate(Check("input", join_texts(review.prompt.texts), model, tenant))
        except GuardrailUnavailable as error:
            log.warning("guardrail_unavailable", side="input", reason=str(error))
            review.count(CUSTOM, Counter(unavailable=1))
            if review.blocks(CUSTOM):
                review.refused = _unavailable()
            return
        review.take_verdict(verdict)

    def _report(self, review: _Review) -> None:
        for guardrail, counts in review.counts.items():
            mode = review.policy.mode(guardrail)
            self._metrics.guardrails.labels(guardrail, mode, "input").inc()
            log.info("guardrail", guardrail=guardrail, mode=mode, side="input", found=dict(counts))
        if review.slow:
            log.warning("guardrail_pattern_slow", side="input", patterns=review.slow)


def _leave_out(review: _Review, chars: int) -> None:
    """A prompt that is too long to be looked through passes only where nothing that would look through it blocks."""
    review.count(SIZE, Counter(not_looked_through=1))
    if any(review.blocks(row) for row in review.on() if row is not SIZE and row.block is not Block.VERDICT):
        review.refuse(SIZE, f"{chars} characters; guardrails look through {LOOKED_AT_CHARS_MAX} at most. Send less")


def _unavailable() -> GatewayError:
    return GatewayError(
        ErrorKind.OVERLOADED,
        f"The gateway could not have this prompt looked at. Try again in {RETRY_AFTER_S} seconds.",
        code="guardrail_unavailable",
        retry_after_s=RETRY_AFTER_S,
    )
