"""What a pump reports of an answer: when it had output, how it ended, and how much it was."""

import orjson
import pytest

from common.canonical.errors import Failed
from common.canonical.events import Completed, FinishReason, Usage
from common.dialects import DIALECTS
from common.dialects.base import ReplyInfo
from common.metering.token_estimate import estimate_text_tokens
from workers.providers import FAMILIES, WIRES
from workers.transcode.pump import Pump
from workers.transcode.pumps import Folding, FoldingWhole, Passing, PassingWhole, Translating

CHAT, MESSAGES = DIALECTS["openai-chat"], DIALECTS["anthropic-messages"]
BODY = {"model": "m", "max_tokens": 100, "messages": [{"role": "user", "content": "hi"}]}
INFO = ReplyInfo("gen_1", "m", 1, "lab", BODY)
TWO = {**BODY, "n": 2}


def block(content: str | None = None, finish: str | None = None, index: int = 0) -> bytes:
    delta = {"role": "assistant"} if content is None else {"content": content}
    choice = {"index": index, "delta": delta, "finish_reason": finish}
    return b"data: %s\n\n" % orjson.dumps({"id": "up_1", "model": "m", "choices": [choice]})


USAGE = b'data: {"id":"up_1","choices":[],"usage":{"prompt_tokens":7,"completion_tokens":9}}\n\n'
DONE = b"data: [DONE]\n\n"
TEXTS = ["some", " more", " words"]
BLOCKS = [block(), *(block(text) for text in TEXTS), block(finish="length"), USAGE, DONE]
WHOLE = orjson.dumps(
    {
        "id": "up_1",
        "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "some more words"}, "finish_reason": "length"}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 9},
    }
)


def translating() -> Pump:
    return Translating(WIRES["openai-chat"], MESSAGES, MESSAGES.parse(BODY), INFO)


def folding() -> Pump:
    return Folding(WIRES["openai-chat"], MESSAGES, MESSAGES.parse(BODY), INFO)


def folding_whole() -> Pump:
    return FoldingWhole(WIRES["openai-chat"], MESSAGES, MESSAGES.parse(BODY), INFO)


def passing(body: dict = BODY) -> Pump:
    return Passing(FAMILIES["openai-chat"], CHAT, ReplyInfo("gen_1", "m", 1, "lab", body))


def passing_whole(body: dict = BODY) -> Pump:
    return PassingWhole(FAMILIES["openai-chat"], CHAT, ReplyInfo("gen_1", "m", 1, "lab", body))


STREAMS, BODIES = [translating, passing], [folding, folding_whole, passing_whole]


@pytest.mark.parametrize("make", [*STREAMS, *BODIES])
def test_a_stream_s_id_finish_usage_and_events_are_reported(make):
    pump = make()

    data = pump.feed(BLOCKS) + pump.end()

    assert data
    assert (pump.upstream_id, pump.finish_reason, pump.output_events) == ("up_1", FinishReason.LENGTH, 3)
    assert (pump.usage, pump.is_whole, pump.has_activity) == (Usage(7, 9), True, True)
    assert isinstance(pump.terminal, Completed)
    assert (pump.prompt_tokens, pump.is_estimated, pump.is_cut, pump.held_bytes) == (0, False, False, 0)


@pytest.mark.parametrize("make", [*STREAMS, *BODIES])
def test_a_body_s_id_finish_and_usage_are_reported(make):
    pump = make()

    data = pump.feed_whole(WHOLE)

    assert b"some more words" in data
    assert (pump.upstream_id, pump.finish_reason, pump.usage) == ("up_1", FinishReason.LENGTH, Usage(7, 9))
    assert isinstance(pump.terminal, Completed)


@pytest.mark.parametrize("make", [*STREAMS, *BODIES])
def test_nothing_is_output_before_the_first_text(make):
    pump = make()

    pump.feed([block()])

    assert (pump.has_output, pump.has_activity, pump.output_events, pump.terminal) == (False, False, 0, None)
    assert (pump.finish_reason, pump.is_whole) == (None, False)


@pytest.mark.parametrize(("make", "has_output"), [*((make, True) for make in STREAMS), *((make, False) for make in BODIES)])
def test_only_a_stream_gives_output_before_its_end(make, has_output):
    pump = make()

    data = pump.feed([block(), block("some")])

    assert (bool(data), pump.has_output, pump.gives_stream) == (has_output, has_output, has_output)
    assert pump.has_activity


@pytest.mark.parametrize("make", STREAMS)
def test_a_stream_counts_one_token_for_each_event_with_output(make):
    pump = make()

    pump.feed(BLOCKS[:4])

    assert pump.seen_tokens == 3


