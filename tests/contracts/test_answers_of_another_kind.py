"""What does a client get where its provider answers a stream with a whole answer, or the other way round, or with an error in a
200? What it would get if the provider had done as it was asked: every wire, every dialect, streaming or not.
"""

import json
from typing import Any

import orjson
import pytest

from common.canonical.errors import ErrorKind, Failed
from common.canonical.events import Completed
from common.sse import SseCutter, read_block
from common.vendors.table import VENDORS
from tests.support.compatibility.cells import CLIENTS, EVENT_BYTES_MAX, body_of, deployment_of, prepare_upstream
from tests.support.upstreams.wire_answers import STREAMS, WHOLES, AnswerSpec
from workers.attempt.call import final_blocks
from workers.transcode.pump import Pump

VENDOR_OF_WIRE = {
    "openai-chat": "mistral",
    "anthropic-messages": "anthropic",
    "openai-responses": "openai",
    "cohere": "cohere",
    "gemini": "google-ai-studio",
}
SAYS = {
    "text": AnswerSpec(text="answer"),
    "thinking": AnswerSpec(text="answer", thinking="thought"),
    "tools": AnswerSpec(calls=[("call_a", "weather", {"city": "Oslo"}), ("call_b", "clock", {"zone": "UTC"})]),
}
cells = pytest.mark.parametrize(
    ("dialect", "wire"), [(dialect, wire) for dialect in CLIENTS for wire in VENDOR_OF_WIRE], ids=lambda value: value
)


def pump_for(dialect: str, wire: str, feature: str, *, stream: bool) -> Pump:
    deployment = deployment_of(VENDORS[VENDOR_OF_WIRE[wire]], dialect)
    _, pump = prepare_upstream(body_of(dialect, feature, stream=stream), dialect, deployment)
    return pump


def wire_of(dialect: str, wire: str) -> str:
    """The wire that is spoken then: a vendor may have one that is closer to the dialect."""
    return deployment_of(VENDORS[VENDOR_OF_WIRE[wire]], dialect).wire


def stream_in(pump: Pump, stream: bytes) -> bytes:
    cutter = SseCutter(EVENT_BYTES_MAX)
    said = pump.feed(cutter.feed(stream))
    return said + pump.feed(final_blocks(cutter.end())) + pump.end()


@cells
@pytest.mark.parametrize("feature", SAYS)
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_an_answer_of_the_other_kind_reaches_the_client_all_the_same(dialect, wire, feature, stream):
    says, spoken = SAYS[feature], wire_of(dialect, wire)
    pump = pump_for(dialect, wire, feature if feature != "tools" else "parallel tools", stream=stream)

    said = pump.feed_whole(WHOLES[spoken](says)) if pump.is_stream else stream_in(pump, STREAMS[spoken](says))

    assert isinstance(pump.terminal, Completed)
    assert pump.finish_reason is not None
    seen = (CLIENTS[dialect].read_stream if stream else CLIENTS[dialect].read_whole)(said)
    assert (seen.text, seen.calls) == (says.text, says.calls)
    assert (seen.input_tokens, seen.output_tokens) == (says.input_tokens, says.output_tokens)


ERRORS: dict[str, tuple[Any, ErrorKind, str | None]] = {
    "unknown": ({"error": {"message": "on fire", "code": "engine_fire"}}, ErrorKind.UPSTREAM_UNAVAILABLE, "engine_fire"),
    "401": ({"error": {"message": "no such key", "code": 401}}, ErrorKind.UPSTREAM_CREDENTIALS, None),
    "401 as text": ({"error": {"message": "no such key", "code": "401"}}, ErrorKind.UPSTREAM_CREDENTIALS, None),
    "401 as status": ({"error": {"message": "no such key", "status": 401}}, ErrorKind.UPSTREAM_CREDENTIALS, None),
    "403": ({"error": {"message": "not yours", "code": 403}}, ErrorKind.UPSTREAM_CREDENTIALS, None),
    "a key's word": ({"error": {"message": "x", "type": "authentication_error"}}, ErrorKind.UPSTREAM_CREDENTIALS, None),
    "429": ({"error": {"message": "slower", "code": 429}}, ErrorKind.UPSTREAM_RATE_LIMITED, "429"),
    "a limit's word": ({"error": {"message": "x", "type": "rate_limit_error"}}, ErrorKind.UPSTREAM_RATE_LIMITED, None),
    "400": ({"error": {"message": "bad", "code": 400}}, ErrorKind.UPSTREAM_REJECTED, "400"),
    "text": ({"error": "out of memory"}, ErrorKind.UPSTREAM_UNAVAILABLE, None),
}
SHAPES = {
    "compact": lambda error: json.dumps(error).encode(),
    "pretty": lambda error: json.dumps(error, indent=2).encode(),
    "with a byte order mark": lambda error: b"\xef\xbb\xbf" + json.dumps(error).encode(),
    "as a line of several": lambda error: json.dumps(error).encode() + b'\n{"done": true}\n',
}


