"""No figure of an upstream is believed that cannot be, on any wire, wherever it stands."""

from collections.abc import Iterator
from typing import Any

import orjson
import pytest

from common.canonical.events import FIGURE_MAX, Completed, ToolCallStarted, Usage
from workers.providers import WIRES
from workers.providers.shared.figures import INDEXES_MAX, Figures, index_of

ABSURD = [FIGURE_MAX + 1, 9 * 10**14, 2**63, 1e300, -1, -0.5, True, "12", "", [5], {"n": 5}]
# A whole answer of each wire around a usage, a plain usage, and where in it are: prompt and answer; parts, with their names.
WIRES_OF = {
    "openai-chat": (
        lambda usage: {"id": "c", "choices": [{"message": {"content": "x"}, "finish_reason": "stop"}], "usage": usage},
        {"prompt_tokens": 100, "completion_tokens": 50},
        ["prompt_tokens", "completion_tokens"],
        {
            "prompt_tokens_details.cached_tokens": "cache_read_tokens",
            "prompt_tokens_details.audio_tokens": "input_audio_tokens",
            "prompt_tokens_details.image_tokens": "input_image_tokens",
            "completion_tokens_details.audio_tokens": "output_audio_tokens",
            "num_search_queries": "web_searches",
        },
    ),
    "openai-responses": (
        lambda usage: {"id": "r", "object": "response", "status": "completed", "output": [], "usage": usage},
        {"input_tokens": 100, "output_tokens": 50},
        ["input_tokens", "output_tokens"],
        {
            "input_tokens_details.cached_tokens": "cache_read_tokens",
            "input_tokens_details.cache_write_tokens": "cache_write_tokens",
            "output_tokens_details.reasoning_tokens": "reasoning_tokens",
        },
    ),
    "anthropic-messages": (
        lambda usage: {"id": "m", "type": "message", "content": [], "stop_reason": "end_turn", "usage": usage},
        {"input_tokens": 60, "output_tokens": 50, "cache_creation_input_tokens": 40},
        ["input_tokens", "output_tokens"],
        {
            "cache_creation.ephemeral_1h_input_tokens": "cache_write_1h_tokens",
            "output_tokens_details.thinking_tokens": "reasoning_tokens",
            "server_tool_use.web_search_requests": "web_searches",
        },
    ),
    "gemini": (
        lambda usage: {"candidates": [{"content": {"parts": [{"text": "a"}]}, "finishReason": "STOP"}], "usageMetadata": usage},
        {"promptTokenCount": 100, "candidatesTokenCount": 50},
        ["promptTokenCount", "candidatesTokenCount", "thoughtsTokenCount", "toolUsePromptTokenCount"],
        {"cachedContentTokenCount": "cache_read_tokens"},
    ),
    "cohere": (
        lambda usage: {"id": "c", "finish_reason": "COMPLETE", "message": {"content": []}, "usage": {"billed_units": usage}},
        {"input_tokens": 100, "output_tokens": 50},
        ["input_tokens", "output_tokens"],
        {},
    ),
}
MAIN = [(wire, path) for wire, (_, _, main, _) in WIRES_OF.items() for path in main]
PARTS = [(wire, path, name) for wire, (*_, parts) in WIRES_OF.items() for path, name in parts.items()]


def with_figure(usage: dict[str, Any], path: str, figure: Any) -> dict[str, Any]:
    first, _, rest = path.partition(".")
    return {**usage, first: with_figure(usage.get(first, {}), rest, figure) if rest else figure}


def read(wire: str, path: str, figure: Any) -> tuple[Usage | None, bool]:
    answer, usage, *_ = WIRES_OF[wire]
    decoder = WIRES[wire].decoder()
    (completed,) = [
        event
        for event in decoder.decode_whole(orjson.dumps(answer(with_figure(usage, path, figure))))
        if isinstance(event, Completed)
    ]
    assert completed.usage == decoder.usage
    return decoder.usage, decoder.has_absurd_usage


@pytest.mark.parametrize("figure", ABSURD, ids=repr)
@pytest.mark.parametrize(("wire", "path"), MAIN)
def test_a_report_without_its_prompt_or_answer_is_none(wire: str, path: str, figure: Any):
    assert read(wire, path, figure) == (None, True)


@pytest.mark.parametrize("figure", [*ABSURD, 150], ids=repr)  # The last is more than what it is a part of.
@pytest.mark.parametrize(("wire", "path", "name"), PARTS)
def test_a_part_that_cannot_be_is_read_as_not_named(wire: str, path: str, name: str, figure: Any):
    if figure == 150 and (name == "web_searches" or (wire, name) == ("openai-chat", "cache_read_tokens")):
        pytest.skip("it is no part: searches are beside the tokens, and so is what Azure's Grok has cached")
    usage, is_absurd = read(wire, path, figure)

    assert usage is not None
    assert (usage.input_tokens, usage.output_tokens, is_absurd) == (100, 50, True)
    assert usage.to_dict().get(name, 0) == 0


@pytest.mark.parametrize(("wire", "path", "name"), PARTS)
def test_a_part_that_can_be_is_kept(wire: str, path: str, name: str):
    usage, is_absurd = read(wire, path, 7)

    assert (usage.to_dict()[name], is_absurd) == (7, False)


