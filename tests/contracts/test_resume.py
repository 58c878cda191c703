"""What must hold for every client dialect where an answer breaks off and another call goes on with it.

Streams of ours and recorded ones are cut behind every event, and the rest is encoded behind the cut: the vendors' own SDKs
must read one whole answer.
"""

import orjson
import pytest

from common.canonical.events import (
    Completed,
    Event,
    Finished,
    FinishReason,
    ReasoningDelta,
    ReasoningSigned,
    RefusalDelta,
    Started,
    TextDelta,
    ToolCallDelta,
    ToolCallStarted,
    Usage,
)
from common.canonical.reply import fold
from common.dialects import DIALECTS
from common.dialects.base import Dialect, Progress
from common.sse import split_blocks
from tests.contracts.test_dialects import BODIES, INFO, READ_STREAM, dialects, encode
from tests.support.upstreams.recordings import Recording, blocks_of, parameters, recordings
from workers.providers import WIRES

WORDS = ["Water", " flows", "\n\n", "down", '"hill"', " \\ ", "always", " 🌊"]
TEXT = "".join(WORDS)
USAGE = Usage(7, 9)
PLAIN: list[Event] = [Started("x", "m"), *map(TextDelta, WORDS), Finished(FinishReason.STOP), Completed(USAGE)]
THOUGHT: list[Event] = [Started("x", "m"), ReasoningDelta("hm"), ReasoningSigned("s"), *PLAIN[1:]]
# The SDK itself cannot read these: gateways whose ids change, and whose answers come whole.
UNREADABLE = ("own.ids_that_change_unnamed_with_done", "own.whole_answer_in_the_last_event")
CALL: list[Event] = [ToolCallStarted(0, "c", "f"), ToolCallDelta(0, '{"a":'), ToolCallDelta(0, "1}")]


def resume(dialect: Dialect, blocks: list[bytes]) -> Progress:
    return dialect.resume(dialect.parse(BODIES[dialect.name]), INFO, blocks)


def continued(dialect: Dialect, blocks: list[bytes], text: str) -> bytes:
    """Return the whole stream: what was said, and the rest of the text behind it."""
    progress = resume(dialect, blocks)
    assert text.startswith(progress.text)
    rest = text[len(progress.text) :]
    events: list[Event] = [*map(TextDelta, rest), Finished(FinishReason.STOP), Completed(USAGE)]
    if progress.finished:
        assert rest == ""
        events = events[-1:]
    return b"".join([*blocks, progress.missing_events, *map(progress.encoder.encode, events)])


def is_plain_text(recording: Recording) -> bool:
    if recording.wire not in DIALECTS or not recording.is_stream or recording.status >= 400:
        return False
    progress = resume(DIALECTS[recording.wire], blocks_of(recording.body))
    return progress.is_plain and bool(progress.text)


def starts(body: bytes) -> int:
    """How often a stream says that it begins."""
    marks = (b'"role":"assistant","content":""', b'"type":"message_start"', b'"type":"response.created"', b'"isFirst"')
    return sum(body.count(mark) for mark in marks)


@dialects
@pytest.mark.parametrize("events", [PLAIN, THOUGHT], ids=["text", "thinking first"])
def test_a_text_goes_on_behind_every_event(dialect, events):
    whole = encode(dialect, events)
    blocks = split_blocks(whole)
    cuts = 0
    for k in range(1, len(blocks)):
        progress = resume(dialect, blocks[:k])
        if events is THOUGHT and progress.text == "":
            continue  # The call that follows thinks anew, or there is none: see below.
        assert progress.is_plain
        cuts += 1
        body = continued(dialect, blocks[:k], TEXT)

        seen = READ_STREAM[dialect.name](body)

        assert seen == READ_STREAM[dialect.name](whole), k
        assert starts(body) == starts(whole)
    assert cuts >= len(WORDS)


