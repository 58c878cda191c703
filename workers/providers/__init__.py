"""Which wire formats do we speak to upstreams?"""

from workers.providers.anthropic.wire import ANTHROPIC
from workers.providers.base import FamilyWire, Wire
from workers.providers.cohere.wire import COHERE
from workers.providers.gemini.wire import GEMINI
from workers.providers.openai_chat.wire import OPENAI_COMPATIBLE
from workers.providers.openai_responses.wire import OPENAI_RESPONSES

WIRES: dict[str, Wire] = {
    "openai-chat": OPENAI_COMPATIBLE,
    "openai-responses": OPENAI_RESPONSES,
    "anthropic-messages": ANTHROPIC,
    "cohere": COHERE,
    "gemini": GEMINI,
}
# Computed once: the check whether an object implements a protocol looks at each member.
FAMILIES = {name: wire for name, wire in WIRES.items() if isinstance(wire, FamilyWire)}