@pytest.mark.parametrize("make", BODIES)
def test_a_body_counts_tokens_by_its_text(make):
    pump = make()

    pump.feed(BLOCKS[:4])
    held = "".join(TEXTS)

    assert (pump.held_bytes, pump.seen_tokens) == (len(held), estimate_text_tokens(held))
    pump.feed(BLOCKS[4:])
    pump.end()
    assert (pump.held_bytes, pump.seen_tokens) == (0, estimate_text_tokens(held))


@pytest.mark.parametrize("make", [passing, passing_whole, translating])
def test_a_complete_body_counts_tokens_by_its_text(make):
    pump = make()

    pump.feed_whole(WHOLE)

    assert pump.seen_tokens == estimate_text_tokens("some more words")


def test_bytes_of_the_same_family_pass_unchanged_and_are_counted():
    pump = passing()

    assert pump.feed(BLOCKS[:2]) == b"".join(BLOCKS[:2])
    run = b"".join(BLOCKS[2:4])
    passed = pump.pass_head(run + BLOCKS[4])

    assert run.startswith((run + BLOCKS[4])[:passed])
    rest = (run + BLOCKS[4])[passed:]
    assert pump.feed([rest[: len(run) - passed], BLOCKS[4]] if passed < len(run) else [BLOCKS[4]]) == rest
    assert pump.output_events == 3


@pytest.mark.parametrize("make", [passing, translating, folding])
def test_before_the_first_output_no_byte_passes_unread(make):
    assert make().pass_head(b"".join(BLOCKS)) == 0


def test_what_follows_the_end_of_an_answer_is_left_out():
    pump = passing()
    pump.feed(BLOCKS)

    assert pump.feed([block("more"), b": comment\n\n"]) in (b"", block("more"))
    assert isinstance(pump.terminal, Completed)
    assert pump.finish_reason is FinishReason.LENGTH


def test_an_answer_that_just_stops_after_its_finish_gets_the_end_mark_that_its_client_waits_for():
    pump = passing()

    data = pump.feed(BLOCKS[:5]) + pump.end()

    assert data == b"".join(BLOCKS[:5]) + DONE


def test_an_answer_that_breaks_off_gets_no_end_mark():
    pump = passing()

    data = pump.feed(BLOCKS[:3]) + pump.end()

    assert data == b"".join(BLOCKS[:3])
    assert isinstance(pump.terminal, Failed)


@pytest.mark.parametrize("make", [*STREAMS, *BODIES])
def test_an_error_of_the_upstream_is_no_part_of_the_answer(make):
    pump = make()

    data = pump.feed([block("some"), b'data: {"error":{"message":"out of memory"}}\n\n']) + pump.end()

    assert isinstance(pump.terminal, Failed)
    assert b"out of memory" not in data
    assert DONE not in data


@pytest.mark.parametrize("make", [passing, passing_whole])
def test_an_answer_of_two_choices_is_whole_when_both_are(make):
    pump = make(TWO)

    pump.feed([block("a"), block("b", index=1), block(finish="stop")])
    assert not pump.is_whole
    pump.feed([block(finish="stop", index=1)])
    assert pump.is_whole


def test_an_answer_that_we_cut_is_charged_by_its_text_so_far():
    pump = translating()
    pump.feed(BLOCKS[:4])

    usage = pump.estimate_cut_usage(400)

    assert usage == pump.usage
    assert usage.output_tokens == 100
    assert usage.input_tokens > 0


def test_without_its_request_an_answer_is_estimated_by_its_text_alone():
    assert passing_whole().estimate_cut_usage(400) == Usage(0, 100)


def test_arguments_that_are_nested_too_deeply_are_no_body():
    pump = folding()
    arguments = '{"a":' * 5_000 + "1" + "}" * 5_000
    call = {"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
    chunk = {"id": "up_1", "choices": [{"index": 0, "delta": {"tool_calls": [call]}, "finish_reason": "tool_calls"}]}
    pump.feed([b"data: %s\n\n" % orjson.dumps(chunk), DONE])

    assert pump.end() == b""
    assert isinstance(pump.terminal, Failed)


@pytest.mark.parametrize("make", [*STREAMS, *BODIES])
def test_a_refusal_that_its_vendor_ends_like_an_answer_is_a_refusal(make):
    refusal = {"index": 0, "delta": {"role": "assistant", "refusal": "I can't help."}, "finish_reason": None}
    pump = make()

    pump.feed([b"data: %s\n\n" % orjson.dumps({"id": "up_1", "choices": [refusal]}), block(finish="stop"), DONE])
    pump.end()

    assert pump.finish_reason is FinishReason.REFUSAL
