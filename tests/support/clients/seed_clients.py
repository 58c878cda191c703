"""What do clients of ``/api/…`` and ``/v1/chat`` read in our bytes?

No SDK speaks these two formats. So this module has strict readers, written from the documents that define the formats and
not from our encoders: they fail on everything that those documents do not allow. ``as_agentary_js`` and
``as_the_python_example`` are as tolerant as the existing clients.
"""

import re
from typing import Any

import orjson

from tests.support.clients.sdk_clients import ClientAnswer

_CHUNK_FIELDS = {"token", "tokenId", "isFirst", "isLast", "ttfbMs", "toolCalls", "usage", "finishReason", "citations"}
_COST_FIELDS = {"total_tokens", "input_tokens", "output_tokens", "estimated_cost_usd", "input_cost_usd", "output_cost_usd"}


class SeedError(Exception):
    """The error that such a client raises; ``status_code`` is that of the response, or of the error in the stream."""

    def __init__(self, message: str, status_code: int | None = None) -> None:
        super().__init__(message)
        self.status_code = status_code


def agentary_stream(body: bytes) -> ClientAnswer:
    *lines, done = _events_of_one_line(body)
    if done.startswith("error: "):
        error = orjson.loads(done.removeprefix("error: "))
        assert set(error) == {"message", "statusCode", "code"}
        raise SeedError(f"{error['code']}: {error['message']}", error["statusCode"])
    assert done == "data: [DONE]"
    chunks = [orjson.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
    assert len(chunks) == len(lines)
    result = ClientAnswer()
    for index, chunk in enumerate(chunks):
        assert set(chunk) <= _CHUNK_FIELDS
        assert isinstance(chunk["token"], str)
        assert chunk["tokenId"] == index
        assert chunk.get("isFirst", False) == ("ttfbMs" in chunk) == (index == 0)
        assert chunk.get("isLast", False) == (index == len(chunks) - 1)
        result.text += chunk["token"]
        result.calls += _calls(chunk.get("toolCalls", []))
    last = chunks[-1]
    assert last["token"] == ""  # The client drops the text of the chunk that ends the stream.
    result.finish = last["finishReason"]
    if "usage" in last:
        result.input_tokens, result.output_tokens = _camel_usage(last["usage"])
    return result


def agentary_whole(body: bytes) -> ClientAnswer:
    answer = orjson.loads(body)
    assert answer["token"] == answer["content"]
    result = ClientAnswer(answer["content"], calls=_calls(answer.get("tool_calls", [])), finish=answer["finish_reason"])
    result.input_tokens, result.output_tokens = _camel_usage(answer["usage"])
    return result


def agentary_error(body: bytes, status: int) -> None:
    error = orjson.loads(body)
    assert isinstance(error["error"], str)
    assert isinstance(error["type"], str)
    raise SeedError(f"{error['code']}: {error['error']}: {error['message']}", status)


def unified_stream(body: bytes) -> ClientAnswer:
    assert body.endswith(b"\n\n")
    result, is_done = ClientAnswer(), False
    for block in body.decode().removesuffix("\n\n").split("\n\n"):
        assert not is_done
        event, data = block.split("\n")
        fields = orjson.loads(data.removeprefix("data: "))
        match event:
            case "event: chunk":
                assert set(fields) - {"tool_calls"} == {"content", "role"}
                assert fields["role"] == "assistant"
                result.text += fields["content"]
                result.calls += _calls(fields.get("tool_calls", []))
            case "event: done":
                is_done = True
                assert set(fields) - {"citations"} == {"usage", "cost", "latency_ms", "finish_reason"}
                _read_usage_and_cost(fields, result)
            case "event: error":
                raise SeedError(f"{fields['code']}: {fields['error']}")
            case _:
                raise AssertionError(event)
    assert is_done
    return result


def unified_whole(body: bytes) -> ClientAnswer:
    answer = orjson.loads(body)
    assert set(answer) - {"citations"} == {"provider", "message", "usage", "cost", "latency_ms", "finish_reason"}
    message = answer["message"]
    assert message["role"] == "assistant"
    result = ClientAnswer(message["content"], calls=_calls(message.get("tool_calls", [])))
    _read_usage_and_cost(answer, result)
    return result


def unified_error(body: bytes, status: int) -> None:
    error = orjson.loads(body)
    if status != 400 or "details" not in error:
        raise SeedError(f"{error['code']}: {error['error']}", status)
    assert set(error) == {"error", "details", "expectedSchema"}
    assert error["error"] == "Invalid request"
    assert set(error["expectedSchema"]) == {"structure", "description", "example"}
    raise SeedError("; ".join(errors_in(error["details"])), status)


def errors_in(details: dict[str, Any]) -> list[str]:
    """Return all messages of a validation error, at every level."""
    messages = list(details.get("_errors", []))
    for name, inner in details.items():
        if name != "_errors":
            messages += errors_in(inner)
    return messages


def as_agentary_js(body: bytes) -> tuple[str, int]:
    """Return the text and the number of tokens as agentary-js' cloud provider counts them when it collects a stream.

    Source: ``src/providers/cloud.ts`` in https://github.com/agentary-ai/agentary-js
    """
    text, tokens = "", 0
    for line in body.decode().split("\n")[:-1]:
        if line.startswith("error: "):
            raise SeedError(line)
        data = line.removeprefix("data: ").strip()
        if not line.startswith("data: ") or data == "[DONE]":
            continue
        chunk = orjson.loads(data)
        if chunk.get("isLast"):
            break
        text, tokens = text + chunk["token"], tokens + 1
    return text, tokens


def as_the_python_example(lines: list[bytes]) -> list[dict[str, Any]]:
    """Return what the Python client in the unified format's document prints for a response's lines."""
    return [orjson.loads(line[6:]) for line in lines if line.startswith(b"data: ")]


def _events_of_one_line(body: bytes) -> list[str]:
    assert body.endswith(b"\n\n")
    lines = body.decode().removesuffix("\n\n").split("\n\n")
    assert all(re.match(r"(data|error): \S", line) and "\n" not in line for line in lines)
    return lines


def _calls(calls: list[dict[str, Any]]) -> list[tuple[str, str, Any]]:
    parsed = []
    for call in calls:
        assert set(call) == {"id", "type", "function"}
        assert call["type"] == "function"
        try:
            arguments = orjson.loads(call["function"]["arguments"])
        except orjson.JSONDecodeError:
            arguments = call["function"]["arguments"]
        parsed.append((call["id"], call["function"]["name"], arguments))
    return parsed


def _camel_usage(usage: dict[str, int]) -> tuple[int, int]:
    assert set(usage) - {"cacheReadTokens", "cacheWriteTokens"} == {"promptTokens", "completionTokens", "totalTokens"}
    assert usage["totalTokens"] == usage["promptTokens"] + usage["completionTokens"]
    return usage["promptTokens"], usage["completionTokens"]


def _read_usage_and_cost(fields: dict[str, Any], result: ClientAnswer) -> None:
    usage, cost = fields["usage"], fields["cost"]
    assert set(usage) - {"prompt_tokens_details"} == {"prompt_tokens", "completion_tokens", "total_tokens"}
    assert set(cost) == _COST_FIELDS
    assert usage["total_tokens"] == cost["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert (cost["input_tokens"], cost["output_tokens"]) == (usage["prompt_tokens"], usage["completion_tokens"])
    money = [cost["estimated_cost_usd"], cost["input_cost_usd"], cost["output_cost_usd"]]
    assert money == [None] * 3 or all(re.fullmatch(r"\d+\.\d{6}", amount) for amount in money)
    assert isinstance(fields["latency_ms"], int)
    result.finish = fields["finish_reason"]
    result.input_tokens, result.output_tokens = usage["prompt_tokens"], usage["completion_tokens"]
