"""Which words of Anthropic's format are used on both sides?

The dialect writes them for clients, and the provider's wire reads them from the upstream. The error types also arrive on other
wires, from gateways in front of several vendors.
Sources: https://docs.anthropic.com/en/api/handling-stop-reasons and https://docs.anthropic.com/en/api/errors
"""

from common.canonical.events import FinishReason
from common.sse import encode_event

STOP_REASON = {
    FinishReason.STOP: "end_turn",
    FinishReason.STOP_SEQUENCE: "stop_sequence",
    FinishReason.LENGTH: "max_tokens",
    FinishReason.TOOL_CALLS: "tool_use",
    FinishReason.CONTENT_FILTER: "refusal",
    FinishReason.REFUSAL: "refusal",
    FinishReason.PAUSE: "pause_turn",
}
REASON_OF_WORD = {word: reason for reason, word in reversed(STOP_REASON.items())}

MESSAGE_STOP = encode_event(b'{"type":"message_stop"}', "message_stop")

OVERLOADED_STATUS = 529  # Anthropic's own status; its clients retry after it.
TYPE_OF_STATUS = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    410: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}
STATUS_OF_TYPE = {
    type_: status for status, type_ in reversed(TYPE_OF_STATUS.items())
}  # If a type has two statuses, the first one.
ERROR_TYPES = {*STATUS_OF_TYPE, "api_error"}
# Types that only Anthropic has. The others mean the same at OpenAI.
OWN_ERROR_TYPES = ERROR_TYPES - {
    "invalid_request_error",
    "authentication_error",
    "permission_error",
    "not_found_error",
    "rate_limit_error",
}
