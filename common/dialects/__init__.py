"""Which client dialects are there?"""

from common.dialects.agentary.dialect import AGENTARY
from common.dialects.anthropic_messages.dialect import ANTHROPIC_MESSAGES
from common.dialects.base import Dialect
from common.dialects.openai_chat.dialect import OPENAI_CHAT
from common.dialects.openai_responses.dialect import OPENAI_RESPONSES
from common.dialects.unified.dialect import UNIFIED

DIALECTS: dict[str, Dialect] = {
    "openai-chat": OPENAI_CHAT,
    "openai-responses": OPENAI_RESPONSES,
    "anthropic-messages": ANTHROPIC_MESSAGES,
    "agentary": AGENTARY,
    "unified": UNIFIED,
}
