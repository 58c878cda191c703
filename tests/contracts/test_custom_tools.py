"""A custom tool, whose input is plain text, works with every vendor, for clients of chat completions and of responses."""

from typing import Any

import orjson
import pytest

from common.canonical.events import Completed, Event, Finished, FinishReason, Started, ToolCallDelta, ToolCallStarted
from common.canonical.reply import fold
from common.dialects import DIALECTS
from common.dialects.base import ReplyInfo
from common.vendors.models import MODELS
from tests.contracts.test_citations import chunk, sse
from workers.providers import FAMILIES, WIRES
from workers.providers.base import Deployment
from workers.transcode.pumps import Folding, Passing

GRAMMAR = {"syntax": "lark", "definition": "start: WORD"}
PATCH = 'add "x"\n'
FUNCTION = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}


def custom(**format_: Any) -> dict[str, Any]:
    return {
        "type": "custom",
        "custom": {"name": "patch", "description": "Patches.", **({"format": format_} if format_ else {})},
    }


def chat(**more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": "hi"}], "tools": [custom(), FUNCTION], **more}


@pytest.mark.parametrize(
    ("wire", "vendor", "model"),
    [
        ("anthropic-messages", "anthropic", "claude-sonnet-5"),
        ("gemini", "google-ai-studio", "gemini-2.5-pro"),
        ("cohere", "cohere", "command-a-03-2025"),
        ("openai-responses", "openai", "gpt-5.6"),
    ],
)
def test_every_wire_offers_it_as_a_function_with_one_text(wire: str, vendor: str, model: str) -> None:
    calls = [{"id": "c1", "type": "custom", "custom": {"name": "patch", "input": PATCH}}]
    history = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "tool_call_id": "c1", "content": "done"},
    ]
    body = chat(messages=history, tools=[custom(type="grammar", grammar=GRAMMAR)])
    deployment = Deployment(vendor, "http://h", "k", model, facts=MODELS.facts(vendor, model))

    sent = WIRES[wire].build_request(DIALECTS["openai-chat"].parse(body), deployment).body.decode()

    assert "Patches." in sent
    assert "must match this lark grammar" in sent
    assert "whole input, as plain text" in sent
    assert "add " in sent
    assert "done" in sent


@pytest.mark.parametrize(
    ("choice", "mode"),
    [
        ({"type": "custom", "custom": {"name": "patch"}}, "tool"),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [custom()]}},
            "required",
        ),
    ],
)
def test_it_can_be_required(choice: dict[str, Any], mode: str) -> None:
    request = DIALECTS["openai-chat"].parse(chat(tool_choice=choice))

    assert request.tool_choice is not None
    assert request.tool_choice.mode == mode
    assert "patch" in [tool.name for tool in request.tools]
    assert not request.opaque


def called(*pieces: str) -> list[Event]:
    return [
        Started(),
        ToolCallStarted(0, "c1", "patch"),
        *[ToolCallDelta(0, piece) for piece in pieces],
        ToolCallStarted(1, "c2", "f"),
        ToolCallDelta(1, "{}"),
        Finished(FinishReason.TOOL_CALLS),
        Completed(),
    ]


INPUT = orjson.dumps({"input": PATCH}).decode()


