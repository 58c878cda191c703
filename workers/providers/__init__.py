"""Which wire formats do we speak to upstreams?"""

from workers.providers.anthropic import ANTHROPIC
from workers.providers.base import Wire
from workers.providers.openai_compatible import OPENAI_COMPATIBLE

WIRES: dict[str, Wire] = {
    "openai-chat": OPENAI_COMPATIBLE,
    "anthropic-messages": ANTHROPIC,
}
