"""An answer with calls ends as one, on every wire: some servers say that they simply stopped, and agents would stop too."""

import re

import pytest

from common.canonical.events import FinishReason
from common.canonical.reply import fold
from tests.support.upstreams.recordings import blocks_of
from tests.support.upstreams.wire_answers import STREAMS, AnswerSpec
from workers.providers import WIRES

# What each wire says of calls, and of an answer that simply stopped. Google and the Responses API have one word for both.
WORDS = {
    "openai-chat": (b'"tool_calls"', b'"stop"'),
    "anthropic-messages": (b'"tool_use"', b'"end_turn"'),
    "cohere": (b'"TOOL_CALL"', b'"COMPLETE"'),
}


@pytest.mark.parametrize("wire", WIRES)
def test_a_stop_after_calls_means_the_calls(wire: str) -> None:
    of_calls, of_a_stop = WORDS.get(wire, (b"", b""))
    answer = STREAMS[wire](AnswerSpec(text="Let me see.", calls=[("c1", "f", {"a": "b"})]))
    stopped = (
        re.sub(rb'("(?:finish|stop)_reason": ?)' + re.escape(of_calls), rb"\1" + of_a_stop, answer) if of_calls else answer
    )
    assert (stopped != answer) == (wire in WORDS)

    decoder = WIRES[wire].decoder()
    reply = fold([event for block in blocks_of(stopped) for event in decoder.decode(block)] + decoder.end())

    assert [call.name for call in reply.choices[0].tool_calls] == ["f"]
    assert reply.choices[0].finish_reason is FinishReason.TOOL_CALLS
