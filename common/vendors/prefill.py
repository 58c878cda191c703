"""How can a model be made to go on with an answer that broke off, per provider and model?

*Reattach*: the upstream is another Sluice, or runs OpenAI's responses in the background; its answer outlived the connection,
and is read again. The settings say so.
*Prefill*: the request ends with the assistant's own words, and the model goes on with them. *Instruction*: a turn of the
user's asks for the rest; the seam may show, so it is only done where the settings say so. A provider that is in no row, and of
which the settings say nothing, cannot go on.

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
    """``message`` is added to the assistant's last message, ``body`` to the body. ``path`` stands before the wire's own path.

    ``echoes``: the answer begins with the prefill.
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
# What another Sluice is told, so that it waits for whoever comes back: longer than a takeover takes.
KEEP_ALIVE_HEADERS: Mapping[str, str] = {"x-disconnect": "grace=60"}
# What a server of one's own takes, where the settings say that it does.
_DECLARED = Prefill(body={"continue_final_message": True, "add_generation_prompt": False})


def find_prefill(provider: str, model: str, wire: str, chosen: ContinuationMethod | None) -> Prefill | None:
    """Return how a model takes the beginning of its answer, None if it does not; ``chosen`` is what the settings say."""
    found = PREFILLS.get(provider) or (_DECLARED if chosen == "prefill" else None)
    if found is None or chosen == "none" or found.wire != wire:
        return None
    return found if found.models.match(model) else None
