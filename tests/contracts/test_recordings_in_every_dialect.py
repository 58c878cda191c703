"""What providers were recorded to say, to the client of every dialect: the ground truth of all decoders and encoders.

Each recording is read three ways: by the wire's decoder, by ``recorded_answers`` (which knows none of our code), and, encoded
into every dialect, by that dialect's own clients. All must agree.
"""

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest
from anthropic.types import RawMessageStreamEvent
from openai.types.chat import ChatCompletionChunk
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

from common.canonical.errors import ErrorKind, Failed
from common.canonical.events import Event
from common.canonical.reply import Choice, fold
from common.dialects import DIALECTS
from common.dialects.base import Dialect, OpenStream
from common.sse import SseCutter
from tests.support.clients import sdk_clients
from tests.support.clients.every_dialect import CLIENTS, INFO, RAISED, DialectClient
from tests.support.clients.sdk_clients import ClientAnswer
from tests.support.clients.seed_clients import SeedError
from tests.support.upstreams.recorded_answers import RecordedAnswer, RecordedChoice, read_recording
from tests.support.upstreams.recordings import SHARED, Recording, data_of, recordings
from workers.providers import WIRES

EVENT_BYTES_MAX = 1 << 22


def shared(*, is_error: bool) -> list[Any]:
    """The shared recordings as parameters; where there are none, one that is skipped says so."""
    if not SHARED.is_dir():
        reason = "the folder of recorded exchanges is not beside the repository"
        return [pytest.param(None, marks=pytest.mark.skip(reason=reason))]
    chosen = [each for each in recordings() if not each.id.startswith("own.") and (each.status >= 400) == is_error]
    return [pytest.param(each, id=each.id) for each in chosen]


answers = pytest.mark.parametrize("recording", shared(is_error=False))
errors = pytest.mark.parametrize("recording", shared(is_error=True))


# Decoding


def is_whole(recording: Recording) -> bool:
    """Whether the answer is one JSON body; Gemini streams one too, where it is not asked for server-sent events."""
    return recording.headers.get("content-type", "").startswith("application/json")


def decoded(recording: Recording, chunks: Iterator[bytes] | list[bytes]) -> list[Event]:
    decoder = WIRES[recording.wire].decoder()
    if is_whole(recording):
        return decoder.decode_whole(b"".join(chunks))
    cutter, events = SseCutter(EVENT_BYTES_MAX), list[Event]()
    for chunk in chunks:
        for block in cutter.feed(chunk):
            events += decoder.decode(block)
    if rest := cutter.end().strip():
        events += decoder.decode(rest + b"\n\n")
    return events + decoder.end()


def at_event_boundaries(body: bytes) -> list[bytes]:
    """The body cut where an event ends, line ends as they were."""
    blank = b"\r\n\r\n" if b"\r\n\r\n" in body else b"\n\n"
    *pieces, rest = body.split(blank)
    return [*(piece + blank for piece in pieces), rest]


def recorded_choice(choice: Choice) -> RecordedChoice:
    thinking = "".join(block.text for block in choice.reasoning)
    calls = [(call.name, loads(call.arguments)) for call in choice.tool_calls]
    return RecordedChoice(choice.text, choice.refusal, thinking, calls, choice.finish_reason)


