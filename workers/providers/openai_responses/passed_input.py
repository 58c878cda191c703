"""What is changed in the input of a responses body that passes unchanged otherwise?

Only what the vendor cannot read: it would refuse the request, and every later one of the conversation.
"""

from collections.abc import Sequence
from typing import Any

from common.dialects.openai_responses.compaction import summary_in
from common.dialects.openai_responses.request import item_type
from common.dialects.openai_responses.wrapped_reasoning import is_wrapped
from workers.providers.base import Deployment
from workers.providers.shared import openai_fields
from workers.providers.shared.loose_json import dict_of, text_of

_CALL_ID_CHARS_MAX = 64
_COMPACTIONS = ("compaction", "compaction_summary")
# Their ids name items that OpenAI may have stored with the reasoning before them. Without ids nothing is missing.
# Source: https://github.com/NousResearch/hermes-agent/issues/97427
_LINKED = ("message", "function_call", "custom_tool_call")


def fit_input(items: Sequence[Any], deployment: Deployment) -> list[Any]:
    """Return the items with short ids, our summaries as a user's words, and nothing that the vendor cannot read or refused."""
    fitted = [_with_short_id(_with_summary(item)) for item in items if not is_wrapped(dict_of(item).get("encrypted_content"))]
    if deployment.refuses_compactions:
        fitted = [item for item in fitted if dict_of(item).get("type") not in _COMPACTIONS]
    if deployment.refuses_thoughts:
        fitted = [_without_id(item) for item in fitted if not _is_thought(item)]
    return fitted


def _with_summary(item: Any) -> Any:
    summary = summary_in(item) if isinstance(item, dict) else None
    return {"type": "message", "role": "user", "content": summary} if summary else item


def _with_short_id(item: Any) -> Any:
    """Return an item whose call has an id that OpenAI takes. Some vendors put a signature into theirs."""
    call_id = text_of(dict_of(item).get("call_id"))
    return {**item, "call_id": openai_fields.call_id(call_id)} if len(call_id) > _CALL_ID_CHARS_MAX else item


def _is_thought(item: Any) -> bool:
    """Whether an item is reasoning, or names some that is stored at OpenAI."""
    fields = dict_of(item)
    return fields.get("type") == "reasoning" or (
        fields.get("type") == "item_reference" and text_of(fields.get("id")).startswith("rs_")
    )


def _without_id(item: Any) -> Any:
    if not isinstance(item, dict) or item_type(item) not in _LINKED:
        return item
    return {name: value for name, value in item.items() if name != "id"}
