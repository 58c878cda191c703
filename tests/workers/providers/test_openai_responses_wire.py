from dataclasses import replace

import orjson
import pytest

from common.canonical.errors import ErrorKind, Failed
from common.canonical.events import Completed, Event, Finished, FinishReason, ReasoningDelta, Started, TextDelta, Usage
from common.canonical.generation import GenerationRequest, Message, Role, TextPart
from common.canonical.reply import ReasoningBlock, RefusalBlock, TextBlock, ToolCall, fold
from common.dialects.base import ReplyInfo
from common.vendors.models import MODELS
from tests.support.upstreams.recordings import OWN, Recording, blocks_of, data_of, parameters
from tests.support.upstreams.strict import refusal
from workers.providers.base import Deployment
from workers.providers.openai_responses.wire import OPENAI_RESPONSES as WIRE

FOLDER = OWN / "openai_responses"
DEPLOYMENT = Deployment("openai", "https://api.example/v1", "the-key", "the-model")
USAGE = Usage(14, 30, cache_read_tokens=4, reasoning_tokens=20)


def blocks(name: str) -> list[bytes]:
    return blocks_of((FOLDER / f"{name}.sse").read_bytes())


def decode(blocks_: list[bytes]) -> list[Event]:
    decoder = WIRE.decoder()
    return [event for block in blocks_ for event in decoder.decode(block)] + decoder.end()


def block(fields: dict[str, object]) -> bytes:
    return b"data: " + orjson.dumps(fields) + b"\n\n"


# Streams


def test_text_is_read_past_padding_and_keepalives():
    events = decode(blocks("text_padded_and_kept_alive"))

    assert events[0] == Started("resp_up", "m-1")
    assert [event.text for event in events if isinstance(event, TextDelta)] == [
        *["Grü", "ße, ", '"Welt"', "\n🦆", " and", " so", " on"],
    ]
    assert events[-2:] == [Finished(FinishReason.STOP), Completed(USAGE)]


def test_parts_of_a_summary_are_paragraphs_and_the_whole_items_signature_counts():
    choice = fold(decode(blocks("thinking_in_two_parts_then_call"))).choices[0]

    assert choice.blocks == [
        ReasoningBlock("**Plan** ask\n\n**Then** tell", signature="openai-responses:gAAAAwhole"),
        ToolCall("call_a", "weather", '{"city":"Zürich"}'),
    ]
    assert choice.finish_reason is FinishReason.TOOL_CALLS


def test_pieces_of_parallel_calls_find_their_call():
    choice = fold(decode(blocks("parallel_calls_interleaved"))).choices[0]

    assert choice.tool_calls == [
        ToolCall("call_a", "first", '{"n":1}'),
        ToolCall("call_b", "second", '{"n":2}'),
        ToolCall("call_c", "third", "{}"),
    ]


def called(arguments: str, *, is_done: bool, ends: str = "completed") -> list[Event]:
    item = {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "remove", "arguments": ""}
    events: list[dict[str, object]] = [
        {"type": "response.output_item.added", "output_index": 0, "item": item},
        {"type": "response.function_call_arguments.delta", "output_index": 0, "delta": arguments},
    ]
    if is_done:
        events.append({"type": "response.output_item.done", "output_index": 0, "item": item | {"arguments": arguments}})
    events.append({"type": f"response.{ends}", "response": {"status": ends, "output": []}})
    return decode([block(event) for event in events])


def test_a_call_that_breaks_off_in_its_arguments_is_no_whole_answer():
    (*_, end) = called('{"path": "/tmp', is_done=False)

    assert isinstance(end, Failed)
    assert end.code == "upstream_cut"


@pytest.mark.parametrize(
    ("arguments", "is_done", "ends"),
    [('{"path": "/tmp"}', False, "completed"), ("as the model wrote it", True, "completed"), ('{"pa', False, "incomplete")],
    ids=["whole, of a vendor that ends no items", "done", "out of tokens, which is said"],
)
def test_a_call_that_is_whole_or_said_to_be_or_not_passes(arguments: str, is_done: bool, ends: str):
    assert isinstance(called(arguments, is_done=is_done, ends=ends)[-1], Completed)


def test_ids_that_change_with_every_event_do_no_harm():
    events = decode(blocks("ids_that_change_unnamed_with_done"))

    assert fold(events).choices[0].text == "one two"
    assert sum(isinstance(event, Started) for event in events) == 1


