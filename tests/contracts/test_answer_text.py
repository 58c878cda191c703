"""Is the text that is read out of a dialect's own bytes the text that its clients see?"""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.canonical.errors import Failed
from common.canonical.events import (
    Completed,
    Event,
    Finished,
    FinishReason,
    ReasoningDelta,
    ReasoningSigned,
    Started,
    TextDelta,
    ToolCallDelta,
    ToolCallStarted,
    Usage,
)
from common.canonical.generation import GenerationRequest, Message, Role, TextPart
from common.canonical.reply import fold
from common.channel.answer_text import text_in_body, text_in_stream
from common.dialects import DIALECTS
from common.dialects.base import Dialect, ReplyInfo
from common.sse import split_blocks
from tests.support.upstreams.recordings import Recording, blocks_of, parameters
from workers.providers import WIRES

REQUEST = GenerationRequest("m", [Message(Role.USER, [TextPart("x")])], stream=True)
INFO = ReplyInfo("gen_abc", "m", 1, body={"model": "m"})
TEXT = "Zwölf 🐢\u2028data: {\n\n}"
EVENTS: list[Event] = [
    Started("up_1", "m"),
    ReasoningDelta("Not this."),
    ReasoningSigned("sig"),
    TextDelta(TEXT[:7]),
    TextDelta(TEXT[7:]),
    ToolCallStarted(0, "call_1", "look"),
    ToolCallDelta(0, '{"text":"nor this"}'),
    Finished(FinishReason.TOOL_CALLS),
    Completed(Usage(3, 4)),
]
OWN_WIRES = sorted(DIALECTS.keys() & WIRES.keys())


def of(wire: str, is_stream: bool) -> list[Any]:
    return parameters(wire=wire, is_stream=is_stream)


@pytest.fixture(params=sorted(DIALECTS))
def dialect(request: pytest.FixtureRequest) -> Dialect:
    return DIALECTS[request.param]


def test_a_stream_is_read_event_by_event(dialect: Dialect):
    encoder = dialect.encoder(REQUEST, INFO)
    stream = b"".join(encoder.encode(event) for event in EVENTS)

    assert text_in_stream(dialect.name, stream) == TEXT
    assert "".join(text_in_stream(dialect.name, block) for block in split_blocks(stream)) == TEXT


def test_a_whole_answer_is_read_once_it_is_whole(dialect: Dialect):
    body = dialect.encode_reply(fold(EVENTS), REQUEST, INFO)

    assert text_in_body(dialect.name, body) == TEXT
    assert {text_in_body(dialect.name, body[:cut]) for cut in range(len(body))} == {""}


@pytest.mark.parametrize("recording", [each for wire in OWN_WIRES for kind in (True, False) for each in of(wire, kind)])
def test_what_passes_through_is_read_as_its_own_wire_reads_it(recording: Recording):
    decoder = WIRES[recording.wire].decoder()
    if recording.is_stream:
        events, said = [], ""
        for block in blocks_of(recording.body):
            if not any(isinstance(event, Completed | Failed) for event in events):  # Nothing later gets into a log.
                events += decoder.decode(block)
                said += text_in_stream(recording.wire, block)
    else:
        events = decoder.decode_whole(recording.body)
        said = text_in_body(recording.wire, recording.body)
    choice = fold(events).choices.get(0)

    if recording.id == "own.whole_answer_in_the_last_event":
        assert said == ""  # Not read: to know that it is not said twice takes a decoder's memory.
        return
    assert said == (choice.text if choice else "")


JSON: Any = st.recursive(
    st.none() | st.integers(-9, 9) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["choices", "delta", "content", "text", "type", "index", "output", "message", "token"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(JSON)
def test_nothing_that_a_provider_may_send_is_too_strange(value):
    raw = orjson.dumps(value)
    for name in DIALECTS:
        assert isinstance(text_in_stream(name, b"data: " + raw + b"\n\n"), str)
        assert isinstance(text_in_body(name, raw), str)
