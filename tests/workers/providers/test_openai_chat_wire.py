"""How what OpenAI and its compatible vendors send is read. Behaviour all wires share: contracts/."""

from typing import Any

import orjson
import pytest

from common.canonical.errors import ErrorKind, Failed
from common.canonical.events import Completed, Event, Finished, FinishReason, TextDelta, ToolCallStarted, Usage
from common.canonical.reply import Reply, fold
from common.dialects.base import ReplyInfo
from tests.support.upstreams.recordings import OWN, Recording, blocks_of, data_of, parameters
from workers.providers.openai_chat.wire import OPENAI_COMPATIBLE


def chunk(delta: dict[str, Any] | None = None, finish: str | None = None, **fields: Any) -> bytes:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    return b"data: " + orjson.dumps({"id": "c", "model": "m", "choices": choices, **fields}) + b"\n\n"


def decode(*blocks: bytes) -> list[Event]:
    decoder = OPENAI_COMPATIBLE.decoder()
    return [event for block in blocks for event in decoder.decode(block)] + decoder.end()


def reply_of(*blocks: bytes) -> Reply:
    return fold(decode(*blocks))


def own(case: str) -> Reply:
    return reply_of(*blocks_of((OWN / "openai_compatible" / f"{case}.sse").read_bytes()))


def simple_fold(body: bytes) -> dict[str, Any]:
    """The first choice of a stream, read in the plainest way there is."""
    text = thinking = refusal = ""
    calls: dict[object, list[str]] = {}
    finish = None
    for each in data_of(body):
        for choice in each.get("choices", []):
            if choice["index"] != 0:
                continue
            delta = choice.get("delta", {})
            content = delta.get("content") or []
            parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
            text += "".join(part["text"] for part in parts if part["type"] == "text")
            thinking += "".join(piece["text"] for part in parts if part["type"] == "thinking" for piece in part["thinking"])
            thinking += delta.get("reasoning_content") or delta.get("reasoning") or ""
            refusal += delta.get("refusal") or ""
            for call in delta.get("tool_calls") or []:
                kept = calls.setdefault(call.get("index", call.get("id")), ["", ""])
                kept[0] = kept[0] or call["function"].get("name") or ""
                kept[1] += call["function"].get("arguments") or ""
            finish = finish or choice.get("finish_reason")
    return {"text": text, "thinking": thinking, "refusal": refusal, "calls": list(calls.values()), "finish": finish}


def last_usage(body: bytes) -> dict[str, Any] | None:
    found = [each.get("usage") or (each.get("x_groq") or {}).get("usage") for each in data_of(body)]
    return next((usage for usage in reversed(found) if usage), None)


@pytest.mark.parametrize("recording", parameters(wire="openai-chat"))
def test_recorded_streams_say_what_their_raw_json_says(recording: Recording) -> None:
    events = decode(*blocks_of(recording.body))
    reply, raw = fold(events), simple_fold(recording.body)
    choice = reply.choices[0] if reply.choices else None

    if isinstance(events[-1], Failed):
        assert any(each.get("error") for each in data_of(recording.body))
        assert (choice.text if choice else "") == raw["text"]
        return
    assert choice is not None
    assert choice.finish_reason is not None
    assert (choice.text, choice.refusal) == (raw["text"], raw["refusal"])
    assert "".join(block.text for block in choice.reasoning) == raw["thinking"]
    assert [[call.name, call.arguments] for call in choice.tool_calls] == [
        [name, arguments or "{}"] for name, arguments in raw["calls"]
    ]
    finish = {"eos": "stop"}.get(raw["finish"], raw["finish"])
    assert choice.finish_reason == ("tool_calls" if raw["calls"] else finish)
    usage = last_usage(recording.body)
    assert (reply.usage is None) == (usage is None)
    if usage and reply.usage:
        details = usage.get("completion_tokens_details") or {}
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        assert reply.usage.input_tokens in (usage["prompt_tokens"], usage["prompt_tokens"] + cached)
        assert reply.usage.output_tokens >= usage["completion_tokens"]
        assert reply.usage.reasoning_tokens == (details.get("reasoning_tokens") or 0)


