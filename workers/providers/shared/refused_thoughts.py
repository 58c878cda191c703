"""Does a vendor refuse the reasoning in a conversation's history, and what is the conversation without it?

Only the account that made sealed reasoning can read it, or find it by its id. After a failover, or with several keys, it
reaches another one, which refuses the request, and every later one of the session. Thoughts that a client has moved or lost are
refused as well. The answer does not need them, so the call is made once more without them.

Sources: https://github.com/QuantumNous/new-api/issues/3240, https://github.com/BerriAI/litellm/issues/40237,
https://github.com/anthropics/claude-code/issues/63213, https://github.com/anomalyco/opencode/issues/6176,
https://ai.google.dev/gemini-api/docs/thought-signatures
"""

import re
from dataclasses import replace

from common.canonical.errors import ErrorKind, Failed
from common.canonical.generation import GenerationRequest, Message, Part, ReasoningPart

# How the client is told what was left out.
THOUGHTS = "reasoning of the history"
COMPACTIONS = "compactions of the history"
_CODE = "invalid_encrypted_content"
_WORDS = re.compile(
    r"encrypted content could not be (verified|decrypted)|invalid `?signature`? in `?thinking`? block"
    r"|`redacted_thinking` blocks in the latest assistant message cannot be modified"
    r"|expected `thinking` or `redacted_thinking`, but found|first block must be `thinking`|block must contain thinking"
    r"|thought signature is not valid|corrupted thought signature|without its required (following|'reasoning') item"
    r"|item with id '\w{1,200}' not found",
    re.IGNORECASE,
)
# Source: https://github.com/openai/codex/issues/45401
_COMPACTION = re.compile(r"(item|input) type:? ?[\"'`]?compaction\b", re.IGNORECASE)


def refuses_thoughts(failed: Failed) -> bool:
    if failed.kind is not ErrorKind.UPSTREAM_REJECTED:
        return False
    return failed.code == _CODE or _WORDS.search(failed.message) is not None


def refuses_compactions(failed: Failed, body: bytes | bytearray) -> bool:
    """Whether a vendor of the Responses API cannot read a compaction in the body, which only its maker can."""
    if b'"compaction"' not in body or failed.kind is not ErrorKind.UPSTREAM_REJECTED:
        return False
    return refuses_thoughts(failed) or _COMPACTION.search(failed.message) is not None


def without_thoughts(request: GenerationRequest) -> GenerationRequest:
    """Return the request without the reasoning of its history."""
    messages = []
    for message in request.messages:
        parts: list[Part] = [part for part in message.parts if not isinstance(part, ReasoningPart)]
        if len(parts) == len(message.parts):
            messages.append(message)
        elif parts:
            messages.append(Message(message.role, parts))
    return replace(request, messages=messages)
