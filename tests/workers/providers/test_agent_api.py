"""What does Perplexity's Agent API get of a body of the Responses API, and what do its streams give to a client?"""

from typing import Any

import orjson
import pytest

from common.canonical.events import Citation, Completed, TextDelta, ToolCallDelta, ToolCallStarted
from common.dialects import DIALECTS
from common.vendors.models import MODELS
from workers.providers.base import Deployment
from workers.providers.openai_responses.wire import OPENAI_RESPONSES
from workers.providers.shared.agent_api import fit_agent_body

IMAGE = {"type": "input_image", "image_url": "data:image/png;base64,QUJD"}


def built(body: dict[str, Any], model: str = "perplexity/sonar") -> tuple[dict[str, Any], list[str]]:
    """What a client of chat completions asks for, as it is sent."""
    parsed = DIALECTS["openai-chat"].parse({"model": "m", "messages": [{"role": "user", "content": "hi"}], **body})
    deployment = Deployment("perplexity", "https://x.example", "k", model, facts=MODELS.facts("perplexity", model))
    request = OPENAI_RESPONSES.build_request(parsed, deployment)
    return orjson.loads(request.body), request.dropped


def test_a_plain_request_has_nothing_that_the_vendor_does_not_know() -> None:
    body, dropped = built({"temperature": 0.5, "user": "u", "max_tokens": 100})

    assert body == {
        "model": "perplexity/sonar",
        "input": [{"type": "message", "role": "user", "content": "hi"}],
        "stream": True,
        "max_output_tokens": 100,
    }
    assert dropped == ["temperature", "user"]


def test_a_name_without_a_maker_is_a_preset() -> None:
    body, _ = built({}, "low")

    assert (body["preset"], "model" in body) == ("low", False)


def test_a_schema_for_the_answer_stands_where_the_vendor_has_it() -> None:
    schema = {"name": "a", "schema": {"type": "object"}, "strict": True}

    assert built({"response_format": {"type": "json_schema", "json_schema": schema}})[0]["response_format"] == {
        "type": "json_schema",
        "json_schema": schema,
    }
    assert "JSON" in built({"response_format": {"type": "json_object"}})[0]["instructions"]


@pytest.mark.parametrize(
    ("choice", "has_tools", "named"),
    [("auto", True, []), ("none", False, []), ("required", True, ["tool_choice"])],
)
def test_a_choice_of_tools_is_kept_as_far_as_it_can_be_said(choice: str, has_tools: bool, named: list[str]) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]
    body, dropped = built({"tools": tools, "tool_choice": choice})

    assert ("tools" in body, "tool_choice" in body, dropped) == (has_tools, False, named)


def test_the_history_has_only_items_and_parts_that_the_vendor_has() -> None:
    document = {"type": "input_file", "filename": "a.pdf", "file_data": "data:application/pdf;base64,QUJD"}
    body: dict[str, Any] = {
        "model": "perplexity/sonar",
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
            {"type": "reasoning", "summary": [], "encrypted_content": "x"},
            {"type": "function_call", "id": "fc_1", "status": "completed", "call_id": "c1", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "r"}, IMAGE, document]},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "d", "annotations": []}]},
            {"role": "user", "content": [IMAGE]},
            {"role": "assistant", "content": []},
        ],
    }

    fit_agent_body(body)

    assert body["input"] == [
        {"type": "message", "role": "user", "content": "a\n\nb"},
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
        {
            "type": "function_call_output",
            "call_id": "c1",
            "output": "r\n\n[Here was a document a.pdf, which this model cannot read.]",
        },
        {"type": "message", "role": "user", "content": [IMAGE]},
        {"type": "message", "role": "assistant", "content": "d"},
        {"type": "message", "role": "user", "content": [IMAGE]},
    ]


# As the vendor streams them, without the fields that we do not read.
SEARCHED: list[dict[str, Any]] = [
    {"type": "response.created", "response": {"id": "resp_1", "object": "response", "model": "fast"}},
    {
        "type": "response.output_item.added",
        "output_index": 0,
        "item": {
            "type": "function_call",
            "id": "fc_1",
            "call_id": "call_1",
            "name": "search_web",
            "arguments": '{"queries":["x"]}',
            "status": "completed",
        },
    },
    {"type": "response.reasoning.search_queries", "queries": ["x"], "thought": "Searching the web..."},
    {
        "type": "response.output_item.done",
        "output_index": 0,
        "item": {"type": "search_results", "results": [{"id": 1, "title": "T", "url": "https://a.example"}]},
    },
]
ANSWERED: list[dict[str, Any]] = [
    {
        "type": "response.output_item.added",
        "output_index": 1,
        "item": {"type": "message", "id": "msg_1", "role": "assistant", "content": None, "status": "completed"},
    },
    {"type": "response.output_text.delta", "output_index": 1, "content_index": 0, "item_id": "msg_1", "delta": "Yes.[1]"},
    {
        "type": "response.output_item.done",
        "output_index": 1,
        "item": {
            "type": "message",
            "id": "msg_1",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "Yes.[1]", "annotations": []}],
        },
    },
]
END: dict[str, Any] = {
    "type": "response.completed",
    "response": {"id": "resp_1", "status": "completed", "usage": {"input_tokens": 3, "output_tokens": 2}},
}
CALL = {"type": "function_call", "id": "fc_2", "call_id": "call_2", "name": "f", "arguments": "{}", "status": "completed"}
CALLED = [
    {"type": "response.output_item.added", "output_index": 1, "item": CALL},
    {"type": "response.output_item.done", "output_index": 1, "item": CALL},
]


def decoded(*events: dict[str, Any]) -> list[Any]:
    decoder = OPENAI_RESPONSES.decoder()
    blocks = [b"data: %b\n\n" % orjson.dumps(event) for event in events]
    return [event for block in blocks for event in decoder.decode(block)]


def test_a_search_of_the_vendor_is_no_call_of_the_client_s_tools_and_its_results_are_sources() -> None:
    events = decoded(*SEARCHED, *ANSWERED, END)

    assert [event for event in events if isinstance(event, ToolCallStarted)] == []
    assert [event for event in events if isinstance(event, TextDelta | Citation)] == [
        TextDelta("Yes.[1]"),
        Citation("https://a.example", "T"),
    ]
    completed = events[-1]
    assert isinstance(completed, Completed)
    assert completed.usage is not None
    assert completed.usage.details == {"web_searches": 1}


def test_a_call_that_is_added_as_complete_starts_once() -> None:
    events = decoded(SEARCHED[0], *CALLED, END)

    assert [event for event in events if isinstance(event, ToolCallStarted | ToolCallDelta)] == [
        ToolCallStarted(0, "call_2", "f"),
        ToolCallDelta(0, "{}"),
    ]
