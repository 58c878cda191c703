"""Does the judge of a chaos run see each fault that it is there for, and is a run's plan its seed's alone?"""

import asyncio
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import orjson
import pytest

from demo_provider.script import word
from tests.chaos.books import RESERVED_MAX, Row, check_rows, check_tokens, input_tokens
from tests.chaos.checker import REFUSAL_MAX_S, End, check_log, judge
from tests.chaos.client import History, Outcome
from tests.chaos.faults import Happened
from tests.chaos.plan import (
    APIS,
    LONG_OUTAGE_S,
    LONG_RUN_S,
    REDIS,
    TARGETS,
    WORKERS,
    Ask,
    Fault,
    FaultKind,
    Manner,
    asks,
    faults,
    target_faults,
)
from tests.chaos.proxy import Link
from tests.chaos.readers import CHAT, Stream

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


FAILOVER = Happened(Fault(0, FaultKind.FAILOVER, REDIS, 0), 0.0, 0.0, 3.0, loses_writes=True)


@pytest.mark.parametrize("code", ["frames_lost", "log_lost", "generation_not_found", "generation_expired"])
def test_what_redis_lost_may_be_said_where_it_failed_over_and_nowhere_else(code: str):
    history = _seen([PIECES[0], b'data: {"error":{"code":"%s"}}\n\n' % code.encode()])
    history.began_at, history.ended_at = 1.0, 2.0

    assert judge(history, [FAILOVER]) == []
    assert judge(history, [replace(FAILOVER, loses_writes=False)]) != []
    assert judge(history, [replace(FAILOVER, began_at=2.5)]) != []


@pytest.mark.parametrize("pieces", [[PIECES[1], ERROR], [PIECES[0], PIECES[2], ERROR], PIECES[:-1], [PIECES[0], *PIECES]])
def test_no_failover_excuses_a_wrong_text_or_a_silent_end(pieces: list[bytes]):
    assert judge(_seen(pieces), [FAILOVER]) != []


def test_who_comes_back_after_the_end_may_be_unknown_only_where_redis_forgot_him():
    history = _seen(PIECES)
    history.status_after_end, history.problems_after_end = 404, ["an event after the end"]

    assert judge(history, [FAILOVER]) == []
    assert any("404" in wrong for wrong in judge(history, []))
    assert "an event after the end" in judge(history, [])


def test_a_refusal_must_come_at_once_where_only_redis_is_away():
    away = Happened(Fault(0, FaultKind.FROZEN, REDIS, 20), 100.0, 0.0, 120.0)
    elsewhere = Happened(Fault(0, FaultKind.FROZEN, APIS[0], 20), 100.0, 0.0, 120.0)

    def refused(asked_at: float, took_s: float) -> History:
        history = _seen(PIECES)
        history.refusals = [(asked_at, took_s)]
        return history

    assert judge(refused(105.0, 0.1), [away]) == []
    assert any("to hear that Redis is away" in wrong for wrong in judge(refused(105.0, REFUSAL_MAX_S + 1), [away]))
    assert judge(refused(100.5, REFUSAL_MAX_S + 1), [away]) == []  # Nobody could know it yet.
    assert judge(refused(105.0, REFUSAL_MAX_S + 1), [away, elsewhere]) == []


ROW = Row("gen_1", f"demo/{ASK.model}", "completed", None, input_tokens(ASK), TOKENS, is_estimated=False, duration_ms=5)
ROUTED = next(ask for ask in asks(5, 60, 10) if ask.route)
END = End(None, {"input_tokens": input_tokens(ASK), "output_tokens": TOKENS}, by_worker=True, was_claimed=True)


def _told(number: int = ASK.number, outcome: str = Outcome.COMPLETED, generation_id: str = "gen_1") -> History:
    history = History(replace(ASK, number=number), 1.0)
    history.outcome, history.generation_id, history.ended_at = outcome, generation_id, 2.0
    return history


