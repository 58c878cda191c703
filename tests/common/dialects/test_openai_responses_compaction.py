"""A client of responses that asks for a compaction gets one from every vendor, and can go on with it at every other."""

from typing import Any

import orjson
import pytest

from common.canonical.events import Completed, Event, Finished, FinishReason, Started, TextDelta, Usage
from common.canonical.generation import Role, TextPart
from common.canonical.reply import fold
from common.dialects.base import ReplyInfo
from common.dialects.openai_responses.compaction import asks_for_compaction
from common.dialects.openai_responses.dialect import OPENAI_RESPONSES
from common.guardrails.bodies import BodyTexts
from tests.support.upstreams.recordings import data_of

HISTORY = [{"role": "user", "content": "fix it"}, {"role": "assistant", "content": "done"}]
TOOL = {"type": "function", "name": "f", "parameters": {"type": "object", "properties": {}}}
TRIGGER = {"type": "compaction_trigger"}
ASKED = {"model": "m", "input": [*HISTORY, TRIGGER], "tools": [TOOL], "text": {"format": {"type": "json_object"}}}


def info(body: dict[str, Any]) -> ReplyInfo:
    return ReplyInfo("gen_" + "0" * 32, "m", 1, "p", body)


def answer(*texts: str, reason: FinishReason = FinishReason.STOP) -> list[Event]:
    return [Started(), *map(TextDelta, texts), Finished(reason), Completed(Usage(9, 4))]


def streamed(*texts: str) -> list[dict[str, Any]]:
    encoder = OPENAI_RESPONSES.encoder(OPENAI_RESPONSES.parse(ASKED), info(ASKED))
    return list(data_of(b"".join(encoder.encode(event) for event in answer(*texts))))


def replied(*texts: str) -> dict[str, Any]:
    body = OPENAI_RESPONSES.encode_reply(fold(answer(*texts)), OPENAI_RESPONSES.parse(ASKED), info(ASKED))
    reply: dict[str, Any] = orjson.loads(body)
    return reply


def test_the_model_is_asked_for_a_summary_and_calls_no_tool() -> None:
    request = OPENAI_RESPONSES.parse(ASKED)

    assert [message.role for message in request.messages] == [Role.USER, Role.ASSISTANT, Role.USER]
    assert request.tool_choice is not None
    assert request.tool_choice.mode == "none"
    assert request.response_format is None


def test_the_answer_is_exactly_one_item() -> None:
    events = streamed("The user ", "wants a fix.")

    items = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert [item["type"] for item in items] == ["compaction"]
    assert events[-1]["type"] == "response.completed"
    assert events[-1]["response"]["output"] == items == replied("The user wants a fix.")["output"]
    assert events[-1]["response"]["usage"]["total_tokens"] == 13
    assert [event["sequence_number"] for event in events] == list(range(len(events)))


def test_an_empty_summary_replaces_no_conversation() -> None:
    assert streamed(" \n")[-1]["response"]["output"] == replied("")["output"] == []


def test_the_summary_comes_back_as_a_user_s_words_that_guardrails_read() -> None:
    item = replied("The key is 4711.")["output"][0]
    body = {"model": "m", "input": [item, {"role": "user", "content": "go on"}]}

    first = OPENAI_RESPONSES.parse(body).messages[0]

    assert first.role is Role.USER
    assert isinstance(first.parts[0], TextPart)
    assert first.parts[0].text.endswith("The key is 4711.")
    assert "The key is 4711." in " ".join(BodyTexts.from_body(body).texts)


@pytest.mark.parametrize(
    "items", [None, "text", [], [TRIGGER, HISTORY[0]], [{"type": "compaction", "encrypted_content": "gAAAA"}]]
)
def test_nothing_else_asks_for_one(items: object) -> None:
    assert not asks_for_compaction({"input": items})
