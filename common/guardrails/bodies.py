"""Where in a request's body is text, whatever its dialect?

Everywhere but in the fields that are named here, which hold no text that a person wrote: what is not known is read. In
what a tool gets or gives, and in JSON inside a string, no field is left out.
"""

import re
from typing import Any

from common.guardrails.json_values import Item, JsonTexts

# Ids, kinds and options: words of the API, or made by a machine. docs/guardrails.md has the same list.
NOT_READ = frozenset(
    {"id", "model", "type", "role", "object", "status", "call_id", "tool_call_id", "tool_use_id", "item_id", "file_id"}
    | {"previous_response_id", "container", "signature", "encrypted_content", "media_type", "mime_type", "mimeType"}
    | {"detail", "format", "effort", "reasoning_effort", "service_tier", "truncation", "tool_choice", "include", "modalities"}
    | {"max_tokens", "max_completion_tokens", "max_output_tokens", "seed", "created_at", "logit_bias", "cache_control"}
)
# Of these, objects too; another field of that list may hold an object that has text.
_NOT_ENTERED = frozenset({"logit_bias", "cache_control"})
# What a tool gets or gives, a prompt's variables: objects that are somebody's own.
_FREE_OBJECTS = frozenset({"input", "arguments", "args", "output", "result", "response", "variables", "metadata"})
_FREE = frozenset({"default", "enum", "const", "example", "examples"})  # In schemas: values that they name.
# The application's own words, which give orders by right.
_SYSTEM = frozenset({"system", "instructions", "tools", "functions", "response_format", "tool_choice"})
_ROLES = {"system": "system", "developer": "system", "assistant": "assistant", "model": "assistant"}
_MODEL_ITEMS = ("function_call", "reasoning")  # Of the Responses: what the model said, without a role.
# A name in which nothing that is looked for could be: the words of the APIs are like this.
_PLAIN_NAME = re.compile(r"[A-Za-z_]{1,19}")


class BodyTexts(JsonTexts):
    """The texts of one body. Roles are system, assistant or other."""

    @classmethod
    def from_body(cls, body: dict[str, Any]) -> "BodyTexts":
        found = cls(body)
        found.read()
        return found

    def read(self) -> None:
        self._read([Item(self._root, 0, self.value, "", "other", is_free=False)])

    @property
    def messages(self) -> int:
        turns = self.value.get("messages") or self.value.get("input")
        return len(turns) if isinstance(turns, list) else 1

    def is_skipped(self, item: Item) -> bool:
        return item.field in NOT_READ and (item.field in _NOT_ENTERED or not isinstance(item.value, dict | list))

    def enter(self, item: Item, name: str, value: Any) -> tuple[str, bool]:
        role = item.role
        if item.container is self._root and (name in _SYSTEM or (name == "text" and isinstance(value, dict))):
            role = "system"
        return role, name in _FREE or (name in _FREE_OBJECTS and isinstance(value, dict))

    def role_of(self, item: Item) -> str:
        said_by = item.value.get("role")
        if isinstance(said_by, str):
            return _ROLES.get(said_by, "other")
        return "assistant" if item.value.get("type") in _MODEL_ITEMS else item.role

    def is_text(self, item: Item, name: str) -> bool:
        return name not in NOT_READ and not _PLAIN_NAME.fullmatch(name)

    def on_changed(self, container: Any, key: Any) -> None:
        if key == "thinking" and isinstance(container, dict):
            container.pop("signature", None)  # It signs another text; such a block is left out on its way to its vendor.
