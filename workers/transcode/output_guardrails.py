"""What of an answer may reach its client?

The output side of the guardrails: between a decoder and an encoder, on events, so whatever the wire and the dialect. Text is
held back only as far as it could be the beginning of a match (see ``common/guardrails/holding.py``). Where an operator's own
guardrail decides, all of the answer is held until its end.

A blocked pattern ends the answer as vendors do it themselves: what came before it, then the finish reason
``content_filter``. Events stay in their order: before another block of the answer begins, the one before it is let go.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import structlog

from common.canonical.errors import ErrorKind, Failed, GatewayError
from common.canonical.events import (
    OUTPUT,
    Completed,
    Event,
    Finished,
    FinishReason,
    RedactedThinking,
    RefusalDelta,
    Started,
    TextDelta,
    ThinkingDelta,
    ThinkingSigned,
    ToolCallDelta,
    ToolCallStarted,
    Usage,
)
from common.canonical.generation import GenerationRequest
from common.canonical.job import Job
from common.config.groups.guardrails import GuardrailSettings
from common.guardrails.custom import SEPARATOR, Action, Check, Custom, GuardrailUnavailable, Verdict, joined
from common.metering.token_estimate import estimate_tokens, filled, tokens_in_bytes
from workers.metrics import Metrics
from workers.providers.base import Decoder, Wire
from workers.transcode.guarded_text import GuardedText

log = structlog.get_logger()

RETRY_AFTER_S = 5

TextEvent = TextDelta | RefusalDelta | ThinkingDelta | ToolCallDelta
_TEXTS = (TextDelta, RefusalDelta, ThinkingDelta, ToolCallDelta)
# One text of an answer: what kind, of which choice, and which tool call.
_Key = tuple[type[TextEvent], int, int]


class OutputGuards:
    """One per process: what the settings say, ready to be used."""

    def __init__(self, settings: GuardrailSettings, custom: Custom | None, metrics: Metrics) -> None:
        self._sources = settings.guardrail_patterns_out
        self._patterns: tuple[Any, ...] | None = None  # Compiled when first needed.
        self._custom = custom or Custom()
        self._metrics = metrics

    def of(self, job: Job) -> "OutputGuard | None":
        """Return a guard for one try of a job; None where nothing is to be looked for: then bytes may pass."""
        modes = dict(job.guardrails)
        if not self._sources:
            modes.pop("patterns", None)
        if not self._custom.is_needed(modes.get("custom", "off")):
            modes.pop("custom", None)
        if not modes or job.operation != "generate":
            return None
        return OutputGuard(modes, self._compiled() if "patterns" in modes else (), self._custom, self._metrics, job)

    def _compiled(self) -> tuple[Any, ...]:
        from common.config.expressions import compiled

        if self._patterns is None:
            self._patterns = compiled(self._sources)
        return self._patterns


class OutputGuard:
    """The guardrails of one try. ``blocked`` names the one that ended the answer; ``is_cut``: its upstream was not done yet.

    ``waits``: the whole answer is held, and ``judge`` is to be asked what becomes of it.
    """

    def __init__(
        self, modes: Mapping[str, str], patterns: Sequence[Any], custom: Custom | None, metrics: Metrics, job: Job
    ) -> None:
        self._modes, self._patterns, self._metrics, self._job = modes, patterns, metrics, job
        self._custom = custom if "custom" in modes else None
        self._holds_all = modes.get("custom") == "block"
        self._texts: dict[_Key, GuardedText] = {}
        self._speaking: dict[int, _Key | None] = {}  # By choice: the text that was extended last.
        self._open: dict[int, bool] = {}  # By choice: whether it has not finished.
        self._kept: list[Event] = []
        self._said: dict[_Key, list[str]] = {}  # For the operator's own guardrail.
        self._own: Counter[str] = Counter()
        self.has_heard = False  # Whether the upstream has said anything, passed on or not.
        self.said_bytes = 0
        self.blocked: str | None = None
        self.is_cut = False
        self.waits = False

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
        return self._held(passed) if self._custom else passed

    def resume(self, said: str) -> None:
        """Go on behind the text that the client has: a match that began in it is found."""
        key: _Key = (TextDelta, 0, 0)
        self._text(key).resume(said)
        self._speaking[0], self._open[0] = key, True

    def _take(self, event: Event, passed: list[Event]) -> None:
        if isinstance(event, _TEXTS):
            self._take_text(event, passed)
            return
        if isinstance(event, OUTPUT):
            self.has_heard = True
        match event:
            case ToolCallStarted():
                self._open[event.choice] = True
                self._let_go(event.choice, passed)
            case RedactedThinking():
                self._let_go(0, passed)
            case ThinkingSigned():
                self._let_go(0, passed)
                if self._is_altered():
                    return  # It signs another text.
            case Finished():
                self._let_go(event.choice, passed)
                self._open[event.choice] = self.blocked is not None
            case Completed():
                for choice in list(self._speaking):
                    self._let_go(choice, passed)
        if not self.blocked:
            passed.append(event)

    def _take_text(self, event: TextEvent, passed: list[Event]) -> None:
        # Hot path: once per delta.
        self.has_heard = True
        key = _key(event)
        choice = event.choice
        if self._speaking.get(choice) != key:
            self._let_go(choice, passed)
            if self.blocked:
                return
            self._speaking[choice], self._open[choice] = key, True
        text = event.arguments if isinstance(event, ToolCallDelta) else event.text
        self.said_bytes += len(text.encode(errors="replace"))
        guarded = self._text(key)
        said = guarded.feed(text)
        if guarded.is_blocked:
            self.blocked = "patterns"
            said += guarded.flush()
        if said:
            passed.append(_event(key, said))

    def _let_go(self, choice: int, passed: list[Event]) -> None:
        """The text that a choice was saying is over, for now at least."""
        key = self._speaking.get(choice)
        if key is None:
            return
        guarded = self._texts[key]
        if said := guarded.flush():
            passed.append(_event(key, said))
        self._speaking[choice] = None
        if guarded.is_blocked:
            self.blocked = "patterns"

    def _text(self, key: _Key) -> GuardedText:
        found = self._texts.get(key)
        if found is None:
            found = self._texts[key] = GuardedText(self._modes, self._patterns)
        return found

    def _is_altered(self) -> bool:
        """Whether anything was replaced in the thinking that a signature closes."""
        thinking = self._texts.get((ThinkingDelta, 0, 0))
        if thinking is None:
            return False
        told, thinking.marks_told = thinking.marks_told, thinking.marks
        return thinking.marks > told

    def _filtered(self) -> list[Event]:
        """Every choice that has not finished ends like one that its vendor filtered."""
        return [
            Finished(FinishReason.CONTENT_FILTER, choice=choice) for choice, is_open in sorted(self._open.items()) if is_open
        ]

    # An operator's own guardrail, which sees the whole answer

    def _held(self, events: list[Event]) -> list[Event]:
        for event in events:
            if isinstance(event, _TEXTS):
                text = event.arguments if isinstance(event, ToolCallDelta) else event.text
                self._said.setdefault(_key(event), []).append(text)
        if not self._holds_all:
            return events
        passed: list[Event] = [event for event in events if isinstance(event, Started | Failed)]
        self._kept += [event for event in events if not isinstance(event, Started | Failed)]
        self.waits = self.waits or any(isinstance(event, Completed) for event in events)
        return passed

    async def judge(self) -> list[Event]:
        """Return what the client gets of an answer that is complete, all of which was held.

        Raises:
            GatewayError: OVERLOADED, the guardrail did not say.
        """
        self.waits = False
        try:
            verdict = await self._ask()
        except GuardrailUnavailable as error:
            raise GatewayError(
                ErrorKind.OVERLOADED,
                f"The gateway could not have this answer looked at. Try again in {RETRY_AFTER_S} seconds.",
                code="guardrail_unavailable",
                retry_after_s=RETRY_AFTER_S,
            ) from error
        if verdict.action is Action.BLOCK:
            self.blocked = "custom"
            choices = sorted({event.choice for event in self._kept if isinstance(event, Finished)})
            ended: list[Event] = [Finished(FinishReason.CONTENT_FILTER, choice=choice) for choice in choices]
            return [*ended, *(event for event in self._kept if isinstance(event, Completed))]
        if verdict.action is Action.REPLACE and verdict.text is not None and self._said:
            return self._replaced(verdict.text.split(SEPARATOR))
        return self._kept

    async def watch(self) -> None:
        """Have an answer looked at that its client has: in mode log it is only noted."""
        if self._custom and not self._holds_all:
            with suppress(GuardrailUnavailable):  # It is in the log.
                await self._ask()

    async def _ask(self) -> Verdict:
        assert self._custom is not None
        texts = joined(["".join(pieces) for pieces in self._said.values()])
        try:
            verdict = await self._custom.ask(Check("output", texts, self._job.model, self._job.tenant))
        except GuardrailUnavailable as error:
            log.warning("guardrail_unavailable", side="output", reason=str(error))
            self._own["unavailable"] += 1
            raise
        if verdict.action is not Action.ALLOW:
            self._own[verdict.action] += 1
        return verdict

    def _replaced(self, texts: list[str]) -> list[Event]:
        """The events with other texts: each stands where the first piece of the one before it stood."""
        new = dict(zip(self._said, texts, strict=True))
        is_rethought = any(new[key] != "".join(self._said[key]) for key in new if key[0] is ThinkingDelta)
        said, told = [], set()
        for event in self._kept:
            if isinstance(event, _TEXTS):
                key = _key(event)
                if key not in told and new[key]:
                    said.append(_event(key, new[key]))
                told.add(key)
            elif not (isinstance(event, ThinkingSigned) and is_rethought):
                said.append(event)
        return said

    def report(self) -> None:
        """Log and count what was found. Once per try."""
        found: dict[tuple[str, str], Counter[str]] = {}
        slow: set[int] = set()
        for guarded in self._texts.values():
            for name, count in guarded.counts().items():
                guardrail = "patterns" if name.isdecimal() else "pii"
                label = f"pattern {name}" if name.isdecimal() else name
                found.setdefault((guardrail, self._modes[guardrail]), Counter())[label] += count
            slow.update(guarded.patterns.slow if "patterns" in self._modes else ())
        if self._own:
            found["custom", self._modes["custom"]] = self._own
        for (guardrail, mode), counts in found.items():
            self._metrics.guardrails.labels(guardrail, mode, "output").inc()
            log.info("guardrail", guardrail=guardrail, mode=mode, side="output", found=dict(counts))
        if slow:
            log.warning("guardrail_pattern_slow", side="output", patterns=sorted(slow))


def _key(event: TextEvent) -> _Key:
    return type(event), event.choice, event.index if isinstance(event, ToolCallDelta) else 0


def _event(key: _Key, text: str) -> Event:
    kind, choice, index = key
    return ToolCallDelta(index, text, choice) if kind is ToolCallDelta else kind(text, choice)  # type: ignore[arg-type]


class GuardedWire:
    """A wire whose answers are decoded behind a guard. Requests are none of its business."""

    def __init__(self, wire: Wire, guard: OutputGuard, request: GenerationRequest) -> None:
        self._wire, self._guard, self._request = wire, guard, request

    def decoder(self, choices: int = 1) -> Decoder:
        return GuardedDecoder(self._wire.decoder(choices), self._guard, self._request)


class GuardedDecoder:
    """What a decoder says, as far as it may be passed on."""

    def __init__(self, decoder: Decoder, guard: OutputGuard, request: GenerationRequest) -> None:
        self._decoder, self._guard, self._request = decoder, guard, request
        self._cut: Usage | None = None
        self._is_whole = False

    @property
    def usage(self) -> Usage | None:
        return self._cut or self._decoder.usage

    @property
    def is_whole(self) -> bool:
        return self._decoder.is_whole

    @property
    def has_absurd_usage(self) -> bool:
        return self._decoder.has_absurd_usage

    def decode(self, block: bytes) -> list[Event]:
        # Hot path: once per upstream block.
        return self._passed(self._decoder.decode(block))

    def decode_whole(self, body: bytes) -> list[Event]:
        self._is_whole = True
        return self._passed(self._decoder.decode_whole(body))

    def end(self) -> list[Event]:
        return self._passed(self._decoder.end())

    def is_plain(self, block: bytes) -> bool:
        return False

    def plain_head(self, run: bytes) -> tuple[int, int]:
        return 0, 0

    def _passed(self, events: list[Event]) -> list[Event]:
        return self._guard.feed(events, self._at_cut) if not self._guard.blocked else []

    def _at_cut(self) -> Usage | None:
        """The usage of an answer that we end: what its upstream told, and for the rest an estimate."""
        told = self._decoder.usage
        if self._is_whole:
            return told
        self._cut = filled(told, lambda: estimate_tokens(self._request), tokens_in_bytes(self._guard.said_bytes))
        return self._cut
