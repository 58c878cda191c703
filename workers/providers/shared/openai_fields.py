"""What do both of OpenAI's wires say with the same words, and within the same limits?"""

import hashlib

from common.canonical.generation import Reasoning, ToolResultPart

_END_USER_CHARS_MAX = 64
_CALL_ID_CHARS_MAX = 40  # In chat completions; responses take 64.
# Anthropic's words for more than "high".
_EFFORT = {"xhigh": "high", "max": "high"}
_LOW_BUDGET_TOKENS, _MEDIUM_BUDGET_TOKENS = 2_048, 8_192  # The budgets that clients set for a little and for some thought.


def effort(reasoning: Reasoning | None) -> str | None:
    """Return the effort, if one was asked for: a model that cannot reason refuses a request that has the field."""
    if reasoning is None or not reasoning.enabled:
        return None
    if reasoning.budget_tokens is None:
        return _EFFORT.get(reasoning.effort or "", reasoning.effort)
    if reasoning.budget_tokens <= _LOW_BUDGET_TOKENS:
        return "low"
    return "medium" if reasoning.budget_tokens <= _MEDIUM_BUDGET_TOKENS else "high"


def end_user(name: str | None) -> str | None:
    """Return the end user's name, or a digest of it where it is longer than OpenAI takes: Claude Code's is a JSON object."""
    return _within(name, _END_USER_CHARS_MAX) if name else None


def call_id(name: str) -> str:
    """Return the id of a tool call, or a digest of it where it is longer than OpenAI takes: some vendors' hold a signature."""
    return _within(name, _CALL_ID_CHARS_MAX)


def _within(name: str, chars_max: int) -> str:
    return name if len(name) <= chars_max else hashlib.sha256(name.encode()).hexdigest()[:chars_max]


def result_text(result: ToolResultPart, text: str) -> str:
    """Return the text of a tool's result, which says that the call failed where no field could."""
    if not result.is_error or text.lower().startswith("error"):
        return text
    return f"Error: {text}" if text else "Error"
