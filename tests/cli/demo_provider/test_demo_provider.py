"""The demo provider as clients see it: through the vendors' own SDKs, and through raw sockets where it fails."""

import asyncio
import json
import subprocess
import sys
import time
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import anthropic
import httpx
import openai
import pytest

from demo_provider import script
from demo_provider.schema import example
from demo_provider.script import Fault, FaultKind, answer, parse, word
from demo_provider.server import running

HELLO = [{"role": "user", "content": "How does a sluice work?"}]
HELLO_TOKENS = 6  # Five words and the role.
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "note": {"$ref": "#/$defs/note"}},
    "required": ["city", "days", "note"],
    "$defs": {"note": {"anyOf": [{"type": "null"}, {"enum": ["dry", "wet"]}]}},
    "additionalProperties": False,
}
ARGUMENTS = {"city": "Zürich", "days": 1, "note": "dry"}
CHAT_TOOLS = [{"type": "function", "function": {"name": name, "parameters": SCHEMA}} for name in ("weather", "tide")]
RESPONSES_TOOLS = [{"type": "function", "strict": True, **tool["function"]} for tool in CHAT_TOOLS]
MESSAGES_TOOLS = [{"name": name, "input_schema": SCHEMA} for name in ("weather", "tide")]
WIRES = {
    "/v1/chat/completions": {"messages": HELLO},
    "/v1/responses": {"input": "How does a sluice work?"},
    "/v1/messages": {"messages": HELLO, "max_tokens": 1000},
}
each_wire = pytest.mark.parametrize("path", WIRES)
streaming_or_not = pytest.mark.parametrize("stream", [True, False])


@pytest.fixture
async def address():
    async with running() as address:
        yield address


@pytest.fixture
async def http(address):
    async with httpx.AsyncClient(base_url=address, headers={"authorization": "Bearer key"}) as client:
        yield client


@pytest.fixture
async def chat(address):
    async with openai.AsyncOpenAI(api_key="key", base_url=f"{address}/v1", max_retries=0) as client:
        yield client


@pytest.fixture
async def claude(address):
    async with anthropic.AsyncAnthropic(api_key="key", base_url=address, max_retries=0) as client:
        yield client


async def stats(http):
    return (await http.get("/stats")).json()


async def wait_for(http, **wanted):
    """Return once the counters say so; long before an answer that takes a minute has begun, or gone on."""
    begin = time.monotonic()
    while not wanted.items() <= (found := await stats(http)).items():
        assert time.monotonic() < begin + 50, found
        await asyncio.sleep(0.005)


@asynccontextmanager
async def raw_request(address, path, **body):
    """Open a connection of its own for one request, and give its reader and writer."""
    data = json.dumps({**WIRES[path], **body}).encode()
    url = urlsplit(address)
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\nx-api-key: key\r\ncontent-length: {len(data)}\r\nconnection: close\r\n\r\n"
    writer.write(head.encode() + data)
    try:
        yield reader, writer
    finally:
        writer.close()


async def read_to_the_end(reader):
    """Return all bytes, and whether the connection was reset after them."""
    data = b""
    try:
        while chunk := await reader.read(65536):
            data += chunk
    except ConnectionResetError:
        return data, True
    return data, False


def events_of(text):
    return [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]


# What it says


def test_the_answer_is_a_function_of_its_length():
    whole = answer()

    assert whole == answer(script.SAMPLE_TOKENS) == "".join(word(i) for i in range(script.SAMPLE_TOKENS))
    assert answer(500).startswith(whole)
    assert answer(500).endswith(word(499))
    assert {"é", "—", "🌊"} <= set(whole)
    assert answer(0) == ""


def test_a_spec_is_read_part_by_part_and_unknown_parts_say_nothing():
    parsed = parse("demo-n50-d2.5-f300-tool2-think7-refuse-len-ra0.5-e503x2-cut4-drop-mini-4o-n-d-x3-einstein")

    assert (parsed.tokens, parsed.pace_s, parsed.first_s) == (50, 0.0025, 0.3)
    assert (parsed.tool_calls, parsed.reasoning_tokens, parsed.retry_after) == (2, 7, "0.5")
    assert parsed.is_refusal
    assert parsed.is_cut_short
    assert parsed.faults == (Fault(FaultKind.STATUS, 503, 2), Fault(FaultKind.CUT, 4), Fault(FaultKind.DROP))
    assert parse("gpt-4o-mini") == parse("claude-haiku-4-5-20251001") == script.Script()


