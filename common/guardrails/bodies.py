"""Which parts of a request's body are text, in any dialect?

Everything except the fields named here, which contain no text that a person wrote. Unknown fields are read. Inside a tool's
input or output, and inside JSON in a string, all fields are read.
"""

import re
from typing import Any

from common.dialects.openai_responses.compaction import SUMMARY_PREFIX
from common.guardrails.json_values import Item, JsonTexts

# Ids, types and options: words of the API, or made by a machine. docs/guardrails.md has the same list.
NOT_READ = frozenset(
    {"id", "model", "type", "role", "object", "status", "call_id", "tool_call_id", "tool_use_id", "item_id", "file_id"}
    | {"previous_response_id", "container", "signature", "thought_signature", "encrypted_content"}
    | {"media_type", "mime_type", "mimeType"}
    | {"detail", "format", "effort", "reasoning_effort", "service_tier", "truncation", "tool_choice", "include", "modalities"}
    | {"max_tokens", "max_completion_tokens", "max_output_tokens", "seed", "created_at", "logit_bias", "cache_control"}
)
# Fields whose objects are skipped too. Any other field of the list may hold an object with text.
_NOT_ENTERED = frozenset({"logit_bias", "cache_control"})
# A tool's input and output, a prompt's variables: free-form objects whose fields the API does not define.
_FREE_OBJECTS = frozenset({"input", "arguments", "args", "output", "result", "response", "variables", "metadata"})
_FREE = frozenset({"default", "enum", "const", "example", "examples"})  # In schemas: literal values.
# The application's own text. Instructions are legitimate there.
_SYSTEM = frozenset({"system", "instructions", "tools", "functions", "response_format", "tool_choice"})
_ROLES = {"system": "system", "developer": "system", "assistant": "assistant", "model": "assistant"}
_MODEL_ITEMS = ("function_call", "reasoning")  # Items of the Responses API that the model wrote and that have no role.
# A name too plain to contain a match; the names in the APIs look like this.
_PLAIN_NAME = re.compile(r"[A-Za-z_]{1,19}")


class BodyTexts(JsonTexts):
    """The texts of one body. Roles are system, assistant or other."""

    @classmethod
    def from_body(cls, body: dict[str, Any]) -> "BodyTexts":
        texts = cls(body)
        texts.read()
        return texts

    def read(self) -> None:
        self._read([Item(self._root, 0, self.value, "", "other", is_free=False)])

    @property
    def messages(self) -> int:
        turns = self.value.get("messages") or self.value.get("input")
        return len(turns) if isinstance(turns, list) else 1

    def is_skipped(self, item: Item) -> bool:
        if item.field == "encrypted_content" and isinstance(item.value, str) and item.value.startswith(SUMMARY_PREFIX):
            return False  # Our own, and not encrypted.
        return item.field in NOT_READ and (item.field in _NOT_ENTERED or not isinstance(item.value, dict | list))

    def member_context(self, item: Item, name: str, value: Any) -> tuple[str, bool]:
        role = item.role
        if item.container is self._root and (name in _SYSTEM or (name == "text" and isinstance(value, dict))):
            role = "system"
        return role, name in _FREE or (name in _FREE_OBJECTS and isinstance(value, dict))

    def object_role(self, item: Item) -> str:
        role = item.value.get("role")
        if isinstance(role, str):
            return _ROLES.get(role, "other")
        return "assistant" if item.value.get("type") in _MODEL_ITEMS else item.role

    def is_text_name(self, item: Item, name: str) -> bool:
        return name not in NOT_READ and not _PLAIN_NAME.fullmatch(name)

    def on_changed(self, container: Any, key: Any) -> None:
        if key == "thinking" and isinstance(container, dict):
            # The signature belongs to the original text. A block without one is not sent to its vendor.
            container.pop("signature", None)