def test_an_error_event_is_the_end():
    events = decode(blocks("error_before_output"))

    failed = fold(events).failed
    assert failed
    assert (failed.kind, failed.http_status, failed.code) == (ErrorKind.UPSTREAM_QUOTA_SPENT, 429, "insufficient_quota")
    assert failed is events[-1]


def test_a_failed_response_is_a_failure_after_what_was_said():
    reply = fold(decode(blocks("failed_after_output")))

    assert reply.choices[0].text == "half"
    assert reply.failed
    assert (reply.failed.kind, reply.failed.message) == (ErrorKind.UPSTREAM_UNAVAILABLE, "Something broke.")


@pytest.mark.parametrize("response", [None, "", {}, {"status": "completed"}])
def test_a_failed_response_is_a_failure_whatever_it_holds(response: object):
    failed = fold(decode([block({"type": "response.failed", "response": response})])).failed

    assert failed
    assert failed.code == "upstream_cut"


def test_an_incomplete_response_ran_out_of_tokens():
    said = blocks("thinking_in_two_parts_then_call")
    until = next(n for n, each in enumerate(said) if b"function_call_arguments.delta" in each) + 1
    response = {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}, "usage": {"input_tokens": 14}}

    reply = fold(decode([*said[:until], block({"type": "response.incomplete", "response": response})]))

    assert reply.choices[0].finish_reason is FinishReason.LENGTH
    assert reply.choices[0].tool_calls == [ToolCall("call_a", "weather", '{"city"')]
    assert reply.usage == Usage(14)


def test_a_filtered_response_says_so():
    end = {"status": "incomplete", "incomplete_details": {"reason": "content_filter"}, "output": []}

    [finished, _] = WIRE.decoder().decode(block({"type": "response.incomplete", "response": end}))

    assert finished == Finished(FinishReason.CONTENT_FILTER)


def test_a_refusal_is_no_text():
    choice = fold(decode(blocks("refusal"))).choices[0]

    assert choice.blocks == [RefusalBlock("I can't help.")]
    assert choice.finish_reason is FinishReason.STOP  # As chat completions say it.


def test_an_answer_that_comes_whole_in_the_last_event_is_read():
    assert fold(decode(blocks("whole_answer_in_the_last_event"))).choices[0].blocks == [TextBlock("All at once.")]


def test_tools_of_the_vendor_are_passed_over_and_late_ends_say_nothing_twice():
    choice = fold(decode(blocks("server_tool_and_thoughts_that_end_late"))).choices[0]

    assert choice.blocks == [ReasoningBlock("hm"), TextBlock("It is so.")]


def test_an_old_error_event_without_an_error_object_is_read():
    event = {"type": "error", "code": "rate_limit_exceeded", "message": "Slow down.", "param": None, "sequence_number": 3}

    [failed] = WIRE.decoder().decode(block(event))

    assert (failed.kind, failed.message) == (ErrorKind.UPSTREAM_RATE_LIMITED, "Slow down.")


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ({}, ErrorKind.UPSTREAM_PROTOCOL),
        ({"output": [], "status": "queued"}, ErrorKind.UPSTREAM_UNAVAILABLE),
        ({"output": [], "status": "cancelled"}, ErrorKind.UPSTREAM_UNAVAILABLE),
        ({"output": [], "status": "failed", "error": {"code": "server_error", "message": "x"}}, ErrorKind.UPSTREAM_UNAVAILABLE),
        ({"error": {"code": "rate_limit_exceeded", "message": "x"}}, ErrorKind.UPSTREAM_RATE_LIMITED),
    ],
)
def test_a_whole_body_that_is_no_answer_fails(body: dict[str, object], kind: ErrorKind):
    failed = fold(WIRE.decoder().decode_whole(orjson.dumps(body))).failed

    assert failed
    assert failed.kind is kind


@pytest.mark.parametrize("recording", parameters(wire="openai-responses"))
def test_recorded_streams_say_what_their_last_event_repeats(recording: Recording):
    events = decode(blocks_of(recording.body))
    last = next((e for e in data_of(recording.body) if e["type"] in ("response.completed", "response.incomplete")), None)
    reply = fold(events)
    if last is None:
        assert reply.failed
        return
    response = last["response"]
    choice = reply.choices[0]
    messages = [item for item in response["output"] if item["type"] == "message"]
    texts = [part.get("text", "") for item in messages for part in item["content"]]
    calls = [(i["call_id"], i["name"], i["arguments"]) for i in response["output"] if i["type"] == "function_call"]

    if response["status"] == "completed":
        assert choice.text == "".join(texts)
        assert [(call.id, call.name, call.arguments or "{}") for call in choice.tool_calls] == [
            (id_, name, arguments or "{}") for id_, name, arguments in calls
        ]
    assert reply.usage
    assert reply.usage.input_tokens == response["usage"]["input_tokens"]
    assert reply.usage.output_tokens == response["usage"]["output_tokens"]


