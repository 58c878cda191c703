"""How can a model continue an answer that broke off, per provider and model?

*Reattach*: the upstream is another Sluice, or runs OpenAI's responses in the background. Its answer outlived the connection
and is read again. Only if the settings say so.
*Prefill*: the request ends with the beginning of the assistant's answer, and the model continues it. *Instruction*: an extra
user message asks for the rest. The join may be visible, so this happens only if the settings say so. A provider without a row
here and without a setting cannot continue.

Sources: https://docs.anthropic.com/en/docs/build-with-claude/prompt-engineering/prefill-claudes-response (refused by Claude
4.6 and all later ones), https://docs.mistral.ai/capabilities/completion/usage (``prefix``),
https://api-docs.deepseek.com/guides/chat_prefix_completion, and vLLM's extra parameters:
https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from common.vendors.table import WireName

ContinuationMethod = Literal["reattach", "prefill", "instruction", "none"]


@dataclass(frozen=True, slots=True)
class Prefill:
    """How to send a prefill. ``message`` fields are added to the assistant's last message, ``body`` fields to the body.

    ``path`` is put before the wire's own path. ``echoes``: the answer repeats the prefill at its beginning.
    """

    wire: WireName = "openai-chat"
    models: re.Pattern[str] = re.compile("")
    message: Mapping[str, Any] = field(default_factory=dict)
    body: Mapping[str, Any] = field(default_factory=dict)
    path: str = ""
    echoes: bool = False


PREFILLS: Mapping[str, Prefill] = {
    "anthropic": Prefill(
        wire="anthropic-messages",
        models=re.compile(r"claude-(instant|[23](\D|$)|[a-z]+-4(-[0-5])?(-\d{6,}|-latest|$))"),
    ),
    "mistral": Prefill(message={"prefix": True}, echoes=True),
    "deepseek": Prefill(message={"prefix": True}, path="/beta"),
    "demo": Prefill(),
}
# Sent to another Sluice, so that it keeps the answer until we return: longer than a takeover takes.
KEEP_ALIVE_HEADERS: Mapping[str, str] = {"x-disconnect": "grace=60"}
# For a self-hosted server, if the settings say that it supports prefill.
_DECLARED = Prefill(body={"continue_final_message": True, "add_generation_prompt": False})


def find_prefill(provider: str, model: str, wire: str, chosen: ContinuationMethod | None) -> Prefill | None:
    """Return how to send a model the beginning of its answer; None if it does not support that.

    ``chosen`` is the method in the settings, if any.
    """
    prefill = PREFILLS.get(provider) or (_DECLARED if chosen == "prefill" else None)
    if prefill is None or chosen == "none" or prefill.wire != wire:
        return None
    return prefill if prefill.models.match(model) else None