def test_choices_end_one_by_one() -> None:
    reply = own("two_choices")

    assert [choice.text for choice in reply.choices.values()] == ["one", "two!"]
    assert [choice.finish_reason for choice in reply.choices.values()] == [FinishReason.STOP, FinishReason.LENGTH]


def test_stream_with_an_unfinished_choice_fails() -> None:
    blocks = blocks_of((OWN / "openai_compatible" / "two_choices.sse").read_bytes())

    reply = reply_of(*[block for block in blocks if b'"length"' not in block])

    assert reply.failed
    assert (reply.failed.kind, reply.failed.code) == (ErrorKind.UPSTREAM_UNAVAILABLE, "upstream_cut")


def test_finish_reason_with_payload_comes_after_it_and_once() -> None:
    events = decode(*blocks_of((OWN / "openai_compatible" / "finish_with_payload_and_repeated.sse").read_bytes()))

    assert events[1:] == [
        TextDelta("Hel"),
        TextDelta("lo"),
        Finished(FinishReason.LENGTH),
        Completed(Usage(7, 3)),
    ]


def test_usage_is_replaced_never_added() -> None:
    assert own("usage_twice_and_x_groq").usage == Usage(7, 3)
    assert own("usage_in_every_chunk_crlf_no_done").usage == Usage(7, 3)
    assert reply_of(chunk({"content": "a"}, "stop", x_groq={"usage": {"prompt_tokens": 1}})).usage == Usage(1, 0)


@pytest.mark.parametrize(
    ("usage", "normalised"),
    [
        # OpenAI: reasoning inside.
        ((10, 8, 18, 0, 5), Usage(10, 8, reasoning_tokens=5)),
        # xAI: beside, and the total shows it.
        ((468, 77, 1127, 0, 582), Usage(468, 659, reasoning_tokens=582)),
        # A gateway: more of it than of the whole, and a total that leaves it out.
        ((57, 10, 67, 0, 37), Usage(57, 37, reasoning_tokens=37)),
        # Cached inside the prompt; at Azure's Grok beside it.
        ((221, 20, 241, 192, 0), Usage(221, 20, cache_read_tokens=192)),
        ((10, 8, 18, 161, 0), Usage(171, 8, cache_read_tokens=161)),
    ],
)
def test_usage_is_normalised_to_inclusive_figures(usage: tuple[int, ...], normalised: Usage) -> None:
    prompt, completion, total, cached, reasoning = usage
    fields = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": total,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {"reasoning_tokens": reasoning},
    }

    assert reply_of(chunk({"content": "a"}, "stop"), chunk(usage=fields)).usage == normalised


def test_cache_writes_are_a_part_of_the_prompt() -> None:
    details = {"cached_tokens": 100, "cache_write_tokens": 900}  # As OpenRouter tells what Anthropic wrote.
    fields = {"prompt_tokens": 2000, "completion_tokens": 8, "total_tokens": 2008, "prompt_tokens_details": details}

    usage = reply_of(chunk({"content": "a"}, "stop"), chunk(usage=fields)).usage

    assert usage == Usage(2000, 8, cache_read_tokens=100, cache_write_tokens=900)


def test_usage_with_nulls_waits_for_the_figures() -> None:
    unknown = {"prompt_tokens": 14, "completion_tokens": None, "total_tokens": None}

    reply = reply_of(chunk({"content": "a"}, usage=unknown), chunk({}, "stop", usage={**unknown, "completion_tokens": 4}))

    assert reply.usage == Usage(14, 4)


def test_calls_without_index_id_or_type_are_told_apart() -> None:
    reply = own("whole_calls_without_index")

    assert [(call.name, call.arguments) for call in reply.choices[0].tool_calls] == [("one", '{"x": 1}'), ("two", "{}")]


