"""How are the calls of a conversation and their results paired, so that every vendor accepts the history?

Every vendor wants ids that occur once, and right after a turn with calls one result for each of them. Clients store something
else: ids that a vendor used again in each answer, a turn that the user interrupted, a result that came too late or twice. Such
a history is put in order here, the same way in each turn.
"""

from collections import defaultdict, deque
from collections.abc import Iterable
from dataclasses import replace

from common.canonical.generation import Message, Part, Role, TextPart, ToolCallPart, ToolResultPart

_NO_RESULT = "No result: the call was not finished."


def pair_calls(messages: list[Message]) -> list[Message]:
    """Return the messages with calls and results in order; the same list if they are."""
    if _are_paired(messages):
        return messages
    return list(_place_results(*_give_ids(messages)))


def _are_paired(messages: list[Message]) -> bool:
    """Whether nothing needs to change: each turn with calls has its results in the next message, and ids occur once."""
    used: set[str] = set()
    open_ids: set[str] = set()
    for message in messages:
        calls = [part.id for part in message.parts if isinstance(part, ToolCallPart)]
        results = [part.tool_call_id for part in message.parts if isinstance(part, ToolResultPart)]
        if set(results) != open_ids or len(results) != len(open_ids):
            return False
        open_ids = set(calls)
        if "" in open_ids or len(open_ids) != len(calls) or open_ids & used:
            return False
        used |= open_ids
    return True  # Calls of the last message are still open: its vendor decides.


def _give_ids(messages: list[Message]) -> tuple[list[Message], dict[str, ToolResultPart]]:
    """Give each call an id of its own, and take out the results. A result without a call becomes a text of its turn."""
    used: set[str] = set()
    open_calls: defaultdict[str, deque[str]] = defaultdict(deque)  # By the client's id: our ids of calls without a result.
    results: dict[str, ToolResultPart] = {}
    renamed: list[Message] = []
    for message in messages:
        parts: list[Part] = []
        for part in message.parts:  # A result belongs to the last turn that has its id.
            if isinstance(part, ToolCallPart):
                open_calls.pop(part.id, None)
        for part in message.parts:
            if isinstance(part, ToolCallPart):
                own = _unused(part.id or "call", used)
                open_calls[part.id].append(own)
                parts.append(replace(part, id=own))
            elif isinstance(part, ToolResultPart) and open_calls[part.tool_call_id]:
                own = open_calls[part.tool_call_id].popleft()
                results[own] = replace(part, tool_call_id=own)
            elif isinstance(part, ToolResultPart):
                parts += [TextPart(f"Result of the tool call {part.tool_call_id}:"), *part.content]
            else:
                parts.append(part)
        last = renamed[-1] if renamed else None
        if last and last.role is message.role is Role.ASSISTANT and any(isinstance(part, ToolCallPart) for part in last.parts):
            last.parts += parts  # One turn: its calls and their results must stand next to each other.
        else:
            renamed.append(Message(message.role, parts))
    return renamed, results


def _unused(call_id: str, used: set[str]) -> str:
    own, number = call_id, 1
    while own in used:
        number += 1
        own = f"{call_id}_{number}"
    used.add(own)
    return own


def _place_results(messages: list[Message], results: dict[str, ToolResultPart]) -> Iterable[Message]:
    """Yield the messages, with the results of a turn's calls right after it."""
    due: list[Part] = []
    for message in messages:
        if due and message.role is Role.USER:
            message, due = Message(Role.USER, [*due, *message.parts]), []
        elif due:
            yield Message(Role.USER, due)
            due = []
        calls = [part.id for part in message.parts if isinstance(part, ToolCallPart)]
        due = [results.get(id_) or ToolResultPart(id_, [TextPart(_NO_RESULT)], is_error=True) for id_ in calls]
        if message.parts:
            yield message
