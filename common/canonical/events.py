"""What does an upstream answer, in our own words?

Every provider's decoder turns its wire into these events, and every dialect's encoder turns them into its own wire:
N + M files instead of N x M. An item belongs here when at least two vendors express it in different ways.
A stream of events is: ``Started``, any number of deltas, one ``Finished`` per choice, then exactly one terminal event,
``Completed`` or ``Failed``. Not covered: what only one vendor has. It passes through when both sides belong to that
vendor's family; otherwise it is refused or dropped.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from common.canonical.errors import Failed


class FinishReason(StrEnum):
    STOP = "stop"
    STOP_SEQUENCE = "stop_sequence"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"
    CONTENT_FILTER = "content_filter"
    REFUSAL = "refusal"
    PAUSE = "pause"


# The largest token count of one upstream call that we accept. The longest context windows hold some millions of tokens.
FIGURE_MAX = 1_000_000_000
COUNTS = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens", "reasoning_tokens")
# Parts of these counts that may have a separate price. Each maps to the count that includes it.
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
# Calls of tools that run at the vendor and are billed per call.
PAID_CALLS = ("web_searches", "social_searches", "storage_searches", "code_executions", "image_generations")
_DETAILS = frozenset((*PARTS, *PAID_CALLS))
_STORED = _DETAILS.union(COUNTS)


@dataclass(slots=True)
class Usage:
    """The tokens and paid calls of an upstream call. ``input_tokens`` includes both cache counts, ``output_tokens`` reasoning.

    Vendors disagree on which count includes which. Decoders normalise to this rule; encoders convert to their dialect's rule.
    ``details`` holds the ``PARTS`` and ``PAID_CALLS`` that are not 0. ``model`` is the model that the upstream named, and
    ``service_tier`` the tier that served it, in the vendor's word; each is empty if not reported. Both affect the price.
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
        """Return all five counts, and the details that are not 0."""
        return {**{name: getattr(self, name) for name in COUNTS}, **self.details}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Usage":
        """Read what ``to_dict`` of this or another version wrote: unknown fields are ignored, missing ones are 0."""
        return cls.from_figures({name: _parse_figure(fields[name]) for name in fields.keys() & _STORED})

    @classmethod
    def from_figures(cls, figures: Mapping[str, int], model: str = "", service_tier: str = "") -> "Usage":
        """Build a usage from counts and details by name; missing ones are 0."""
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
    """Return the sum of two attempts' usage; None stands for an attempt that reported nothing."""
    if first is None or second is None:
        return first or second
    return _combine(first, second, 1)


def subtract_usage(total: Usage, part: Usage | None) -> Usage:
    """Return ``total`` minus ``part``, with no count below 0; model and tier stay those of ``total``."""
    return _combine(total, part, -1) if part else total


def _combine(first: Usage, second: Usage, sign: int) -> Usage:
    first_figures, second_figures = first.to_dict(), second.to_dict()
    names = first_figures.keys() | second_figures.keys()
    figures = {name: max(0, first_figures.get(name, 0) + sign * second_figures.get(name, 0)) for name in names}
    return Usage.from_figures(figures, first.model, first.service_tier)


@dataclass(slots=True)
class Started:
    """The upstream accepted the request. It may report its own id, model name and service tier."""

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
    """The signature that closes a reasoning block; the client must send it back unchanged.

    Gemini signs tool calls instead: its signature has no reasoning before it and comes right before the ``ToolCallStarted``
    that it signs.
    """

    signature: str


@dataclass(slots=True)
class RedactedReasoning:
    """A complete reasoning block that the vendor encrypted."""

    data: str


@dataclass(slots=True)
class Citation:
    """A source of the answer on the web. It comes after the text that it belongs to.

    ``start`` and ``end`` count the characters of the choice's text that rest on it; both 0: the vendor does not say which.
    """

    url: str
    title: str = ""
    start: int = 0
    end: int = 0
    choice: int = 0


@dataclass(slots=True)
class OutputImage:
    """A complete image that the model made: base64 ``data`` with its ``media_type``, or the ``url`` where the vendor has it."""

    media_type: str = ""
    data: str = field(default="", repr=False)
    url: str = ""
    choice: int = 0

    @property
    def address(self) -> str:
        """The image's URL: ``url``, or a data URL that contains the data."""
        return self.url or f"data:{self.media_type};base64,{self.data}"


@dataclass(slots=True)
class LeftOut:
    """A part of the answer that no other event expresses. The client is told its ``name``, the vendor's word for it."""

    name: str


@dataclass(slots=True)
class ToolCallStarted:
    """``index`` counts the tool calls of a choice from 0. ``id`` is never empty: decoders create one if it is missing."""

    index: int
    id: str
    name: str
    choice: int = 0


@dataclass(slots=True)
class ToolCallDelta:
    """A piece of the JSON text of a call's arguments. All pieces joined are valid JSON; no text at all means ``{}``."""

    index: int
    arguments: str
    choice: int = 0


@dataclass(slots=True)
class Finished:
    """One choice has ended. The stream continues until its terminal event; usage may follow.

    ``may_be_empty``: the vendor documents that an answer with this end may have no content.
    """

    reason: FinishReason
    stop_sequence: str | None = None
    choice: int = 0
    may_be_empty: bool = field(default=False, compare=False)


@dataclass(slots=True)
class Completed:
    """The stream ended as it should. ``usage`` is None if the upstream reported none."""

    usage: Usage | None = None


Delta = (
    TextDelta
    | RefusalDelta
    | ReasoningDelta
    | ReasoningSigned
    | RedactedReasoning
    | OutputImage
    | ToolCallStarted
    | ToolCallDelta
)
Event = Started | Delta | Citation | LeftOut | Finished | Completed | Failed

# Events with output: the first of them is the commit point.
OUTPUT = (
    TextDelta,
    RefusalDelta,
    ReasoningDelta,
    ReasoningSigned,
    RedactedReasoning,
    OutputImage,
    ToolCallStarted,
    ToolCallDelta,
)