def test_call_without_an_id_gets_the_same_one_each_time() -> None:
    blocks = [chunk({"tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}), chunk({}, "tool_calls")]

    ids = {reply_of(*blocks).choices[0].tool_calls[0].id for _ in range(2)}

    assert len(ids) == 1
    assert ids.pop().startswith("call_")


def test_calls_that_share_index_zero_are_told_apart_by_id() -> None:
    calls = [{"index": 0, "id": f"id{n}", "function": {"name": f"f{n}", "arguments": "{}"}} for n in range(2)]

    reply = reply_of(chunk({"tool_calls": calls}), chunk({}, "tool_calls"))

    assert [call.name for call in reply.choices[0].tool_calls] == ["f0", "f1"]


def test_continuation_that_repeats_id_type_or_an_empty_name_continues() -> None:
    reply = reply_of(
        chunk({"tool_calls": [{"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": '{"'}}]}),
        chunk({"tool_calls": [{"index": 0, "id": "a", "type": "function", "function": {"name": "", "arguments": "k"}}]}),
        chunk({"tool_calls": [{"index": 0, "type": "function", "function": {"arguments": '":1}'}}]}),
        chunk({}, "tool_calls"),
    )

    assert [(call.name, call.arguments) for call in reply.choices[0].tool_calls] == [("f", '{"k":1}')]


def test_call_without_arguments_gets_an_empty_object() -> None:
    reply = reply_of(chunk({"tool_calls": [{"index": 0, "id": "a", "function": {"name": "f"}}]}), chunk({}, "stop"))

    assert reply.choices[0].tool_calls[0].arguments == "{}"


def test_stop_after_a_forced_call_means_tool_calls() -> None:
    reply = reply_of(chunk({"tool_calls": [{"index": 0, "id": "a", "function": {"name": "f"}}]}), chunk({}, "stop"))

    assert reply.choices[0].finish_reason is FinishReason.TOOL_CALLS


def test_legacy_function_call_is_a_tool_call() -> None:
    reply = reply_of(
        chunk({"function_call": {"name": "f", "arguments": ""}}),
        chunk({"function_call": {"arguments": '{"a":1}'}}),
        chunk({}, "function_call"),
    )

    assert [(call.name, call.arguments) for call in reply.choices[0].tool_calls] == [("f", '{"a":1}')]


@pytest.mark.parametrize(
    ("block", "kind", "status"),
    [
        (b'data: {"error":{"message":"m","code":502}}', ErrorKind.UPSTREAM_UNAVAILABLE, 502),
        (b'data: {"error":"m"}', ErrorKind.UPSTREAM_UNAVAILABLE, 502),
        (b'data: {"error":{"message":"m","type":"rate_limit_error"}}', ErrorKind.UPSTREAM_RATE_LIMITED, 429),
        (b'data: {"error":{"message":"m","code":"429"}}', ErrorKind.UPSTREAM_RATE_LIMITED, 429),
        (b'event: error\ndata: {"message":"m","status_code":400}', ErrorKind.UPSTREAM_REJECTED, 400),
        (b'data: {"object":"error","message":"m","code":40303}', ErrorKind.UPSTREAM_UNAVAILABLE, 502),
    ],
)
def test_errors_inside_a_stream_are_failures(block: bytes, kind: ErrorKind, status: int) -> None:
    failed = decode(chunk({"content": "a"}), block + b"\n\n")[-1]

    assert isinstance(failed, Failed)
    assert (failed.kind, failed.http_status, failed.message) == (kind, status, "m")


def test_key_refused_inside_a_stream_is_not_told() -> None:
    failed = decode(b'data: {"error":{"message":"bad key sk-123","code":"invalid_api_key"}}\n\n')[-1]

    assert isinstance(failed, Failed)
    assert failed.kind is ErrorKind.UPSTREAM_CREDENTIALS
    assert "sk-123" not in failed.message


def test_error_after_every_choice_finished_takes_nothing_back() -> None:
    reply = reply_of(chunk({"content": "a"}, "length"), b'data: {"error":{"code":400},"usage":{"prompt_tokens":4}}\n\n')

    assert reply.failed is None
    assert reply.usage == Usage(4, 0)


@pytest.mark.parametrize("reason", ["error", "insufficient_system_resource", "abort", "network_error"])
def test_finish_reason_that_is_a_failure_fails(reason: str) -> None:
    assert reply_of(chunk({"content": "a"}, reason), b"data: [DONE]\n\n").failed


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("model_context_window_exceeded", FinishReason.LENGTH),
        ("repetition", FinishReason.LENGTH),
        ("sensitive", FinishReason.CONTENT_FILTER),
        ("eos", FinishReason.STOP),
    ],
)
def test_words_for_a_cut_answer_are_no_stop(word: str, reason: FinishReason) -> None:
    assert reply_of(chunk({"content": "a"}, word), b"data: [DONE]\n\n").choices[0].finish_reason is reason


