"""What is a complete answer? The events of a stream, put together into blocks."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from common.canonical.errors import Failed
from common.canonical.events import (
    Citation,
    Completed,
    Delta,
    Event,
    Finished,
    FinishReason,
    LeftOut,
    OutputImage,
    ReasoningDelta,
    ReasoningSigned,
    RedactedReasoning,
    RefusalDelta,
    Started,
    TextDelta,
    ToolCallDelta,
    ToolCallStarted,
    Usage,
)
from common.canonical.growing_text import GrowingText


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
class ImageBlock:
    image: OutputImage


@dataclass(slots=True)
class ToolCall:
    id: str
    name: str
    arguments: str = ""


Block = TextBlock | RefusalBlock | ReasoningBlock | ImageBlock | ToolCall


@dataclass(slots=True)
class Choice:
    """One answer. ``blocks`` keep the model's order; the properties are for dialects that have no order of blocks."""

    blocks: list[Block] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_sequence: str | None = None
    citations: list[Citation] = field(default_factory=list)

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
    def images(self) -> list[OutputImage]:
        return [block.image for block in self.blocks if isinstance(block, ImageBlock)]

    @property
    def tool_calls(self) -> list[ToolCall]:
        return [block for block in self.blocks if isinstance(block, ToolCall)]


@dataclass(slots=True)
class Reply:
    """A complete answer: the events of a stream, put together."""

    id: str | None = None
    model: str | None = None
    choices: dict[int, Choice] = field(default_factory=dict)
    usage: Usage | None = None
    failed: Failed | None = None


def fold(events: Iterable[Event]) -> Reply:
    """Return the answer that a stream of events contains; without a terminal event, the answer up to there."""
    builder = ReplyBuilder()
    for event in events:
        builder.add(event)
    return builder.reply()


class ReplyBuilder:
    """Builds a reply from events while they arrive. Needs little more memory than the texts in them."""

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
            case LeftOut():
                pass  # Nothing of it is in the answer.
            case ReasoningSigned() | RedactedReasoning():
                self._choice(0).add(event)
            case _:
                self._choice(event.choice).add(event)

    def reply(self) -> Reply:
        """Return the answer that the events so far contain."""
        self._reply.choices = {index: choice.build() for index, choice in self._choices.items()}
        return self._reply

    def _choice(self, index: int) -> "_ChoiceBuilder":
        if index not in self._choices:
            self._choices[index] = _ChoiceBuilder()
        return self._choices[index]


class _ChoiceBuilder:
    """Builds one choice. ``_texts`` are the texts of its blocks, in the same order; ``build`` puts them into the blocks."""

    def __init__(self) -> None:
        self._choice = Choice()
        self._texts: list[GrowingText] = []
        self._arguments: list[GrowingText] = []  # The texts that belong to calls, by the index of the call.

    def add(self, event: Delta | Citation | Finished) -> None:
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
            case OutputImage():
                self._begin(ImageBlock(event))
            case ToolCallStarted():
                self._arguments.append(self._begin(ToolCall(event.id, event.name)))
            case ToolCallDelta():
                self._arguments[event.index].add(event.arguments)
            case Citation():
                self._choice.citations.append(event)
            case Finished():
                self._choice.finish_reason, self._choice.stop_sequence = event.reason, event.stop_sequence

    def build(self) -> Choice:
        for block, text in zip(self._choice.blocks, self._texts, strict=True):
            if isinstance(block, ToolCall):
                block.arguments = str(text)
            elif not isinstance(block, ImageBlock):
                block.text = str(text)
        return self._choice

    def _begin(self, block: Block) -> GrowingText:
        self._choice.blocks.append(block)
        self._texts.append(GrowingText())
        return self._texts[-1]

    def _open(self, kind: type[TextBlock | RefusalBlock]) -> GrowingText:
        """Return the text that a delta extends: the last block's if its kind matches, else a new block's."""
        blocks = self._choice.blocks
        return self._texts[-1] if blocks and isinstance(blocks[-1], kind) else self._begin(kind())

    def _open_reasoning(self) -> GrowingText:
        """The same for reasoning, which a signature or a redacted block closes."""
        last = self._choice.blocks[-1] if self._choice.blocks else None
        if isinstance(last, ReasoningBlock) and last.signature is None and last.redacted is None:
            return self._texts[-1]
        return self._begin(ReasoningBlock())
