"""How what Gemini sends is read. What it is sent: test_gemini_request.py; behaviour all wires share: contracts/."""

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.canonical.errors import ErrorKind, Failed
from common.canonical.events import (
    Completed,
    Event,
    Finished,
    FinishReason,
    ReasoningSigned,
    Started,
    TextDelta,
    ToolCallStarted,
    Usage,
)
from common.canonical.reply import Choice, ReasoningBlock, Reply, TextBlock, ToolCall, fold
from common.sse import SseCutter
from tests.support.upstreams.recordings import OWN, Recording, data_of, parameters
from workers.providers.gemini import arguments as gemini_arguments
from workers.providers.gemini.wire import GEMINI

FINISH = {
    "STOP": FinishReason.STOP,
    "MAX_TOKENS": FinishReason.LENGTH,
    "SAFETY": FinishReason.CONTENT_FILTER,
    "RECITATION": FinishReason.CONTENT_FILTER,
}


def decode(body: bytes) -> list[Event]:
    cutter, decoder = SseCutter(1 << 22), GEMINI.decoder()
    events = [event for block in cutter.feed(body) for event in decoder.decode(block)]
    if rest := cutter.end().strip():
        events += decoder.decode(rest + b"\n\n")
    return events + decoder.end()


def own_events(case: str) -> list[Event]:
    return decode((OWN / "gemini" / f"{case}.sse").read_bytes())


def own(case: str) -> Reply:
    return fold(own_events(case))


def stream(*chunks: dict[str, Any]) -> bytes:
    return b"".join(b"data: " + orjson.dumps(chunk) + b"\r\n\r\n" for chunk in chunks)


def said(*parts: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"candidates": [{"content": {"parts": list(parts), "role": "model"}, "index": 0, **more}]}


# Recordings


def check_against(raw: list[dict[str, Any]], reply: Reply) -> None:
    """Compare a reply with what its chunks say, read in the plainest way there is."""
    candidates = [candidate for chunk in raw for candidate in chunk.get("candidates", [])]
    parts = [part for candidate in candidates for part in candidate.get("content", {}).get("parts", [])]
    calls = [part["functionCall"] for part in parts if part.get("functionCall", {}).get("name")]
    choice = reply.choices[0]

    assert choice.text == "".join(part.get("text", "") for part in parts if not part.get("thought"))
    assert "".join(block.text for block in choice.reasoning) == "".join(part["text"] for part in parts if part.get("thought"))
    assert [call.name for call in choice.tool_calls] == [call["name"] for call in calls]
    if not any("willContinue" in call for call in calls):
        assert [json.loads(call.arguments) for call in choice.tool_calls] == [call["args"] for call in calls]
        assert all(call["id"] == ours.id for call, ours in zip(calls, choice.tool_calls, strict=True) if "id" in call)
    reasons = [candidate["finishReason"] for candidate in candidates if "finishReason" in candidate]
    assert choice.finish_reason is (FinishReason.TOOL_CALLS if calls else FINISH[reasons[-1]])
    usages = [chunk["usageMetadata"] for chunk in raw if "promptTokenCount" in chunk.get("usageMetadata", {})]
    assert bool(usages) == bool(reply.usage)
    if reply.usage:
        assert reply.usage.input_tokens + reply.usage.output_tokens == usages[-1]["totalTokenCount"]
        assert reply.usage.reasoning_tokens == usages[-1].get("thoughtsTokenCount", 0)


@pytest.mark.parametrize("recording", parameters(wire="gemini"))
def test_recorded_streams_say_what_their_raw_json_says(recording: Recording) -> None:
    reply = fold(decode(recording.body))
    if reply.failed:
        assert recording.body.count(b'"error"') == 1 or b"MALFORMED" in recording.body
    elif recording.id not in ("own.prompt_blocked", "own.two_candidates"):
        check_against(data_of(recording.body), reply)


@pytest.mark.parametrize("recording", parameters(wire="gemini", is_stream=False))
def test_recorded_answers_say_what_their_raw_json_says(recording: Recording) -> None:
    raw = json.loads(recording.body)

    check_against(raw if isinstance(raw, list) else [raw], fold(GEMINI.decoder().decode_whole(recording.body)))


