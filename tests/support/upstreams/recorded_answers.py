"""What does a recorded answer contain, read in the simplest way?

Each API has a reader that reads the vendor's JSON directly and uses none of our decoders. Tests compare every decoder, and
every encoder after it, with the result. If a stream repeats its content at its end (Responses, Perplexity), the end counts.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.support.upstreams.recordings import Recording, data_of


@dataclass
class RecordedChoice:
    """One choice. ``calls`` are (name, arguments as JSON); ``finish`` is a value of ``FinishReason``."""

    text: str = ""
    refusal: str = ""
    thinking: str = ""
    calls: list[tuple[str, Any]] = field(default_factory=list)
    finish: str | None = None


@dataclass
class RecordedAnswer:
    """``usage`` is (input, output, cached); input includes cached tokens, output includes reasoning. None: not reported.

    ``error`` is the vendor's message, if the answer failed.
    """

    choices: dict[int, RecordedChoice] = field(default_factory=dict)
    usage: tuple[int, int, int] | None = None
    error: str | None = None

    def choice(self, index: int = 0) -> RecordedChoice:
        return self.choices.setdefault(index, RecordedChoice())


def read_recording(recording: Recording) -> RecordedAnswer:
    provider, api = recording.id.split(".")[:2]
    if recording.status >= 400:
        return RecordedAnswer(error=_error_message(json.loads(recording.body)))
    return _READERS[api](recording, provider)


def _error_message(body: Any) -> str:
    """Each vendor's own shape: ``{"error": {"message"}}``, xAI's ``{"error": "…"}``, Cohere's and Mistral's ``{"message"}``."""
    error = body.get("error", body)
    return error if isinstance(error, str) else error["message"]


def _arguments(text: str) -> Any:
    """``null`` and an empty text mean no arguments; a text that is not JSON stays unchanged."""
    try:
        return json.loads(text or "{}") or {}
    except json.JSONDecodeError:
        return text


# Chat completions: OpenAI and compatible vendors, Mistral, Perplexity

_CHAT_FINISH = {"eos": "stop", "function_call": "tool_calls"}


def _chat(recording: Recording, provider: str) -> RecordedAnswer:
    recorded, calls = RecordedAnswer(), dict[tuple[int, Any], list[str]]()
    chunks = data_of(recording.body) if recording.is_stream else [json.loads(recording.body)]
    for chunk in chunks:
        # An error after the finish only repeats why the answer ended.
        if "error" in chunk and not any(result.finish for result in recorded.choices.values()):
            recorded.error = _error_message(chunk)
        usage = chunk.get("usage") or (chunk.get("x_groq") or {}).get("usage")
        if usage:
            recorded.usage = _chat_usage(usage, provider)
        for choice in chunk.get("choices", []):
            result = recorded.choice(choice["index"])
            delta = choice.get("delta") if recording.is_stream else choice.get("message", {})
            if delta:
                _read_chat_delta(result, delta, calls, choice["index"])
            if provider == "perplexity" and "message" in choice:
                result.text = choice["message"]["content"]  # The whole text so far.
            if choice.get("finish_reason"):
                result.finish = _CHAT_FINISH.get(choice["finish_reason"], choice["finish_reason"])
    for (index, _), (name, arguments) in calls.items():
        recorded.choice(index).calls.append((name, _arguments(arguments)))
    return recorded


def _read_chat_delta(
    result: RecordedChoice, delta: dict[str, Any], calls: dict[tuple[int, Any], list[str]], index: int
) -> None:
    content = delta.get("content") or ""
    if isinstance(content, dict):
        result.text += json.dumps(content, separators=(",", ":"))  # Cloudflare's JSON mode.
    elif isinstance(content, list):  # Mistral's thinking.
        for part in content:
            result.text += part.get("text", "")
            result.thinking += "".join(inner["text"] for inner in part.get("thinking", []))
    else:
        result.text += content
    result.refusal += delta.get("refusal") or ""
    result.thinking += delta.get("reasoning_content") or delta.get("reasoning") or ""
    for place, call in enumerate(delta.get("tool_calls") or []):
        function = call["function"]
        # Pieces have an index; a complete call needs none.
        parts = calls.setdefault((index, call.get("index", call.get("id") or place)), ["", ""])
        parts[0] = parts[0] or function.get("name") or ""
        parts[1] += function.get("arguments") or ""


def _chat_usage(usage: dict[str, Any], provider: str) -> tuple[int, int, int]:
    details = usage.get("completion_tokens_details") or {}
    reasoning = details.get("reasoning_tokens") or 0
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or usage.get("prompt_cache_hit_tokens") or 0
    output = (usage["completion_tokens"] or 0) + (reasoning if provider == "xai" else 0)  # Only xAI counts them separately.
    prompt = usage["prompt_tokens"]
    return (
        prompt + cached if cached > prompt else prompt,
        max(output, reasoning),
        cached,
    )  # Azure's Grok counts them separately.


# Messages

_MESSAGES_FINISH = {
    "end_turn": "stop",
    "stop_sequence": "stop_sequence",
    "max_tokens": "length",
    "tool_use": "tool_calls",
    "refusal": "refusal",
    "pause_turn": "pause",
}


def _messages(recording: Recording, _: str) -> RecordedAnswer:
    if not recording.is_stream:
        message = json.loads(recording.body)
        return _message(message["content"], message["usage"], message["stop_reason"])
    blocks: list[dict[str, Any]] = []
    usage: dict[str, Any] = {}
    stop_reason = None
    for event in data_of(recording.body):
        match event["type"]:
            case "message_start":
                usage |= event["message"]["usage"]
            case "content_block_start":
                blocks.append({**event["content_block"], "at": event["index"], "json": ""})
            case "content_block_delta":
                # The newest block with this index: a proxy that begins again also counts from 0 again.
                block = next(block for block in reversed(blocks) if block["at"] == event["index"])
                for name in ("text", "thinking"):
                    block[name] = block.get(name, "") + event["delta"].get(name, "")
                block["json"] += event["delta"].get("partial_json", "")
            case "message_delta":
                usage |= {name: value for name, value in event["usage"].items() if value is not None}
                stop_reason = event["delta"]["stop_reason"]
    for block in blocks:
        if block["type"] == "tool_use":
            block["input"] = _arguments(block["json"])
    return _message(blocks, usage, stop_reason)


def _message(blocks: list[dict[str, Any]], usage: dict[str, Any], stop_reason: str | None) -> RecordedAnswer:
    result = RecordedChoice(
        text="".join(block["text"] for block in blocks if block["type"] == "text"),
        thinking="".join(block["thinking"] for block in blocks if block["type"] == "thinking"),
        calls=[(block["name"], block["input"]) for block in blocks if block["type"] == "tool_use"],
        finish=_MESSAGES_FINISH[stop_reason or ""],
    )
    read, written = usage.get("cache_read_input_tokens") or 0, usage.get("cache_creation_input_tokens") or 0
    return RecordedAnswer({0: result}, (usage["input_tokens"] + read + written, usage["output_tokens"], read))


# Responses


def _responses(recording: Recording, _: str) -> RecordedAnswer:
    if not recording.is_stream:
        return _response(json.loads(recording.body))
    # One recording has other answers after the first.
    ends = ("response.completed", "response.incomplete", "response.failed")
    return _response(next(event["response"] for event in data_of(recording.body) if event["type"] in ends))


def _response(response: dict[str, Any]) -> RecordedAnswer:
    if response["status"] == "failed":
        return RecordedAnswer(error=response["error"]["message"])
    result = RecordedChoice()
    for item in response["output"]:
        match item["type"]:
            case "message":
                result.text += "".join(part.get("text", "") for part in item["content"])
                result.refusal += "".join(part.get("refusal", "") for part in item["content"])
            case "function_call":
                result.calls.append((item["name"], _arguments(item["arguments"])))
            case "reasoning":
                result.thinking += "\n\n".join(part["text"] for part in item.get("summary") or item.get("content") or [])
    if response["status"] == "incomplete":
        is_limit = response["incomplete_details"]["reason"] == "max_output_tokens"
        result.finish = "length" if is_limit else "content_filter"
    else:
        result.finish = "tool_calls" if result.calls else "stop"
    usage = response["usage"]
    return RecordedAnswer(
        {0: result}, (usage["input_tokens"], usage["output_tokens"], usage["input_tokens_details"]["cached_tokens"])
    )


# Gemini

_GEMINI_FINISH = {"STOP": "stop", "MAX_TOKENS": "length", "SAFETY": "content_filter", "RECITATION": "content_filter"}


def _gemini(recording: Recording, _: str) -> RecordedAnswer:
    is_sse = recording.body.startswith(b"data:")
    chunks = data_of(recording.body) if is_sse else json.loads(recording.body)
    recorded, result = RecordedAnswer(), RecordedChoice()
    recorded.choices[0] = result
    for chunk in chunks if isinstance(chunks, list) else [chunks]:
        for candidate in chunk.get("candidates", []):
            for part in candidate.get("content", {}).get("parts", []):
                _read_gemini_part(result, part)
            result.finish = _GEMINI_FINISH.get(candidate.get("finishReason"), result.finish)
        usage = chunk.get("usageMetadata", {})
        if "promptTokenCount" in usage:
            output = usage.get("candidatesTokenCount", 0) + usage.get("thoughtsTokenCount", 0)
            prompt = usage["promptTokenCount"] + usage.get("toolUsePromptTokenCount", 0)
            recorded.usage = (prompt, output, usage.get("cachedContentTokenCount", 0))
    if result.calls and result.finish == "stop":
        result.finish = "tool_calls"
    _, mark, rest = recording.body.rpartition(b"\n\n{")
    if is_sse and mark:  # The plain JSON of an error after the last event.
        recorded.error, result.finish = _error_message(json.loads(b"{" + rest)), None
    return recorded


def _read_gemini_part(result: RecordedChoice, part: dict[str, Any]) -> None:
    call = part.get("functionCall")
    if call is None:
        name = "thinking" if part.get("thought") else "text"
        setattr(result, name, getattr(result, name) + part.get("text", ""))
    elif "name" in call:
        result.calls.append((call["name"], call.get("args") or {}))
    for piece in (call or {}).get("partialArgs", []):
        arguments, field_name = result.calls[-1][1], piece["jsonPath"].removeprefix("$.")
        arguments[field_name] = arguments.get(field_name, "") + piece["stringValue"]


# Cohere

_COHERE_FINISH = {"COMPLETE": "stop", "MAX_TOKENS": "length", "TOOL_CALL": "tool_calls", "STOP_SEQUENCE": "stop_sequence"}


def _cohere(recording: Recording, _: str) -> RecordedAnswer:
    result, calls = RecordedChoice(), dict[int, list[str]]()
    if not recording.is_stream:
        answer = json.loads(recording.body)
        message = answer["message"]
        result.thinking = message.get("tool_plan", "")
        _read_cohere_content(result, message.get("content", []))
        result.calls = [_cohere_call(call["function"]) for call in message.get("tool_calls", [])]
        return _cohere_end(result, answer)
    *events, ending = data_of(recording.body)
    for event in events:
        message = event.get("delta", {}).get("message", {})
        match event["type"]:
            case "content-delta":
                _read_cohere_content(result, [message["content"]])
            case "tool-plan-delta":
                result.thinking += message["tool_plan"]
            case "tool-call-start":
                calls[event["index"]] = [message["tool_calls"]["function"]["name"], ""]
            case "tool-call-delta":
                calls[event["index"]][1] += message["tool_calls"]["function"]["arguments"]
    result.calls = [(name, _arguments(arguments)) for name, arguments in calls.values()]
    return _cohere_end(result, ending["delta"])


def _read_cohere_content(result: RecordedChoice, parts: list[dict[str, str]]) -> None:
    for part in parts:
        result.text += part.get("text", "")
        result.thinking += part.get("thinking", "")


def _cohere_call(function: dict[str, str]) -> tuple[str, Any]:
    return function["name"], _arguments(function["arguments"])


def _cohere_end(result: RecordedChoice, ending: dict[str, Any]) -> RecordedAnswer:
    if ending["finish_reason"] == "ERROR":
        return RecordedAnswer({0: result}, error=ending["error"])
    result.finish = _COHERE_FINISH[ending["finish_reason"]]
    billed = ending["usage"]["billed_units"]
    return RecordedAnswer({0: result}, (billed["input_tokens"], billed["output_tokens"], 0))


def _cohere_1(recording: Recording, _: str) -> RecordedAnswer:
    answer = json.loads(recording.body)
    return _cohere_end(RecordedChoice(text=answer["text"]), {**answer, "usage": answer["meta"]})


_READERS: dict[str, Callable[[Recording, str], RecordedAnswer]] = {
    "openai-chat": _chat,
    "mistral-chat": _chat,
    "perplexity-chat": _chat,
    "anthropic-messages": _messages,
    "openai-responses": _responses,
    "gemini": _gemini,
    "cohere-v2": _cohere,
    "cohere-v1": _cohere_1,
}
