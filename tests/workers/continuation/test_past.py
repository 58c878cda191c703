"""What a log says of an answer that broke off: how far it came, who gave it, and what it has cost so far."""

from typing import Any

import orjson

from common.canonical.events import FinishReason, Usage
from common.canonical.job import Job, Policy
from common.channel.base import Frame, FrameId, FrameKind
from common.dialects.base import ReplyInfo
from common.metering.token_estimate import estimate_text_tokens, estimate_tokens
from workers.continuation.continuation import CONTINUATIONS_MAX, Past, read_past

BODY = {"model": "m", "max_tokens": 100, "stream": True, "messages": [{"role": "user", "content": "hi"}]}
INFO = ReplyInfo("gen_1", "m", 1, "anthropic", BODY)
SPENT = {"input_tokens": 5, "output_tokens": 7}


def event(kind: str, **fields: Any) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (kind.encode(), orjson.dumps({"type": kind, **fields}))


MESSAGE = {"id": "msg_1", "role": "assistant", "content": [], "usage": {"input_tokens": 40, "output_tokens": 1}}
START = event("message_start", message=MESSAGE)
BLOCK = event("content_block_start", index=0, content_block={"type": "text", "text": ""})
ONCE, UPON = (event("content_block_delta", index=0, delta={"type": "text_delta", "text": text}) for text in ("Once ", "upon"))
STOP = event("content_block_stop", index=0)
FINISH = event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 9})
OVER = event("message_stop")


def past_of(*frames: dict[str, Any] | bytes, reported: Usage | None = None, **body: Any) -> Past:
    """Of a log of these frames: heads as dictionaries, and data."""
    kinds = [(FrameKind.DATA, each) if isinstance(each, bytes) else (FrameKind.HEAD, orjson.dumps(each)) for each in frames]
    log = [Frame(FrameId(1, n), kind, data) for n, (kind, data) in enumerate(kinds, 1)]
    asked = {**BODY, **body}
    job = Job("gen_1", "r", "anthropic-messages", "m", True, Policy.STOP, 0, 1, {}, orjson.dumps(asked))
    return read_past(job, log, reported, INFO)


HEAD = {"provider": "anthropic", "upstream_model": "claude", "tries": 2, "ttft_ms": 30, "upstream_id": "up_1"}


def test_a_first_attempt_has_cost_what_the_client_was_told_and_its_text():
    past = past_of(HEAD, START + BLOCK, ONCE + UPON)

    assert (past.progress.text, past.progress.is_plain, past.can_continue) == ("Once upon", True, True)
    assert (past.provider, past.upstream_id, past.attempt_count, past.ttft_ms) == ("anthropic", "up_1", 2, 30)
    assert past.spent == Usage(40, max(1, estimate_text_tokens("Once upon")))
    (attempt,) = past.attempts
    assert (attempt.provider, attempt.model, attempt.usage, attempt.is_estimated) == ("anthropic", "claude", past.spent, True)
    assert (past.continuation_count, past.text_tokens) == (0, estimate_text_tokens("Once upon"))
    assert past.blocks == [START, BLOCK, ONCE, UPON]
    assert past.ending() is None


def test_what_the_upstream_reported_counts_more_than_what_the_client_was_told():
    past = past_of(HEAD, START + BLOCK, ONCE, reported=Usage(50, 60))

    assert past.attempts[0].usage == past.spent == Usage(50, 60)


def test_a_later_attempt_has_cost_its_own_prompt_and_text():
    later = {**HEAD, "upstream_model": "haiku", "tries": 3, "ttft_ms": 90, "continuations": 1, "spent": SPENT}

    past = past_of(HEAD, START + BLOCK + ONCE, later, UPON)

    # The client was told the first attempt's prompt. The second one's is the request and the text until then.
    own = Usage(estimate_tokens(past.request) + estimate_text_tokens("Once "), estimate_text_tokens("upon"))
    assert past.attempts[-1].usage == own
    assert (past.attempts[-1].model, past.attempts[-1].is_estimated) == ("haiku", True)
    assert past.spent == Usage(5 + own.input_tokens, 7 + own.output_tokens)
    assert (past.continuation_count, past.attempt_count, past.ttft_ms) == (1, 3, 30)
    assert past.can_continue


def test_an_answer_is_continued_only_so_often():
    def last(count: int) -> Past:
        return past_of(HEAD, START + BLOCK + ONCE, {**HEAD, "continuations": count, "spent": SPENT}, UPON)

    assert last(CONTINUATIONS_MAX - 1).can_continue
    assert not last(CONTINUATIONS_MAX).can_continue


def test_an_answer_that_was_complete_has_cost_what_its_client_was_told():
    past = past_of(HEAD, START + BLOCK, ONCE + STOP, FINISH + OVER)

    assert past.spent == past.attempts[0].usage == Usage(40, 9)
    assert not past.attempts[0].is_estimated
    assert past.ending() == (FinishReason.STOP, b"")


def test_of_a_complete_answer_the_last_attempt_has_cost_the_rest():
    past = past_of(HEAD, START + BLOCK + ONCE, {**HEAD, "continuations": 1, "spent": SPENT}, UPON + STOP, FINISH + OVER)

    assert past.spent == Usage(40, 9)
    assert past.attempts[-1].usage == Usage(35, 2)
    assert not past.attempts[-1].is_estimated


def test_an_answer_that_lacks_only_its_last_event_gets_it():
    finish, rest = past_of(HEAD, START + BLOCK, ONCE + STOP, FINISH).ending() or (None, b"")

    assert finish is FinishReason.STOP
    assert b"message_stop" in rest


def test_a_log_without_data_starts_again():
    past = past_of(HEAD)

    assert (past.progress.text, past.progress.is_plain, past.blocks) == ("", True, [])
    assert past.can_continue
    assert past.spent.input_tokens == estimate_tokens(past.request)


def test_a_head_of_an_earlier_version_counts_as_one_attempt():
    assert past_of({"provider": "anthropic"}, START).attempt_count == 1
