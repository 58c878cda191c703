"""What do the vendors' own SDKs read in our bytes?

A real SDK client, whose transport answers every request with the given bytes.
"""

from dataclasses import dataclass, field
from typing import Any

import anthropic
import httpx2
import openai
import orjson

JSON = "application/json"
SSE = "text/event-stream"


@dataclass
class Seen:
    """A whole answer, as a client of either family sees it."""

    text: str = ""
    refusal: str = ""
    thinking: str = ""
    calls: list[tuple[str, str, Any]] = field(default_factory=list)
    finish: str | None = None
    input_tokens: int | None = None  # Cached ones included.
    output_tokens: int | None = None


def _answering(body: bytes, content_type: str, status: int) -> httpx2.Client:
    def answer(_: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(status, content=body, headers={"content-type": content_type, "request-id": "req_1"})

    return httpx2.Client(transport=httpx2.MockTransport(answer))


def openai_client(body: bytes, content_type: str, status: int = 200) -> openai.OpenAI:
    return openai.OpenAI(api_key="k", max_retries=0, http_client=_answering(body, content_type, status))


def anthropic_client(body: bytes, content_type: str, status: int = 200) -> anthropic.Anthropic:
    return anthropic.Anthropic(api_key="k", max_retries=0, http_client=_answering(body, content_type, status))


def openai_stream(body: bytes) -> Seen:
    with openai_client(body, SSE) as client:
        chunks = list(client.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}], stream=True))
    seen = Seen()
    calls: dict[int, list[str]] = {}
    for chunk in chunks:
        if chunk.usage:
            seen.input_tokens, seen.output_tokens = chunk.usage.prompt_tokens, chunk.usage.completion_tokens
        for choice in chunk.choices:
            if choice.index:
                continue
            delta = choice.delta
            seen.text += delta.content or ""
            seen.refusal += delta.refusal or ""
            seen.thinking += getattr(delta, "reasoning_content", None) or ""
            for call in delta.tool_calls or []:
                assert call.function
                kept = calls.setdefault(call.index, [call.id or "", call.function.name or "", ""])
                kept[2] += call.function.arguments or ""
            seen.finish = choice.finish_reason or seen.finish
    seen.calls = [(id_, name, _arguments(arguments)) for id_, name, arguments in calls.values()]
    return seen


def openai_whole(body: bytes) -> Seen:
    with openai_client(body, JSON) as client:
        answer = client.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}])
    choice = answer.choices[0]
    assert answer.usage
    return Seen(
        choice.message.content or "",
        choice.message.refusal or "",
        getattr(choice.message, "reasoning_content", None) or "",
        [
            (call.id, call.function.name, _arguments(call.function.arguments))
            for call in choice.message.tool_calls or []
            if call.type == "function"
        ],
        choice.finish_reason,
        answer.usage.prompt_tokens,
        answer.usage.completion_tokens,
    )


def anthropic_stream(body: bytes) -> Seen:
    with (
        anthropic_client(body, SSE) as client,
        client.messages.stream(model="m", max_tokens=9, messages=[{"role": "user", "content": "x"}]) as stream,
    ):
        return _seen(stream.get_final_message())


def anthropic_whole(body: bytes) -> Seen:
    with anthropic_client(body, JSON) as client:
        return _seen(client.messages.create(model="m", max_tokens=9, messages=[{"role": "user", "content": "x"}]))


def _seen(message: Any) -> Seen:
    seen = Seen(finish=message.stop_reason)
    for block in message.content:
        if block.type == "text":
            seen.text += block.text
        elif block.type == "thinking":
            seen.thinking += block.thinking
        elif block.type == "tool_use":
            seen.calls.append((block.id, block.name, block.input))
    usage = message.usage
    seen.input_tokens = usage.input_tokens + (usage.cache_read_input_tokens or 0) + (usage.cache_creation_input_tokens or 0)
    seen.output_tokens = usage.output_tokens
    return seen


def _arguments(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text