def test_a_json_array_is_a_stream_of_its_own() -> None:
    chunks = [said({"text": "How"}), said({"text": " about"}, finishReason="STOP")]

    reply = fold(GEMINI.decoder().decode_whole(orjson.dumps(chunks)))

    assert (reply.choices[0].text, reply.failed) == ("How about", None)


# Output


def test_thoughts_are_signed_before_the_call_that_carries_their_signature() -> None:
    reply = own("thoughts_then_signed_calls")
    thinking, first, second = reply.choices[0].blocks

    assert thinking == ReasoningBlock("**Plan**\n\nAsk twice.", "gemini:U0lHTg==")
    assert isinstance(first, ToolCall)
    assert isinstance(second, ToolCall)
    assert (first.name, first.arguments) == ("weather", '{"city":"Zürich"}')
    assert (second.name, second.arguments) == ("clock", "{}")
    assert len({first.id, second.id}) == 2
    assert reply.choices[0].finish_reason is FinishReason.TOOL_CALLS
    assert reply.usage == Usage(20, 23, reasoning_tokens=9)


def test_a_call_may_be_signed_without_any_thought() -> None:
    call = {"functionCall": {"name": "f", "args": {}, "id": "abc"}, "thoughtSignature": "SIG"}

    events = decode(stream(said({"text": "Well."}), said(call, finishReason="STOP")))

    assert events[2:4] == [ReasoningSigned("gemini:SIG"), ToolCallStarted(0, "abc", "f")]


def test_a_signature_at_the_end_of_a_text_makes_no_block() -> None:
    reply = own("text_with_signature_at_the_end")

    assert reply.choices[0].blocks == [TextBlock("Grüße 🦆\u2028!")]
    assert reply.usage == Usage(85, 34, cache_read_tokens=60, reasoning_tokens=30)


def test_made_up_ids_are_the_same_for_the_same_answer_only() -> None:
    def ids(response: str) -> list[str]:
        calls = [{"functionCall": {"name": "f", "args": {}}}] * 2
        body = stream({**said(*calls, finishReason="STOP"), "responseId": response})
        return [call.id for call in fold(decode(body)).choices[0].tool_calls]

    assert ids("a") == ids("a")
    assert len({*ids("a"), *ids("b")}) == 4


def test_arguments_in_pieces_are_put_together() -> None:
    book, wait = own("arguments_in_pieces").choices[0].tool_calls

    assert json.loads(book.arguments) == {
        "where": {"city": "Zürich"},
        "nights": 2,
        "guests": [{"name": "Ada"}, {"name": "Bob"}],
        "late": True,
        "note": None,
        "a b": "c",
    }
    assert (wait.name, wait.arguments) == ("wait", "{}")


def test_arguments_that_break_off_at_the_limit_are_as_far_as_they_came() -> None:
    piece = {"jsonPath": "$.city", "stringValue": "Zü", "willContinue": True}
    body = stream(
        said({"functionCall": {"name": "f", "willContinue": True}}),
        said({"functionCall": {"partialArgs": [piece], "willContinue": True}}, finishReason="MAX_TOKENS"),
    )

    reply = fold(decode(body))

    assert (reply.choices[0].tool_calls[0].arguments, reply.choices[0].finish_reason) == ('{"city":"Zü"}', FinishReason.LENGTH)


@pytest.mark.parametrize("path", ["$.a[5]", "$[0]", "$.b.c", "", "nonsense", "$..", "$.list.x", "$.list[0].y"])
def test_a_piece_that_leads_nowhere_says_nothing(path: str) -> None:
    so_far = gemini_arguments.ArgumentsSoFar({"b": "text", "list": ["x"], "a": []})

    so_far.add({"jsonPath": path, "stringValue": "!"})

    assert json.loads(so_far.text()) == {"b": "text", "list": ["x"], "a": []}


def test_arguments_without_end_or_bottom_are_nonsense(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gemini_arguments, "SIZE_MAX", 1000)
    piece = {"partialArgs": [{"jsonPath": "$.x", "stringValue": "y" * 99, "willContinue": True}], "willContinue": True}
    endless = [said({"functionCall": {"name": "f", "willContinue": True}}), *[said({"functionCall": piece})] * 20]
    deep = {"name": "f", "args": {"a": orjson.Fragment(b"[" * 300 + b"]" * 300)}}

    for body in (stream(*endless), stream(said({"functionCall": deep}, finishReason="STOP"))):
        failed = decode(body)[-1]
        assert isinstance(failed, Failed)
        assert failed.kind is ErrorKind.UPSTREAM_PROTOCOL