@pytest.mark.parametrize("pieces", [(INPUT,), tuple(INPUT), (INPUT[:7], INPUT[7:])])
def test_a_call_of_it_is_a_custom_call_again(pieces: tuple[str, ...]) -> None:
    dialect, body = DIALECTS["openai-chat"], chat()
    request, info = dialect.parse(body), ReplyInfo("gen_a", "m", 0, body=body)
    events = called(*pieces)

    encoder = dialect.encoder(request, info)
    chunks = [block.partition(b"data: ")[2] for block in b"".join(map(encoder.encode, events)).split(b"\n\n")]
    deltas = [orjson.loads(data)["choices"][0]["delta"].get("tool_calls", []) for data in chunks if data[:1] == b"{"]
    calls = [call for delta in deltas for call in delta]
    whole = orjson.loads(dialect.encode_reply(fold(events), request, info))["choices"][0]["message"]["tool_calls"]

    mine = [call for call in calls if call["index"] == 0]
    assert mine[0] == {"index": 0, "id": "c1", "type": "custom", "custom": {"name": "patch", "input": ""}}
    assert "".join(call["custom"]["input"] for call in mine) == PATCH
    assert [call["function"]["arguments"] for call in calls if call["index"] == 1] == ["", "{}"]
    assert whole[0] == {"id": "c1", "type": "custom", "custom": {"name": "patch", "input": PATCH}}
    assert whole[1]["type"] == "function"


@pytest.mark.parametrize(
    "tool", [{"type": "custom"}, {"type": "custom", "custom": {"name": ""}}, {"type": "custom", "custom": 5}]
)
def test_a_tool_that_is_none_is_refused_by_its_place(tool: dict[str, Any]) -> None:
    with pytest.raises(Exception, match=r"tools\.0\.custom"):
        DIALECTS["openai-chat"].parse(chat(tools=[tool]))


def chunks(*calls: dict[str, Any]) -> list[bytes]:
    return [*(chunk({"tool_calls": [call]}) for call in calls), chunk({}, "tool_calls"), b"data: [DONE]\n\n"]


STREAMED = chunks(
    {"index": 0, "id": "c1", "type": "custom", "custom": {"name": "patch", "input": ""}},
    {"index": 0, "custom": {"input": PATCH[:4]}},
    {"index": 0, "custom": {"input": PATCH[4:]}},
)


def test_a_vendors_own_custom_call_is_read() -> None:
    decoder = WIRES["openai-chat"].decoder()

    [call] = fold([event for block in STREAMED for event in decoder.decode(block)]).choices[0].tool_calls

    assert (call.id, call.name, orjson.loads(call.arguments)) == ("c1", "patch", {"input": PATCH})


def test_it_passes_unchanged_to_clients_of_the_family() -> None:
    passing = Passing(FAMILIES["openai-chat"], DIALECTS["openai-chat"], ReplyInfo("gen_a", "m", 0, body=chat()))

    passed = b"".join(passing.feed([block]) for block in STREAMED)

    assert passed == b"".join(STREAMED)
    assert isinstance(passing.terminal, Completed)
    assert passing.has_output


def test_a_guarded_answer_has_it_too() -> None:
    body = chat()
    request, info = DIALECTS["openai-chat"].parse(body), ReplyInfo("gen_a", "m", 0, body=body)
    pump = Folding(WIRES["openai-chat"], DIALECTS["openai-chat"], request, info)

    pump.feed(STREAMED)
    data = pump.end()

    [call] = orjson.loads(data)["choices"][0]["message"]["tool_calls"]
    assert call == {"id": "c1", "type": "custom", "custom": {"name": "patch", "input": PATCH}}


def test_a_custom_call_of_openais_responses_is_read() -> None:
    item = {"type": "custom_tool_call", "id": "ctc_1", "call_id": "c1", "name": "patch", "input": ""}
    blocks = [
        sse({"type": "response.output_item.added", "output_index": 0, "item": item}),
        sse({"type": "response.custom_tool_call_input.delta", "output_index": 0, "delta": PATCH}),
        sse({"type": "response.output_item.done", "output_index": 0, "item": {**item, "input": PATCH}}),
        sse({"type": "response.completed", "response": {"status": "completed", "output": []}}),
    ]
    decoder = WIRES["openai-responses"].decoder()

    answer = fold([event for block in blocks for event in decoder.decode(block)]).choices[0]

    [call] = answer.tool_calls
    assert (call.id, call.name, orjson.loads(call.arguments)) == ("c1", "patch", {"input": PATCH})
    assert answer.finish_reason is FinishReason.TOOL_CALLS
