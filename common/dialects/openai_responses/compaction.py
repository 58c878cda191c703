"""How is a conversation compacted for a client of OpenAI's responses, when its vendor cannot do it?

Codex ends its input with ``compaction_trigger``, and expects exactly one item of the type ``compaction``, which it sends back
instead of the conversation. OpenAI encrypts the content of this item. Other vendors have none, so their model is asked for a
summary, and the item carries its text after a prefix. When it comes back, the text is a user's message, for every vendor;
guardrails read it (see ``common.guardrails.bodies``).

Source: https://github.com/openai/codex/pull/22809
"""

from collections.abc import Mapping
from typing import Any

from common.canonical.errors import Failed
from common.canonical.events import Completed, Event, Finished, Started, TextDelta
from common.canonical.generation import GenerationRequest, Message, Role, TextPart, ToolChoice
from common.dialects.base import ReplyInfo
from common.dialects.openai_responses.encoder import ItemEncoder, failed_event
from common.dialects.openai_responses.response_object import Items

TRIGGER = "compaction_trigger"
SUMMARY_PREFIX = "sluice-summary:"
_INTRODUCTION = "Summary of the conversation so far:\n\n"
_PROMPT = (
    "Summarize this conversation for another model, which will continue the work and sees nothing of it but your summary. "
    "State what the user wants and the decisions that were made, what is done and what is open, and every file, name, command "
    "and result that is still needed. Write the summary only."
)


def asks_for_compaction(body: Mapping[str, Any]) -> bool:
    items = body.get("input")
    last = items[-1] if isinstance(items, list) and items else None
    return isinstance(last, dict) and last.get("type") == TRIGGER


def ask_for_summary(request: GenerationRequest) -> None:
    """Change a request that asks for a compaction into one for a summary. Its tools stay, for the calls of the history."""
    request.messages = [*request.messages, Message(Role.USER, [TextPart(_PROMPT)])]
    request.tool_choice = ToolChoice("none") if request.tools else None
    request.response_format = None


def compaction_item(items: Items, text: str) -> dict[str, Any]:
    return {"id": items.id("cmp", 0), "type": "compaction", "encrypted_content": SUMMARY_PREFIX + text}


def summary_in(item: Mapping[str, Any]) -> str | None:
    """Return the text of an item that ``compaction_item`` made, as a user says it; None for any other item."""
    content = item.get("encrypted_content")
    if item.get("type") != "compaction" or not isinstance(content, str) or not content.startswith(SUMMARY_PREFIX):
        return None
    return _INTRODUCTION + content.removeprefix(SUMMARY_PREFIX)


class CompactionEncoder(ItemEncoder):
    """Encodes the events of a summary as one item. An empty summary gives none: the client then keeps its conversation."""

    def __init__(self, info: ReplyInfo) -> None:
        super().__init__(info)
        self._texts: list[str] = []

    def encode(self, event: Event) -> bytes:
        match event:
            case Started():
                return self._start()
            case TextDelta(choice=0):
                self._texts.append(event.text)
            case Finished():
                self._finished = event
            case Completed():
                return self._start() + self._summary("".join(self._texts)) + self._complete(event.usage)
            case Failed():
                return failed_event(self._response, event, self._sequence)
        return b""

    def _summary(self, text: str) -> bytes:
        if not text.strip():
            return b""
        item = compaction_item(self._items, text)
        return self._add_item(item) + self._end_item(item, 0)
