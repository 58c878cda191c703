"""Does the judge of a chaos run see each fault that it is there for, and is a run's plan its seed's alone?"""

import asyncio
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import orjson
import pytest

from chaos.checker import check_log, judge
from chaos.client import History, Outcome
from chaos.faults import Happened
from chaos.plan import APIS, WORKERS, Ask, Fault, FaultKind, Manner, asks, faults
from chaos.proxy import Link
from chaos.readers import CHAT, Stream
from cli.demo_provider.script import word

TOKENS = 3
ASK = Ask(1, 0, Manner.RETURNING, CHAT, "demo", "grace=60", TOKENS, 0, 0, "")


def _chunk(content: str | None, finish: str | None = None) -> bytes:
    choice = {"delta": {"content": content} if content else {}, "finish_reason": finish}
    return b"data: " + orjson.dumps({"id": "a", "choices": [choice]}) + b"\n\n"


PIECES = [*(_chunk(word(i)) for i in range(TOKENS)), _chunk(None, "stop"), b"data: [DONE]\n\n"]
ERROR = b'data: {"error":{"code":"worker_lost"}}\n\n'
LOG = [
    (b"1-0", {b"k": b"fence", b"d": b"0-0"}),
    (b"1-1", {b"k": b"head", b"d": b"{}"}),
    *((f"1-{n}".encode(), {b"k": b"data", b"d": piece}) for n, piece in enumerate(PIECES, start=2)),
    (b"1-7", {b"k": b"end", b"d": b'{"error":null,"usage":{"output_tokens":3}}'}),
]


def _seen(pieces: list[bytes], *, first: int = 2, outcome: str | None = None) -> History:
    """The history of a client that got these events, with the ids that a log gives them."""
    history = History(ASK, 0.0)
    stream = history.stream = Stream(CHAT)
    for n, piece in enumerate(pieces, start=first):
        stream.feed(b"id: 1-%d.1\n%s" % (n, piece))
    history.text, history.problems = stream.text, stream.problems
    history.outcome = outcome or stream.end or Outcome.SILENT
    return history


def test_a_complete_stream_is_right():
    assert judge(_seen(PIECES), []) == []
    assert check_log(_seen(PIECES), LOG) == []


@pytest.mark.parametrize(
    ("pieces", "what"),
    [
        ([PIECES[0], *PIECES[2:]], "differs"),  # Lost.
        ([PIECES[0], *PIECES], "differs"),  # Twice.
        ([PIECES[1], PIECES[0], *PIECES[2:]], "differs"),  # In another order.
        (PIECES[:-1], Outcome.SILENT),
        ([*PIECES, PIECES[0]], "after the end"),
        ([PIECES[0], ERROR, PIECES[1]], "after the end"),
        ([*PIECES[:3], PIECES[-1]], "without a finish_reason"),
        ([PIECES[0], b'data: {"error":{"code":"internal"}}\n\n'], "ended by 'internal'"),
        ([PIECES[0], b"data: {\n\n"], "cannot be read"),
    ],
)
def test_what_no_client_may_see_is_wrong(pieces: list[bytes], what: str):
    assert any(what in wrong for wrong in judge(_seen(pieces), []))


def test_an_explicit_error_is_right_where_a_fault_explains_it_and_the_text_before_it_is():
    killed = [Happened(Fault(0, FaultKind.KILLED, WORKERS[0], 1), 0.0, 0.0, 3.0)]
    elsewhere = [replace(killed[0], fault=Fault(0, FaultKind.KILLED, APIS[0], 1))]

    assert judge(_seen([PIECES[0], ERROR]), killed) == []
    assert judge(_seen([PIECES[0], ERROR]), elsewhere) != []
    assert judge(_seen([PIECES[1], ERROR]), killed) != []


def test_an_id_that_comes_twice_is_wrong():
    history = _seen(PIECES[:2])
    assert history.stream
    history.stream.feed(b"id: 1-3.1\n" + PIECES[2])
    assert any("id 1-3.1 after 1-3.1" in wrong for wrong in judge(history, []))


def test_a_cut_is_right_only_where_a_fault_explains_it():
    history = _seen(PIECES[:1], outcome=Outcome.CUT)
    history.cuts = [100.0]
    fault = Fault(0, FaultKind.KILLED, APIS[0], 1)

    assert judge(history, []) != []
    assert judge(history, [Happened(fault, 99.5, 0.0, 103.0)]) == []
    assert judge(history, [Happened(fault, 90.0, 0.0, 93.0)]) != []
    assert judge(history, [Happened(replace(fault, target=WORKERS[0]), 99.5, 0.0, 103.0)]) != []


_Log = list[tuple[bytes, dict[bytes, bytes]]]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda log: log[:-1],  # No end.
        lambda log: [*log, log[-1]],  # Two.
        lambda log: [*log[:-1], (b"1-7", {b"k": b"end", b"d": b'{"error":null,"usage":null}'})],  # No usage.
        lambda log: [*log[:2], log[2], *log[4:]],  # A frame that the client saw and the log has not.
        lambda log: [*log[:2], (b"1-2", {b"k": b"data", b"d": _chunk("other")}), *log[3:]],
    ],
)
def test_a_log_that_is_not_what_the_client_saw_is_wrong(spoil: Callable[[_Log], Any]):
    assert check_log(_seen(PIECES), spoil(LOG)) != []


def test_the_same_seed_gives_the_same_run():
    assert list(asks(5, 20, 10)) == list(asks(5, 20, 10)) != list(asks(6, 20, 10))
    assert faults(5, 100, 1) == faults(5, 100, 1) != faults(6, 100, 1)


def test_a_schedule_leaves_an_api_and_a_worker_alone():
    schedule = faults(5, 2000, 0.5)
    downs = (FaultKind.KILLED, FaultKind.FROZEN, FaultKind.DRAINED)
    for group in (APIS, WORKERS):
        ours = [fault for fault in schedule if fault.target in group and fault.kind in downs]
        for fault in ours:
            others = {f.target for f in ours if f.at_s <= fault.at_s < f.at_s + f.for_s}
            assert len(others) < len(group)


async def test_a_link_carries_what_it_is_given_late_or_not_at_all_and_can_be_cut():
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1000):
            writer.write(data)
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    link = Link("a-b", server.sockets[0].getsockname()[1], watches=True)
    await link.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", link.port)
    try:
        link.delay_s = 0.05
        sent = [b'"demo-n1-c%d"' % i for i in range(10)]
        for i, piece in enumerate(sent):
            writer.write(piece)
            await asyncio.sleep(0.01)
            link.delay_s = 0.0 if i == 5 else link.delay_s  # What comes after waits for what is held.
        assert await reader.readexactly(len(b"".join(sent))) == b"".join(sent)
        assert link.clients() == {9}

        link.pause()
        writer.write(b"paused")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), 0.1)
        link.resume()
        assert await reader.readexactly(6) == b"paused"

        assert link.cut(1.0, random.Random(0)) == 1
        with pytest.raises(ConnectionResetError):
            await reader.read(1)
        assert 9 in link.left_at
    finally:
        writer.close()
        await link.stop()
        server.close()
