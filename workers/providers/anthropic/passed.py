"""What of a body in Anthropic's own format does a model of Anthropic not take?

Clients change the model within a conversation, and gateways change it behind them. Then the history holds what another model or
another vendor has made.
"""

from typing import Any

from common.vendors.models import ModelFacts
from workers.providers.anthropic.request import THOUGHT_TYPES, call_id_of, calls_came_without_thinking, is_own_signature
from workers.providers.shared.loose_json import dict_of, list_of, text_of

_ID_FIELDS = {"tool_use": "id", "tool_result": "tool_use_id"}


def with_system_in_place(messages: list[Any], facts: ModelFacts) -> list[Any]:
    """Return the messages with each system message where the model takes it; elsewhere it becomes a user's.

    One without content only sets an effort, which models that take no system message here do not know.

    Source: https://platform.claude.com/docs/build-with-claude/mid-conversation-system-messages
    """
    if facts.system_position == "anywhere" or not any(_role(message) == "system" for message in messages):
        return messages
    is_taken = facts.system_position == "after_user"
    if not is_taken:
        messages = [message for message in messages if not _is_bare(message)]
    messages = _with_joined_system(messages)
    placed: list[Any] = []
    for at, message in enumerate(messages):
        following = _role(messages[at + 1]) if at + 1 < len(messages) else "assistant"
        is_placed = at > 0 and _role(messages[at - 1]) == "user" and following == "assistant"
        if _role(message) == "system" and not _is_bare(message) and not (is_taken and is_placed):
            message = {**message, "role": "user"}
        placed.append(message)
    return _with_results_first(placed)


def lost_efforts(messages: Any, facts: ModelFacts) -> list[str]:
    """Return the name of the efforts that messages set, if the model gets no such message."""
    is_lost = facts.system_position in ("leading", "first") and any(_is_bare(message) for message in list_of(messages))
    return ["messages.output_config"] if is_lost else []


def _with_joined_system(messages: list[Any]) -> list[Any]:
    joined: list[Any] = []
    for message in messages:
        if joined and _is_system_text(message) and _is_system_text(joined[-1]):
            joined[-1] = {**joined[-1], "content": _blocks(joined[-1]) + _blocks(message)}
        else:
            joined.append(message)
    return joined


def _with_results_first(messages: list[Any]) -> list[Any]:
    """Return the messages with those that answer calls right after the calls: a user's text may not stand between them."""
    placed: list[Any] = []
    for message in messages:
        at = len(placed)
        while _has_results(message) and at and _role(placed[at - 1]) == "user" and not _has_results(placed[at - 1]):
            at -= 1
        placed.insert(at, message)
    return placed


def _role(message: Any) -> str:
    return text_of(dict_of(message).get("role"))


def _is_bare(message: Any) -> bool:
    return _role(message) == "system" and not message.get("content")


def _is_system_text(message: Any) -> bool:
    return _role(message) == "system" and not _is_bare(message)


def _blocks(message: Any) -> list[Any]:
    content = message["content"]
    return content if isinstance(content, list) else [{"type": "text", "text": content}]


def _has_results(message: Any) -> bool:
    content = dict_of(message).get("content")
    return isinstance(content, list) and any(dict_of(block).get("type") == "tool_result" for block in content)


def without_empty_texts(messages: list[Any]) -> list[Any]:
    """Return the messages without empty texts, and without turns of the assistant that consist of white space.

    Other models write them before their calls. White space beside something else is taken, and stays: Claude writes it too.

    Source: https://github.com/experientiallabs/experiential/pull/804 (what was refused, tried in 2026-09)
    """
    kept_messages = []
    for message in messages:
        content = dict_of(message).get("content")
        if isinstance(content, list) and any(map(_is_blank, content)):
            kept = [block for block in content if dict_of(block).get("text") != ""]
            if _role(message) == "assistant" and all(map(_is_blank, kept)):
                continue
            message = {**message, "content": kept or content}
        kept_messages.append(message)
    return kept_messages


def _is_blank(block: Any) -> bool:
    block = dict_of(block)
    return block.get("type") == "text" and isinstance(block.get("text"), str) and not block["text"].strip()


def with_own_ids(messages: list[Any]) -> list[Any]:
    """Return the messages of a body with ids of calls in Anthropic's format: other vendors' models have made some of them."""
    fitted = []
    for message in messages:
        content = dict_of(message).get("content")
        if isinstance(content, list) and any(_with_own_id(block) is not block for block in content):
            message = {**message, "content": [_with_own_id(block) for block in content]}
        fitted.append(message)
    return fitted


def _with_own_id(block: Any) -> Any:
    name = _ID_FIELDS.get(text_of(dict_of(block).get("type")))
    if name is None or not isinstance(block.get(name), str) or call_id_of(block[name]) == block[name]:
        return block
    return {**block, name: call_id_of(block[name])}


def without_foreign_reasoning(messages: list[Any]) -> list[Any]:
    """Return the messages of a body without the reasoning and the citations of other vendors' models.

    A client that changes its model within a conversation sends them back as the blocks that we made of them, and Anthropic
    refuses any signature that is not its own.
    """
    kept_messages = []
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, list) and any(map(_is_changed, content)):
            content = [_without_foreign_citations(block) for block in content if not _is_foreign(block)]
            if content:
                kept_messages.append({**message, "content": content})
        else:
            kept_messages.append(message)
    return kept_messages


def _is_changed(block: object) -> bool:
    return _is_foreign(block) or _without_foreign_citations(block) is not block


def _is_foreign(block: object) -> bool:
    return isinstance(block, dict) and block.get("type") == "thinking" and not is_own_signature(block.get("signature"))


def _without_foreign_citations(block: Any) -> Any:
    """Return a text without the citations that we made of other vendors' sources: they have no index of Anthropic's."""
    if not isinstance(block, dict) or not isinstance(block.get("citations"), list):
        return block
    own = [citation for citation in block["citations"] if dict_of(citation).get("encrypted_index") != ""]
    if len(own) == len(block["citations"]):
        return block
    uncited = {name: value for name, value in block.items() if name != "citations"}
    return {**uncited, "citations": own} if own else uncited


def remove_thoughts(body: dict[str, Any]) -> None:
    """Remove the thoughts from a body that passes. A turn that goes on without them can have no budget for others."""
    messages = []
    for message in body["messages"]:
        content = dict_of(message).get("content")
        if not isinstance(content, list):
            messages.append(message)
        elif kept := [block for block in content if dict_of(block).get("type") not in THOUGHT_TYPES]:
            messages.append({**message, "content": kept})
    body["messages"] = messages
    turns = [message for message in messages if isinstance(dict_of(message).get("content"), list)]
    if dict_of(body.get("thinking")).get("type") == "enabled" and calls_came_without_thinking(turns):
        del body["thinking"]