@pytest.mark.parametrize(
    ("schema", "document"),
    [
        (SCHEMA, ARGUMENTS),
        ({"type": "array", "items": {"type": "number", "minimum": 5}, "minItems": 3}, [5, 5, 5]),
        ({"type": ["null", "string"], "minLength": 6, "maxLength": 7}, "demo.."),
        ({"allOf": [{"properties": {"a": {"const": 3}}, "type": "object"}, {"required": ["a"]}]}, {"a": 3}),
        ({"properties": {"next": {"$ref": "#"}, "on": {"type": "boolean"}}, "required": ["on"]}, {"on": True}),
        ({"type": "integer", "exclusiveMaximum": 0}, -1),
        ({"$ref": "#"}, "demo"),
        ({"allOf": [{"$ref": "#"}]}, {}),
        (None, None),
    ],
)
def test_documents_fit_their_schema(schema, document):
    assert example(schema) == document


def test_a_schema_without_end_ends_and_nonsense_is_refused():
    twice = {"properties": {"a": {"$ref": "#"}, "b": {"$ref": "#"}}, "required": ["a", "b"]}
    wide = {"type": "array", "minItems": 10**9, "items": {"type": "array", "minItems": 10**9}}

    assert len(json.dumps([example(twice), example(wide)])) < 100_000
    for unreadable_answer in ({"enum": 5}, {"type": "string", "minLength": "x"}, {"$ref": "#/nowhere"}, {"anyOf": [1]}):
        with pytest.raises(ValueError):
            example(unreadable_answer)


# Chat completions, through the vendor's SDK


async def test_chat_streams_role_tokens_finish_usage(chat):
    stream = await chat.chat.completions.create(
        model="demo-n90-d1", messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]

    first, *tokens, finish, usage = chunks
    assert first.choices[0].delta.model_dump(exclude_unset=True) == {
        "role": "assistant",
        "content": "",
        "refusal": None,
    }
    assert [chunk.choices[0].delta.content for chunk in tokens] == [word(i) for i in range(90)]
    assert (finish.choices[0].finish_reason, finish.usage) == ("stop", None)
    assert "usage" in finish.model_fields_set
    assert (usage.choices, usage.usage.prompt_tokens, usage.usage.completion_tokens) == ([], HELLO_TOKENS, 90)
    assert len({chunk.id for chunk in chunks}) == 1


async def test_chat_sends_usage_only_when_asked_and_ends_with_done(http):
    reply = await http.post("/v1/chat/completions", json={"model": "demo-n3", "messages": HELLO, "stream": True})

    assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert '"usage"' not in reply.text
    assert reply.text.endswith("data: [DONE]\n\n")


async def test_chat_answers_whole(chat):
    reply = await chat.chat.completions.create(model="demo-d0", messages=HELLO)

    assert (reply.choices[0].message.content, reply.choices[0].finish_reason) == (answer(), "stop")
    assert reply.usage.total_tokens == HELLO_TOKENS + script.SAMPLE_TOKENS


@streaming_or_not
async def test_chat_calls_tools_and_quotes_their_results(chat, stream):
    asked = {"model": "demo-tool2-d1", "tools": CHAT_TOOLS}
    if stream:
        async with chat.chat.completions.stream(messages=HELLO, **asked) as events:
            deltas = [event async for event in events if event.type == "tool_calls.function.arguments.delta"]
            first = await events.get_final_completion()
        assert len(deltas) > 4
    else:
        first = await chat.chat.completions.create(messages=HELLO, **asked)
    message = first.choices[0].message
    assert first.choices[0].finish_reason == "tool_calls"
    assert [call.function.name for call in message.tool_calls] == ["weather", "tide"]
    assert [json.loads(call.function.arguments) for call in message.tool_calls] == [ARGUMENTS, ARGUMENTS]

    results = [
        {"role": "tool", "tool_call_id": call.id, "content": f"{call.function.name} is fine"} for call in message.tool_calls
    ]
    said = [*HELLO, message.model_dump(exclude_none=True), *results]
    second = await chat.chat.completions.create(messages=said, **asked)
    assert second.choices[0].message.content == "The tool answered: weather is fine, tide is fine"


