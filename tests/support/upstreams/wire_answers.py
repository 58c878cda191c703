"""How does an upstream of each wire express a given answer?

Written by hand after recorded answers, without our encoders: the shortest stream, and the shortest whole answer,
with which each vendor expresses text, thinking, calls, usage or an error. Real answers of vendors are in the recordings.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class AnswerSpec:
    """``id``: what differs in the ids of each answer. ``signature`` seals the thinking, in the form of each vendor.

    ``calls`` are (id, name, arguments); on the responses wire, a string as arguments is the input of a custom tool.
    ``input_tokens`` include ``cached_tokens``. ``error`` ends the answer after the text.
    """

    id: str = "1"
    text: str = ""
    thinking: str = ""
    signature: str = ""
    calls: list[tuple[str, str, dict[str, Any] | str]] = field(default_factory=list)
    input_tokens: int = 9
    output_tokens: int = 4
    cached_tokens: int = 0
    error: str = ""


def _sse(events: Iterable[dict[str, Any]], *, is_named: bool = False) -> bytes:
    named = ((f"event: {event['type']}\n" if is_named else "", json.dumps(event)) for event in events)
    return "".join(f"{name}data: {data}\n\n" for name, data in named).encode()


# Chat completions


def _chat_calls(spec: AnswerSpec) -> list[dict[str, Any]]:
    return [
        {"index": index, "id": id_, "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
        for index, (id_, name, arguments) in enumerate(spec.calls)
    ]


def _chat_usage(spec: AnswerSpec) -> dict[str, Any]:
    counts = {"prompt_tokens": spec.input_tokens, "completion_tokens": spec.output_tokens}
    details = {"prompt_tokens_details": {"cached_tokens": spec.cached_tokens}} if spec.cached_tokens else {}
    return {**counts, "total_tokens": spec.input_tokens + spec.output_tokens, **details}


def _chat_stream(spec: AnswerSpec) -> bytes:
    def chunk(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}

    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    deltas += [{"reasoning_content": spec.thinking}] if spec.thinking else []
    deltas += [{"content": spec.text}] if spec.text else []
    deltas += [{"tool_calls": [call]} for call in _chat_calls(spec)]
    stream = _sse(chunk(delta) for delta in deltas)
    if spec.error:
        return stream + _sse([{"error": {"message": spec.error, "type": "server_error", "code": None}}])
    usage = {**chunk({}), "choices": [], "usage": _chat_usage(spec)}
    return stream + _sse([chunk({}, "tool_calls" if spec.calls else "stop"), usage]) + b"data: [DONE]\n\n"


def _chat_whole(spec: AnswerSpec) -> bytes:
    message: dict[str, Any] = {"role": "assistant", "content": spec.text}
    message |= {"reasoning_content": spec.thinking} if spec.thinking else {}
    message |= {"tool_calls": _chat_calls(spec)} if spec.calls else {}
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls" if spec.calls else "stop"}
    completion = {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
    return json.dumps({**completion, "usage": _chat_usage(spec)}).encode()


# Responses


def _response(spec: AnswerSpec, status: str) -> dict[str, Any]:
    output: list[dict[str, Any]] = []
    if spec.thinking or spec.signature:
        summary = [{"type": "summary_text", "text": spec.thinking}] if spec.thinking else []
        sealed = {"encrypted_content": spec.signature} if spec.signature else {}
        output.append({"id": f"rs_{spec.id}", "type": "reasoning", "summary": summary, **sealed})
    if spec.text:
        content = [{"type": "output_text", "text": spec.text, "annotations": [], "logprobs": []}]
        message = {"id": f"msg_{spec.id}", "type": "message", "role": "assistant", "status": "completed"}
        output.append({**message, "content": content})
    for id_, name, arguments in spec.calls:
        call = {"call_id": id_, "name": name, "status": "completed"}
        if isinstance(arguments, str):
            output.append({"type": "custom_tool_call", "id": f"ctc_{id_}", **call, "input": arguments})
        else:
            output.append({"type": "function_call", "id": f"fc_{id_}", **call, "arguments": json.dumps(arguments)})
    usage = {
        "input_tokens": spec.input_tokens,
        "input_tokens_details": {"cached_tokens": spec.cached_tokens},
        "output_tokens": spec.output_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": spec.input_tokens + spec.output_tokens,
    }
    response = {"id": f"resp_{spec.id}", "object": "response", "created_at": 1, "model": "m", "tools": []}
    response |= {"tool_choice": "auto", "parallel_tool_calls": True, "error": None, "incomplete_details": None}
    response["status"] = status
    if status == "failed":
        return {**response, "error": {"code": "server_error", "message": spec.error}, "output": [], "usage": None}
    is_done = status == "completed"
    return {**response, "output": output if is_done else [], "usage": usage if is_done else None}


def _responses_stream(spec: AnswerSpec) -> bytes:
    events: list[dict[str, Any]] = [{"type": "response.created", "response": _response(spec, "in_progress")}]
    for index, item in enumerate(_response(spec, "completed")["output"]):
        place = {"output_index": index, "item_id": item["id"]}
        emptied = {name: [] if isinstance(value, list) else value for name, value in item.items()}
        emptied |= {name: "" for name in ("arguments", "input") if name in item}
        events.append({"type": "response.output_item.added", "output_index": index, "item": emptied})
        if item["type"] == "message":
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            events.append({"type": "response.content_part.added", **place, "content_index": 0, "part": part})
            delta = {"type": "response.output_text.delta", "delta": spec.text, "logprobs": []}
            events.append({**delta, **place, "content_index": 0})
        elif item["type"] == "reasoning" and spec.thinking:
            part = {"type": "summary_text", "text": ""}
            events.append({"type": "response.reasoning_summary_part.added", **place, "summary_index": 0, "part": part})
            delta = {"type": "response.reasoning_summary_text.delta", "delta": spec.thinking}
            events.append({**delta, **place, "summary_index": 0})
        elif item["type"] == "custom_tool_call":
            events.append({"type": "response.custom_tool_call_input.delta", "delta": item["input"], **place})
        elif item["type"] == "function_call":
            events.append({"type": "response.function_call_arguments.delta", "delta": item["arguments"], **place})
        events.append({"type": "response.output_item.done", "output_index": index, "item": item})
    end = "failed" if spec.error else "completed"
    events.append({"type": f"response.{end}", "response": _response(spec, end)})
    return _sse(({**event, "sequence_number": number} for number, event in enumerate(events)), is_named=True)


def _responses_whole(spec: AnswerSpec) -> bytes:
    return json.dumps(_response(spec, "completed")).encode()


# Messages


def _blocks(spec: AnswerSpec) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Return each block as it starts, and its deltas."""
    blocks: list[tuple[dict[str, Any], list[dict[str, Any]]]] = []
    if spec.thinking or spec.signature:
        start = {"type": "thinking", "thinking": "", "signature": ""}
        deltas = [{"type": "thinking_delta", "thinking": spec.thinking}] if spec.thinking else []
        deltas += [{"type": "signature_delta", "signature": spec.signature}] if spec.signature else []
        blocks.append((start, deltas))
    if spec.text:
        blocks.append(({"type": "text", "text": ""}, [{"type": "text_delta", "text": spec.text}]))
    for id_, name, arguments in spec.calls:
        start = {"type": "tool_use", "id": id_, "name": name, "input": {}}
        blocks.append((start, [{"type": "input_json_delta", "partial_json": json.dumps(arguments)}]))
    return blocks


