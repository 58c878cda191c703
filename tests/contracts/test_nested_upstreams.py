"""What is nested more deeply than it could be written again is nonsense, on every wire and in every dialect."""

from typing import Any

import orjson
import pytest

from common.canonical.errors import ErrorKind, Failed
from common.canonical.events import Completed
from common.canonical.generation import GenerationRequest
from common.dialects import DIALECTS
from tests.support.clients.every_dialect import CLIENTS, INFO
from workers.providers import WIRES
from workers.providers.shared.loose_json import NestedTooDeeply, arguments_of, is_nested_too_deeply, read_json
from workers.transcode.pumps import Folding, Translating

DEPTHS = [250, 1_020, 5_000]


def nested(depth: int) -> str:
    return '{"a":' * depth + "1" + "}" * depth


# A stream of each wire whose answer is one call; the arguments stand in it as text and, where the wire has that, as an object.
AS_TEXT = {
    "openai-chat": b'data: {"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"c","function":{"name":"f",'
    b'"arguments":%s}}]},"finish_reason":"tool_calls"}]}\n\ndata: [DONE]\n\n',
    "openai-responses": b'data: {"type":"response.output_item.done","output_index":0,"item":{"type":"function_call",'
    b'"call_id":"c","name":"f","arguments":%s}}\n\ndata: {"type":"response.completed","response":{"status":"completed"}}\n\n',
    "anthropic-messages": b'data: {"type":"message_start","message":{}}\n\n'
    b'data: {"type":"content_block_start","index":0,"content_block":{"type":"tool_use","id":"c","name":"f","input":{}}}\n\n'
    b'data: {"type":"content_block_delta","index":0,"delta":{"type":"input_json_delta","partial_json":%s}}\n\n'
    b'data: {"type":"message_stop"}\n\n',
    "cohere": b'data: {"type":"tool-call-start","index":0,"delta":{"message":{"tool_calls":{"id":"c","function":{"name":"f",'
    b'"arguments":%s}}}}}\n\ndata: {"type":"message-end","delta":{"finish_reason":"TOOL_CALL"}}\n\n',
}
AS_OBJECT = {
    "openai-chat": AS_TEXT["openai-chat"],
    "cohere": AS_TEXT["cohere"],
    "anthropic-messages": b'data: {"type":"content_block_start","index":0,"content_block":'
    b'{"type":"tool_use","id":"c","name":"f","input":%s}}\n\n'
    b'data: {"type":"content_block_stop","index":0}\n\ndata: {"type":"message_stop"}\n\n',
    "gemini": b'data: {"candidates":[{"content":{"parts":[{"functionCall":{"name":"f","args":%s}}]},'
    b'"finishReason":"STOP"}]}\n\n',
}
AS_OBJECT["openai-responses"] = b'data: {"type":"response.created","response":{"id":"r"},"odd":%s}\n\n'  # It has none.


def blocks_of(stream: bytes) -> list[bytes]:
    return [block + b"\n\n" for block in stream.split(b"\n\n")[:-1]]


def asked(dialect: str) -> GenerationRequest:
    return DIALECTS[dialect].parse(CLIENTS[dialect].body)


def check_nonsense(terminal: object) -> None:
    assert isinstance(terminal, Failed)
    assert terminal.kind is ErrorKind.UPSTREAM_PROTOCOL


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("wire", WIRES)
def test_an_object_that_is_nested_too_deeply_ends_an_answer(wire: str, dialect: str, depth: int) -> None:
    for kind in (Translating, Folding):
        pump = kind(WIRES[wire], DIALECTS[dialect], asked(dialect), INFO)
        pump.feed(blocks_of(AS_OBJECT[wire] % nested(depth).encode()))
        pump.end()

        check_nonsense(pump.terminal)


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("wire", AS_TEXT)
def test_arguments_as_text_are_passed_on_in_pieces_and_refused_as_a_whole(wire: str, dialect: str, depth: int) -> None:
    stream = blocks_of(AS_TEXT[wire] % orjson.dumps(nested(depth)))
    streamed = Translating(WIRES[wire], DIALECTS[dialect], asked(dialect), INFO)
    said = streamed.feed(stream) + streamed.end()
    folded = Folding(WIRES[wire], DIALECTS[dialect], asked(dialect), INFO)
    folded.feed(stream)

    assert isinstance(streamed.terminal, Completed)
    assert nested(depth).replace('"', '\\"').encode() in said
    assert folded.end() == b""
    check_nonsense(folded.terminal)


@pytest.mark.parametrize("wire", WIRES)
def test_a_whole_answer_and_an_error_may_hold_anything(wire: str) -> None:
    for depth in DEPTHS:
        body = b'{"error":{"message":"no","details":%s}}' % nested(depth).encode()

        assert isinstance(WIRES[wire].decoder().decode_whole(body)[-1], Failed)
        assert WIRES[wire].read_error(400, {}, body).message


@pytest.mark.parametrize("depth", [1, 64, 200])
def test_what_is_nested_as_a_request_may_be_is_read(depth: int) -> None:
    value: Any = read_json(nested(depth).encode())

    assert orjson.dumps(value) == nested(depth).encode()
    assert not is_nested_too_deeply(nested(depth))
    assert arguments_of(nested(depth)) == value


@pytest.mark.parametrize("depth", DEPTHS)
def test_what_is_nested_too_deeply_says_so(depth: int) -> None:
    with pytest.raises(NestedTooDeeply):
        read_json(nested(depth).encode())
    assert is_nested_too_deeply(nested(depth))
    assert arguments_of(nested(depth)) == {"arguments": nested(depth)}


def test_many_brackets_beside_each_other_are_not_deep() -> None:
    assert read_json(b"[" + b"[],{}," * 1_000 + b"[]]")