async def test_chat_interleaves_choices(chat):
    stream = await chat.chat.completions.create(model="demo-n2-d1", messages=HELLO, n=2, stream=True)

    indexes = [chunk.choices[0].index async for chunk in stream]
    assert indexes == [0, 1] * 4


async def test_chat_thinks_refuses_and_writes_json(chat):
    async def message(model, **wanted):
        return (await chat.chat.completions.create(model=model, messages=HELLO, **wanted)).choices[0].message

    thinking = await message("demo-n3-think4-d0")
    refusal = await message("demo-refuse-d0")
    document = await message(
        "demo-d0", response_format={"type": "json_schema", "json_schema": {"name": "it", "schema": SCHEMA}}
    )
    free = await message("demo-d0", response_format={"type": "json_object"})

    assert (thinking.reasoning_content, thinking.content) == ("The question is about", answer(3))
    assert (refusal.content, refusal.refusal) == (None, "I'm sorry, but I can't help with that.")
    assert json.loads(document.content) == ARGUMENTS
    assert isinstance(json.loads(free.content), dict)


# Responses, through the vendor's SDK


async def test_responses_stream_helper_gets_text_and_usage(chat):
    async with chat.responses.stream(model="demo-n70-d1-think3", input="How does a sluice work?") as stream:
        events = [event async for event in stream]
        final = await stream.get_final_response()

    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[-1].type == "response.completed"
    assert final.output_text == answer(70)
    assert [item.type for item in final.output] == ["reasoning", "message"]
    assert final.output[0].summary[0].text == "The question is"
    assert (final.usage.output_tokens, final.usage.output_tokens_details.reasoning_tokens) == (73, 3)


async def test_responses_events_come_in_the_vendors_order(http):
    asked = {"model": "demo-n1", "input": "hi", "stream": True}
    events = events_of((await http.post("/v1/responses", json=asked)).text)

    names = ["created", "in_progress", "output_item.added", "content_part.added", "output_text.delta"]
    names += ["output_text.done", "content_part.done", "output_item.done", "completed"]
    assert [event["type"] for event in events] == [f"response.{name}" for name in names]
    assert events[0]["response"]["usage"] is None
    assert events[-1]["response"]["output"] == [events[-2]["item"]]


@streaming_or_not
async def test_responses_call_tools_and_quote_their_results(chat, stream):
    asked = {"model": "demo-tool-d1", "tools": RESPONSES_TOOLS}
    if stream:
        async with chat.responses.stream(input="hi", **asked) as events:
            first = await events.get_final_response()
    else:
        first = await chat.responses.create(input="hi", **asked)
    (call,) = first.output
    assert (call.type, call.name, json.loads(call.arguments)) == ("function_call", "weather", ARGUMENTS)

    result = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    second = await chat.responses.create(input=[{"role": "user", "content": "hi"}, result], **asked)
    assert second.output_text == "The tool answered: sunny"


