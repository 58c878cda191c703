"""What may a broken or hostile upstream do to a client? End its answer with a typed error, and nothing else.

Streams of every wire are damaged in every way that hypothesis finds, and go through the pumps to the clients of every
dialect: each must end, once, in order or in a typed failure.
"""

from collections.abc import Callable
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.canonical.errors import ErrorKind, Failed
from common.canonical.events import Completed
from common.dialects import DIALECTS
from common.sse import SseCutter, read_block, split_blocks
from tests.support.clients.every_dialect import CLIENTS, INFO
from tests.support.upstreams.recordings import OWN, WIRE_OF_FOLDER, blocks_of
from workers.providers import WIRES
from workers.providers.base import FamilyWire
from workers.providers.shared.errors import unreadable_answer
from workers.providers.shared.loose_json import read_json
from workers.transcode.pump import Pump
from workers.transcode.pumps import Folding, Passing, Translating

EVENT_BYTES_MAX = 8_000

STREAMS: dict[str, list[bytes]] = {name: [] for name in WIRES}
for folder, wire_name in WIRE_OF_FOLDER.items():
    STREAMS[wire_name] += [path.read_bytes() for path in sorted((OWN / folder).glob("*.sse"))]


# Damage

ODD_VALUES: list[Any] = [None, True, -1, 2**63, 1e308, "", "x" * 70, [], [None], {}, {"": {}}, [[{}]]]
GARBAGE = [
    b"",
    b"\n\n",
    b"\r",
    b"\xff\xfe\n\n",
    b"\xef\xbb\xbf",
    b"data:\n\n",
    b"data: [DONE]\n\n",
    b"data: {}\n\n",
    b"data: null\n\n",
    b"event: error\ndata: overloaded\n\n",
    b'data: {"error":{"message":"hey","code":"4 2 9"}}\n\n',
    b'data: {"error":"hey"}\n\n',
    b"data: " + b"[" * 5_000 + b"\n\n",
    b"data: " + b'{"a":' * 5_000 + b"\n\n",
    b"data: " + b"9" * 5_000 + b"\n\n",
    b'data: "\\ud800"\n\n',
    b"data: NaN\n\n",
    b"data: " + b"x" * EVENT_BYTES_MAX,
    b": comment without end",
    b"<html>502 Bad Gateway</html>",
    b'{"error": {"code": 499, "message": "gone"}}',
]
AT = st.integers(0, 10_000)  # Taken modulo whatever there is.


def without(stream: bytes, at: int, length: int) -> bytes:
    at %= len(stream) or 1
    return stream[:at] + stream[at + length :]


def cut_off(stream: bytes, at: int, _: int) -> bytes:
    return stream[: at % (len(stream) + 1)]


def flipped(stream: bytes, at: int, value: int) -> bytes:
    at %= len(stream) or 1
    return stream[:at] + bytes([value % 256]) + stream[at + 1 :]


def with_garbage(stream: bytes, at: int, which: int) -> bytes:
    at %= len(stream) + 1
    return stream[:at] + GARBAGE[which % len(GARBAGE)] + stream[at:]


def with_garbage_between(stream: bytes, at: int, which: int) -> bytes:
    blocks = blocks_of(stream)
    blocks.insert(at % (len(blocks) + 1), GARBAGE[which % len(GARBAGE)])
    return b"".join(blocks)


def repeated(stream: bytes, at: int, to: int) -> bytes:
    blocks = blocks_of(stream)
    if blocks:
        blocks.insert(to % len(blocks), blocks[at % len(blocks)])
    return b"".join(blocks)


def odd(stream: bytes, at: int, which: int) -> bytes:
    """One value, somewhere in the JSON of one event, becomes another."""
    blocks = blocks_of(stream)
    if not blocks:
        return stream
    place = at % len(blocks)
    try:
        tree = orjson.loads(read_block(blocks[place])[1])
    except orjson.JSONDecodeError:
        return stream
    owners = places_in(tree)
    if owners:
        owner, key = owners[which % len(owners)]
        owner[key] = ODD_VALUES[(at + which) % len(ODD_VALUES)]
    blocks[place] = b"data: " + orjson.dumps(tree) + b"\n\n"
    return b"".join(blocks)


def places_in(tree: Any) -> list[tuple[Any, Any]]:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [place for key, value in items for place in [(tree, key), *places_in(value)]]


Damage = Callable[[bytes, int, int], bytes]
DAMAGES: list[Damage] = [without, cut_off, flipped, with_garbage, with_garbage_between, repeated, odd, odd, odd]