@dialects
def test_a_stream_that_is_over_is_only_ended(dialect):
    blocks = split_blocks(encode(dialect, PLAIN))

    progress = resume(dialect, blocks)

    assert progress.finished == Finished(FinishReason.STOP)
    assert progress.missing_events + progress.encoder.encode(Completed(USAGE)) == b""


@dialects
def test_behind_the_finish_reason_only_the_rest_of_the_end_is_said(dialect):
    whole = encode(dialect, PLAIN)
    blocks = split_blocks(whole)
    finished = [k for k in range(1, len(blocks)) if resume(dialect, blocks[:k]).finished]

    for k in finished:
        assert continued(dialect, blocks[:k], TEXT) == whole


@dialects
@pytest.mark.parametrize(
    "said", [[*PLAIN[:3], *CALL[:2]], [*PLAIN[:3], *CALL, Finished(FinishReason.TOOL_CALLS)]], ids=["begun", "whole"]
)
def test_a_call_is_not_plain(dialect, said):
    blocks = split_blocks(encode(dialect, said))
    if dialect.name in ("agentary", "unified") and not isinstance(said[-1], Finished):
        assert resume(dialect, blocks).text == "Water flows"  # Calls come whole there: of this one nothing was said.
        return

    assert not resume(dialect, blocks).is_plain


@pytest.mark.parametrize("name", ["openai-chat", "openai-responses", "anthropic-messages"])
def test_thinking_in_progress_is_not_plain(name):
    blocks = split_blocks(encode(DIALECTS[name], [Started("x", "m"), ReasoningDelta("hm")]))

    assert not resume(DIALECTS[name], blocks).is_plain


@pytest.mark.parametrize("name", ["openai-chat", "openai-responses"])
def test_a_refusal_is_not_plain(name):
    blocks = split_blocks(encode(DIALECTS[name], [Started("x", "m"), RefusalDelta("No")]))

    assert not resume(DIALECTS[name], blocks).is_plain


def test_several_choices_are_not_plain():
    blocks = split_blocks(encode(DIALECTS["openai-chat"], [TextDelta("a"), TextDelta("b", choice=1)]))

    assert not resume(DIALECTS["openai-chat"], blocks).is_plain


def test_citations_are_not_plain():
    delta = {"type": "content_block_delta", "index": 0, "delta": {"type": "citations_delta", "citation": {}}}
    chunk = {"id": "x", "choices": [{"index": 0, "delta": {"content": "a"}}], "citations": ["https://a.example"]}
    note = {"type": "response.output_text.annotation.added", "annotation": {}, "sequence_number": 9}

    for name, event in {"anthropic-messages": delta, "openai-chat": chunk, "openai-responses": note}.items():
        blocks = [*split_blocks(encode(DIALECTS[name], PLAIN[:3])), b"data: " + orjson.dumps(event) + b"\n\n"]
        assert not resume(DIALECTS[name], blocks).is_plain


@pytest.mark.parametrize("recording", parameters())
def test_a_recorded_text_goes_on_behind_every_event(recording: Recording):
    dialect = DIALECTS.get(recording.wire)
    decoder = WIRES[recording.wire].decoder()
    blocks = blocks_of(recording.body)
    reply = fold([event for block in blocks for event in decoder.decode(block)] + decoder.end())
    if recording.id in UNREADABLE or not is_plain_text(recording) or reply.failed or len(blocks) > 250:
        pytest.skip("not a plain text in a client's dialect, or a long one")
    assert dialect
    text = reply.choices[0].text
    for k in range(1, len(blocks)):
        progress = resume(dialect, blocks[:k])
        if progress.is_plain and not progress.finished:
            assert READ_STREAM[dialect.name](continued(dialect, blocks[:k], text)).text == text, k


def test_there_are_recorded_texts_of_each_family():
    found = {each.wire for each in recordings() if each.id not in UNREADABLE and is_plain_text(each)}

    assert found >= {"openai-chat", "openai-responses", "anthropic-messages"}
