"""How does an assistant's reasoning go back to a model that takes it, in chat completions?

Models that reason between their tool calls continue better with their earlier reasoning, and some vendors refuse a turn with
calls in which a message lacks it, even if it is empty. Sources: https://api-docs.deepseek.com/guides/thinking_mode#tool-calls,
https://github.com/vercel/ai/issues/13203
"""

from collections.abc import Iterator
from typing import Any

from common.dialects.shared.openai_words import REASONING_FIELDS
from common.vendors.models import ModelFacts


def fit_thoughts(messages: list[dict[str, Any]], facts: ModelFacts) -> list[dict[str, Any]]:
    """Return the messages with their reasoning in the field that the model knows. Changed messages are replaced.

    Whether a message gets an empty one depends only on its own turn, so a conversation keeps its prefix.
    """
    if facts.reasoning_field is None:
        return messages
    return [fitted for turn in _turns(messages) for fitted in _fit_turn(turn, facts)]


def _turns(messages: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Yield the messages up to and including each user's."""
    turn: list[dict[str, Any]] = []
    for message in messages:
        turn.append(message)
        if message.get("role") == "user":
            yield turn
            turn = []
    yield turn


def _fit_turn(turn: list[dict[str, Any]], facts: ModelFacts) -> list[dict[str, Any]]:
    own = [message for message in turn if message.get("role") == "assistant"]
    has_calls = any(message.get("tool_calls") for message in own)
    is_due = facts.reasoning_returns == "always" or (has_calls and facts.reasoning_returns == "with_tool_calls")
    if not (is_due or any(message.get(name) for message in own for name in REASONING_FIELDS)):
        return turn
    return [_fit_message(message, facts, is_due=is_due) if message.get("role") == "assistant" else message for message in turn]


def _fit_message(message: dict[str, Any], facts: ModelFacts, *, is_due: bool) -> dict[str, Any]:
    assert facts.reasoning_field is not None
    text = next((message[name] for name in REASONING_FIELDS if message.get(name)), "")
    if not (text or is_due):
        return message
    return {**{name: value for name, value in message.items() if name not in REASONING_FIELDS}, facts.reasoning_field: text}