# Blocks that need no decoding


@pytest.mark.parametrize("recording", parameters(wire="openai-responses"))
def test_nearly_all_text_of_recorded_streams_is_plain(recording: Recording):
    decoder, last, missed = WIRE.decoder(), None, []
    for each in blocks_of(recording.body):
        if decoder.is_plain(each):
            continue
        events = decoder.decode(each)
        if [type(event) for event in events] in ([TextDelta], [ReasoningDelta]) and b'"delta"' in each:
            # The first one of its part teaches; a quote in a text is left to the decoder.
            (fields,) = data_of(each)
            part = (fields["item_id"], fields.get("summary_index"))
            if part == last and b'\\"' not in each:
                missed.append(each)
            last = part

    assert missed == []


@pytest.mark.parametrize(
    "odd",
    [
        '"delta":"b","item_id":"i","logprobs":[],"obfuscation":"x","output_index":1,"sequence_number":9}',
        '"delta":"b","item_id":"i","logprobs":[],"obfuscation":"x","output_index":0,"sequence_number":"9"}',
        '"delta":"b","item_id":"i","logprobs":[],"obfuscation":"x","output_index":0,"sequence_number":9,"error":1}',
        '"delta":"b","item_id":"i","logprobs":[{"token":"b"}],"obfuscation":"x","output_index":0,"sequence_number":9}',
        '"delta":"","item_id":"i","logprobs":[],"obfuscation":"x","output_index":0,"sequence_number":9}',
        '"delta":"b\\"","item_id":"i","logprobs":[],"obfuscation":"x","output_index":0,"sequence_number":9}',
        '"delta":"b',
        '"delta":"b","item_id":"i","logprobs":[],"obfuscation":"x","output_index":0,"sequence_number":',
    ],
)
def test_a_block_with_anything_beside_its_text_is_not_plain(odd: str):
    start = 'data: {"type":"response.output_text.delta",'
    usual = '"delta":"%s","item_id":"i","logprobs":[],"obfuscation":"%s","output_index":0,"sequence_number":%d}\n\n'
    decoder = WIRE.decoder()
    decoder.decode((start + usual % ("a", "xyz", 9)).encode())

    assert decoder.is_plain((start + usual % ("bc", "pq", 10)).encode())
    assert not decoder.is_plain((start + odd + "\n\n").encode())


def test_a_number_that_comes_first_is_known_to_change():
    decoder = WIRE.decoder()
    delta = b'data: {"sequence_number":%d,"type":"response.output_text.delta","delta":"%s","output_index":0}\n\n'
    decoder.decode(delta % (9, b"a"))

    assert decoder.is_plain(delta % (10, b"bc"))


# What a client of the same family sees


def info(**body: object) -> ReplyInfo:
    return ReplyInfo("gen_1f", "m", 0, body=body)


def test_the_response_has_our_id_and_all_else_as_it_came():
    came = (FOLDER / "text_padded_and_kept_alive.sse").read_bytes()

    given = b"".join(WIRE.for_client(each, info()) for each in blocks_of(came))

    assert given == came.replace(b'"resp_up"', b'"resp_1f"')


def test_ids_that_change_all_become_ours():
    given = b"".join(WIRE.for_client(each, info()) for each in blocks("ids_that_change_unnamed_with_done"))

    ids = [event["response"]["id"] for event in data_of(given) if "response" in event]
    assert ids == ["resp_1f"] * 3


def test_a_whole_body_has_our_id_and_what_was_kept_from_the_upstream():
    body = b'{ "object": "response", "id": "up-1", "background": false, "previous_response_id": null, "output": [] }'

    given = WIRE.for_client(body, info(background=True, previous_response_id="resp_0a"))

    assert given == (
        b'{ "object": "response", "id": "resp_1f", "background": true, "previous_response_id": "resp_0a", "output": [] }'
    )


def test_a_client_that_did_not_ask_for_the_background_does_not_see_it():
    body = b'{"object":"response","id":"up-1","background":true,"output":[]}'

    assert WIRE.for_client(body, info()) == b'{"object":"response","id":"resp_1f","background":false,"output":[]}'
    assert WIRE.for_client(body, info(background=True)) == body.replace(b"up-1", b"resp_1f")


