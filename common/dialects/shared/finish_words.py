"""Which words does OpenAI have for how an answer ended?

The simpler dialects have taken them over.
Source: https://platform.openai.com/docs/api-reference/chat/object (finish_reason)
"""

from common.canonical.events import FinishReason

FINISH_WORD = {
    FinishReason.STOP: "stop",
    FinishReason.STOP_SEQUENCE: "stop",
    FinishReason.LENGTH: "length",
    FinishReason.TOOL_CALLS: "tool_calls",
    FinishReason.CONTENT_FILTER: "content_filter",
    FinishReason.REFUSAL: "content_filter",
    FinishReason.PAUSE: "stop",
}
_REASON_OF = {word: reason for reason, word in reversed(FINISH_WORD.items())}


def reason_of(word: str) -> FinishReason:
    """Return what a word means, stop where it is a vendor's own."""
    return _REASON_OF.get(word, FinishReason.STOP)
