"""Which wire formats do we speak to upstreams?"""

from workers.providers.anthropic import ANTHROPIC
from workers.providers.base import FamilyWire, Wire
from workers.providers.cohere import COHERE
from workers.providers.gemini import GEMINI
from workers.providers.openai_compatible import OPENAI_COMPATIBLE
from workers.providers.openai_responses import OPENAI_RESPONSES

WIRES: dict[str, Wire] = {
    "openai-chat": OPENAI_COMPATIBLE,
    "openai-responses": OPENAI_RESPONSES,
    "anthropic-messages": ANTHROPIC,
    "cohere": COHERE,
    "gemini": GEMINI,
}
# Asked once: whether something keeps a protocol is looked up member by member.
FAMILIES = {name: wire for name, wire in WIRES.items() if isinstance(wire, FamilyWire)}
