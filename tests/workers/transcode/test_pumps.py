"""What goes on with a text that broke off, event by event. How whole answers do is in tests/workers/continuation."""

import orjson
import pytest

from common.canonical.events import Usage
from common.dialects import DIALECTS
from common.dialects.base import ReplyInfo
from common.sse import split_blocks
from workers.providers import WIRES
from workers.transcode.continuing import Continuing
from workers.transcode.splice import Splice

BODY = {"model": "m", "max_tokens": 100, "stream": True, "messages": [{"role": "user", "content": "hi"}]}
SAID = [
    {"type": "message_start", "message": {"id": "msg_1", "role": "assistant", "content": [], "usage": {"input_tokens": 1}}},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Once upon"}},
]
# A model that is asked to go on, and thinks about it first.
MORE = [
    {"type": "message_start", "message": {"id": "msg_2", "role": "assistant", "content": [], "usage": {"input_tokens": 5}}},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "Go on."}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "signature_delta", "signature": "c2ln"}},
    {"type": "content_block_stop", "index": 0},
    {"type": "content_block_start", "index": 1, "content_block": {"type": "redacted_thinking", "data": "c2Vj"}},
    {"type": "content_block_stop", "index": 1},
    {"type": "content_block_start", "index": 2, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 2, "delta": {"type": "text_delta", "text": " a time"}},
    {"type": "content_block_stop", "index": 2},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 9}},
    {"type": "message_stop"},
]


def block(event: dict) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (event["type"].encode(), orjson.dumps(event))


def continued(said: list[dict], more: list[dict]) -> list[dict]:
    """The events that a client of Anthropic's messages gets behind ``said``, of an upstream of the same kind."""
    dialect = DIALECTS["anthropic-messages"]
    request = dialect.parse(BODY)
    progress = dialect.resume(request, ReplyInfo("gen_1", "m", 1, "anthropic", BODY), [block(event) for event in said])
    pump = Continuing(WIRES["anthropic-messages"], progress, Splice(progress.text), Usage(), 0)
    data = pump.feed([block(event) for event in more]) + pump.end()
    return [orjson.loads(piece.partition(b"data: ")[2]) for piece in split_blocks(data)]


def test_thinking_has_no_place_in_the_middle_of_a_text():
    events = continued(SAID, MORE)

    assert [event["type"] for event in events] == [
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert (events[0]["index"], events[0]["delta"]) == (0, {"type": "text_delta", "text": " a time"})


@pytest.mark.parametrize("said", [SAID[:1], []])
def test_thinking_comes_through_where_no_text_was_said(said: list[dict]):
    events = continued(said, MORE)

    blocks = [event["content_block"]["type"] for event in events if event["type"] == "content_block_start"]
    assert blocks == ["thinking", "redacted_thinking", "text"]
