"""May a prompt pass, and what of it?

The input side of the guardrails, before anything is enqueued: on the texts of the client's body, whatever its dialect.
What is to be replaced is replaced in the body itself, for a same-family upstream gets that body; all else of it stays as
it came. Refusals name the guardrail and never what it found; the log has counts alone.
"""

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import structlog

from api.metrics import Metrics
from common.access.principal import GuardrailPolicy, Mode, Principal
from common.canonical.errors import ErrorKind, GatewayError
from common.config.guardrail_policy import Policies
from common.config.model_routes import Target
from common.config.settings import Settings
from common.guardrails.bodies import BodyTexts
from common.guardrails.custom import SEPARATOR, Action, Check, Custom, GuardrailUnavailable, joined

log = structlog.get_logger()

LOOKED_AT_CHARS_MAX = 2_000_000  # A second or two of a processor; more is not looked through.
THREAD_CHARS_MIN = 8_000  # Past some milliseconds the loop is not kept: the expressions run without the interpreter's lock.
RETRY_AFTER_S = 5


@dataclass(slots=True)
class _Look:
    """What is found in one prompt. ``texts`` are what is left of its texts, with whose each is; ``quoted`` are those among
    them that were pieces of JSON, as a whole; ``refused`` says why it must not pass."""

    policy: GuardrailPolicy
    texts: list[str]
    roles: list[str] = field(default_factory=list)
    quoted: list[tuple[str, str]] = field(default_factory=list)
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    slow: list[int] = field(default_factory=list)
    refused: GatewayError | None = None

    def found(self, guardrail: str, counts: Counter[str], refusal: str = "") -> None:
        """Note it; a refusal counts only where the guardrail blocks, and the first one wins."""
        self.counts[guardrail] = self.counts.get(guardrail, Counter()) + counts
        if refusal and self.blocks(guardrail) and not self.refused:
            self.refused = _refusal(guardrail, refusal)

    def is_on(self, guardrail: str) -> bool:
        return getattr(self.policy, guardrail) is not Mode.OFF

    def blocks(self, guardrail: str) -> bool:
        return getattr(self.policy, guardrail) is Mode.BLOCK


