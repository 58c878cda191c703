"""Which words does Anthropic's format have that are written on one side and read on the other?

The dialect writes them for clients, the provider's wire reads them of the upstream; the error types also come through other
wires, from gateways that speak for several vendors.
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

OVERLOADED_STATUS = 529  # Anthropic's own, which its clients wait for and try again.
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
STATUS_OF_TYPE = {type_: status for status, type_ in reversed(TYPE_OF_STATUS.items())}  # The first of two statuses.
ERROR_TYPES = {*STATUS_OF_TYPE, "api_error"}
# Of these, the words that nobody else has; the others mean the same at OpenAI.
OWN_ERROR_TYPES = ERROR_TYPES - {
    "invalid_request_error",
    "authentication_error",
    "permission_error",
    "not_found_error",
    "rate_limit_error",
}
