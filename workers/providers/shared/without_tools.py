"""What becomes of tools at a model that calls none?

Tools that a client offers now are refused by name. Calls and results of the history, from another model, become text: a session
can go on. A call is told together with its result, in the user's words: a model that saw calls as texts of its own would write
more of them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from common.canonical.generation import GenerationRequest, Message, Part, Role, TextPart, ToolCallPart, ToolResultPart
from common.vendors.models import ModelFacts
from workers.providers.shared.loose_json import dict_of, list_of
from workers.providers.shared.unsupported import invalid_field_error


def fit_tools(request: GenerationRequest, facts: ModelFacts) -> tuple[GenerationRequest, list[str]]:
    """Return the request as a model without tools takes it, and the names of what was left out.

    Raises:
        GatewayError: INVALID_REQUEST: the client offers tools that the model would need.
    """
    if facts.tools:
        return request, []
    may_call = request.tools and not (request.tool_choice and request.tool_choice.mode == "none")
    if may_call:
        name = request.names.get("tools", "tools")
        raise invalid_field_error(name, "must be left out: this model calls no tools; choose another model")
    calls = {part.id: part for message in request.messages for part in message.parts if isinstance(part, ToolCallPart)}
    messages = [fitted for message in request.messages if (fitted := _without_tools(message, calls)).parts]
    left_out = ["tools"] if request.tools else []
    return replace(request, messages=messages, tools=[], tool_choice=None), left_out


def must_lose_tools(body: Mapping[str, Any], facts: ModelFacts) -> bool:
    """Whether a chat completions body offers or has called tools, and its model calls none: then it cannot pass unchanged."""
    if facts.tools:
        return False
    turns = map(dict_of, list_of(body.get("messages")))
    return bool(body.get("tools")) or any(turn.get("tool_calls") or turn.get("role") == "tool" for turn in turns)


def _without_tools(message: Message, calls: dict[str, ToolCallPart]) -> Message:
    if not any(isinstance(part, ToolCallPart | ToolResultPart) for part in message.parts):
        return message
    if message.role is Role.ASSISTANT:
        return Message(message.role, [part for part in message.parts if not isinstance(part, ToolCallPart)])
    return Message(message.role, [fitted for part in message.parts for fitted in _as_text(part, calls)])


def _as_text(part: Part, calls: dict[str, ToolCallPart]) -> Iterator[Part]:
    if not isinstance(part, ToolResultPart):
        yield part
        return
    call = calls.get(part.tool_call_id)
    what = f"{call.name} {call.arguments}" if call else part.tool_call_id
    yield TextPart(f"{'Error' if part.is_error else 'Result'} of the tool call {what}:")
    yield from part.content