def test_who_was_told_that_an_api_was_too_late_may_have_left_one_more():
    late = replace(_told(), late=1)
    unknown = replace(ROW, id="gen_2")

    assert check_rows([ROW, unknown], [late], {"gen_1": END}, []) == []
    assert check_rows([ROW, unknown, replace(ROW, id="gen_3")], [late], {"gen_1": END}, []) != []
    assert check_rows([ROW, unknown], [replace(late, late=0)], {"gen_1": END}, []) != []
    refused = replace(unknown, outcome="failed", error_kind="overloaded", error_code="overloaded")
    assert check_rows([ROW, refused], [replace(late, late=0, sheds=1)], {"gen_1": END}, []) == []
    assert check_rows([ROW, refused], [replace(late, late=0)], {"gen_1": END}, []) != []


def test_a_ledger_with_each_generation_once_is_right():
    untold = _told(2, "(connection cut before the answer)", "")
    row = replace(ROW, id="gen_2", model=untold.ask.model)

    assert check_rows([ROW, row], [_told(), untold], {"gen_1": END}, []) == []
    assert check_rows([ROW], [_told(), untold], {"gen_1": END}, []) == []


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        ([], "not in the ledger"),
        ([ROW, replace(ROW, id="gen_2")], "is 2 times in the ledger"),
        ([ROW, replace(ROW, id="gen_2", model="demo-n3-c9")], "who never was"),
        ([replace(ROW, outcome="failed", error_code="worker_lost")], "is failed in the ledger"),
        ([replace(ROW, output_tokens=TOKENS + 1)], "the provider said"),
        ([replace(ROW, outcome="failed", error_code="internal")], "ended by 'internal'"),
    ],
)
def test_a_ledger_that_is_not_what_happened_is_wrong(rows: list[Row], what: str):
    assert any(what in wrong for wrong in check_rows(rows, [_told()], {"gen_1": END}, []))


def test_identical_requests_make_one_call_unless_something_befell_them():
    pair = [_told(number, generation_id=f"gen_{number}") for number in (1, 2)]
    for history in pair:
        history.ask = replace(history.ask, twins=1, breaks=(), first_ms=3000)
    own = {"model": f"demo/{pair[0].ask.model}"}
    first = replace(ROW, id="gen_1", cache="miss", end_user="c1", **own)
    joined = replace(first, id="gen_2", cache="join", end_user="c2", input_tokens=None, output_tokens=None)
    fault = Happened(Fault(0, FaultKind.FROZEN, REDIS, 1), 0.5, 0.5, 1.0)

    assert check_rows([first, joined], pair, {}, []) == []
    second = replace(first, id="gen_2", end_user="c2")
    assert any("2 jobs with 1 policies" in wrong for wrong in check_rows([first, second], pair, {}, []))
    assert check_rows([first, second], pair, {}, [fault]) == []
    paid = replace(joined, output_tokens=TOKENS)
    assert any("another one's call made its answer" in wrong for wrong in check_rows([first, paid], pair, {}, []))


def test_only_who_shares_a_log_ends_before_it_and_only_by_leaving_or_with_its_api():
    row = replace(ROW, outcome="cancelled", error_code="cancelled")
    api = Happened(Fault(0, FaultKind.DRAINED, APIS[0], 1), 1.5, 0.0, 1.6)
    worker = replace(api, fault=replace(api.fault, target=WORKERS[0]))

    def wrong(outcome: str, *happened: Happened, twins: int = 1) -> list[str]:
        history = _told(outcome=outcome)
        history.ask = replace(history.ask, twins=twins)
        return check_rows([row], [history], {"gen_1": END}, happened)

    assert wrong("cancelled") == wrong(Outcome.CUT, worker) == wrong("gateway_restarting", api) == []
    assert wrong("cancelled", twins=0) and wrong("gateway_restarting", worker) and wrong(Outcome.COMPLETED, api)


