"""How does reasoning that a vendor signed travel through a client of chat completions?

Google's chat completions put the signature of a call beside it, in ``extra_content``, and some clients for many vendors send
this field back with the call (Continue; the AI SDK, if its provider is named "google"). Here it carries the signatures of all
vendors. A prefix says that we wrote it, whether the reasoning came before the answer's text, and which text the reasoning had:
some clients return the signature alone, or another text. An answer without calls has no place for a signature, and no vendor
needs it there.

Source: https://ai.google.dev/gemini-api/docs/thought-signatures (OpenAI compatibility)
"""

import hashlib
import re
from typing import Any, NamedTuple

from common.canonical.generation import Part, ReasoningPart, TextPart

_FIELD = "extra_content"
_OURS = re.compile(r"sluice-(first|later):([0-9a-f]{16}):(.+)", re.DOTALL)


class CallSignatures:
    """Follows the blocks of an answer, and gives each call the signature of the reasoning before it."""

    def __init__(self) -> None:
        self._reasoning = hashlib.sha256()  # The text since the last signature.
        self._signature = ""

    def add_reasoning(self, text: str) -> None:
        self._reasoning.update(text.encode())

    def add_signature(self, signature: str, *, has_text: bool) -> None:
        """``has_text``: whether the answer's text has begun."""
        place = "later" if has_text else "first"
        self._signature = f"sluice-{place}:{_short(self._reasoning)}:{signature}"
        self._reasoning = hashlib.sha256()

    def fields_of_call(self) -> dict[str, Any]:
        """Return what is added to the next call."""
        signature, self._signature = self._signature, ""
        return {_FIELD: {"google": {"thought_signature": signature}}} if signature else {}


def add_signatures(parts: list[Part], calls: list[tuple[dict[str, Any], Part]], reasoning: str) -> list[Part]:
    """Return the parts of an assistant's message, its calls among them, with the signatures that its client returned.

    ``parts``: those before the calls. ``calls``: each call as it came, and its part. ``reasoning``: the text that came with it.
    """
    if not calls:
        return [ReasoningPart(reasoning), *parts] if reasoning else parts
    signed = [(_read(call), part) for call, part in calls]
    first = next((sealed for sealed, _ in signed if sealed and sealed.is_first), None)
    before: list[Part] = []
    if reasoning or first:
        before.append(_reasoning_part(first, reasoning) if first else ReasoningPart(reasoning))
    after: list[Part] = []
    for sealed, part in signed:
        if sealed and sealed is not first:
            after.append(_reasoning_part(sealed, ""))
        after.append(part)
    # Clients send an empty text beside calls. It would stand between a call and its signature.
    return [*before, *(part for part in parts if part != TextPart("")), *after]


def without_signatures(messages: list[Any]) -> list[Any]:
    """Return the messages without our signatures: vendors refuse fields that they do not know."""
    return [_without(message) for message in messages]


class _Sealed(NamedTuple):
    is_first: bool
    digest: str
    signature: str


def _short(hash_: "hashlib._Hash") -> str:
    return hash_.hexdigest()[:16]


def _reasoning_part(sealed: _Sealed, text: str) -> ReasoningPart:
    is_whole = sealed.digest == _short(hashlib.sha256(text.encode()))
    return ReasoningPart(text if is_whole else "", sealed.signature, is_whole=is_whole)


def _read(call: object) -> _Sealed | None:
    value: Any = call
    for name in (_FIELD, "google", "thought_signature"):
        value = value.get(name) if isinstance(value, dict) else None
    match = _OURS.fullmatch(value) if isinstance(value, str) else None
    return _Sealed(match[1] == "first", match[2], match[3]) if match else None


def _without(message: Any) -> Any:
    calls = message.get("tool_calls") if isinstance(message, dict) else None
    if not isinstance(calls, list) or not any(map(_read, calls)):
        return message
    return {**message, "tool_calls": [_without_field(call) if _read(call) else call for call in calls]}


def _without_field(call: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in call.items() if name != _FIELD}