def test_done_without_any_choice_fails() -> None:
    assert reply_of(b"data: [DONE]\n\n").failed


def test_whole_answer_sent_as_one_event_is_read() -> None:
    message = {"choices": [{"index": 0, "message": {"content": "all"}, "finish_reason": "stop"}]}

    assert reply_of(b"data: " + orjson.dumps(message) + b"\n\n").choices[0].text == "all"


def test_filtered_choice_without_a_message_is_an_answer() -> None:
    body = b'{"choices":[{"finish_reason":"content_filter","index":0}],"usage":{"prompt_tokens":1,"completion_tokens":2}}'

    reply = fold(OPENAI_COMPATIBLE.decoder().decode_whole(body))

    assert reply.choices[0].finish_reason is FinishReason.CONTENT_FILTER


def test_blank_lines_before_a_whole_answer_are_skipped() -> None:
    body = b'\n\n\n{"choices":[{"index":0,"message":{"content":"x"},"finish_reason":"stop"}]}'

    assert fold(OPENAI_COMPATIBLE.decoder().decode_whole(body)).choices[0].text == "x"


def test_error_in_a_whole_answer_is_a_failure() -> None:
    assert fold(OPENAI_COMPATIBLE.decoder().decode_whole(b'{"error":{"message":"m","code":500}}')).failed


def test_usage_chunk_is_foreign_only_where_it_was_not_asked_for() -> None:
    usage = {"prompt_tokens": 1}

    def is_foreign(block: bytes, body: dict[str, object]) -> bool:
        return OPENAI_COMPATIBLE.for_client(block, ReplyInfo("gen_1", "m", 0, body=body)) == b""

    assert is_foreign(chunk(usage=usage), {"stream": True})
    assert is_foreign(chunk(usage=usage), {"stream": True, "stream_options": {"include_usage": False}})
    assert is_foreign(chunk(usage=usage).replace(b'"choices":[]', b'"choices": []'), {})
    assert not is_foreign(chunk(usage=usage), {"stream": True, "stream_options": {"include_usage": True}})
    assert not is_foreign(chunk({"content": '"choices":[]'}, usage=usage), {})
    assert not is_foreign(chunk(prompt_filter_results=[]), {})  # Azure's first chunk.
    assert not is_foreign(b"data: [DONE]\n\n", {})


# Cloudflare's: tokens that are JSON by themselves come as numbers, and an answer in JSON mode comes as an object.
NO_STRINGS: list[tuple[Any, str]] = [(6, "6"), (0, "0"), (0.005, "0.005"), (True, "true"), ({"a": [1]}, '{"a":[1]}')]


@pytest.mark.parametrize(("value", "text"), NO_STRINGS)
def test_text_that_is_no_string_is_text(value: Any, text: str) -> None:
    around = chunk({"content": "["}), chunk({"content": value}), chunk({"content": "]"}), chunk({"content": "."}, "stop")

    assert reply_of(*around, b"data: [DONE]\n\n").choices[0].text == f"[{text}]."


@pytest.mark.parametrize(("value", "text"), NO_STRINGS)
@pytest.mark.parametrize("field", ["delta", "message"])
def test_text_that_is_no_string_passes_as_a_string(field: str, value: Any, text: str) -> None:
    def given(data: bytes) -> bytes:
        return OPENAI_COMPATIBLE.for_client(data, ReplyInfo("gen_1", "m", 0, body={}))

    def answer(content: Any) -> bytes:
        call = {"index": 0, "function": {"name": "f", "arguments": content}}
        return orjson.dumps({"id": "c", "choices": [{"index": 0, field: {"content": content, "tool_calls": [call]}}]})

    assert given(answer(value)) == answer(text)
    assert given(b"data: " + answer(value) + b"\n\n") == b"data: " + answer(text) + b"\n\n"
    for other in (None, "", '"content":6', ["part"]):
        assert given(answer(other)) == answer(other)


