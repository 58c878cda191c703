"""Which texts does an answer have? Each choice has its own text of each kind, and each tool call has its arguments."""

from common.canonical.events import Event, ReasoningDelta, RefusalDelta, TextDelta, ToolCallDelta

TextEvent = TextDelta | RefusalDelta | ReasoningDelta | ToolCallDelta
TEXTS = (TextDelta, RefusalDelta, ReasoningDelta, ToolCallDelta)
# One text of an answer: its kind, its choice, and the index of its tool call (0 for other kinds).
TextKey = tuple[type[TextEvent], int, int]


def key_of(event: TextEvent) -> TextKey:
    return type(event), event.choice, event.index if isinstance(event, ToolCallDelta) else 0


def text_of(event: TextEvent) -> str:
    return event.arguments if isinstance(event, ToolCallDelta) else event.text


def text_event(key: TextKey, text: str) -> Event:
    kind, choice, index = key
    return ToolCallDelta(index, text, choice) if kind is ToolCallDelta else kind(text, choice)  # type: ignore[arg-type]
