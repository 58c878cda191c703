"""What does Codex send that only OpenAI's own service for Codex takes?

Codex sends the same body to every provider. Where the Responses API would refuse it, the body is changed on its way.

Sources: https://github.com/openai/codex/issues/37432 (a namespace without a description),
https://github.com/openai/codex/issues/30161 (fields of items), https://github.com/openai/codex/issues/17910 and
https://github.com/SEMOSS/Semoss/pull/2532 (``client_metadata``: ids of the installation, of the session and of the turn).
"""

from typing import Any

from workers.providers.shared.loose_json import dict_of, list_of

_FIELD = "client_metadata"
_ITEM_FIELD = "internal_chat_message_metadata_passthrough"


def fit_codex_fields(body: dict[str, Any]) -> None:
    """Change a body of the Responses API. Values inside it are replaced, never changed in place."""
    body.pop(_FIELD, None)
    if isinstance(body.get("tools"), list):
        body["tools"] = _described(body["tools"])
    if isinstance(body.get("input"), list):
        body["input"] = [_fit_item(item) for item in body["input"]]


def _fit_item(item: Any) -> Any:
    fields = dict_of(item)
    if _ITEM_FIELD in fields:
        fields = {name: value for name, value in fields.items() if name != _ITEM_FIELD}
    if fields.get("type") == "additional_tools":
        fields = {**fields, "tools": _described(list_of(fields.get("tools")))}
    return fields or item


def _described(tools: list[Any]) -> list[Any]:
    """Return the tools, with its name as the description of a namespace that has none."""
    return [{**tool, "description": tool.get("name")} if _lacks_description(dict_of(tool)) else tool for tool in tools]


def _lacks_description(tool: dict[str, Any]) -> bool:
    return tool.get("type") == "namespace" and not tool.get("description")
