"""What does a request of an agent's session say, on each vendor's wire? Written from the vendors' pages, without our code."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

# What a request's media are called, by the type of their part or the media type of their data.
_MEDIA = {"image": "image", "document": "document"}  # Anthropic's, OpenAI's responses, chat completions.
_MEDIA |= {"input_image": "image", "input_file": "document", "image_url": "image", "file": "document"}


@dataclass
class Turn:
    """One turn of the model with calls. ``thoughts`` came back before them, as (text, signature). ``calls``: their ids."""

    thoughts: list[tuple[str, str]] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)


@dataclass
class Conversation:
    """``tools``: the JSON schema of each tool; None: a custom tool, which takes plain text. ``results``: by the id of the call.

    ``media``: what the request shows to the model, "image" or "document" each time.
    """

    tools: dict[str, dict[str, Any] | None]
    items: list[Any]
    turns: list[Turn]
    results: dict[str, str]
    media: list[str]


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _objects(inner)


def _media(items: list[Any]) -> list[str]:
    typed = [_MEDIA[each["type"]] for each in _objects(items) if each.get("type") in _MEDIA]
    inline = [each["inlineData"]["mimeType"] for each in _objects(items) if "inlineData" in each]
    return typed + ["document" if media_type == "application/pdf" else "image" for media_type in inline]


def _of_messages(body: dict[str, Any]) -> Conversation:
    turns, results = [], {}
    for message in body["messages"]:
        blocks = [block for block in message["content"] if isinstance(block, dict)]
        calls = [block["id"] for block in blocks if block["type"] == "tool_use"]
        if calls:
            thoughts = [(block["thinking"], block["signature"]) for block in blocks if block["type"] == "thinking"]
            turns.append(Turn(thoughts, calls))
        answers = [block for block in blocks if block["type"] == "tool_result"]
        results |= {block["tool_use_id"]: json.dumps(block.get("content")) for block in answers}
    tools = {tool["name"]: tool.get("input_schema") for tool in body.get("tools", [])}
    return Conversation(tools, body["messages"], turns, results, _media(body["messages"]))


def _of_responses(body: dict[str, Any]) -> Conversation:
    items = body["input"]
    turns: list[Turn] = []
    results = {}
    turn = Turn()
    for item in items:
        match item.get("type"):
            case "reasoning":
                text = "".join(part["text"] for part in item.get("summary") or [])
                turn.thoughts.append((text, item.get("encrypted_content") or ""))
            case "function_call" | "custom_tool_call":
                turns += [] if turn.calls else [turn]
                turn.calls.append(item["call_id"])
            case "function_call_output" | "custom_tool_call_output":
                results[item["call_id"]] = json.dumps(item["output"])
                turn = Turn()
    offered = [*body.get("tools", []), *(tool for item in items for tool in item.get("tools", []))]
    flat = [tool for each in offered for tool in (each["tools"] if each["type"] == "namespace" else [each])]
    tools = {tool["name"]: tool.get("parameters") for tool in flat if tool["type"] in ("function", "custom")}
    return Conversation(tools, items, turns, results, _media(items))


def _of_chat(body: dict[str, Any]) -> Conversation:
    messages = body["messages"]
    turns = []
    for message in messages:
        if calls := [call["id"] for call in message.get("tool_calls") or []]:
            thought = message.get("reasoning_content")
            turns.append(Turn([(thought, "")] if thought else [], calls))
    results = {message["tool_call_id"]: json.dumps(message["content"]) for message in messages if message["role"] == "tool"}
    tools = {tool["function"]["name"]: tool["function"].get("parameters") for tool in body.get("tools", [])}
    return Conversation(tools, messages, turns, results, _media(messages))


def _of_gemini(body: dict[str, Any]) -> Conversation:
    turns, results = [], {}
    for content in body["contents"]:
        calls = [part for part in content["parts"] if "functionCall" in part]
        if calls:
            signed = [("", part["thoughtSignature"]) for part in content["parts"] if "thoughtSignature" in part]
            turns.append(Turn(signed, [part["functionCall"]["id"] for part in calls]))
        answers = [part["functionResponse"] for part in content["parts"] if "functionResponse" in part]
        results |= {answer["id"]: json.dumps(answer) for answer in answers}
    declared = [tool for each in body.get("tools", []) for tool in each["functionDeclarations"]]
    tools = {tool["name"]: tool.get("parametersJsonSchema") or {"type": "object"} for tool in declared}
    return Conversation(tools, body["contents"], turns, results, _media(body["contents"]))


READERS: dict[str, Callable[[dict[str, Any]], Conversation]] = {
    "anthropic-messages": _of_messages,
    "openai-responses": _of_responses,
    "openai-chat": _of_chat,
    "gemini": _of_gemini,
}
