"""How does an operator's own guardrail check an answer?

It is called once, when the answer is complete. In mode block, only the answer's start event reaches the client before that. In
mode log nothing is held, and the verdict is only logged. The call itself is in ``common.guardrails.custom``.
"""

from collections import Counter
from contextlib import suppress

import structlog

from common.canonical.errors import ErrorKind, Failed, GatewayError
from common.canonical.events import Completed, Event, Finished, FinishReason, ReasoningDelta, ReasoningSigned, Started
from common.canonical.wording import try_again
from common.guardrails.custom import SEPARATOR, Action, Check, CustomGuardrails, GuardrailUnavailable, Verdict, join_texts
from common.guardrails.table import Mode
from workers.transcode.answer_texts import TEXTS, TextKey, key_of, text_event, text_of

log = structlog.get_logger()

RETRY_AFTER_S = 5


class CustomGuard:
    """The custom guardrail of one answer. ``held_end``: the end of a complete, held answer, until ``apply_verdict`` runs."""

    def __init__(self, custom: CustomGuardrails, model: str, tenant: str, *, blocks: bool) -> None:
        self._custom, self._model, self._tenant, self._blocks = custom, model, tenant, blocks
        self._texts: dict[TextKey, list[str]] = {}
        self._held_events: list[Event] = []
        self.held_end: Completed | None = None
        self.counts: Counter[str] = Counter()

    @property
    def mode(self) -> Mode:
        return Mode.BLOCK if self._blocks else Mode.LOG

    def feed(self, events: list[Event]) -> list[Event]:
        """Return the events that can be passed on before the verdict."""
        for event in events:
            if isinstance(event, TEXTS):
                self._texts.setdefault(key_of(event), []).append(text_of(event))
        if not self._blocks:
            return events
        passed: list[Event] = []
        for event in events:
            (passed if isinstance(event, Started | Failed) else self._held_events).append(event)
            if isinstance(event, Completed):
                self.held_end = event
        return passed

    async def apply_verdict(self) -> list[Event]:
        """Ask for the verdict on a complete, held answer. Return the events that the client gets.

        Raises:
            GatewayError: OVERLOADED, the guardrail gave no verdict.
        """
        self.held_end = None
        try:
            verdict = await self._request_verdict()
        except GuardrailUnavailable as error:
            raise GatewayError(
                ErrorKind.OVERLOADED,
                f"The gateway's guardrail could not check this answer. {try_again(RETRY_AFTER_S)}",
                code="guardrail_unavailable",
                retry_after_s=RETRY_AFTER_S,
            ) from error
        if verdict.action is Action.BLOCK:
            choices = sorted({event.choice for event in self._held_events if isinstance(event, Finished)})
            ended: list[Event] = [Finished(FinishReason.CONTENT_FILTER, choice=choice) for choice in choices]
            return [*ended, *(event for event in self._held_events if isinstance(event, Completed))]
        if verdict.action is Action.REPLACE and verdict.text is not None and self._texts:
            return self._with_texts(verdict.text.split(SEPARATOR))
        return self._held_events

    async def check_afterwards(self) -> None:
        """Check an answer that its client already has, in mode log. The verdict is only logged and counted."""
        if not self._blocks:
            with suppress(GuardrailUnavailable):  # It is logged already.
                await self._request_verdict()

    async def _request_verdict(self) -> Verdict:
        texts = join_texts(["".join(pieces) for pieces in self._texts.values()])
        try:
            verdict = await self._custom.evaluate(Check("output", texts, self._model, self._tenant))
        except GuardrailUnavailable as error:
            log.warning("guardrail_unavailable", side="output", reason=str(error))
            self.counts["unavailable"] += 1
            raise
        if verdict.action is not Action.ALLOW:
            self.counts[verdict.action] += 1
        return verdict

    def _with_texts(self, texts: list[str]) -> list[Event]:
        """Return the held events with new texts. Each new text stands where the first piece of the old one stood."""
        new_texts = dict(zip(self._texts, texts, strict=True))
        is_rethought = any(new_texts[key] != "".join(self._texts[key]) for key in new_texts if key[0] is ReasoningDelta)
        events, replaced_keys = [], set()
        for event in self._held_events:
            if isinstance(event, TEXTS):
                key = key_of(event)
                if key not in replaced_keys and new_texts[key]:
                    events.append(text_event(key, new_texts[key]))
                replaced_keys.add(key)
            elif not (isinstance(event, ReasoningSigned) and is_rethought):
                events.append(event)
        return events