def test_an_error_has_no_code_only_where_the_upstream_gave_none():
    def wrong(kind: str, trouble: str) -> list[str]:
        history = _told(outcome="upstream_unavailable")
        history.ask = replace(history.ask, trouble=trouble)
        return check_rows([replace(ROW, outcome="failed", error_kind=kind)], [history], {}, [])

    assert wrong("upstream_unavailable", "e503x1") == wrong("upstream_rate_limited", "e429x1-ra0.5") == []
    assert wrong("upstream_unavailable", "") and wrong("upstream_unavailable", "dropx1") and wrong("internal", "e503x1")


def test_the_ledger_may_lack_what_redis_forgot():
    assert check_rows([], [_told()], {}, [FAILOVER]) == []


def test_the_limit_on_tokens_counts_what_was_used():
    used = input_tokens(ASK) + TOKENS
    by_api = End({"code": "cancelled"}, None, by_worker=False, was_claimed=True)

    assert check_tokens(used, [ROW], {"gen_1": END}) == []
    assert check_tokens(used - 1, [ROW], {"gen_1": END}) != []
    assert check_tokens(used + 1000, [ROW], {"gen_1": END}) != []
    assert check_tokens(1000, [ROW], {"gen_1": by_api}) == []  # It keeps what it reserved.
    assert check_tokens(RESERVED_MAX + 1, [ROW], {"gen_1": by_api}) != []
    assert check_tokens(1, [ROW], {"gen_1": replace(by_api, was_claimed=False)}) != []


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


def test_a_whole_answer_may_end_as_poison_and_by_no_other_error():
    def wrong(code: str) -> list[str]:
        end = b'{"error":{"code":"%s"},"usage":null}' % code.encode()
        row = replace(ROW, outcome="failed", error_kind=code, error_code=code, is_estimated=True)
        ends = {"gen_1": End({"code": code}, None, by_worker=False, was_claimed=True)}
        return [
            *check_log(_seen(PIECES), [*LOG[:-1], (b"2-0", {b"k": b"end", b"d": end})]),
            *check_rows([row], [_told()], ends, []),
        ]

    assert wrong("poison_job") == []
    assert len(wrong("worker_lost")) == 2


def test_the_same_seed_gives_the_same_run():
    assert list(asks(5, 20, 10)) == list(asks(5, 20, 10)) != list(asks(6, 20, 10))
    assert faults(5, 100, 1) == faults(5, 100, 1) != faults(6, 100, 1)


def test_only_what_is_asked_for_is_broken_and_not_before_its_time():
    schedule = faults(5, 300, 2, only="api", after_s=60)

    assert {fault.target for fault in schedule} == set(APIS)
    assert {fault.kind for fault in schedule} == {FaultKind.KILLED, FaultKind.FROZEN, FaultKind.DRAINED}
    assert schedule[0].at_s >= 60


def test_viewers_come_first_and_read_for_most_of_the_run():
    found = list(asks(5, 100, 10, viewers=600))
    viewers, others = [ask for ask in found if ask.manner is Manner.VIEWER], list(asks(5, 100, 10))
    numbers = [ask.number for ask in found if ask.manner is not Manner.VIEWER]

    assert [ask.number for ask in viewers] == list(range(1, 601))
    assert numbers == [ask.number if ask.route else 600 + ask.number for ask in others]
    assert all(75 < ask.at_s + ask.takes_s <= 100 for ask in viewers)
    assert [ask.at_s for ask in found] == sorted(ask.at_s for ask in found)


def test_a_long_run_has_one_long_outage_of_redis_and_no_other_fault_of_it_meanwhile():
    for seed in range(20):
        schedule = [fault for fault in faults(seed, LONG_RUN_S, 2) if fault.target == REDIS]
        (long,) = [fault for fault in schedule if fault.for_s == LONG_OUTAGE_S]
        assert [fault for fault in schedule if long.at_s <= fault.at_s <= long.at_s + LONG_OUTAGE_S] == [long]
    assert all(fault.for_s < LONG_OUTAGE_S for fault in faults(0, LONG_RUN_S - 1, 2))