@st.composite
def damaged(draw: st.DrawFn, name: str) -> bytes:
    streams = STREAMS[name] if draw(st.integers(0, 9)) else [each for found in STREAMS.values() for each in found]
    stream = draw(st.sampled_from(streams))
    for damage, at, value in draw(st.lists(st.tuples(st.sampled_from(DAMAGES), AT, AT), max_size=4)):
        stream = damage(stream, at, value)
    return stream


# What comes out


def pumped(pump: Pump, stream: bytes, size: int, event_bytes_max: int = EVENT_BYTES_MAX) -> bytes:
    """Return the client's bytes, as a worker gets them. An event that is too large fails before a pump sees it."""
    cutter, said = SseCutter(event_bytes_max), list[bytes]()
    for start in range(0, len(stream), size):
        try:
            blocks = cutter.feed(stream[start : start + size])
        except ValueError as error:
            pump.terminal = unreadable_answer(str(error))
            return b""
        said.append(pump.feed(blocks))
        if pump.terminal:
            break
    if rest := cutter.end().strip():
        said.append(pump.feed([rest + b"\n\n"]))
    said.append(pump.end())
    return b"".join(said)


def says_the_end(dialect: str, block: bytes) -> bool:
    """Whether a block is what tells a client of the dialect that its answer is whole."""
    name, data = read_block(block)
    if dialect == "unified":
        return name == "done"
    if dialect in ("openai-chat", "agentary"):
        return data == b"[DONE]"
    # Read as a client reads it: bytes that passed may hold what strict JSON may not.
    return read_json(data)["type"] in ("message_stop", "response.completed", "response.incomplete")


def check_failed(failed: Completed | Failed | None) -> None:
    assert isinstance(failed, Failed)
    assert failed.kind in ErrorKind
    assert failed.message
    assert 400 <= failed.http_status <= 599


each_wire = pytest.mark.parametrize("name", WIRES)
sizes = st.sampled_from([1, 7, 64, 1_000, 1_000_000])


@each_wire
@given(data=st.data(), size=sizes)
def test_a_translated_stream_ends_once_and_as_it_should(name: str, data: st.DataObject, size: int) -> None:
    stream = data.draw(damaged(name))
    for dialect, target in DIALECTS.items():
        pump = Translating(WIRES[name], target, target.parse(CLIENTS[dialect].body), INFO)

        said = pumped(pump, stream, size)

        blocks = split_blocks(said)
        assert said == b"".join(blocks)
        assert all(data == b"[DONE]" or isinstance(orjson.loads(data), dict) for _, data in map(read_block, blocks))
        ends = [says_the_end(dialect, block) for block in blocks]
        if isinstance(pump.terminal, Completed):
            assert ends == [False] * (len(ends) - 1) + [True]
        else:
            check_failed(pump.terminal)
            assert not any(ends)


@each_wire
@given(data=st.data(), size=sizes)
def test_a_folded_answer_is_whole_or_a_failure(name: str, data: st.DataObject, size: int) -> None:
    stream = data.draw(damaged(name))
    for dialect, target in DIALECTS.items():
        pump = Folding(WIRES[name], target, target.parse(CLIENTS[dialect].body), INFO)

        said = pumped(pump, stream, size)

        if isinstance(pump.terminal, Completed):
            assert isinstance(orjson.loads(said), dict)
        else:
            check_failed(pump.terminal)
            assert said == b""


@pytest.mark.parametrize("name", [name for name, wire in WIRES.items() if isinstance(wire, FamilyWire)])
@given(data=st.data(), size=sizes)
def test_a_passed_stream_ends_as_it_should(name: str, data: st.DataObject, size: int) -> None:
    wire, stream = WIRES[name], data.draw(damaged(name))
    assert isinstance(wire, FamilyWire)
    pump = Passing(wire, DIALECTS[wire.dialect], INFO)

    said = pumped(pump, stream, size)

    if isinstance(pump.terminal, Completed):
        assert says_the_end(name, split_blocks(said)[-1])
    else:
        check_failed(pump.terminal)


@each_wire
@given(data=st.data(), size=sizes)
def test_where_the_bytes_are_cut_changes_no_end(name: str, data: st.DataObject, size: int) -> None:
    stream, target = data.draw(damaged(name)), DIALECTS["openai-chat"]
    one, other = [Translating(WIRES[name], target, target.parse(CLIENTS["openai-chat"].body), INFO) for _ in range(2)]

    # Without a limit, which is felt sooner where an event comes in pieces.
    pumped(one, stream, size, event_bytes_max=1 << 22)
    pumped(other, stream, 3, event_bytes_max=1 << 22)

    assert (one.terminal, one.output_events) == (other.terminal, other.output_events)
