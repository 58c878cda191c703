"""How many tokens is a prompt, where no provider tells?

Tokenizers differ between vendors and models, and most are not public, so this weighs instead of cutting. A token is four
bytes of UTF-8, near what the vendors name for English (four characters), and not far off for other scripts: an accented
letter has two bytes, a Chinese character three, which tokenizers also turn into more tokens per character. It is rough:
held against recorded prompts, half of the estimates were 0.5 to 1.3 times the count. The shortest prompts are farthest off,
as vendors put words of their own around them, above all about tools. Who needs more asks a provider that counts:
Anthropic, Google, OpenAI.
"""

from collections.abc import Callable, Iterable, Iterator
from copy import copy

import orjson

from common.canonical.events import (
    Event,
    ReasoningDelta,
    RedactedReasoning,
    RefusalDelta,
    TextDelta,
    ToolCallDelta,
    ToolCallStarted,
    Usage,
)
from common.canonical.generation import (
    GenerationRequest,
    Part,
    ReasoningPart,
    TextPart,
    ToolCallPart,
    ToolResultPart,
)

_BYTES_PER_TOKEN = 4
_MESSAGE_TOKENS = 4  # The marks around a message and its role.
_TOOL_TOKENS = 10  # What vendors write around a tool's name, description and schema.
_TOOLS_TOKENS = 100  # What they tell a model about tools at all: seen were 30 (Groq) to 300 (DeepSeek).
# Anthropic counts up to 1,600 tokens for an image, OpenAI 85 to 1,105, Gemini 258 per tile: size decides, and most are
# addresses whose size is not known here. The same for a document, whose pages are not known either.
_MEDIA_TOKENS = 1000
OUTPUT_TOKENS_DEFAULT = 1_000  # What is reserved for an answer whose length the request does not bound.


def estimate_tokens(request: GenerationRequest) -> int:
    """Return about how many input tokens a request has; at least 1."""
    texts = 0
    tokens = _MESSAGE_TOKENS * len(request.messages) + _TOOL_TOKENS * len(request.tools)
    if request.tools:
        tokens += _TOOLS_TOKENS
    for message in request.messages:
        for part in _flat(message.parts):
            match part:
                case TextPart():
                    texts += _bytes(part.text)
                case ReasoningPart():
                    # Thoughts that are sent back are counted by their text; encrypted ones are about as long as they are.
                    texts += _bytes(part.text or part.redacted or "")
                case ToolCallPart():
                    texts += _bytes(part.name) + _bytes(part.arguments)
                case _:
                    tokens += _MEDIA_TOKENS
    for tool in request.tools:
        texts += _bytes(tool.name) + _bytes(tool.description or "") + len(orjson.dumps(tool.parameters))
    if request.response_format and request.response_format.schema:
        texts += len(orjson.dumps(request.response_format.schema))
    return max(1, tokens + tokens_in_bytes(texts))


def reserved_tokens(request: GenerationRequest) -> int:
    """Return the most that a request may take, as far as that can be told before it runs."""
    return estimate_tokens(request) + (request.max_output_tokens or OUTPUT_TOKENS_DEFAULT) * request.choices


def estimate_text_tokens(text: str) -> int:
    """Return about how many tokens a model's own words have."""
    return tokens_in_bytes(_bytes(text))


def estimate_event_tokens(events: Iterable[Event]) -> int:
    """Return about how many tokens the output in some events has."""
    return tokens_in_bytes(sum(map(output_bytes, events)))


def output_bytes(event: Event) -> int:
    """Return how many bytes of output an event has."""
    match event:
        case TextDelta() | RefusalDelta() | ReasoningDelta():
            # Not encoded where that is needless: the text may be a large answer's.
            return len(event.text) if event.text.isascii() else len(event.text.encode(errors="replace"))
        case RedactedReasoning():
            return len(event.data)
        case ToolCallStarted():
            return len(event.name.encode(errors="replace"))
        case ToolCallDelta():
            return len(event.arguments.encode(errors="replace"))
    return 0


def tokens_in_bytes(count: int) -> int:
    return -(-count // _BYTES_PER_TOKEN)


def _flat(parts: list[Part]) -> Iterator[Part]:
    for part in parts:
        if isinstance(part, ToolResultPart):
            yield from part.content
        else:
            yield part


def _bytes(text: str) -> int:
    return len(text.encode())


def fill_usage(reported: Usage | None, asked: Callable[[], int], output_tokens: int) -> Usage:
    """Return what an upstream reported, and for what it did not an estimate: some report at the beginning, or never.

    ``asked`` counts the prompt, and is called only where nothing is known of it; of the answer the larger figure is taken.
    """
    usage = copy(reported) if reported else Usage()
    usage.input_tokens = usage.input_tokens or asked()
    usage.output_tokens = max(usage.output_tokens, output_tokens)
    return usage
