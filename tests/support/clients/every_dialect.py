"""How does a client of each dialect send a request, and how do the dialect's own clients read the answer?"""

from collections.abc import Callable
from typing import Any, NamedTuple

import anthropic
import openai

from common.dialects.base import ReplyInfo
from tests.support.clients import sdk_clients, seed_clients
from tests.support.clients.sdk_clients import ClientAnswer, ResponseFailed
from tests.support.clients.seed_clients import SeedError

INFO = ReplyInfo("gen_abc", "client/model", 1_700_000_000, "openai")
RAISED = (openai.APIError, anthropic.APIError, ResponseFailed, SeedError)  # What these clients raise for an error.


class DialectClient(NamedTuple):
    """A request body of a dialect, and the readers of its own clients.

    ``finish`` is the dialect's word for each reason; ``shows`` names what it can express besides text and calls.
    """

    body: dict[str, Any]
    read_stream: Callable[[bytes], ClientAnswer]
    read_whole: Callable[[bytes], ClientAnswer]
    read_error: Callable[[bytes, int], None]
    finish: dict[str, str]
    shows: set[str]


_BODY: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "x"}], "stream": True}
_WITH_PROVIDER = {**_BODY, "provider": "openai"}
_CHAT_FINISH = {
    "stop": "stop",
    "stop_sequence": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "content_filter": "content_filter",
    "refusal": "content_filter",
    "pause": "stop",
}
_MESSAGES_FINISH = {
    "stop": "end_turn",
    "stop_sequence": "stop_sequence",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "content_filter": "refusal",
    "refusal": "refusal",
    "pause": "pause_turn",
}
_RESPONSES_FINISH = {
    **dict.fromkeys(("stop", "stop_sequence", "tool_calls", "pause"), "completed"),
    "length": "max_output_tokens",
    "content_filter": "content_filter",
    "refusal": "content_filter",
}
CLIENTS = {
    "openai-chat": DialectClient(
        {**_BODY, "stream_options": {"include_usage": True}},
        sdk_clients.openai_stream,
        sdk_clients.openai_whole,
        sdk_clients.openai_error,
        _CHAT_FINISH,
        {"refusal", "thinking"},
    ),
    "openai-responses": DialectClient(
        {"model": "m", "input": "x", "stream": True},
        sdk_clients.responses_stream,
        sdk_clients.responses_whole,
        sdk_clients.responses_error,
        _RESPONSES_FINISH,
        {"refusal", "thinking"},
    ),
    "anthropic-messages": DialectClient(
        {**_BODY, "max_tokens": 9},
        sdk_clients.anthropic_stream,
        sdk_clients.anthropic_whole,
        sdk_clients.anthropic_error,
        _MESSAGES_FINISH,
        {"thinking"},
    ),
    "agentary": DialectClient(
        _WITH_PROVIDER,
        seed_clients.agentary_stream,
        seed_clients.agentary_whole,
        seed_clients.agentary_error,
        _CHAT_FINISH,
        set(),
    ),
    "unified": DialectClient(
        _WITH_PROVIDER,
        seed_clients.unified_stream,
        seed_clients.unified_whole,
        seed_clients.unified_error,
        _CHAT_FINISH,
        set(),
    ),
}