def test_a_text_that_quotes_an_id_stays_as_it_is():
    came = b'data: {"type":"response.completed","response":{"id":"up-1","output":[{"text":"say \\"up-1\\" and up-1"}]}}\n\n'

    assert WIRE.for_client(came, info()) == came.replace(b'"id":"up-1"', b'"id":"resp_1f"')


def test_what_sluice_does_itself_is_kept_from_the_upstream():
    body = {"model": "m", "input": "hi", "background": True, "previous_response_id": "resp_1", "store": True, "new": [1]}

    passed = WIRE.pass_request(body, {"openai-beta": "b=1", "cookie": "c"}, DEPLOYMENT)

    assert orjson.loads(passed.body) == {"model": "the-model", "input": "hi", "store": True, "new": [1]}
    assert passed.url == "https://api.example/v1/responses"
    assert passed.headers["openai-beta"] == "b=1"
    assert "cookie" not in passed.headers


def test_what_codex_sends_for_its_own_service_only_is_kept_from_the_vendor():
    exec_tool = {"type": "custom", "name": "exec", "description": "Run code."}
    space = {"type": "namespace", "name": "functions", "description": "", "tools": [exec_tool]}
    clock = {**space, "name": "clock", "description": "Tells the time."}
    said = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]}
    body = {
        "model": "m",
        "tools": [space],
        "input": [
            {"type": "additional_tools", "role": "developer", "tools": [space, clock, exec_tool]},
            {**said, "internal_chat_message_metadata_passthrough": {"content_item_kinds": []}},
        ],
        "client_metadata": {"session_id": "s"},
    }

    passed = orjson.loads(WIRE.pass_request(body, {}, DEPLOYMENT).body)

    named = {**space, "description": "functions"}
    assert passed["tools"] == [named]
    assert passed["input"] == [{**body["input"][0], "tools": [named, clock, exec_tool]}, said]
    assert "client_metadata" not in passed
    assert refusal("openai", "/v1/responses", {}, {**body, "model": "gpt-6.1-sol"}) is not None
    assert refusal("openai", "/v1/responses", {}, {**passed, "model": "gpt-6.1-sol"}) is None


def test_media_in_the_history_of_a_model_that_reads_none_are_texts():
    image = {"type": "input_image", "image_url": "data:image/png;base64,QUJD"}
    pdf = {"type": "input_file", "filename": "a.pdf", "file_data": "data:application/pdf;base64,QUJD"}
    question = {"role": "user", "content": [image, {"type": "input_text", "text": "hi"}]}
    items = [
        question,
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": [image, pdf]},
    ]
    facts = MODELS.facts("deepseek", "deepseek-v4-pro")
    deployment = replace(DEPLOYMENT, provider="deepseek", facts=facts)

    passed = WIRE.pass_request({"model": "m", "input": items}, {}, deployment)
    asked = WIRE.pass_request({"model": "m", "input": [question]}, {}, deployment)
    read = WIRE.pass_request({"model": "m", "input": items}, {}, DEPLOYMENT)

    sent = orjson.loads(passed.body)["input"]
    assert [part["type"] for part in sent[0]["content"] + sent[2]["output"]] == ["input_text"] * 4
    assert "a.pdf" in sent[2]["output"][1]["text"]
    assert passed.dropped == ["input.0.content.0", "input.2.output.0", "input.2.output.1"]
    assert orjson.loads(asked.body)["input"] == [question]  # The vendor itself says that it reads none.
    assert orjson.loads(read.body)["input"] == items


def test_in_the_background_an_answer_is_stored():
    deployment = replace(DEPLOYMENT, in_background=True)

    passed = WIRE.pass_request({"model": "m", "input": "hi"}, {}, deployment)
    built = WIRE.build_request(GenerationRequest("m", [Message(Role.USER, [TextPart("hi")])]), deployment)

    for request in (passed, built):
        sent = orjson.loads(request.body)
        assert (sent["background"], sent["store"]) == (True, True)


def test_ids_that_other_vendors_made_are_short_enough_in_a_body_that_passes() -> None:
    ids = ["c" * 64, "c" * 65]
    items = [{"type": "function_call", "call_id": id_, "name": "f", "arguments": "{}"} for id_ in ids]
    items += [{"type": "function_call_output", "call_id": id_, "output": "r"} for id_ in ids]

    passed = orjson.loads(WIRE.pass_request({"model": "m", "input": items}, {}, DEPLOYMENT).body)["input"]

    sent = [item["call_id"] for item in passed]
    assert sent[:2] == sent[2:]
    assert sent[0] == ids[0]
    assert len(sent[1]) <= 64
