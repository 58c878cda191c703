"""Which parts of an answer may reach its client?

This is the output side of the guardrails. It works on events, so it does not depend on the wire or the dialect;
``guarded_pump.py`` puts it between the two halves of a pump. ``common.guardrails.table`` defines the guardrails and their
order. Text is held back only while it could be the beginning of a match (see ``common/guardrails/holding.py``).

A guardrail that blocks ends the answer as vendors do: the text before the match, then the finish reason ``content_filter``.
Events keep their order: before another block of the answer begins, the held text of the previous block is flushed.
"""

from collections import Counter
from collections.abc import Callable, Sequence

import structlog

from common.canonical.events import (
    OUTPUT,
    Citation,
    Completed,
    Event,
    Finished,
    FinishReason,
    LeftOut,
    ReasoningDelta,
    ReasoningSigned,
    RedactedReasoning,
    TextDelta,
    ToolCallStarted,
    Usage,
)
from common.canonical.job import Job
from common.config.groups.guardrails import GuardrailSettings
from common.guardrails.custom import CustomGuardrails
from common.guardrails.search import Searches
from common.guardrails.table import CUSTOM, Mode, guardrails_for_side
from workers.metrics import Metrics
from workers.transcode.answer_texts import TEXTS, TextEvent, TextKey, key_of, text_event, text_of
from workers.transcode.custom_guardrail import CustomGuard
from workers.transcode.guarded_text import Active, GuardedText

log = structlog.get_logger()

ROWS = guardrails_for_side("output")


class OutputGuards:
    """The guardrails that the settings define, ready to use. One per process."""

    def __init__(self, settings: GuardrailSettings, custom: CustomGuardrails | None, metrics: Metrics) -> None:
        self._searches = Searches(settings, "output")
        self._custom = custom or CustomGuardrails()
        self._metrics = metrics

    def for_job(self, job: Job) -> "OutputGuard | None":
        """Return a guard for one attempt of a job; None: there is nothing to search for, so bytes may pass unchanged."""
        if job.operation != "generate":
            return None
        modes = job.guardrails
        rows = [row for row in ROWS if row.name in modes]
        active = [Active(row, search, modes[row.name] == Mode.BLOCK) for row in rows if (search := self._searches.search(row))]
        custom, mode = None, modes.get(CUSTOM.name, Mode.OFF)
        if self._custom.is_needed(mode):
            custom = CustomGuard(self._custom, job.model, job.tenant, blocks=mode == Mode.BLOCK)
        return OutputGuard(active, custom, self._metrics) if active or custom else None