def test_candidates_are_choices_of_their_own() -> None:
    events = own_events("two_candidates")

    assert fold(events).choices == {
        0: Choice([TextBlock("Hey")], FinishReason.STOP),
        1: Choice([TextBlock("Salve")], FinishReason.LENGTH),
    }
    assert [type(event) for event in events[-3:]] == [Finished, Finished, Completed]


def test_what_ran_at_google_is_passed_over() -> None:
    assert own("code_that_ran_at_google").choices[0].blocks == [TextBlock("Let me compute. It is 42.")]


# Ends


def test_a_blocked_prompt_is_filtered() -> None:
    reply = own("prompt_blocked")

    assert reply.choices == {0: Choice(finish_reason=FinishReason.CONTENT_FILTER)}
    assert reply.usage == Usage(11, 0)


def test_a_filtered_answer_keeps_what_was_said() -> None:
    assert own("filtered_in_the_middle").choices == {0: Choice([TextBlock("Once upon")], FinishReason.CONTENT_FILTER)}


def test_an_answer_may_be_nothing_but_thought() -> None:
    reply = own("nothing_but_thought_until_the_limit")

    assert reply.choices == {0: Choice([ReasoningBlock("Hm.")], FinishReason.LENGTH)}
    assert reply.usage == Usage(9, 99, reasoning_tokens=99)


@pytest.mark.parametrize(
    ("case", "kind", "status", "words"),
    [
        ("bare_error_after_text", ErrorKind.UPSTREAM_UNAVAILABLE, 503, "The model is overloaded"),
        ("error_as_event", ErrorKind.UPSTREAM_RATE_LIMITED, 429, "Resource has been exhausted"),
        ("malformed_call", ErrorKind.UPSTREAM_PROTOCOL, 502, "MALFORMED_FUNCTION_CALL"),
    ],
)
def test_failures_after_output_are_failures(case: str, kind: ErrorKind, status: int, words: str) -> None:
    events = own_events(case)

    assert any(isinstance(event, TextDelta) for event in events)
    failed = events[-1]
    assert isinstance(failed, Failed)
    assert (failed.kind, failed.http_status) == (kind, status)
    assert words in failed.message


def test_cancelled_by_google_is_not_the_clients_leaving() -> None:
    [failed] = decode(b'{"error": {"code": 499, "message": "The operation was cancelled.", "status": "CANCELLED"}}')

    assert isinstance(failed, Failed)
    assert (failed.kind, failed.http_status, failed.code) == (ErrorKind.UPSTREAM_UNAVAILABLE, 502, "CANCELLED")


@pytest.mark.parametrize("chunks", [[], [said({"text": "half"})], [{"usageMetadata": {"promptTokenCount": 3}}]])
def test_a_stream_without_a_reason_to_finish_is_cut(chunks: list[dict[str, Any]]) -> None:
    failed = decode(stream(*chunks))[-1]

    assert isinstance(failed, Failed)
    assert (failed.kind, failed.code) == (ErrorKind.UPSTREAM_UNAVAILABLE, "upstream_cut")


def test_usage_so_far_is_known_where_an_answer_breaks_off() -> None:
    decoder = GEMINI.decoder()
    usage = {"promptTokenCount": 4, "candidatesTokenCount": 2, "totalTokenCount": 6}
    for chunk in (
        said({"text": "a"}),
        {**said({"text": "b"}), "usageMetadata": usage},
        {"usageMetadata": {"trafficType": "X"}},
    ):
        decoder.decode(b"data: " + orjson.dumps(chunk) + b"\n\n")

    assert decoder.usage == Usage(4, 2)


# Errors before the answer


def error(code: int, status: str, *details: dict[str, Any]) -> bytes:
    return orjson.dumps({"error": {"code": code, "message": "why", "status": status, "details": list(details)}})


