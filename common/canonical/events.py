"""What does an upstream say, in our own words?

Every provider's decoder turns its wire into these events, and every dialect's encoder turns them into its own wire:
N + M files instead of N x M. An item belongs here when at least two vendors say it in different ways.
A stream of events is: ``Started``, any number of deltas, one ``Finished`` per choice, then exactly one terminal event,
``Completed`` or ``Failed``. Not solved here: what only one vendor says (it passes through where both sides are that
vendor's family, and is refused or dropped elsewhere).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from common.canonical.errors import Failed
from common.canonical.growing_text import GrowingText


class FinishReason(StrEnum):
    STOP = "stop"
    STOP_SEQUENCE = "stop_sequence"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"
    CONTENT_FILTER = "content_filter"
    REFUSAL = "refusal"
    PAUSE = "pause"


# The largest figure of one upstream call that is believed. The longest context windows hold some millions of tokens.
FIGURE_MAX = 1_000_000_000
COUNTS = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens", "reasoning_tokens")
# Parts of these counts that may have a price of their own; each with the count that includes it.
PARTS = {
    "cache_write_1h_tokens": "cache_write_tokens",
    "cache_audio_read_tokens": "cache_read_tokens",
    "cache_image_read_tokens": "cache_read_tokens",
    "cache_video_read_tokens": "cache_read_tokens",
    "input_audio_tokens": "input_tokens",
    "input_image_tokens": "input_tokens",
    "input_video_tokens": "input_tokens",
    "output_audio_tokens": "output_tokens",
    "output_image_tokens": "output_tokens",
    "output_video_tokens": "output_tokens",
    "output_citation_tokens": "output_tokens",
}
# Calls of tools that run at the vendor and are paid for by the call.
PAID_CALLS = ("web_searches", "social_searches", "storage_searches", "code_executions", "image_generations")
_DETAILS = frozenset((*PARTS, *PAID_CALLS))
_STORED = _DETAILS.union(COUNTS)


@dataclass(slots=True)
class Usage:
    """What an upstream call took. ``input_tokens`` includes both cache figures, ``output_tokens`` includes reasoning.

    Vendors disagree on what includes what; decoders normalise to this, encoders go back to their dialect's own rule.
    ``details`` holds the ``PARTS`` and ``PAID_CALLS`` that are not 0. ``model`` is the one that the upstream named, and
    ``service_tier`` how it served it, in the vendor's word; both empty where nothing was said. Both change the price.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    details: dict[str, int] = field(default_factory=dict)
    model: str = field(default="", compare=False)
    service_tier: str = field(default="", compare=False)

    def to_dict(self) -> dict[str, int]:
        """Return the figures: the five counts always, the details that are not 0."""
        return {**{name: getattr(self, name) for name in COUNTS}, **self.details}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Usage":
        """Return what ``to_dict`` gave, of this version or another: unknown fields are passed over, missing ones are 0."""
        return cls.from_figures({name: _parse_figure(fields[name]) for name in fields.keys() & _STORED})

    @classmethod
    def from_figures(cls, figures: Mapping[str, int], model: str = "", service_tier: str = "") -> "Usage":
        """Return the usage with these counts and details; what is missing is 0."""
        details = {name: figure for name, figure in figures.items() if figure and name in _DETAILS}
        counts = {name: figures.get(name, 0) for name in COUNTS}
        return cls(**counts, details=details, model=model, service_tier=service_tier)


def _parse_figure(figure: object) -> int:
    if type(figure) is int and 0 <= figure <= FIGURE_MAX:
        return figure
    if isinstance(figure, bool) or not isinstance(figure, int | float) or figure != figure:
        return 0
    return int(min(max(figure, 0), FIGURE_MAX))


def add_usage(first: Usage | None, second: Usage | None) -> Usage | None:
    """Return the usage of two attempts together; None is an attempt that reported nothing."""
    if first is None or second is None:
        return first or second
    return _combine(first, second, 1)


def subtract_usage(total: Usage, part: Usage | None) -> Usage:
    """Return what is left of ``total`` where ``part`` is taken away, nothing below 0; model and tier stay."""
    return _combine(total, part, -1) if part else total


def _combine(first: Usage, second: Usage, sign: int) -> Usage:
    figures, others = first.to_dict(), second.to_dict()
    names = figures.keys() | others.keys()
    both = {name: max(0, figures.get(name, 0) + sign * others.get(name, 0)) for name in names}
    return Usage.from_figures(both, first.model, first.service_tier)


@dataclass(slots=True)
class Started:
    """The upstream accepted the request. Its own id, model name and service tier, where it told them."""

    id: str | None = None
    model: str | None = None
    service_tier: str = field(default="", compare=False)


@dataclass(slots=True)
class TextDelta:
    text: str
    choice: int = 0


@dataclass(slots=True)
class RefusalDelta:
    text: str
    choice: int = 0


@dataclass(slots=True)
class ReasoningDelta:
    text: str
    choice: int = 0


@dataclass(slots=True)
class ReasoningSigned:
    """The signature that closes a thinking block; the client must send it back unchanged.

    Gemini signs tool calls instead: then it comes without thinking before it, right before the ``ToolCallStarted`` it signs.
    """

    signature: str


@dataclass(slots=True)
class RedactedReasoning:
    """A whole thinking block that the vendor encrypted."""

    data: str


@dataclass(slots=True)
class ToolCallStarted:
    """``index`` counts the tool calls of a choice from 0; ``id`` is never empty (decoders make one up where none came)."""

    index: int
    id: str
    name: str
    choice: int = 0


@dataclass(slots=True)
class ToolCallDelta:
    """A piece of the JSON text of a call's arguments; the pieces of a call joined are valid JSON, ``{}`` if empty."""

    index: int
    arguments: str
    choice: int = 0