@cells
@pytest.mark.parametrize(("error", "kind", "code"), ERRORS.values(), ids=ERRORS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_an_error_in_a_200_is_of_its_kind_and_keeps_its_words(dialect, wire, error, kind, code, shape):
    for stream in (True, False):
        pump = pump_for(dialect, wire, "text", stream=stream)

        assert pump.feed_whole(shape(error)) == b"" or dialect == wire_of(dialect, wire)

        failed = pump.terminal
        assert isinstance(failed, Failed)
        assert (failed.kind, failed.code) == (kind, code)
        if kind is not ErrorKind.UPSTREAM_CREDENTIALS:  # Of those no words are shown.
            assert failed.message == (error["error"] if isinstance(error["error"], str) else error["error"]["message"])


@cells
@pytest.mark.parametrize("ending", [b"", b"\n", b"\n\n"])
@pytest.mark.parametrize("shape", [SHAPES["compact"], SHAPES["pretty"]], ids=["compact", "pretty"])
def test_a_bare_error_behind_the_first_events_of_a_stream_is_an_error(dialect, wire, shape, ending):
    pump = pump_for(dialect, wire, "text", stream=True)
    first = STREAMS[wire_of(dialect, wire)](AnswerSpec(text="answer")).partition(b"\n\n")[0] + b"\n\n"

    stream_in(pump, first + shape({"error": {"message": "on fire", "code": "engine_fire"}}) + ending)

    assert isinstance(pump.terminal, Failed)
    assert (pump.terminal.message, pump.terminal.code) == ("on fire", "engine_fire")


NO_ANSWERS = {
    "a page": (b"\n<!DOCTYPE html><html><h1>Welcome</h1></html>", "HTML page", "check the provider's base URL"),
    "a framework's words": (b'{"detail": "Method Not Allowed"}', "Method Not Allowed", ""),
    "a gateway's words": (b'{"message": "no Route matched with those values"}', "no Route matched", ""),
    "Cloudflare's": (b'{"success": false, "errors": [{"code": 7000, "message": "No route for that URI"}]}', "No route", ""),
    "a msg": (b'{"code": 1001, "msg": "model is offline"}', "model is offline", ""),
    "nothing at all": (b"{}", "it holds no answer", ""),
    "a number": (b"7", "it holds no answer", ""),
    "words": (b"OK", "not JSON", ""),
}


@cells
@pytest.mark.parametrize(("body", "words", "more"), NO_ANSWERS.values(), ids=NO_ANSWERS)
def test_what_is_no_answer_is_a_failure_that_says_what_it_is(dialect, wire, body, words, more):
    for stream in (True, False):
        pump = pump_for(dialect, wire, "text", stream=stream)

        pump.feed_whole(body)

        assert isinstance(pump.terminal, Failed)
        assert words in pump.terminal.message and more in pump.terminal.message


def test_gemini_without_events_is_one_array_of_chunks():
    pump = pump_for("openai-chat", "gemini", "text", stream=True)
    blocks = SseCutter(EVENT_BYTES_MAX).feed(STREAMS["gemini"](SAYS["text"]))
    chunks = [json.loads(read_block(block)[1]) for block in blocks]

    said = pump.feed_whole(orjson.dumps(chunks))

    assert isinstance(pump.terminal, Completed)
    assert CLIENTS["openai-chat"].read_stream(said).text == "answer"