@pytest.mark.parametrize(
    ("delay", "wait_s"), [("48s", 48.0), ("34.4s", 34.4), ("0s", 0.0), ("soon", None), (7, None), ("-1s", 0.0), ("s", None)]
)
def test_the_delay_among_the_details_is_a_retry_after(delay: object, wait_s: float | None) -> None:
    details = [{"@type": "type.googleapis.com/google.rpc.QuotaFailure"}, {"retryDelay": delay}]

    failed = GEMINI.read_error(429, {}, error(429, "RESOURCE_EXHAUSTED", *details))

    assert (failed.kind, failed.retry_after_s) == (ErrorKind.UPSTREAM_RATE_LIMITED, wait_s)
    assert failed.code == "RESOURCE_EXHAUSTED"
    assert GEMINI.read_error(429, {"retry-after": "3"}, error(429, "X", *details)).retry_after_s == 3


def test_a_wrong_key_is_a_bad_request_at_google() -> None:
    details = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}

    failed = GEMINI.read_error(400, {"content-type": "text/event-stream"}, error(400, "INVALID_ARGUMENT", details))

    assert failed.kind is ErrorKind.UPSTREAM_CREDENTIALS


def test_an_error_may_stand_in_a_list() -> None:
    failed = GEMINI.read_error(404, {}, b"[" + error(404, "NOT_FOUND") + b"]")

    assert (failed.kind, failed.status, failed.message) == (ErrorKind.UPSTREAM_REJECTED, 404, "why")


# Anything

SCALAR = st.none() | st.booleans() | st.integers(-3, 2**40) | st.text(max_size=4) | st.sampled_from(["STOP", "OTHER", "$.a[0]"])


def some(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """An object that has some of the fields, or something else."""
    return st.fixed_dictionaries({}, optional={name: value | SCALAR for name, value in fields.items()}) | SCALAR


PATHS = st.lists(st.sampled_from([".a", ".b", "[0]", "[1]", "['a']"]), max_size=4).map(lambda steps: "$" + "".join(steps))
PIECE = some(jsonPath=PATHS, stringValue=st.text(max_size=3), numberValue=st.integers(), nullValue=st.none())
CALL = some(name=st.just("f"), args=st.dictionaries(st.text(max_size=2), SCALAR), partialArgs=st.lists(PIECE, max_size=3))
PART = some(text=st.text(max_size=3), functionCall=CALL, thought=st.booleans(), thoughtSignature=st.just("S"))
CONTENT = some(parts=st.lists(PART, max_size=3), role=st.just("model"))
CANDIDATE = some(content=CONTENT, index=st.integers(-1, 200), finishReason=st.sampled_from(["STOP", "OTHER", "NEW"]))
CHUNK = some(
    candidates=st.lists(CANDIDATE, max_size=3),
    usageMetadata=some(promptTokenCount=st.integers(), thoughtsTokenCount=st.floats()),
    promptFeedback=some(blockReason=st.just("SAFETY")),
    error=some(code=st.integers(0, 700), message=st.text(max_size=3), details=st.lists(SCALAR, max_size=2)),
)


@given(chunks=st.lists(CHUNK, max_size=5))
def test_any_chunks_end_in_a_typed_end(chunks: list[Any]) -> None:
    bodies = [orjson.dumps(chunk, default=str) for chunk in chunks]
    streamed = decode(b"".join(b"data: " + body + b"\n\n" for body in bodies))
    whole = GEMINI.decoder().decode_whole(b"[" + b",".join(bodies) + b"]")

    for events in (streamed, whole):
        assert isinstance(events[-1], Completed | Failed)
        assert sum(isinstance(event, Started | Completed | Failed) for event in events) <= 2
        reply = fold(events)
        if reply.failed is None:
            for choice in reply.choices.values():
                assert choice.finish_reason
                assert all(isinstance(orjson.loads(call.arguments), dict) for call in choice.tool_calls)


@pytest.mark.parametrize(("reason", "finish"), [("MAX_TOKENS", FinishReason.LENGTH), ("SAFETY", FinishReason.CONTENT_FILTER)])
def test_a_reason_without_content_reaches_the_client(reason: str, finish: FinishReason) -> None:
    body = b"data: " + orjson.dumps({"candidates": [{"content": {"role": "model"}, "finishReason": reason}]}) + b"\n\n"

    assert fold(decode(body)).choices[0].finish_reason is finish