def test_thinking_in_a_list_passes_where_clients_look_for_it() -> None:
    def given(content: Any, **fields: Any) -> dict[str, Any]:
        data = chunk({"role": "assistant", "content": content, **fields})
        passed = OPENAI_COMPATIBLE.for_client(data, ReplyInfo("gen_1", "m", 0, body={}))
        delta: dict[str, Any] = data_of(passed)[0]["choices"][0]["delta"]
        return delta

    thinking = {"type": "thinking", "thinking": [{"type": "text", "text": "h"}, {"type": "text", "text": "m"}], "closed": True}
    text = {"type": "text", "text": "a"}

    assert given([thinking]) == {"role": "assistant", "content": "", "reasoning_content": "hm"}
    assert given([thinking, text, text]) == {"role": "assistant", "content": "aa", "reasoning_content": "hm"}
    assert given([text]) == {"role": "assistant", "content": "a"}
    for other in ([], [{"type": "image_url", "image_url": "https://x/y.png"}, text], ["a"]):
        assert given(other)["content"] == other


def test_tool_call_is_named_before_its_pieces() -> None:
    started = [
        event
        for event in decode(*blocks_of((OWN / "openai_compatible" / "parallel_calls_interleaved.sse").read_bytes()))
        if isinstance(event, ToolCallStarted)
    ]

    assert [(call.index, call.id, call.name) for call in started] == [(0, "call_a", "first"), (1, "call_b", "second")]


PLACEHOLDERS = ["", None, "null", "None", " "]


@pytest.mark.parametrize("placeholder", PLACEHOLDERS)
def test_a_placeholder_is_no_finish_reason(placeholder: str | None) -> None:
    pieces = [chunk({"content": text}, placeholder) for text in ("one", "two")]

    reply = reply_of(*pieces, chunk({}, "length"), b"data: [DONE]\n\n")
    cut = decode(*pieces)

    assert reply.choices[0].finish_reason is FinishReason.LENGTH
    assert isinstance(cut[-1], Failed)


@pytest.mark.parametrize("placeholder", PLACEHOLDERS)
def test_a_call_waits_for_its_name(placeholder: str | None) -> None:
    def piece(**function: Any) -> bytes:
        return chunk({"tool_calls": [{"index": 0, "id": "a", "type": "function", "function": function}]})

    first = piece(name=placeholder, arguments='{"city"')
    events = decode(first, piece(name="weather", arguments=': "x"}'), chunk({}, "tool_calls"))

    calls = [event for event in events if isinstance(event, ToolCallStarted)]
    assert [(call.id, call.name) for call in calls] == [("a", "weather")]
    assert fold(events).choices[0].tool_calls[0].arguments == '{"city": "x"}'


def test_an_empty_call_beside_a_real_one_is_none() -> None:
    real = {"index": 0, "id": "a", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    empty = {"index": 1, "id": "", "type": "", "function": {"name": "", "arguments": ""}}

    reply = reply_of(chunk({"tool_calls": [real, empty]}), chunk({}, "tool_calls"))

    assert [call.name for call in reply.choices[0].tool_calls] == ["weather"]


def test_a_call_with_arguments_and_no_name_fails() -> None:
    nameless = {"index": 0, "id": "a", "type": "function", "function": {"name": "", "arguments": "{}"}}

    events = decode(chunk({"tool_calls": [nameless]}), chunk({}, "tool_calls"))

    assert isinstance(events[-1], Failed)
    assert events[-1].kind is ErrorKind.UPSTREAM_PROTOCOL


def test_zeros_in_the_last_chunk_do_not_replace_the_figures() -> None:
    usage = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}
    zeros = dict.fromkeys(usage, 0)

    reply = reply_of(chunk({"content": "a"}, usage=usage), chunk({}, "stop", usage=zeros))

    assert reply.usage
    assert (reply.usage.input_tokens, reply.usage.output_tokens) == (9, 4)
