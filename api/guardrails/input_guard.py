"""May a prompt pass the guardrails, and what must be replaced in it?

This is the input side. It runs before anything is enqueued, on the texts of the client's body in any dialect.
``common.guardrails.table`` lists the guardrails in their order. Replacements are made in the body itself: an upstream of
the same family gets that body. Everything else in it stays as it came. A refusal names the guardrail, never what it matched.
The log only has counts.
"""

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import structlog

from api.metrics import ApiMetrics
from common.access.principal import GuardrailPolicy, Principal
from common.canonical.errors import ErrorKind, GatewayError
from common.canonical.wording import try_again
from common.config.guardrail_policy import GuardrailPolicies
from common.config.model_routes import Target
from common.config.settings import Settings
from common.guardrails.bodies import BodyTexts
from common.guardrails.custom import SEPARATOR, Action, Check, CustomGuardrails, GuardrailUnavailable, Verdict, join_texts
from common.guardrails.search import Findings, Prompt, Searches
from common.guardrails.table import CUSTOM, SIZE, Block, Guardrail, Mode, guardrails_for_side

log = structlog.get_logger()

SEARCHED_CHARS_MAX = 2_000_000  # Takes a second or two of a processor. A longer prompt is not searched.
THREAD_CHARS_MIN = 8_000  # A thread searches longer prompts: they take milliseconds. The expressions release the GIL.
RETRY_AFTER_S = 5
ROWS = guardrails_for_side("input")


@dataclass(slots=True)
class _Review:
    """What the guardrails match in one prompt. ``counts`` is by guardrail. ``refused``: why the prompt must not pass."""

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

    def refuse(self, row: Guardrail, detail: str) -> None:
        self.refused = GatewayError(ErrorKind.INVALID_REQUEST, row.refusal.format(detail=detail), code=row.code)

    def apply_findings(self, row: Guardrail, findings: Findings) -> None:
        """Count what a guardrail matched. If it blocks, refuse the prompt or replace the matches, as the guardrail demands."""
        self.count(row, findings.counts)
        self.slow += findings.slow
        if not self.blocks(row):
            return
        if row.block is Block.REPLACE and findings.texts is not None:
            self.prompt.texts = findings.texts
        elif row.block is Block.REFUSE and findings.counts:
            self.refuse(row, findings.detail)

    def apply_verdict(self, verdict: Verdict) -> None:
        """Do the same for the verdict of the operator's own guardrail."""
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
    """One per process. ``policy`` says which guardrails apply. ``check`` runs them."""

    def __init__(self, settings: Settings, custom: CustomGuardrails | None, metrics: ApiMetrics) -> None:
        self._custom = custom or CustomGuardrails()
        self._metrics = metrics
        self._policies = GuardrailPolicies(settings)
        self._searches = Searches(settings, "input")

    def policy(self, principal: Principal, sent: str, targets: list[Target]) -> GuardrailPolicy | None:
        """Return what applies to a request; see ``Policies.of``. None: no guardrail applies."""
        return self._policies.find(principal, sent, targets)

    async def check(self, policy: GuardrailPolicy, body: dict[str, Any], *, model: str, tenant: str) -> bool:
        """Search a body, replace what must be replaced, and return whether the body has changed.

        Raises:
            GatewayError: INVALID_REQUEST, the prompt must not pass; OVERLOADED, the operator's own guardrail did not answer.
        """
        texts = BodyTexts.from_body(body)
        review = _Review(policy, Prompt(texts.texts, texts.roles, texts.quoted, texts.messages))
        try:
            await self._examine(review)
            if not review.refused and self._custom.is_needed(policy.mode(CUSTOM.name)):
                await self._call_custom(review, model, tenant)
        finally:
            self._report(review)
        if review.refused:
            raise review.refused
        texts.replace(review.prompt.texts)
        return texts.has_changed

    async def _examine(self, review: _Review) -> None:
        chars = review.prompt.chars
        if chars > THREAD_CHARS_MIN:
            await asyncio.to_thread(self._search, review, chars)
        else:
            self._search(review, chars)

    def _search(self, review: _Review, chars: int) -> None:
        """Run the guardrails that need no waiting. Hot path of a guarded request. For a long prompt it runs in a thread."""
        for row in review.on():
            if review.refused or row.block is Block.VERDICT:
                break
            if row is not SIZE and chars > SEARCHED_CHARS_MAX:
                _skip_search(review, chars)
                break
            if search := self._searches.search(row):
                review.apply_findings(row, search.examine(review.prompt, row, blocks=review.blocks(row)))

    async def _call_custom(self, review: _Review, model: str, tenant: str) -> None:
        try:
            verdict = await self._custom.evaluate(Check("input", join_texts(review.prompt.texts), model, tenant))
        except GuardrailUnavailable as error:
            log.warning("guardrail_unavailable", side="input", reason=str(error))
            review.count(CUSTOM, Counter(unavailable=1))
            if review.blocks(CUSTOM):
                review.refused = _unavailable()
            return
        review.apply_verdict(verdict)

    def _report(self, review: _Review) -> None:
        for guardrail, counts in review.counts.items():
            mode = review.policy.mode(guardrail)
            self._metrics.guardrails.labels(guardrail, mode, "input").inc()
            log.info("guardrail", guardrail=guardrail, mode=mode, side="input", found=dict(counts))
        if review.slow:
            log.warning("guardrail_pattern_slow", side="input", patterns=review.slow)


def _skip_search(review: _Review, chars: int) -> None:
    """Let a prompt that is too long to be searched pass only if none of the skipped guardrails would block."""
    review.count(SIZE, Counter(not_looked_through=1))
    if any(review.blocks(row) for row in review.on() if row is not SIZE and row.block is not Block.VERDICT):
        review.refuse(SIZE, f"{chars} characters; guardrails search at most {SEARCHED_CHARS_MAX}. Send less")


def _unavailable() -> GatewayError:
    return GatewayError(
        ErrorKind.OVERLOADED,
        f"The gateway could not have this prompt checked. {try_again(RETRY_AFTER_S)}",
        code="guardrail_unavailable",
        retry_after_s=RETRY_AFTER_S,
    )