class InputGuard:
    """One per process. ``policy`` says what applies; ``check`` does it."""

    def __init__(self, settings: Settings, custom: Custom | None, metrics: Metrics) -> None:
        self._settings = settings
        self._custom = custom or Custom()
        self._metrics = metrics
        self._policies = Policies(settings)
        self._patterns: tuple[Any, ...] | None = None  # Compiled when first needed.

    def policy(self, principal: Principal, sent: str, targets: list[Target]) -> GuardrailPolicy | None:
        """Return what applies to a request; see ``Policies.of``. None: nothing, and nothing is to be done."""
        return self._policies.of(principal, sent, targets)

    async def check(self, policy: GuardrailPolicy, body: dict[str, Any], *, model: str, tenant: str) -> bool:
        """Look through a body, replace in it what is to be replaced, and return whether that was anything.

        Raises:
            GatewayError: INVALID_REQUEST, it must not pass; OVERLOADED, the operator's own guardrail did not say.
        """
        found = BodyTexts.of(body)
        look = _Look(policy, found.texts, found.roles, found.quoted)
        self._measure(look, found)
        chars = sum(map(len, found.texts))
        try:
            if not look.refused:
                if chars > THREAD_CHARS_MIN:
                    await asyncio.to_thread(self._look, look, chars)
                else:
                    self._look(look, chars)
            if not look.refused and self._custom.is_needed(policy.custom):
                await self._ask(look, model, tenant)
        finally:
            self._report(look)
        if look.refused:
            raise look.refused
        found.replace(look.texts)
        return found.has_changed

    def _measure(self, look: _Look, found: BodyTexts) -> None:
        if not look.is_on("size"):
            return
        chars_max, messages_max = self._settings.guardrail_input_chars_max, self._settings.guardrail_messages_max
        chars = sum(map(len, found.texts))
        if chars > chars_max:
            look.found(
                "size",
                Counter(characters=1),
                f"The prompt has {chars} characters, and {chars_max} at most are taken. Send less.",
            )
        if found.messages > messages_max:
            said = f"The prompt has {found.messages} messages, and {messages_max} at most are taken. Send fewer."
            look.found("size", Counter(messages=1), said)

    def _look(self, look: _Look, chars: int) -> None:
        """Hot path of a guarded request: all that needs no waiting. Runs beside the loop for long prompts."""
        # Loaded here, so that whoever has no guardrails has none of their tables in memory.
        from common.guardrails.injection import is_injection
        from common.guardrails.pii import redact
        from common.guardrails.sanitize import sanitize

        looking = [name for name in ("sanitize", "injection", "patterns", "pii") if look.is_on(name)]
        if looking and chars > LOOKED_AT_CHARS_MAX:
            look.counts["size"] = look.counts.get("size", Counter()) + Counter(not_looked_through=1)
            if any(map(look.blocks, looking)):
                said = f"The prompt has {chars} characters; guardrails look through {LOOKED_AT_CHARS_MAX} at most. Send less."
                look.refused = _refusal("size", said)
            return
        if look.is_on("sanitize"):
            cleaned = [sanitize(text) for text in look.texts]
            if removed := sum(count for _, count in cleaned):
                look.found("sanitize", Counter(characters=removed))
            if look.blocks("sanitize"):
                look.texts = [text for text, _ in cleaned]
        if look.is_on("injection"):
            # The application's own words give orders by right, and the model's have been said already.
            judged = [*zip(look.texts, look.roles, strict=True), *look.quoted]
            hits = sum(is_injection(text) for text, role in judged if role == "other")
            if hits:
                look.found(
                    "injection",
                    Counter(texts=hits),
                    "The prompt looks like an attempt to give the model other instructions than its application did. "
                    "Word it differently, or ask the gateway's operator for an exemption.",
                )
        if look.is_on("patterns") and self._settings.guardrail_patterns_in and not look.refused:
            self._match(look)
        if look.is_on("pii") and not look.refused:
            redacted = [redact(text) for text in look.texts]
            if counts := sum((each.counts for each in redacted), Counter[str]()):
                look.found("pii", counts)
            if look.blocks("pii"):
                look.texts = [each.text for each in redacted]

    def _match(self, look: _Look) -> None:
        from common.config.expressions import compiled
        from common.guardrails.patterns import PatternFinder

        if self._patterns is None:
            self._patterns = compiled(self._settings.guardrail_patterns_in)
        finder = PatternFinder(self._patterns, is_closed=look.blocks("patterns"))
        for text in [*look.texts, *(text for text, _ in look.quoted)]:
            if match := finder.find(text, 0):
                said = f"The prompt holds what the gateway's operator lets nobody send (pattern {match.name}). Take it out."
                look.found("patterns", Counter({f"pattern {match.name}": 1}), said)
                if look.refused:
                    break
        look.slow = finder.slow

    async def _ask(self, look: _Look, model: str, tenant: str) -> None:
        try:
            verdict = await self._custom.ask(Check("input", joined(look.texts), model, tenant))
        except GuardrailUnavailable as error:
            log.warning("guardrail_unavailable", side="input", reason=str(error))
            look.found("custom", Counter(unavailable=1))
            if look.blocks("custom"):
                look.refused = _unavailable()
            return
        if verdict.action is Action.BLOCK:
            reason = f": {verdict.reason}" if verdict.reason else ""
            look.found("custom", Counter(block=1), f"The gateway's operator does not let this prompt pass{reason}. Change it.")
        elif verdict.action is Action.REPLACE and verdict.text is not None:
            look.found("custom", Counter(replace=1))
            if look.blocks("custom"):
                look.texts = verdict.text.split(SEPARATOR) if look.texts else []

    def _report(self, look: _Look) -> None:
        for guardrail, counts in look.counts.items():
            mode = getattr(look.policy, guardrail)
            self._metrics.guardrails.labels(guardrail, mode, "input").inc()
            log.info("guardrail", guardrail=guardrail, mode=mode, side="input", found=dict(counts))
        if look.slow:
            log.warning("guardrail_pattern_slow", side="input", patterns=look.slow)


def _refusal(guardrail: str, message: str) -> GatewayError:
    return GatewayError(ErrorKind.INVALID_REQUEST, message, code=f"guardrail_{guardrail}")


def _unavailable() -> GatewayError:
    return GatewayError(
        ErrorKind.OVERLOADED,
        f"The gateway could not have this prompt looked at. Try again in {RETRY_AFTER_S} seconds.",
        code="guardrail_unavailable",
        retry_after_s=RETRY_AFTER_S,
    )