class OutputGuard:
    """The guardrails of one attempt. ``blocked``: the guardrail that ended the answer. ``is_cut``: before its upstream did.

    ``awaits_verdict``: the whole answer is held, and ``release_held`` must be called for what the client gets.
    """

    def __init__(self, guardrails: Sequence[Active], custom: CustomGuard | None, metrics: Metrics) -> None:
        self._guardrails, self._custom, self._metrics = guardrails, custom, metrics
        self._texts: dict[TextKey, GuardedText] = {}
        self._current_text: dict[int, TextKey | None] = {}  # By choice: the text that got the last piece.
        self._open: dict[int, bool] = {}  # By choice: whether it has not finished.
        self.has_activity = False  # Whether the upstream has sent any output, passed on or not.
        self.text_bytes = 0
        self.blocked: str | None = None
        self.is_cut = False

    @property
    def awaits_verdict(self) -> bool:
        return self._custom is not None and self._custom.held_end is not None

    @property
    def held_end(self) -> Completed | None:
        """The end of a held answer."""
        return self._custom.held_end if self._custom else None

    def feed(self, events: list[Event], usage: Callable[[], Usage | None]) -> list[Event]:
        """Return the events that can be passed on. ``usage`` returns the answer's usage if it must end here."""
        # Hot path: once per upstream read.
        passed: list[Event] = []
        for event in events:
            if self.blocked:
                break
            self._filter_event(event, passed)
        if self.blocked and not self.is_cut:
            self.is_cut = True
            passed += [*self._content_filter_ends(), Completed(usage())]
        return self._custom.feed(passed) if self._custom else passed

    async def release_held(self) -> list[Event]:
        """Return the events that the client gets of a held answer. Raises like ``CustomGuard.apply_verdict``."""
        return await self._custom.apply_verdict() if self._custom else []

    async def check_afterwards(self) -> None:
        """Check an answer that its client already has."""
        if self._custom:
            await self._custom.check_afterwards()

    def resume(self, known_text: str) -> None:
        """Continue after the text that the client has, so that a match that began in it is found."""
        key: TextKey = (TextDelta, 0, 0)
        self._text(key).resume(known_text)
        self._current_text[0], self._open[0] = key, True

    def _filter_event(self, event: Event, passed: list[Event]) -> None:
        if isinstance(event, TEXTS):
            self._filter_text(event, passed)
            return
        if isinstance(event, Citation):  # Its title and address are not searched.
            passed.append(LeftOut("citations"))
            return
        if isinstance(event, OUTPUT):
            self.has_activity = True
        if self._flush_before(event, passed) and not self.blocked:
            passed.append(event)

    def _flush_before(self, event: Event, passed: list[Event]) -> bool:
        """Flush the texts that an event ends. Return whether the event itself may pass."""
        match event:
            case ToolCallStarted():
                self._open[event.choice] = True
                self._flush_choice(event.choice, passed)
            case RedactedReasoning():
                self._flush_choice(0, passed)
            case ReasoningSigned():
                self._flush_choice(0, passed)
                return not self._is_altered()  # If it was altered, the signature is for another text.
            case Finished():
                self._flush_choice(event.choice, passed)
                self._open[event.choice] = self.blocked is not None
            case Completed():
                for choice in list(self._current_text):
                    self._flush_choice(choice, passed)
        return True

    def _filter_text(self, event: TextEvent, passed: list[Event]) -> None:
        # Hot path: once per delta.
        self.has_activity = True
        key = key_of(event)
        choice = event.choice
        if self._current_text.get(choice) != key:
            self._flush_choice(choice, passed)
            if self.blocked:
                return
            self._current_text[choice], self._open[choice] = key, True
        text = text_of(event)
        self.text_bytes += len(text.encode(errors="replace"))
        guarded_text = self._text(key)
        output = guarded_text.feed(text)
        if blocked := guarded_text.blocked_by:
            self.blocked = blocked
            output += guarded_text.flush()
        if output:
            passed.append(text_event(key, output))

    def _flush_choice(self, choice: int, passed: list[Event]) -> None:
        """Flush the current text of a choice: it is over, at least for now."""
        key = self._current_text.get(choice)
        if key is None:
            return
        guarded_text = self._texts[key]
        if output := guarded_text.flush():
            passed.append(text_event(key, output))
        self._current_text[choice] = None
        self.blocked = guarded_text.blocked_by or self.blocked

    def _text(self, key: TextKey) -> GuardedText:
        guarded_text = self._texts.get(key)
        if guarded_text is None:
            guarded_text = self._texts[key] = GuardedText(self._guardrails)
        return guarded_text

    def _is_altered(self) -> bool:
        """Whether anything was replaced in the reasoning text that a signature closes."""
        thinking = self._texts.get((ReasoningDelta, 0, 0))
        if thinking is None:
            return False
        before_marks, thinking.marks_at_signature = thinking.marks_at_signature, thinking.marks
        return thinking.marks > before_marks

    def _content_filter_ends(self) -> list[Event]:
        """Return the end of each open choice, as if its vendor had filtered it."""
        return [
            Finished(FinishReason.CONTENT_FILTER, choice=choice) for choice, is_open in sorted(self._open.items()) if is_open
        ]

    def report(self) -> None:
        """Log and count the matches, once per attempt."""
        counts_by_name: dict[str, Counter[str]] = {}
        for guarded_text in self._texts.values():
            for name, counts in guarded_text.counts().items():
                counts_by_name[name] = counts_by_name.get(name, Counter()) + counts
        modes = {active.row.name: Mode.BLOCK if active.blocks else Mode.LOG for active in self._guardrails}
        if self._custom and self._custom.counts:
            counts_by_name[CUSTOM.name], modes[CUSTOM.name] = self._custom.counts, self._custom.mode
        for guardrail, counts in counts_by_name.items():
            mode = str(modes[guardrail])
            self._metrics.guardrails.labels(guardrail, mode, "output").inc()
            log.info("guardrail", guardrail=guardrail, mode=mode, side="output", found=dict(counts))
        if slow_patterns := {number for guarded_text in self._texts.values() for number in guarded_text.slow_patterns()}:
            log.warning("guardrail_pattern_slow", side="output", patterns=sorted(slow_patterns))