def _message(spec: AnswerSpec) -> dict[str, Any]:
    read = {"cache_creation_input_tokens": 0, "cache_read_input_tokens": spec.cached_tokens}
    usage = {"input_tokens": spec.input_tokens - spec.cached_tokens, **read, "output_tokens": 1}
    empty = {"content": [], "stop_reason": None, "stop_sequence": None, "usage": usage}
    return {"id": f"msg_{spec.id}", "type": "message", "role": "assistant", "model": "m", **empty}


def _messages_stream(spec: AnswerSpec) -> bytes:
    events: list[dict[str, Any]] = [{"type": "message_start", "message": _message(spec)}]
    for index, (start, deltas) in enumerate(_blocks(spec)):
        events.append({"type": "content_block_start", "index": index, "content_block": start})
        events += [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]
        events.append({"type": "content_block_stop", "index": index})
    if spec.error:
        events.append({"type": "error", "error": {"type": "api_error", "message": spec.error}})
    else:
        delta = {"stop_reason": "tool_use" if spec.calls else "end_turn", "stop_sequence": None}
        events.append({"type": "message_delta", "delta": delta, "usage": {"output_tokens": spec.output_tokens}})
        events.append({"type": "message_stop"})
    return _sse(events, is_named=True)


def _messages_whole(spec: AnswerSpec) -> bytes:
    message = _message(spec)
    content: list[dict[str, Any]] = []
    if spec.thinking or spec.signature:
        content.append({"type": "thinking", "thinking": spec.thinking, "signature": spec.signature})
    if spec.text:
        content.append({"type": "text", "text": spec.text})
    content += [{"type": "tool_use", "id": id_, "name": name, "input": arguments} for id_, name, arguments in spec.calls]
    usage = {**message["usage"], "output_tokens": spec.output_tokens}
    ending = {"content": content, "stop_reason": "tool_use" if spec.calls else "end_turn", "usage": usage}
    return json.dumps({**message, **ending}).encode()


# Cohere


