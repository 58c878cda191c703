"""Signed reasoning comes back to its vendor through clients of chat completions, which know no signatures."""

from typing import Any

import orjson
import pytest

from common.canonical.events import (
    Completed,
    Event,
    Finished,
    FinishReason,
    ReasoningDelta,
    ReasoningSigned,
    Started,
    TextDelta,
    ToolCallStarted,
)
from common.canonical.generation import Part, ReasoningPart, TextPart, ToolCallPart
from common.canonical.reply import fold
from common.dialects.base import ReplyInfo
from common.dialects.openai_chat.dialect import OPENAI_CHAT
from tests.support.upstreams.recordings import data_of
from workers.providers.base import Deployment
from workers.providers.openai_chat.wire import OPENAI_COMPATIBLE

INFO = ReplyInfo("gen_1", "a-model", 7)
ASKED = {"role": "user", "content": "hi"}
THOUGHT = [ReasoningDelta("Hm. "), ReasoningDelta("So."), ReasoningSigned("c2ln")]
CALL, OTHER_CALL = ToolCallStarted(0, "a", "f"), ToolCallStarted(1, "b", "g")
CALL_PART, OTHER_PART = ToolCallPart("a", "f", "{}"), ToolCallPart("b", "g", "{}")


def whole(events: list[Event]) -> dict[str, Any]:
    request = OPENAI_CHAT.parse({"model": "m", "messages": [ASKED]})
    answer = orjson.loads(OPENAI_CHAT.encode_reply(fold(_framed(events)), request, INFO))
    message: dict[str, Any] = answer["choices"][0]["message"]
    return message


def streamed(events: list[Event]) -> dict[str, Any]:
    """Return the message as clients put it together: they take a call's fields from its first piece."""
    encoder = OPENAI_CHAT.encoder(OPENAI_CHAT.parse({"model": "m", "messages": [ASKED], "stream": True}), INFO)
    message: dict[str, Any] = {"role": "assistant", "content": "", "reasoning_content": "", "tool_calls": []}
    for event in _framed(events):
        for data in data_of(encoder.encode(event)):
            delta = data["choices"][0]["delta"] if isinstance(data, dict) else {}
            message["content"] += delta.get("content") or ""
            message["reasoning_content"] += delta.get("reasoning_content") or ""
            message["tool_calls"] += delta.get("tool_calls") or []
    return message


def _framed(events: list[Event]) -> list[Event]:
    return [Started(), *events, Finished(FinishReason.TOOL_CALLS), Completed()]


def returned(message: dict[str, Any]) -> list[Part]:
    results = [{"role": "tool", "tool_call_id": call["id"], "content": "r"} for call in message["tool_calls"]]
    return OPENAI_CHAT.parse({"model": "m", "messages": [ASKED, message, *results]}).messages[1].parts


@pytest.mark.parametrize("answer", [streamed, whole])
@pytest.mark.parametrize(
    ("events", "parts"),
    [
        ([*THOUGHT, CALL], [ReasoningPart("Hm. So.", "c2ln"), CALL_PART]),
        ([*THOUGHT, TextDelta("I call."), CALL], [ReasoningPart("Hm. So.", "c2ln"), TextPart("I call."), CALL_PART]),
        ([ReasoningSigned("v:s"), CALL, OTHER_CALL], [ReasoningPart("", "v:s"), CALL_PART, OTHER_PART]),
        ([TextDelta("I call."), ReasoningSigned("v:s"), CALL], [TextPart("I call."), ReasoningPart("", "v:s"), CALL_PART]),
        (
            [ReasoningSigned("v:1"), CALL, ReasoningSigned("v:2"), OTHER_CALL],
            [ReasoningPart("", "v:1"), CALL_PART, ReasoningPart("", "v:2"), OTHER_PART],
        ),
        ([ReasoningDelta("Hm."), CALL], [ReasoningPart("Hm."), CALL_PART]),
        ([CALL], [CALL_PART]),
    ],
)
def test_signed_reasoning_comes_back_to_its_place(answer: Any, events: list[Event], parts: list[Part]) -> None:
    assert returned(answer(events)) == parts


@pytest.mark.parametrize("text", [None, "Hm.So."])
def test_a_signature_without_its_text_is_not_whole(text: str | None) -> None:
    message = streamed([*THOUGHT, CALL]) | {"reasoning_content": text}

    assert returned(message) == [ReasoningPart("", "c2ln", is_whole=False), CALL_PART]


@pytest.mark.parametrize("value", ["c2ln", "sluice-first:c2ln", "sluice-first:0123456789abcdef:", 7, None])
def test_what_we_did_not_write_is_no_signature(value: object) -> None:
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    call["extra_content"] = {"google": {"thought_signature": value}}

    assert returned({"role": "assistant", "content": None, "tool_calls": [call]}) == [CALL_PART]


def test_a_vendor_of_chat_completions_gets_no_signature_of_ours() -> None:
    message = streamed([*THOUGHT, CALL])
    googles = {**message["tool_calls"][0], "extra_content": {"google": {"thought_signature": "c2ln"}}}
    message["tool_calls"].append(googles)
    deployment = Deployment("lab", "https://x.example", "k", "up")

    body = orjson.loads(OPENAI_COMPATIBLE.pass_request({"model": "m", "messages": [ASKED, message]}, {}, deployment).body)

    unsigned = {name: value for name, value in googles.items() if name != "extra_content"}
    assert body["messages"][1]["tool_calls"] == [unsigned, googles]
