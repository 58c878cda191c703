"""How many tokens does a prompt have, if no provider reports it?

Tokenizers differ between vendors and models, and most are not public, so this estimates by size. A token counts as four
bytes of UTF-8. That is close to the vendors' own figure for English (four characters), and not far off for other scripts: an
accented letter has two bytes, a Chinese character three, and tokenizers also produce more tokens per character for those. The
estimate is rough: compared with recorded prompts, half of the estimates were 0.5 to 1.3 times the real count. The shortest
prompts are the least accurate, because vendors add their own text, above all about tools. For an exact count, use a provider
that counts tokens: Anthropic, Google, OpenAI.
"""

from collections.abc import Callable, Iterable, Iterator
from copy import copy

import orjson

from common.canonical.events import (
    Event,
    OutputImage,
    ReasoningDelta,
    RedactedReasoning,
    RefusalDelta,
    TextDelta,
    ToolCallDelta,
    ToolCallStarted,
    Usage,
)
from common.canonical.generation import (
    DocumentPart,
    GenerationRequest,
    Part,
    ReasoningPart,
    TextPart,
    ToolCallPart,
    ToolResultPart,
)

_BYTES_PER_TOKEN = 4
_MESSAGE_TOKENS = 4  # Markers around a message, and its role.
_TOOL_TOKENS = 10  # Text that vendors add around a tool's name, description and schema.
_TOOLS_TOKENS = 100  # Text that vendors add if there are any tools: measured 30 (Groq) to 300 (DeepSeek).
# Anthropic counts up to 1,600 tokens for an image, OpenAI 85 to 1,105, Gemini 258 per tile, depending on its size. Most images
# are URLs, so their size is not known here. Nor is the number of pages of a document.
_MEDIA_TOKENS = 1000
OUTPUT_TOKENS_DEFAULT = 1_000  # Reserved for an answer if the request sets no maximum length.


def estimate_tokens(request: GenerationRequest) -> int:
    """Return the estimated number of input tokens of a request; at least 1."""
    text_bytes = 0
    tokens = _MESSAGE_TOKENS * len(request.messages) + _TOOL_TOKENS * len(request.tools)
    if request.tools:
        tokens += _TOOLS_TOKENS
    for message in request.messages:
        for part in _flat(message.parts):
            match part:
                case TextPart():
                    text_bytes += _bytes(part.text)
                case DocumentPart(text=str() as text):
                    text_bytes += _bytes(text)
                case ReasoningPart():
                    # Reasoning that is sent back counts by its text. Encrypted reasoning is about as long as its text.
                    text_bytes += _bytes(part.text or part.redacted or "")
                case ToolCallPart():
                    text_bytes += _bytes(part.name) + _bytes(part.arguments)
                case _:
                    tokens += _MEDIA_TOKENS
    for tool in request.tools:
        text_bytes += _bytes(tool.name) + _bytes(tool.description or "") + len(orjson.dumps(tool.parameters))
    if request.response_format and request.response_format.schema:
        text_bytes += len(orjson.dumps(request.response_format.schema))
    return max(1, tokens + tokens_in_bytes(text_bytes))


def reserved_tokens(request: GenerationRequest) -> int:
    """Return the most tokens that a request may use, as far as this can be estimated before it runs."""
    return estimate_tokens(request) + (request.max_output_tokens or OUTPUT_TOKENS_DEFAULT) * request.choices


def estimate_text_tokens(text: str) -> int:
    """Return the estimated number of tokens of a model's output text."""
    return tokens_in_bytes(_bytes(text))


def estimate_event_tokens(events: Iterable[Event]) -> int:
    """Return the estimated number of output tokens in some events."""
    return tokens_in_bytes(sum(map(token_bytes, events)))


def output_bytes(event: Event) -> int:
    """Return the number of output bytes in an event."""
    match event:
        case TextDelta() | RefusalDelta() | ReasoningDelta():
            # ASCII text is not encoded just to be counted: it may be a large answer.
            return len(event.text) if event.text.isascii() else len(event.text.encode(errors="replace"))
        case RedactedReasoning():
            return len(event.data)
        case ToolCallStarted():
            return len(event.name.encode(errors="replace"))
        case ToolCallDelta():
            return len(event.arguments.encode(errors="replace"))
        case OutputImage():
            return len(event.data) + len(event.url)
    return 0


def token_bytes(event: Event) -> int:
    """Return the number of bytes of text that would have as many tokens as an event. An image's tokens depend on its pixels."""
    return _MEDIA_TOKENS * _BYTES_PER_TOKEN if isinstance(event, OutputImage) else output_bytes(event)


def tokens_in_bytes(size: int) -> int:
    """Return the estimated number of tokens in ``size`` bytes of text, rounded up."""
    return -(-size // _BYTES_PER_TOKEN)


def _flat(parts: list[Part]) -> Iterator[Part]:
    for part in parts:
        if isinstance(part, ToolResultPart):
            yield from part.content
        else:
            yield part


def _bytes(text: str) -> int:
    return len(text.encode())


def fill_usage(reported: Usage | None, count_input: Callable[[], int], output_tokens: int) -> Usage:
    """Return the reported usage, with estimates for what is missing: some upstreams report only at the beginning, or never.

    ``count_input`` estimates the prompt; it is called only if the upstream did not report it. For the answer, the larger of
    the reported and the estimated ``output_tokens`` counts.
    """
    usage = copy(reported) if reported else Usage()
    usage.input_tokens = usage.input_tokens or count_input()
    usage.output_tokens = max(usage.output_tokens, output_tokens)
    return usage
