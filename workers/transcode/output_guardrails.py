"""What of an answer may reach its client?

The output side of the guardrails, on events, so whatever the wire and the dialect; ``guarded_pump.py`` puts it between the two
halves of a pump. Which guardrails there are, and in what order, is said by ``common.guardrails.table``. Text is held back only
as far as it could be the beginning of a match (see ``common/guardrails/holding.py``).

A guardrail that refuses ends the answer as vendors do it themselves: what came before, then the finish reason
``content_filter``. Events stay in their order: before another block of the answer begins, the one before it is let go.
"""

from collections import Counter
from collections.abc import Callable, Sequence

import structlog

from common.canonical.events import (
    OUTPUT,
    Completed,
    Event,
    Finished,
    FinishReason,
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
    """One per process: what the settings say, ready to be used."""

    def __init__(self, settings: GuardrailSettings, custom: CustomGuardrails | None, metrics: Metrics) -> None:
        self._searches = Searches(settings, "output")
        self._custom = custom or CustomGuardrails()
        self._metrics = metrics

    def of(self, job: Job) -> "OutputGuard | None":
        """Return a guard for one try of a job; None where nothing is to be looked for: then bytes may pass."""
        if job.operation != "generate":
            return None
        modes = job.guardrails
        on = [row for row in ROWS if row.name in modes]
        active = [Active(row, found, modes[row.name] == Mode.BLOCK) for row in on if (found := self._searches.search(row))]
        custom, mode = None, modes.get(CUSTOM.name, Mode.OFF)
        if self._custom.is_needed(mode):
            custom = CustomGuard(self._custom, job.model, job.tenant, blocks=mode == Mode.BLOCK)
        return OutputGuard(active, custom, self._metrics) if active or custom else None


class OutputGuard:
    """The guardrails of one try. ``blocked`` names the one that ended the answer; ``is_cut``: its upstream was not done yet.

    ``waits``: the whole answer is held, and ``settle`` is to be asked what becomes of it.
    """

    def __init__(self, guardrails: Sequence[Active], custom: CustomGuard | None, metrics: Metrics) -> None:
        self._guardrails, self._custom, self._metrics = guardrails, custom, metrics
        self._texts: dict[TextKey, GuardedText] = {}
        self._speaking: dict[int, TextKey | None] = {}  # By choice: the text that was extended last.
        self._open: dict[int, bool] = {}  # By choice: whether it has not finished.
        self.has_heard = False  # Whether the upstream has said anything, passed on or not.
        self.said_bytes = 0
        self.blocked: str | None = None
        self.is_cut = False

    @property
    def waits(self) -> bool:
        return self._custom is not None and self._custom.held_end is not None

    @property
    def held_end(self) -> Completed | None:
        """The end of an answer that is held."""
        return self._custom.held_end if self._custom else None

    def feed(self, events: list[Event], usage: Callable[[], Usage | None]) -> list[Event]:
        """Return what can be passed on; ``usage`` is what the answer has cost should it end here."""
        # Hot path: once per upstream read.
        passed: list[Event] = []
        for event in events:
            if self.blocked:
                break
            self._take(event, passed)
        if self.blocked and not self.is_cut:
            self.is_cut = True
            passed += [*self._filtered(), Completed(usage())]
        return self._custom.feed(passed) if self._custom else passed

    async def settle(self) -> list[Event]:
        """Return what the client gets of an answer that was held. Raises as ``CustomGuard.judge`` does."""
        return await self._custom.judge() if self._custom else []

    async def watch(self) -> None:
        """Have an answer looked at that its client has."""
        if self._custom:
            await self._custom.watch()

    def resume(self, said: str) -> None:
        """Go on behind the text that the client has: a match that began in it is found."""
        key: TextKey = (TextDelta, 0, 0)
        self._text(key).resume(said)
        self._speaking[0], self._open[0] = key, True

    def _take(self, event: Event, passed: list[Event]) -> None:
        if isinstance(event, TEXTS):
            self._take_text(event, passed)
            return
        if isinstance(event, OUTPUT):
            self.has_heard = True
        if self._let_go_before(event, passed) and not self.blocked:
            passed.append(event)

    def _let_go_before(self, event: Event, passed: list[Event]) -> bool:
        """Let go the texts that are over with an event; return whether the event itself may pass."""
        match event:
            case ToolCallStarted():
                self._open[event.choice] = True
                self._let_go(event.choice, passed)
            case RedactedReasoning():
                self._let_go(0, passed)
            case ReasoningSigned():
                self._let_go(0, passed)
                return not self._is_altered()  # Else it signs another text.
            case Finished():
                self._let_go(event.choice, passed)
                self._open[event.choice] = self.blocked is not None
            case Completed():
                for choice in list(self._speaking):
                    self._let_go(choice, passed)
        return True

    def _take_text(self, event: TextEvent, passed: list[Event]) -> None:
        # Hot path: once per delta.
        self.has_heard = True
        key = key_of(event)
        choice = event.choice
        if self._speaking.get(choice) != key:
            self._let_go(choice, passed)
            if self.blocked:
                return
            self._speaking[choice], self._open[choice] = key, True
        text = text_of(event)
        self.said_bytes += len(text.encode(errors="replace"))
        guarded = self._text(key)
        said = guarded.feed(text)
        if blocked := guarded.blocked_by:
            self.blocked = blocked
            said += guarded.flush()
        if said:
            passed.append(text_event(key, said))

    def _let_go(self, choice: int, passed: list[Event]) -> None:
        """The text that a choice was saying is over, for now at least."""
        key = self._speaking.get(choice)
        if key is None:
            return
        guarded = self._texts[key]
        if said := guarded.flush():
            passed.append(text_event(key, said))
        self._speaking[choice] = None
        self.blocked = guarded.blocked_by or self.blocked

    def _text(self, key: TextKey) -> GuardedText:
        found = self._texts.get(key)
        if found is None:
            found = self._texts[key] = GuardedText(self._guardrails)
        return found

    def _is_altered(self) -> bool:
        """Whether anything was replaced in the thinking that a signature closes."""
        thinking = self._texts.get((ReasoningDelta, 0, 0))
        if thinking is None:
            return False
        told, thinking.marks_told = thinking.marks_told, thinking.marks
        return thinking.marks > told

    def _filtered(self) -> list[Event]:
        """Every choice that has not finished ends like one that its vendor filtered."""
        return [
            Finished(FinishReason.CONTENT_FILTER, choice=choice) for choice, is_open in sorted(self._open.items()) if is_open
        ]

    def report(self) -> None:
        """Log and count what was found. Once per try."""
        found: dict[str, Counter[str]] = {}
        for guarded in self._texts.values():
            for name, counts in guarded.counts().items():
                found[name] = found.get(name, Counter()) + counts
        modes = {each.row.name: Mode.BLOCK if each.blocks else Mode.LOG for each in self._guardrails}
        if self._custom and self._custom.counts:
            found[CUSTOM.name], modes[CUSTOM.name] = self._custom.counts, self._custom.mode
        for guardrail, counts in found.items():
            mode = str(modes[guardrail])
            self._metrics.guardrails.labels(guardrail, mode, "output").inc()
            log.info("guardrail", guardrail=guardrail, mode=mode, side="output", found=dict(counts))
        if slow := {number for guarded in self._texts.values() for number in guarded.slow()}:
            log.warning("guardrail_pattern_slow", side="output", patterns=sorted(slow))