async def test_responses_refuse_write_json_and_stop_short(chat):
    refusal = await chat.responses.create(model="demo-refuse-d0", input="hi")
    wanted = {"format": {"type": "json_schema", "name": "it", "schema": SCHEMA}}
    document = await chat.responses.create(model="demo-d0", input="hi", text=wanted)
    short = await chat.responses.create(model="demo-d0", input="hi", max_output_tokens=4)

    assert refusal.output[0].content[0].type == "refusal"
    assert json.loads(document.output_text) == ARGUMENTS
    assert (short.status, short.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert short.output_text == answer(4)


# Messages, through the vendor's SDK


async def test_messages_stream_helper_gets_thinking_text_and_usage(claude):
    async with claude.messages.stream(model="demo-n70-d1-think3", messages=HELLO, max_tokens=1000) as stream:
        names = [event.type async for event in stream]
        final = await stream.get_final_message()

    assert names[:2] == ["message_start", "content_block_start"]
    assert [block.type for block in final.content] == ["thinking", "text"]
    assert (final.content[0].thinking, final.content[1].text) == ("The question is", answer(70))
    assert final.content[0].signature
    assert (final.stop_reason, final.usage.input_tokens, final.usage.output_tokens) == ("end_turn", HELLO_TOKENS, 73)


async def test_messages_events_come_in_the_vendors_order(http):
    asked = {"model": "demo-n1", "messages": HELLO, "max_tokens": 9, "stream": True}
    reply = await http.post("/v1/messages", json=asked)
    events = events_of(reply.text)

    names = ["message_start", "content_block_start", "ping", "content_block_delta", "content_block_stop"]
    assert [event["type"] for event in events] == [*names, "message_delta", "message_stop"]
    assert events[0]["message"]["stop_reason"] is None
    assert events[-2]["usage"]["input_tokens"] == HELLO_TOKENS
    assert reply.headers["request-id"].startswith("req_")


@streaming_or_not
async def test_messages_call_tools_and_quote_their_results(claude, stream):
    asked = {"model": "demo-tool3-d1", "tools": MESSAGES_TOOLS, "max_tokens": 1000}
    if stream:
        async with claude.messages.stream(messages=HELLO, **asked) as events:
            first = await events.get_final_message()
    else:
        first = await claude.messages.create(messages=HELLO, **asked)
    assert first.stop_reason == "tool_use"
    assert [(block.name, block.input) for block in first.content] == [
        ("weather", ARGUMENTS), ("tide", ARGUMENTS), ("weather", ARGUMENTS)
    ]  # fmt: skip

    results = [
        {"type": "tool_result", "tool_use_id": block.id, "content": [{"type": "text", "text": "calm"}]}
        for block in first.content
    ]
    second = await claude.messages.create(messages=[*HELLO, {"role": "user", "content": results}], **asked)
    assert (second.content[0].text, second.stop_reason) == ("The tool answered: calm, calm, calm", "end_turn")


async def test_messages_refuse_and_count(claude):
    refusal = await claude.messages.create(model="demo-refuse-d0", messages=HELLO, max_tokens=100)
    count = await claude.messages.count_tokens(model="demo", messages=HELLO)

    assert (refusal.stop_reason, refusal.stop_details.type) == ("refusal", "refusal")
    assert count.input_tokens == HELLO_TOKENS


# Limits, stop sequences, prefills


async def test_the_token_limit_ends_each_wire_in_its_own_words(http):
    async def reply(path, **limit):
        return (await http.post(path, json={"model": "demo-d0", **WIRES[path], **limit})).json()

    chat = await reply("/v1/chat/completions", max_completion_tokens=5)
    old_chat = await reply("/v1/chat/completions", max_tokens=5)
    messages = await reply("/v1/messages", max_tokens=5)
    roomy = await reply("/v1/messages", max_tokens=script.SAMPLE_TOKENS)

    assert chat["choices"][0]["finish_reason"] == old_chat["choices"][0]["finish_reason"] == "length"
    assert chat["choices"][0]["message"]["content"] == messages["content"][0]["text"] == answer(5)
    assert (messages["stop_reason"], messages["usage"]["output_tokens"]) == ("max_tokens", 5)
    assert (roomy["stop_reason"], roomy["content"][0]["text"]) == ("end_turn", answer())


async def test_a_limit_inside_the_thinking_leaves_no_text(http):
    asked = {"model": "demo-think9-d0", "messages": HELLO, "max_tokens": 2}
    reply = (await http.post("/v1/messages", json=asked)).json()

    assert [block["type"] for block in reply["content"]] == ["thinking"]
    assert (reply["stop_reason"], reply["usage"]["output_tokens"]) == ("max_tokens", 2)


async def test_len_ends_as_if_the_limit_had_been_hit(http):
    asked = {"model": "demo-n4-len-d0", "messages": HELLO}
    choice = (await http.post("/v1/chat/completions", json=asked)).json()["choices"][0]

    assert (choice["message"]["content"], choice["finish_reason"]) == (answer(4), "length")


async def test_stop_sequences_end_the_text_before_them(http):
    stops = ["café", "jobs", "ent job"]
    asked = {"model": "demo-d0", "messages": HELLO}
    chat = (await http.post("/v1/chat/completions", json={**asked, "stop": stops})).json()["choices"][0]
    one = (await http.post("/v1/chat/completions", json={**asked, "stop": "café"})).json()["choices"][0]
    asked |= {"stop_sequences": stops, "max_tokens": 1000, "stream": True}
    events = events_of((await http.post("/v1/messages", json=asked)).text)

    before = "A sluice is a small gate with a pati"
    assert (chat["message"]["content"], chat["finish_reason"]) == (before, "stop")
    assert one["message"]["content"] == answer().partition("café")[0]
    assert "".join(event["delta"].get("text", "") for event in events if "delta" in event) == before
    assert events[-2]["delta"] == {"stop_reason": "stop_sequence", "stop_sequence": "ent job", "stop_details": None}


@pytest.mark.parametrize(
    ("prefill", "rest"),
    [
        (answer(5), answer(20).removeprefix(answer(5))),
        (answer(5) + " ", answer(20).removeprefix(answer(5) + " ")),
        (answer(5) + "\n\n", answer(20).removeprefix(answer(5))),
        (answer(5)[:-2], answer(20).removeprefix(answer(5)[:-2])),
        (answer(20), ""),
        (answer(21), ""),
        ("Something else", answer(20)),
        ("  ", answer(20)),
    ],
)
async def test_a_prefilled_answer_goes_on_where_it_ends(http, prefill, rest):
    asked = {"model": "demo-n20-d0", "messages": [*HELLO, {"role": "assistant", "content": prefill}]}
    chat = (await http.post("/v1/chat/completions", json=asked)).json()
    messages = (await http.post("/v1/messages", json={**asked, "max_tokens": 100})).json()
    streamed = events_of((await http.post("/v1/messages", json={**asked, "max_tokens": 100, "stream": True})).text)

    assert chat["choices"][0]["message"]["content"] == rest
    assert "".join(block["text"] for block in messages["content"]) == rest
    assert "".join(event["delta"].get("text", "") for event in streamed if "delta" in event) == rest
    assert streamed[-1]["type"] == "message_stop"


async def test_a_prefill_past_the_sample_goes_on_too(http):
    asked = {"model": "demo-n220-d0-think", "messages": [*HELLO, {"role": "assistant", "content": answer(170)}]}
    reply = (await http.post("/v1/chat/completions", json=asked)).json()

    assert answer(170) + reply["choices"][0]["message"]["content"] == answer(220)
    assert reply["usage"]["completion_tokens"] == 50


# Refusing requests


@each_wire
async def test_keys_are_checked(http, path):
    body = {"model": "demo-n1-d0", **WIRES[path]}
    missing = await http.post(path, json=body, headers={"authorization": ""})
    bad = await http.post(path, json=body, headers={"authorization": "Bearer bad-key"})
    other_header = await http.post(path, json=body, headers={"authorization": "", "x-api-key": "key"})

    assert (missing.status_code, bad.status_code, other_header.status_code) == (401, 401, 200)
    if path == "/v1/messages":
        assert bad.json()["error"] == {"type": "authentication_error", "message": "invalid x-api-key"}
        assert bad.headers["x-should-retry"] == "false"
    else:
        assert bad.json()["error"]["code"] == "invalid_api_key"
        assert bad.headers["x-request-id"]


@each_wire
async def test_bad_requests_get_the_wires_own_error(http, path):
    replies = [await http.post(path, content=content) for content in (b"{", b"[]", b"{}", b'{"model":"demo"}')]

    for reply in replies:
        error = reply.json()["error"]
        assert (reply.status_code, error["type"]) == (400, "invalid_request_error")
        assert ("param" in error) == (path != "/v1/messages")


@each_wire
async def test_odd_values_are_no_crash(http, path):
    odd = dict.fromkeys(("tools", "stop", "stop_sequences", "include", "text", "tool_choice", "n", "stream_options"), 7)
    reply = await http.post(path, json={"model": "demo-tool-n2-d0", **WIRES[path], **odd})

    schemaless = {"name": "it", "parameters": {"enum": 3}, "input_schema": {"enum": 3}}
    tools = [{"type": "function", "function": schemaless, **schemaless}]
    asked = {"model": "demo-tool", **WIRES[path], "tools": tools}
    if path == "/v1/messages":
        del tools[0]["type"]
    assert (reply.status_code, (await http.post(path, json=asked)).status_code) == (200, 400)


@each_wire
@streaming_or_not
async def test_a_status_is_answered_so_many_times_then_the_answer_comes(http, path, stream):
    body = {"model": "demo-n2-d0-e503x2", "stream": stream, **WIRES[path]}
    statuses = [(await http.post(path, json=body)).status_code for _ in range(3)]
    await http.post("/reset")
    again = await http.post(path, json=body)
    other = await http.post(path, json=body, headers={"x-demo": "n2-d0"})

    assert statuses == [503, 503, 200]
    assert (again.status_code, other.status_code) == (503, 200)


async def test_rate_limits_name_the_time_to_wait(http, chat, claude):
    for path in WIRES:
        body = {"model": "demo", **WIRES[path]}
        reply = await http.post(path, json=body, headers={"x-demo": "e429-ra0.5"})
        assert (reply.status_code, reply.headers["retry-after"]) == (429, "0.5")

    with pytest.raises(openai.RateLimitError, match="Rate limit reached for demo-e429"):
        await chat.chat.completions.create(model="demo-e429", messages=HELLO)
    with pytest.raises(anthropic.APIStatusError) as caught:
        await claude.messages.create(model="demo-e529", messages=HELLO, max_tokens=9)
    assert caught.value.body["error"]["type"] == "overloaded_error"


async def test_failures_take_their_turns_in_order(http):
    body = {"model": "demo-n3-d0-e500x1-err1x1-e429x1", **WIRES["/v1/messages"], "stream": True}
    replies = [await http.post("/v1/messages", json=body) for _ in range(4)]

    assert [reply.status_code for reply in replies] == [500, 200, 429, 200]
    assert ["overloaded_error" in reply.text for reply in replies] == [False, True, False, False]


# Breaking off


def tokens_in(data):
    return [i for i in range(9) if json.dumps(word(i)).encode() in data]


@each_wire
async def test_cut_resets_the_connection_after_its_tokens(address, http, path):
    async with raw_request(address, path, model="demo-d1-cut3", stream=True) as (reader, _):
        data, was_reset = await read_to_the_end(reader)
    async with raw_request(address, path, model="demo-d1-cut3") as (reader, _):
        whole, whole_was_reset = await read_to_the_end(reader)

    assert was_reset
    assert tokens_in(data) == [0, 1, 2]
    assert (whole, whole_was_reset) == (b"", True)
    assert (await stats(http))["cut"] == 2


@each_wire
async def test_end_ends_the_body_cleanly_without_a_terminal_event(address, path):
    async with raw_request(address, path, model="demo-d1-end3", stream=True) as (reader, _):
        data, was_reset = await read_to_the_end(reader)
    async with raw_request(address, path, model="demo-d1-end3") as (reader, _):
        whole, whole_was_reset = await read_to_the_end(reader)

    assert not was_reset
    assert not whole_was_reset
    assert data.endswith(b"\r\n0\r\n\r\n")
    assert tokens_in(data) == [0, 1, 2]
    assert not any(mark in data for mark in (b"[DONE]", b'finish_reason":"stop', b"completed", b"message_stop"))
    assert whole.endswith(b"\r\n0\r\n\r\n")
    assert not whole.endswith(b"}\r\n0\r\n\r\n")


async def test_drop_resets_before_any_byte_and_only_so_many_times(address, http):
    with pytest.raises(httpx.TransportError):
        await http.post("/v1/responses", json={"model": "demo-n1-dropx1", "input": "hi"})

    assert (await http.post("/v1/responses", json={"model": "demo-n1-dropx1", "input": "hi"})).is_success


async def test_cut_only_the_first_time_then_whole(http):
    body = {"model": "demo-d1-n5-cut2x1", "messages": HELLO, "stream": True}
    with pytest.raises(httpx.TransportError):
        await http.post("/v1/chat/completions", json=body)

    assert (await http.post("/v1/chat/completions", json=body)).text.endswith("data: [DONE]\n\n")


async def test_an_error_event_raises_in_every_sdk(chat, claude):
    with pytest.raises(openai.APIError, match="had an error"):
        async for _ in await chat.chat.completions.create(model="demo-d1-err2", messages=HELLO, stream=True):
            pass
    with pytest.raises(anthropic.APIStatusError, match="Overloaded"):
        async for _ in await claude.messages.create(model="demo-d1-err2", messages=HELLO, max_tokens=99, stream=True):
            pass
    with pytest.raises(openai.InternalServerError):
        await chat.responses.create(model="demo-d1-err2", input="hi")


async def test_responses_say_error_and_then_failed(http):
    asked = {"model": "demo-d0-err2", "input": "hi", "stream": True}
    events = events_of((await http.post("/v1/responses", json=asked)).text)

    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"] for event in events[-2:]] == ["error", "response.failed"]
    assert events[-1]["response"]["status"] == "failed"


# Noticing that the client left


@each_wire
@pytest.mark.parametrize("spec", ["f60000", "d60000", "stall2-d0", "stall0", "n100000", "f60000-e503", "f60000-drop"])
@streaming_or_not
async def test_a_client_that_leaves_is_noticed_at_once(address, http, path, spec, stream):
    async with raw_request(address, path, model=f"demo-{spec}", stream=stream) as (reader, _):
        await wait_for(http, open=1, requests=1)
        if stream and "60000-" not in spec:
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")

    await wait_for(http, open=0, aborted=1, completed=0, cut=0)


async def test_counters_tell_what_was_done(http):
    for path in WIRES:
        for stream in (True, False):
            await http.post(path, json={"model": "demo-n7-d0", **WIRES[path], "stream": stream})
    await http.post("/v1/chat/completions", json={})

    assert await stats(http) == {
        "requests": 7,
        "by_wire": {"chat": 3, "responses": 2, "messages": 2},
        "completed": 6,
        "aborted": 0,
        "open": 0,
        "cut": 0,
        "errors": 1,
        "tokens": 42,
    }


async def test_requests_are_kept_without_their_secrets(http):
    for i in range(103):
        body = {"model": f"demo-n0-d0-i{i}", "messages": HELLO}
        await http.post("/v1/chat/completions?beta=true", json=body, headers={"x-api-key": "secret-2", "x-mine": "1"})
    (last,) = (await http.get("/requests?last=1")).json()
    kept = await http.get("/requests")

    assert (last["path"], last["body"]) == ("/v1/chat/completions?beta=true", body)
    assert (last["headers"]["authorization"], last["headers"]["x-mine"]) == ("(hidden)", "1")
    assert [each["body"]["model"] for each in kept.json()] == [f"demo-n0-d0-i{i}" for i in range(3, 103)]
    assert "secret" not in kept.text


async def test_models_are_listed_for_both_vendors(chat, claude):
    assert "demo" in [model.id async for model in await chat.models.list()]
    assert "demo" in [model.id async for model in await claude.models.list()]


# Pace, and the process


@streaming_or_not
async def test_an_answer_takes_its_time_streamed_or_not(http, stream):
    begin = time.monotonic()
    body = {"model": "demo-n20-d10-f100", "messages": HELLO, "stream": stream}
    await http.post("/v1/chat/completions", json=body)

    # Nineteen paces lie between twenty tokens.
    assert time.monotonic() - begin >= 0.1 + 19 * 0.010


async def test_many_streams_at_once_are_all_whole(http):
    async def one():
        body = {"model": "demo-n30-d2", "messages": HELLO, "stream": True}
        text = (await http.post("/v1/chat/completions", json=body)).text
        return "".join(event["choices"][0]["delta"].get("content", "") for event in events_of(text))

    assert set(await asyncio.gather(*[one() for _ in range(60)])) == {answer(30)}


async def test_the_process_prints_its_address_and_stops_on_sigterm():
    code = "from demo_provider.server import run; run('127.0.0.1', 0)"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=subprocess.PIPE)
    line = (await process.stdout.readline()).decode()
    address = line.split()[-1]
    async with raw_request(address, "/v1/messages", model="demo-cut1-d0", stream=True) as (reader, _):
        data, was_reset = await read_to_the_end(reader)
    async with raw_request(address, "/v1/messages", model="demo-stall1", stream=True) as (reader, _):
        await reader.readline()
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 120) == 0

    assert line.startswith("demo provider listens on http://127.0.0.1:")
    # The same with uvloop's transports, which the process runs on.
    assert (tokens_in(data), was_reset) == ([0], True)