@pytest.mark.parametrize("wire", WIRES_OF)
@pytest.mark.parametrize("nothing", [None, {}])
def test_a_usage_that_says_nothing_is_none_and_not_absurd(wire: str, nothing: Any):
    answer, *_ = WIRES_OF[wire]
    decoder = WIRES[wire].decoder()
    decoder.decode_whole(orjson.dumps(answer(nothing)))

    assert (decoder.usage, decoder.has_absurd_usage) == (None, False)


def test_floats_are_whole_numbers_and_null_is_not_known_yet():
    figures = Figures({"a": 12.0, "b": None, "c": FIGURE_MAX})

    assert ([figures.count(name) for name in "abcd"], figures.is_absurd) == ([12, 0, FIGURE_MAX, 0], False)


def test_a_later_report_replaces_an_absurd_one():
    decoder = WIRES["openai-chat"].decoder()
    for usage in ({"prompt_tokens": 10**15}, {"prompt_tokens": 3, "completion_tokens": 1}):
        decoder.decode(b"data: " + orjson.dumps({"choices": [], "usage": usage}) + b"\n\n")

    assert (decoder.usage, decoder.has_absurd_usage) == (Usage(3, 1), False)


def test_modalities_that_are_more_than_all_of_them_are_not_believed():
    usage = Figures({}).usage(100, 50, input_audio_tokens=70, input_image_tokens=70)

    assert usage == Usage(100, 50, details={"input_audio_tokens": 70})


def test_gemini_tells_modalities_apart():
    details = [
        {"modality": "AUDIO", "tokenCount": 30},
        {"modality": "TEXT", "tokenCount": 50},
        {"modality": "DOCUMENT", "tokenCount": 20},
    ]
    usage, _ = read("gemini", "promptTokensDetails", details)

    assert usage.details == {"input_audio_tokens": 30, "input_image_tokens": 20}


def test_responses_count_what_tools_at_the_vendor_were_paid_for():
    search = {"type": "web_search_call", "action": {"type": "search"}}
    opened = {"type": "web_search_call", "action": {"type": "open_page"}}
    items = [search, opened, search, {"type": "file_search_call"}, {"type": "code_interpreter_call"}]
    answer, usage, *_ = WIRES_OF["openai-responses"]
    whole, stream = WIRES["openai-responses"].decoder(), WIRES["openai-responses"].decoder()

    whole.decode_whole(orjson.dumps({**answer(usage), "output": items}))
    for index, item in enumerate(items):
        for type_ in ("response.output_item.added", "response.output_item.done"):
            stream.decode(b"data: " + orjson.dumps({"type": type_, "output_index": index, "item": item}) + b"\n\n")
    stream.decode(
        b"data: " + orjson.dumps({"type": "response.completed", "response": {**answer(usage), "output": items}}) + b"\n\n"
    )

    paid = {"web_searches": 2, "storage_searches": 1, "code_executions": 1}
    assert whole.usage.details == stream.usage.details == paid


@pytest.mark.parametrize(
    ("path", "value", "tier"),
    [
        ("service_tier", "standard", ""),
        ("service_tier", "priority", "priority"),
        ("speed", "fast", "fast"),
        ("inference_geo", "us", "us"),
        ("inference_geo", "not_available", ""),
        ("service_tier", 5, ""),
        ("service_tier", "x" * 1000, ""),
    ],
)
def test_anthropic_says_how_it_was_served(path: str, value: Any, tier: str):
    usage, _ = read("anthropic-messages", path, value)

    assert usage.service_tier == tier


# Places


@pytest.mark.parametrize("value", [-1, INDEXES_MAX, 2**63, True, 1.0, "1", None, [1]])
def test_what_is_no_place_is_none(value: Any):
    assert index_of(value) is None


def test_a_place_within_bounds_is_one():
    assert (index_of(0), index_of(INDEXES_MAX - 1), index_of(5, 5)) == (0, INDEXES_MAX - 1, None)


def calls(wire: str, index: Any) -> Iterator[dict[str, Any]]:
    match wire:
        case "openai-chat":
            call = {"index": index, "id": "a", "function": {"name": "f", "arguments": "{}"}}
            yield {"choices": [{"index": index, "delta": {"tool_calls": [call]}, "finish_reason": "tool_calls"}]}
        case "openai-responses":
            item = {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"}
            yield {"type": "response.output_item.done", "output_index": index, "item": item}
        case "anthropic-messages":
            yield {"type": "content_block_start", "index": index, "content_block": {"type": "tool_use", "id": "a", "name": "f"}}
            yield {"type": "content_block_stop", "index": index}
        case "cohere":
            call = {"id": "a", "function": {"name": "f", "arguments": "{}"}}
            yield {"type": "tool-call-start", "index": index, "delta": {"message": {"tool_calls": call}}}


@pytest.mark.parametrize("index", [-1, 10**9, 1e300, True, "0", None, {}], ids=repr)
@pytest.mark.parametrize("wire", ["openai-chat", "openai-responses", "anthropic-messages", "cohere"])
def test_a_call_at_an_absurd_place_is_the_first_one(wire: str, index: Any):
    decoder = WIRES[wire].decoder()
    events = [event for fields in calls(wire, index) for event in decoder.decode(b"data: " + orjson.dumps(fields) + b"\n\n")]

    (begun,) = [event for event in events if isinstance(event, ToolCallStarted)]
    assert (begun.index, begun.choice) == (0, 0)
