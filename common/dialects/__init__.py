"""Which client dialects are there?"""

from common.dialects.anthropic_messages import ANTHROPIC_MESSAGES
from common.dialects.base import Dialect
from common.dialects.openai_chat import OPENAI_CHAT

DIALECTS: dict[str, Dialect] = {
    "openai-chat": OPENAI_CHAT,
    "anthropic-messages": ANTHROPIC_MESSAGES,
}
