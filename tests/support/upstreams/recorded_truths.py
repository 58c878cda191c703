"""What does a recorded exchange say, read in the plainest way there is?

Straight from the vendor's JSON, one reader per API and none of our own decoders: what every decoder, and every encoder
behind it, is measured against. Where a stream repeats itself at its end (Responses, Perplexity), the end is what counts.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.support.upstreams.recordings import Recording, data_of


@dataclass
class Said:
    """One choice. ``calls`` are (name, arguments as JSON); ``finish`` is a value of ``FinishReason``."""

    text: str = ""
    refusal: str = ""
    thinking: str = ""
    calls: list[tuple[str, Any]] = field(default_factory=list)
    finish: str | None = None


@dataclass
class Truth:
    """``usage`` is (input, output, cached), cached tokens and reasoning included in the former two; None if none was told.

    ``error`` is the vendor's message, of an answer that failed.
    """

    choices: dict[int, Said] = field(default_factory=dict)
    usage: tuple[int, int, int] | None = None
    error: str | None = None

    def said(self, index: int = 0) -> Said:
        return self.choices.setdefault(index, Said())


def truth_of(recording: Recording) -> Truth:
    provider, api = recording.id.split(".")[:2]
    if recording.status >= 400:
        return Truth(error=_error_message(json.loads(recording.body)))
    return _READERS[api](recording, provider)


def _error_message(body: Any) -> str:
    """Each vendor's own shape: ``{"error": {"message"}}``, xAI's ``{"error": "…"}``, Cohere's and Mistral's ``{"message"}``."""
    error = body.get("error", body)
    return error if isinstance(error, str) else error["message"]


def _arguments(text: str) -> Any:
    """``null`` and nothing are no arguments; what is not JSON stays as it is."""
    try:
        return json.loads(text or "{}") or {}
    except json.JSONDecodeError:
        return text


# Chat completions: OpenAI and those like it, Mistral, Perplexity

_CHAT_FINISH = {"eos": "stop", "function_call": "tool_calls"}


def _chat(recording: Recording, provider: str) -> Truth:
    truth, calls = Truth(), dict[tuple[int, Any], list[str]]()
    chunks = data_of(recording.body) if recording.is_stream else [json.loads(recording.body)]
    for chunk in chunks:
        # After its finish an answer only says again why it ended.
        if "error" in chunk and not any(said.finish for said in truth.choices.values()):
            truth.error = _error_message(chunk)
        usage = chunk.get("usage") or (chunk.get("x_groq") or {}).get("usage")
        if usage:
            truth.usage = _chat_usage(usage, provider)
        for choice in chunk.get("choices", []):
            said = truth.said(choice["index"])
            delta = choice.get("delta") if recording.is_stream else choice.get("message", {})
            if delta:
                _read_chat_delta(said, delta, calls, choice["index"])
            if provider == "perplexity" and "message" in choice:
                said.text = choice["message"]["content"]  # All of it so far.
            if choice.get("finish_reason"):
                said.finish = _CHAT_FINISH.get(choice["finish_reason"], choice["finish_reason"])
    for (index, _), (name, arguments) in calls.items():
        truth.said(index).calls.append((name, _arguments(arguments)))
    return truth


def _read_chat_delta(said: Said, delta: dict[str, Any], calls: dict[tuple[int, Any], list[str]], choice: int) -> None:
    content = delta.get("content") or ""
    if isinstance(content, dict):
        said.text += json.dumps(content, separators=(",", ":"))  # Cloudflare's JSON mode.
    elif isinstance(content, list):  # Mistral's thinking.
        for part in content:
            said.text += part.get("text", "")
            said.thinking += "".join(inner["text"] for inner in part.get("thinking", []))
    else:
        said.text += content
    said.refusal += delta.get("refusal") or ""
    said.thinking += delta.get("reasoning_content") or delta.get("reasoning") or ""
    for place, call in enumerate(delta.get("tool_calls") or []):
        function = call["function"]
        # Pieces go by their index; a call that comes whole needs none.
        kept = calls.setdefault((choice, call.get("index", call.get("id") or place)), ["", ""])
        kept[0] = kept[0] or function.get("name") or ""
        kept[1] += function.get("arguments") or ""


def _chat_usage(usage: dict[str, Any], provider: str) -> tuple[int, int, int]:
    details = usage.get("completion_tokens_details") or {}
    reasoning = details.get("reasoning_tokens") or 0
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or usage.get("prompt_cache_hit_tokens") or 0
    output = (usage["completion_tokens"] or 0) + (reasoning if provider == "xai" else 0)  # xAI alone counts them beside.
    prompt = usage["prompt_tokens"]
    return prompt + cached if cached > prompt else prompt, max(output, reasoning), cached  # Beside it at Azure's Grok.


# Messages

_MESSAGES_FINISH = {
    "end_turn": "stop",
    "stop_sequence": "stop_sequence",
    "max_tokens": "length",
    "tool_use": "tool_calls",
    "refusal": "refusal",
    "pause_turn": "pause",
}


def _messages(recording: Recording, _: str) -> Truth:
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
                # The newest block of an index: a proxy that begins anew counts anew.
                block = next(each for each in reversed(blocks) if each["at"] == event["index"])
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


def _message(blocks: list[dict[str, Any]], usage: dict[str, Any], stop_reason: str | None) -> Truth:
    said = Said(
        text="".join(block["text"] for block in blocks if block["type"] == "text"),
        thinking="".join(block["thinking"] for block in blocks if block["type"] == "thinking"),
        calls=[(block["name"], block["input"]) for block in blocks if block["type"] == "tool_use"],
        finish=_MESSAGES_FINISH[stop_reason or ""],
    )
    read, written = usage.get("cache_read_input_tokens") or 0, usage.get("cache_creation_input_tokens") or 0
    return Truth({0: said}, (usage["input_tokens"] + read + written, usage["output_tokens"], read))


# Responses


def _responses(recording: Recording, _: str) -> Truth:
    if not recording.is_stream:
        return _response(json.loads(recording.body))
    # One recording goes on with other answers behind the first.
    ends = ("response.completed", "response.incomplete", "response.failed")
    return _response(next(event["response"] for event in data_of(recording.body) if event["type"] in ends))


def _response(response: dict[str, Any]) -> Truth:
    if response["status"] == "failed":
        return Truth(error=response["error"]["message"])
    said = Said()
    for item in response["output"]:
        match item["type"]:
            case "message":
                said.text += "".join(part.get("text", "") for part in item["content"])
                said.refusal += "".join(part.get("refusal", "") for part in item["content"])
            case "function_call":
                said.calls.append((item["name"], _arguments(item["arguments"])))
            case "reasoning":
                said.thinking += "\n\n".join(part["text"] for part in item.get("summary") or item.get("content") or [])
    if response["status"] == "incomplete":
        is_limit = response["incomplete_details"]["reason"] == "max_output_tokens"
        said.finish = "length" if is_limit else "content_filter"
    else:
        said.finish = "tool_calls" if said.calls else "stop"
    usage = response["usage"]
    return Truth({0: said}, (usage["input_tokens"], usage["output_tokens"], usage["input_tokens_details"]["cached_tokens"]))


# Gemini

_GEMINI_FINISH = {"STOP": "stop", "MAX_TOKENS": "length", "SAFETY": "content_filter", "RECITATION": "content_filter"}


def _gemini(recording: Recording, _: str) -> Truth:
    is_sse = recording.body.startswith(b"data:")
    whole = data_of(recording.body) if is_sse else json.loads(recording.body)
    truth, said = Truth(), Said()
    truth.choices[0] = said
    for chunk in whole if isinstance(whole, list) else [whole]:
        for candidate in chunk.get("candidates", []):
            for part in candidate.get("content", {}).get("parts", []):
                _read_gemini_part(said, part)
            said.finish = _GEMINI_FINISH.get(candidate.get("finishReason"), said.finish)
        usage = chunk.get("usageMetadata", {})
        if "promptTokenCount" in usage:
            output = usage.get("candidatesTokenCount", 0) + usage.get("thoughtsTokenCount", 0)
            prompt = usage["promptTokenCount"] + usage.get("toolUsePromptTokenCount", 0)
            truth.usage = (prompt, output, usage.get("cachedContentTokenCount", 0))
    if said.calls and said.finish == "stop":
        said.finish = "tool_calls"
    _, mark, rest = recording.body.rpartition(b"\n\n{")
    if is_sse and mark:  # An error's bare JSON behind the last event.
        truth.error, said.finish = _error_message(json.loads(b"{" + rest)), None
    return truth


def _read_gemini_part(said: Said, part: dict[str, Any]) -> None:
    call = part.get("functionCall")
    if call is None:
        name = "thinking" if part.get("thought") else "text"
        setattr(said, name, getattr(said, name) + part.get("text", ""))
    elif "name" in call:
        said.calls.append((call["name"], call.get("args") or {}))
    for piece in (call or {}).get("partialArgs", []):
        arguments, field_name = said.calls[-1][1], piece["jsonPath"].removeprefix("$.")
        arguments[field_name] = arguments.get(field_name, "") + piece["stringValue"]


# Cohere

_COHERE_FINISH = {"COMPLETE": "stop", "MAX_TOKENS": "length", "TOOL_CALL": "tool_calls", "STOP_SEQUENCE": "stop_sequence"}


def _cohere(recording: Recording, _: str) -> Truth:
    said, calls = Said(), dict[int, list[str]]()
    if not recording.is_stream:
        answer = json.loads(recording.body)
        message = answer["message"]
        said.thinking = message.get("tool_plan", "")
        _read_cohere_content(said, message.get("content", []))
        said.calls = [_cohere_call(call["function"]) for call in message.get("tool_calls", [])]
        return _cohere_end(said, answer)
    *events, ending = data_of(recording.body)
    for event in events:
        message = event.get("delta", {}).get("message", {})
        match event["type"]:
            case "content-delta":
                _read_cohere_content(said, [message["content"]])
            case "tool-plan-delta":
                said.thinking += message["tool_plan"]
            case "tool-call-start":
                calls[event["index"]] = [message["tool_calls"]["function"]["name"], ""]
            case "tool-call-delta":
                calls[event["index"]][1] += message["tool_calls"]["function"]["arguments"]
    said.calls = [(name, _arguments(arguments)) for name, arguments in calls.values()]
    return _cohere_end(said, ending["delta"])


def _read_cohere_content(said: Said, parts: list[dict[str, str]]) -> None:
    for part in parts:
        said.text += part.get("text", "")
        said.thinking += part.get("thinking", "")


def _cohere_call(function: dict[str, str]) -> tuple[str, Any]:
    return function["name"], _arguments(function["arguments"])


def _cohere_end(said: Said, ending: dict[str, Any]) -> Truth:
    if ending["finish_reason"] == "ERROR":
        return Truth({0: said}, error=ending["error"])
    said.finish = _COHERE_FINISH[ending["finish_reason"]]
    billed = ending["usage"]["billed_units"]
    return Truth({0: said}, (billed["input_tokens"], billed["output_tokens"], 0))


def _cohere_1(recording: Recording, _: str) -> Truth:
    answer = json.loads(recording.body)
    return _cohere_end(Said(text=answer["text"]), {**answer, "usage": answer["meta"]})


_READERS: dict[str, Callable[[Recording, str], Truth]] = {
    "openai-chat": _chat,
    "mistral-chat": _chat,
    "perplexity-chat": _chat,
    "anthropic-messages": _messages,
    "openai-responses": _responses,
    "gemini": _gemini,
    "cohere-v2": _cohere,
    "cohere-v1": _cohere_1,
}
