"""Which words of OpenAI's formats are used on both sides?

The dialects write them for clients, and the providers' wires read them from upstreams. The simpler dialects use some of them.
Sources: https://platform.openai.com/docs/api-reference/chat/object (finish_reason) and
https://platform.openai.com/docs/api-reference/responses/object (incomplete_details)
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
REASON_OF_WORD = {word: reason for reason, word in reversed(FINISH_WORD.items())}
# Why a response is incomplete. With any other finish reason it is complete.
INCOMPLETE_WORD = {
    FinishReason.LENGTH: "max_output_tokens",
    FinishReason.CONTENT_FILTER: "content_filter",
    FinishReason.REFUSAL: "content_filter",
}
REASON_OF_INCOMPLETE = {word: reason for reason, word in reversed(INCOMPLETE_WORD.items())}

# The fields of chat completions that hold reasoning. Neither is OpenAI's own: DeepSeek introduced the first, which most clients
# of this family read, and OpenRouter the second.
REASONING_FIELDS = ("reasoning_content", "reasoning")

DONE = b"[DONE]"  # The data of the event that ends a stream of chat completions.
DONE_EVENT = b"data: " + DONE + b"\n\n"


def parse_finish_reason(word: str) -> FinishReason:
    """Return the finish reason of a word; STOP for a word that we do not know."""
    return REASON_OF_WORD.get(word, FinishReason.STOP)