@dataclass(slots=True)
class Finished:
    """One choice has ended. The stream goes on until its terminal event (usage may follow)."""

    reason: FinishReason
    stop_sequence: str | None = None
    choice: int = 0


@dataclass(slots=True)
class Completed:
    """The stream ended as it should. ``usage`` is None where the upstream reported none."""

    usage: Usage | None = None


Delta = TextDelta | RefusalDelta | ReasoningDelta | ReasoningSigned | RedactedReasoning | ToolCallStarted | ToolCallDelta
Event = Started | Delta | Finished | Completed | Failed

# Events with output: the first of them is the commit point.
OUTPUT = (TextDelta, RefusalDelta, ReasoningDelta, ReasoningSigned, RedactedReasoning, ToolCallStarted, ToolCallDelta)


@dataclass(slots=True)
class TextBlock:
    text: str = ""


@dataclass(slots=True)
class RefusalBlock:
    text: str = ""


@dataclass(slots=True)
class ReasoningBlock:
    """Exactly one of ``redacted`` (an encrypted block) or ``text`` and ``signature``."""

    text: str = ""
    signature: str | None = None
    redacted: str | None = None


@dataclass(slots=True)
class ToolCall:
    id: str
    name: str
    arguments: str = ""


Block = TextBlock | RefusalBlock | ReasoningBlock | ToolCall


@dataclass(slots=True)
class Choice:
    """One answer. ``blocks`` keep the order in which the model spoke; the properties are for dialects that have none."""

    blocks: list[Block] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_sequence: str | None = None

    @property
    def text(self) -> str:
        return "".join(block.text for block in self.blocks if isinstance(block, TextBlock))

    @property
    def refusal(self) -> str:
        return "".join(block.text for block in self.blocks if isinstance(block, RefusalBlock))

    @property
    def reasoning(self) -> list[ReasoningBlock]:
        return [block for block in self.blocks if isinstance(block, ReasoningBlock)]

    @property
    def tool_calls(self) -> list[ToolCall]:
        return [block for block in self.blocks if isinstance(block, ToolCall)]


@dataclass(slots=True)
class Reply:
    """A whole answer: what is left of a stream once it has been folded."""

    id: str | None = None
    model: str | None = None
    choices: dict[int, Choice] = field(default_factory=dict)
    usage: Usage | None = None
    failed: Failed | None = None


def fold(events: Iterable[Event]) -> Reply:
    """Return the whole answer that a stream of events spells out; a stream without a terminal event folds as far as it goes."""
    folded = ReplyBuilder()
    for event in events:
        folded.add(event)
    return folded.reply()


class ReplyBuilder:
    """The same for events that are still coming: it takes little more room than the texts in them."""

    def __init__(self) -> None:
        self._reply = Reply()
        self._choices: dict[int, _ChoiceBuilder] = {}

    def add(self, event: Event) -> None:
        match event:
            case Started():
                self._reply.id, self._reply.model = event.id, event.model
            case Completed():
                self._reply.usage = event.usage
            case Failed():
                self._reply.failed = event
            case ReasoningSigned() | RedactedReasoning():
                self._choice(0).add(event)
            case _:
                self._choice(event.choice).add(event)

    def reply(self) -> Reply:
        """Return the answer as far as it has come."""
        self._reply.choices = {index: choice.whole() for index, choice in self._choices.items()}
        return self._reply

    def _choice(self, index: int) -> "_ChoiceBuilder":
        if index not in self._choices:
            self._choices[index] = _ChoiceBuilder()
        return self._choices[index]


class _ChoiceBuilder:
    """One choice. ``_texts`` are those of its blocks, in the same order: a block gets its text in the end."""

    def __init__(self) -> None:
        self._choice = Choice()
        self._texts: list[GrowingText] = []
        self._arguments: list[GrowingText] = []  # Those of the calls among them, by their index.

    def add(self, event: Delta | Finished) -> None:
        match event:
            case TextDelta():
                self._open(TextBlock).add(event.text)
            case RefusalDelta():
                self._open(RefusalBlock).add(event.text)
            case ReasoningDelta():
                self._open_reasoning().add(event.text)
            case ReasoningSigned():
                self._open_reasoning()
                block = self._choice.blocks[-1]
                assert isinstance(block, ReasoningBlock)
                block.signature = event.signature
            case RedactedReasoning():
                self._begin(ReasoningBlock(redacted=event.data))
            case ToolCallStarted():
                self._arguments.append(self._begin(ToolCall(event.id, event.name)))
            case ToolCallDelta():
                self._arguments[event.index].add(event.arguments)
            case Finished():
                self._choice.finish_reason, self._choice.stop_sequence = event.reason, event.stop_sequence

    def whole(self) -> Choice:
        for block, text in zip(self._choice.blocks, self._texts, strict=True):
            if isinstance(block, ToolCall):
                block.arguments = str(text)
            else:
                block.text = str(text)
        return self._choice

    def _begin(self, block: Block) -> GrowingText:
        self._choice.blocks.append(block)
        self._texts.append(GrowingText())
        return self._texts[-1]

    def _open(self, kind: type[TextBlock | RefusalBlock]) -> GrowingText:
        """The text that a delta extends: the last block's if it is of its kind, else a new one's."""
        blocks = self._choice.blocks
        return self._texts[-1] if blocks and isinstance(blocks[-1], kind) else self._begin(kind())

    def _open_reasoning(self) -> GrowingText:
        """The same for thinking, which a signature or a redacted block closes."""
        last = self._choice.blocks[-1] if self._choice.blocks else None
        if isinstance(last, ReasoningBlock) and last.signature is None and last.redacted is None:
            return self._texts[-1]
        return self._begin(ReasoningBlock())