def _cohere_stream(spec: AnswerSpec) -> bytes:
    def event(type_: str, index: int, message: dict[str, Any]) -> dict[str, Any]:
        return {"type": type_, "index": index, "delta": {"message": message}}

    events: list[dict[str, Any]] = [{"type": "message-start", "id": "1", "delta": {"message": {"role": "assistant"}}}]
    for kind, text in (("thinking", spec.thinking), ("text", spec.text)):
        if text:
            events.append(event("content-start", 0, {"content": {"type": kind, kind: ""}}))
            events.append(event("content-delta", 0, {"content": {kind: text}}))
            events.append({"type": "content-end", "index": 0})
    for index, (id_, name, arguments) in enumerate(spec.calls):
        call = {"id": id_, "type": "function", "function": {"name": name, "arguments": ""}}
        events.append(event("tool-call-start", index, {"tool_calls": call}))
        events.append(event("tool-call-delta", index, {"tool_calls": {"function": {"arguments": json.dumps(arguments)}}}))
        events.append({"type": "tool-call-end", "index": index})
    counts = {"input_tokens": spec.input_tokens, "output_tokens": spec.output_tokens}
    ending: dict[str, Any] = {"finish_reason": "TOOL_CALL" if spec.calls else "COMPLETE"}
    ending["usage"] = {"billed_units": counts, "tokens": counts, "cached_tokens": spec.cached_tokens}
    if spec.error:
        ending = {"finish_reason": "ERROR", "error": spec.error}
    events.append({"type": "message-end", "delta": ending})
    return _sse(events, is_named=True) + b"data: [DONE]\n\n"


def _cohere_whole(spec: AnswerSpec) -> bytes:
    content = [{"type": "thinking", "thinking": spec.thinking}] if spec.thinking else []
    content += [{"type": "text", "text": spec.text}] if spec.text else []
    calls = [
        {"id": id_, "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
        for id_, name, arguments in spec.calls
    ]
    counts = {"input_tokens": spec.input_tokens, "output_tokens": spec.output_tokens}
    message = {"role": "assistant", "content": content, "tool_calls": calls}
    reason = "TOOL_CALL" if calls else "COMPLETE"
    answer = {"id": "1", "message": message, "finish_reason": reason, "usage": {"billed_units": counts, "tokens": counts}}
    return json.dumps(answer).encode()


# Gemini


def _gemini_whole(spec: AnswerSpec) -> bytes:
    parts = _gemini_parts(spec)
    counts = {"promptTokenCount": spec.input_tokens, "candidatesTokenCount": spec.output_tokens}
    candidate = {"content": {"role": "model", "parts": parts}, "finishReason": "STOP"}
    return json.dumps({"candidates": [candidate], "usageMetadata": counts}, indent=2).encode()


def _gemini_parts(spec: AnswerSpec) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = [{"text": spec.thinking, "thought": True}] if spec.thinking else []
    parts += [{"text": spec.text}] if spec.text else []
    parts += [{"functionCall": {"id": id_, "name": name, "args": arguments}} for id_, name, arguments in spec.calls]
    signed = next((part for part in parts if "functionCall" in part), parts[-1] if parts else {})
    if spec.signature:
        signed["thoughtSignature"] = spec.signature
    return parts


def _gemini_stream(spec: AnswerSpec) -> bytes:
    parts = _gemini_parts(spec)
    counts = {"promptTokenCount": spec.input_tokens, "candidatesTokenCount": spec.output_tokens}
    counts |= {"cachedContentTokenCount": spec.cached_tokens} if spec.cached_tokens else {}
    chunks: list[dict[str, Any]] = [{"candidates": [{"content": {"role": "model", "parts": [part]}}]} for part in parts]
    if spec.error:
        chunks.append({"error": {"code": 503, "message": spec.error, "status": "UNAVAILABLE"}})
    else:
        chunks.append({"candidates": [{"content": {"parts": []}, "finishReason": "STOP"}], "usageMetadata": counts})
    return _sse(chunks).replace(b"\n\n", b"\r\n\r\n")


STREAMS: dict[str, Callable[[AnswerSpec], bytes]] = {
    "openai-chat": _chat_stream,
    "openai-responses": _responses_stream,
    "anthropic-messages": _messages_stream,
    "cohere": _cohere_stream,
    "gemini": _gemini_stream,
}
# Sluice requests whole answers only on wires that have a client dialect; the others may still send one.
WHOLES: dict[str, Callable[[AnswerSpec], bytes]] = {
    "openai-chat": _chat_whole,
    "openai-responses": _responses_whole,
    "anthropic-messages": _messages_whole,
    "cohere": _cohere_whole,
    "gemini": _gemini_whole,
}
# The error body with which each vendor reports, before a stream, that it has no capacity.
ERRORS: dict[str, Callable[[str], dict[str, Any]]] = {
    "openai-chat": lambda message: {"error": {"message": message, "type": "server_error", "param": None, "code": None}},
    "openai-responses": lambda message: {"error": {"message": message, "type": "server_error", "param": None, "code": None}},
    "anthropic-messages": lambda message: {"type": "error", "error": {"type": "overloaded_error", "message": message}},
    "cohere": lambda message: {"id": "1", "message": message},
    "gemini": lambda message: {"error": {"code": 503, "message": message, "status": "UNAVAILABLE"}},
}