def test_only_a_redis_with_a_replica_fails_over():
    for has_replica in (True, False):
        kinds = {fault.kind for fault in faults(5, 2000, 1, has_replica=has_replica)}
        assert (FaultKind.FAILOVER in kinds) is has_replica


def test_a_schedule_leaves_an_api_and_a_worker_alone():
    schedule = faults(5, 2000, 0.5)
    downs = (FaultKind.KILLED, FaultKind.FROZEN, FaultKind.DRAINED)
    for group in (APIS, WORKERS):
        ours = [fault for fault in schedule if fault.target in group and fault.kind in downs]
        for fault in ours:
            others = {f.target for f in ours if f.at_s <= fault.at_s < f.at_s + f.for_s}
            assert len(others) < len(group)


def test_the_targets_of_routes_fail_in_turn_and_one_of_them_is_always_well():
    schedule = target_faults(5, 300)

    assert [fault.target for fault in schedule[:4]] == [*TARGETS, TARGETS[0]]
    assert len({fault.kind for fault in schedule}) == 5
    for fault in schedule:
        others = {other.target for other in schedule if other.at_s <= fault.at_s < other.at_s + other.for_s}
        assert fault.target in others and len(others) < len(TARGETS)
    assert faults(5, 300, 2, only="target") == schedule
    assert set(schedule) < set(faults(5, 300, 2))


def test_a_route_with_a_well_target_answers_no_error_before_its_first_token():
    def wrong(*happened: Happened, **row: Any) -> list[str]:
        history = _told(ROUTED.number, outcome="upstream_unavailable")
        history.ask = ROUTED
        found = replace(ROW, model=ROUTED.route, end_user=f"c{ROUTED.number}", outcome="failed", **row)
        return check_rows([found], [history], {}, happened)

    assert wrong(error_code="upstream_unavailable", error_kind="upstream_unavailable", output_tokens=4) == []
    assert any(
        "a well target" in what for what in wrong(error_code="api_error", error_kind="upstream_timeout", output_tokens=0)
    )
    assert wrong(error_code="worker_lost", error_kind="worker_lost", output_tokens=0) == []
    # At each moment one target is well. This request outlasted three faults.
    each = [Happened(Fault(0, FaultKind.FAILING, target, 1), 0.5 + n / 2, 0.0, 1.0 + n / 2) for n, target in enumerate(TARGETS)]
    unavailable = {"error_code": "", "error_kind": "upstream_unavailable", "output_tokens": 0}
    assert wrong(*each, **unavailable) == []
    assert wrong(*each[1:], **unavailable)


async def test_a_link_may_answer_for_the_far_side_reset_or_refuse():
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.read(10))
        writer.close()

    async def ask() -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", link.port)
        try:
            writer.write(b"hello")
            return await reader.read()
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    link = Link("a-b", server.sockets[0].getsockname()[1])
    await link.start()
    try:
        link.own_answer = b"busy"
        assert await ask() == b"busy"
        link.own_answer = b""
        with pytest.raises(ConnectionResetError):
            await ask()
        link.own_answer = None
        link.refuse()
        with pytest.raises(ConnectionRefusedError):
            await ask()
        await link.start()
        assert await ask() == b"hello"
    finally:
        await link.stop()
        server.close()


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


async def test_a_link_tells_its_near_side_other_ports_than_the_far_side_said():
    async def tell(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"*2\r\n$9\r\n127.0.0.1\r\n" + await reader.readexactly(11))
        writer.close()

    server = await asyncio.start_server(tell, "127.0.0.1", 0)
    link = Link("a-b", server.sockets[0].getsockname()[1], rewrites={45678: 34567})
    await link.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", link.port)
    try:
        writer.write(b"$5\r\n45678\r\n")

        assert await reader.read() == b"*2\r\n$9\r\n127.0.0.1\r\n$5\r\n34567\r\n"
    finally:
        writer.close()
        await link.stop()
        server.close()