def loads(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


@answers
def test_recorded_answers_decode_to_what_they_say(recording: Recording) -> None:
    recorded = read_recording(recording)
    events = decoded(recording, [recording.body])

    reply = fold(events)
    assert {index: recorded_choice(choice) for index, choice in reply.choices.items()} == recorded.choices
    assert isinstance(events[-1], Failed) == (recorded.error is not None)
    if reply.failed:
        assert recorded.error
        assert reply.failed.message == recorded.error
    usage = reply.usage and (reply.usage.input_tokens, reply.usage.output_tokens, reply.usage.cache_read_tokens)
    assert usage == recorded.usage


@answers
def test_recorded_answers_may_be_cut_anywhere(recording: Recording) -> None:
    whole = decoded(recording, [recording.body])

    assert decoded(recording, (recording.body[i : i + 1] for i in range(len(recording.body)))) == whole
    assert decoded(recording, at_event_boundaries(recording.body)) == whole


# Encoding


def as_seen(client: DialectClient, recorded: RecordedAnswer, ids: list[str], index: int = 0) -> ClientAnswer:
    """What a client of a dialect must see of an answer."""
    one = recorded.choice(index)
    assert one.finish
    seen = ClientAnswer(one.text, one.refusal, one.thinking, finish=client.finish[one.finish])
    seen.calls = [(id_, name, arguments) for id_, (name, arguments) in zip(ids, one.calls, strict=True)]
    if "refusal" not in client.shows and one.refusal:
        seen.text, seen.refusal = one.text + one.refusal, ""
        if client is CLIENTS["anthropic-messages"]:
            seen.finish = "refusal"  # The one word that it has for it.
    if "thinking" not in client.shows:
        seen.thinking = ""
    seen.input_tokens, seen.output_tokens = recorded.usage[:2] if recorded.usage else (0, 0)
    return seen


# What the SDKs take from JSON on trust, their own types are strict about.
TYPES: dict[str, TypeAdapter[Any]] = {
    "openai-chat": TypeAdapter(ChatCompletionChunk),
    "openai-responses": TypeAdapter(ResponseStreamEvent),
    "anthropic-messages": TypeAdapter(RawMessageStreamEvent),
}


# Which they do not know; of a failure OpenAI's own list of codes is not complete.
NOT_TYPED = ("ping", "error", "response.failed")


def check_types(name: str, streamed: bytes) -> None:
    for event in data_of(streamed) if name in TYPES else []:
        if "error" not in event and event.get("type") not in NOT_TYPED:
            TYPES[name].validate_python(event)


def without_usage(seen: ClientAnswer) -> ClientAnswer:
    seen.input_tokens = seen.output_tokens = None
    return seen


@answers
def test_recorded_answers_are_read_by_the_clients_of_every_dialect(recording: Recording) -> None:
    recorded, events = read_recording(recording), decoded(recording, [recording.body])
    if began_anew_in_a_call(recording):
        return
    for name, dialect in DIALECTS.items():
        client = CLIENTS[name]
        streamed = encoded(dialect, client, events)
        check_types(name, streamed)
        if recorded.error is not None:
            with pytest.raises(RAISED) as caught:
                client.read_stream(streamed)
            assert recorded.error in str(caught.value)
            continue
        wanted = as_seen(client, recorded, [call.id for call in fold(events).choices[0].tool_calls])
        ids = [id_ for id_, _, _ in wanted.calls]
        assert all(ids) and len(set(ids)) == len(ids)
        seen = client.read_stream(streamed)
        whole = client.read_whole(dialect.encode_reply(fold(events), dialect.parse(client.body), INFO))
        if recorded.usage is None:
            # A stream may leave out what nobody told; a whole answer has zeros for it, or leaves it out too.
            wanted, seen, whole = without_usage(wanted), without_usage(seen), without_usage(whole)
        assert (name, seen) == (name, wanted)
        assert (name, whole) == (name, wanted)
        for index in range(1, len(recorded.choices) if name == "openai-chat" else 0):  # The one that has more than one.
            assert sdk_clients.openai_stream(streamed, index) == as_seen(client, recorded, [], index)


def began_anew_in_a_call(recording: Recording) -> bool:
    """A proxy that gave an answer up within a tool call and began it anew has left half a call, which no client can read."""
    return recording.body.count(b'{"type":"message_start"') > 1 and b"tool_use" in recording.body


def encoded(dialect: Dialect, client: DialectClient, events: list[Event]) -> bytes:
    """The stream as a client gets it: a failure is said by the log's end, after what came before it."""
    encoder = dialect.encoder(dialect.parse(client.body), INFO)
    pieces = [encoder.encode(event) for event in events if not isinstance(event, Failed)]
    if isinstance(events[-1], Failed):
        pieces.append(
            dialect.error_event(events[-1], OpenStream("gen_abc", next((each for each in reversed(pieces) if each), b"")))
        )
    return b"".join(pieces)


# Errors before the stream

KIND_OF_STATUS = {
    400: ErrorKind.UPSTREAM_REJECTED,
    401: ErrorKind.UPSTREAM_CREDENTIALS,
    404: ErrorKind.UPSTREAM_REJECTED,
    429: ErrorKind.UPSTREAM_RATE_LIMITED,
}
RAISED_AT: dict[int, tuple[type[Exception], ...]] = {
    400: (openai.BadRequestError, anthropic.BadRequestError),
    404: (openai.NotFoundError, anthropic.NotFoundError),
    429: (openai.RateLimitError, anthropic.RateLimitError),
    502: (openai.InternalServerError, anthropic.InternalServerError),
}


@errors
def test_recorded_errors_are_raised_by_the_clients_of_every_dialect(recording: Recording) -> None:
    recorded = read_recording(recording)
    failed = WIRES[recording.wire].read_error(recording.status, recording.headers, recording.body)

    is_about_our_key = recording.status == 401 or b"API_KEY_INVALID" in recording.body
    kind = ErrorKind.UPSTREAM_CREDENTIALS if is_about_our_key else KIND_OF_STATUS[recording.status]
    assert failed.kind in (REFUSALS if kind is ErrorKind.UPSTREAM_REJECTED else (kind,))
    assert failed.http_status == (502 if is_about_our_key else recording.status)
    assert recorded.error
    # Nothing that a provider says of our key is shown.
    assert (recorded.error in failed.message) is not is_about_our_key
    for name, dialect in DIALECTS.items():
        status = dialect.status(failed)
        with pytest.raises((*RAISED_AT[status], SeedError)) as caught:
            CLIENTS[name].read_error(dialect.error_body(failed, "req_1"), status)
        assert failed.message in str(caught.value)


def test_every_api_is_among_the_recordings() -> None:
    if not SHARED.is_dir():
        pytest.skip("the folder of recorded exchanges is not beside the repository")
    wires = {recording.wire for recording in recordings() if not recording.id.startswith("own.")}

    assert wires == WIRES.keys()
    assert DIALECTS.keys() == CLIENTS.keys()


REFUSALS = (ErrorKind.UPSTREAM_REJECTED, ErrorKind.CONTEXT_LENGTH_EXCEEDED, ErrorKind.UPSTREAM_MODEL_NOT_FOUND)
