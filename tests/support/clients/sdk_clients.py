"""What do the vendors' own SDKs read in our bytes?

The tests use real SDK clients, whose transport answers every request with the given bytes.
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
class ClientAnswer:
    """A whole answer, as a client of any dialect reads it."""

    text: str = ""
    refusal: str = ""
    thinking: str = ""
    calls: list[tuple[str, str, Any]] = field(default_factory=list)
    finish: str | None = None
    input_tokens: int | None = None  # Including cached ones.
    output_tokens: int | None = None


def _client_with_answer(body: bytes, content_type: str, status: int) -> httpx2.Client:
    def answer(_: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(status, content=body, headers={"content-type": content_type, "request-id": "req_1"})

    return httpx2.Client(transport=httpx2.MockTransport(answer))


def openai_client(body: bytes, content_type: str, status: int = 200) -> openai.OpenAI:
    return openai.OpenAI(api_key="k", max_retries=0, http_client=_client_with_answer(body, content_type, status))


def anthropic_client(body: bytes, content_type: str, status: int = 200) -> anthropic.Anthropic:
    return anthropic.Anthropic(api_key="k", max_retries=0, http_client=_client_with_answer(body, content_type, status))


def openai_stream(body: bytes, index: int = 0) -> ClientAnswer:
    with openai_client(body, SSE) as client:
        chunks = list(client.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}], stream=True))
    result = ClientAnswer()
    calls: dict[int, list[str]] = {}
    for chunk in chunks:
        if chunk.usage:
            result.input_tokens, result.output_tokens = chunk.usage.prompt_tokens, chunk.usage.completion_tokens
        for choice in chunk.choices:
            if choice.index != index:
                continue
            delta = choice.delta
            result.text += delta.content or ""
            result.refusal += delta.refusal or ""
            result.thinking += getattr(delta, "reasoning_content", None) or ""
            for call in delta.tool_calls or []:
                assert call.function
                kept = calls.setdefault(call.index, [call.id or "", call.function.name or "", ""])
                kept[2] += call.function.arguments or ""
            result.finish = choice.finish_reason or result.finish
    result.calls = [(id_, name, _arguments(arguments)) for id_, name, arguments in calls.values()]
    return result


def openai_whole(body: bytes, index: int = 0) -> ClientAnswer:
    with openai_client(body, JSON) as client:
        answer = client.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}])
    choice = answer.choices[index]
    assert answer.usage
    return ClientAnswer(
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


class ResponseFailed(Exception):
    """Raised for a failed response: the SDK itself raises nothing. The response's status and error describe the failure."""


def responses_stream(body: bytes) -> ClientAnswer:
    with openai_client(body, SSE) as client:
        events = list(client.responses.create(model="m", input="x", stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[-1].type in ("response.completed", "response.incomplete", "response.failed")
    result = _read_response(events[-1].response)
    with openai_client(body, SSE) as client, client.responses.stream(model="m", input="x") as stream:
        helper_events = list(stream)
        # The SDK's helper accepts no other successful end than this one.
        if helper_events[-1].type == "response.completed":
            assert _read_response(stream.get_final_response()) == result
    # The deltas together must equal the text in the last event.
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == result.text
    return result


def responses_whole(body: bytes) -> ClientAnswer:
    with openai_client(body, JSON) as client:
        return _read_response(client.responses.create(model="m", input="x"))


def responses_error(body: bytes, status: int) -> None:
    with openai_client(body, JSON, status) as client:
        client.responses.create(model="m", input="x")


def _read_response(response: Any) -> ClientAnswer:
    if response.error:
        raise ResponseFailed(response.error.message)
    details = response.incomplete_details
    result = ClientAnswer(finish=details.reason if details else response.status)
    for item in response.output:
        match item.type:
            case "message":
                result.text += "".join(part.text for part in item.content if part.type == "output_text")
                result.refusal += "".join(part.refusal for part in item.content if part.type == "refusal")
            case "reasoning":
                result.thinking += "".join(part.text for part in item.summary)
            case "function_call":
                result.calls.append((item.call_id, item.name, _arguments(item.arguments)))
    if response.usage:
        result.input_tokens, result.output_tokens = response.usage.input_tokens, response.usage.output_tokens
    return result


def anthropic_stream(body: bytes) -> ClientAnswer:
    with (
        anthropic_client(body, SSE) as client,
        client.messages.stream(model="m", max_tokens=9, messages=[{"role": "user", "content": "x"}]) as stream,
    ):
        return _read_message(stream.get_final_message())


def anthropic_whole(body: bytes) -> ClientAnswer:
    with anthropic_client(body, JSON) as client:
        return _read_message(client.messages.create(model="m", max_tokens=9, messages=[{"role": "user", "content": "x"}]))


def openai_error(body: bytes, status: int) -> None:
    with openai_client(body, JSON, status) as client:
        client.chat.completions.create(model="m", messages=[])


def anthropic_error(body: bytes, status: int) -> None:
    with anthropic_client(body, JSON, status) as client:
        client.messages.create(model="m", messages=[], max_tokens=9)


def _read_message(message: Any) -> ClientAnswer:
    result = ClientAnswer(finish=message.stop_reason)
    for block in message.content:
        if block.type == "text":
            result.text += block.text
        elif block.type == "thinking":
            result.thinking += block.thinking
        elif block.type == "tool_use":
            result.calls.append((block.id, block.name, block.input))
    usage = message.usage
    result.input_tokens = usage.input_tokens + (usage.cache_read_input_tokens or 0) + (usage.cache_creation_input_tokens or 0)
    result.output_tokens = usage.output_tokens
    return result


def _arguments(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text
