"""Large bodies within a budget: what fits is read, what does not is refused before it is read on, and all is given back."""

import asyncio
import weakref
from collections.abc import Iterable
from typing import Any

import orjson
import pytest
from starlette.requests import Request

from api.server.body import parse_json, read_json
from api.server.body_budget import AT_ONCE_MAX, LARGE_BYTES, SMALL_BYTES, BodyBudget, in_thread_if_large
from common.canonical.errors import ErrorKind, GatewayError
from common.config.settings import MIB, Settings

SETTINGS = Settings().model_copy(update={"body_bytes_max": 4 * MIB, "bodies_bytes_max": 6 * MIB})


def body_of(size: int) -> bytes:
    return orjson.dumps({"text": "x" * (size - len(b'{"text":""}'))})


class Arriving(Request):
    """A request whose body comes in pieces, and counts those that were asked for."""

    def __init__(self, pieces: Iterable[bytes], length: int | None = None) -> None:
        headers = [(b"content-type", b"application/json")]
        if length is not None:
            headers.append((b"content-length", str(length).encode()))
        scope = {"type": "http", "method": "POST", "path": "/", "headers": headers, "state": {}}
        self.left, self.read = list(pieces), 0

        async def receive() -> dict[str, Any]:
            self.read += 1
            piece = self.left.pop(0)
            return {"type": "http.request", "body": piece, "more_body": bool(self.left)}

        super().__init__(scope, receive)


def whole(size: int) -> Arriving:
    return Arriving([body_of(size)], size)


def chunked(size: int) -> Arriving:
    body = body_of(size)
    return Arriving([body[start : start + MIB] for start in range(0, size, MIB)])


async def read(request: Arriving, budget: BodyBudget) -> int:
    raw, body = await read_json(request, SETTINGS, budget)
    assert orjson.loads(raw) == body
    return len(raw)


@pytest.mark.parametrize("make", [whole, chunked])
async def test_what_fits_is_held_until_it_is_released(make):
    budget, first, second = BodyBudget(SETTINGS), make(3 * MIB), make(3 * MIB)

    assert [await read(first, budget), await read(second, budget)] == [3 * MIB] * 2
    assert budget.bytes_held == 6 * MIB
    for request in (first, second):
        budget.release(request.scope, has_failed=False)

    assert budget.bytes_held == 0


async def test_a_declared_body_that_does_not_fit_is_refused_unread():
    budget, late = BodyBudget(SETTINGS), whole(4 * MIB)
    await read(whole(3 * MIB), budget)

    with pytest.raises(GatewayError) as refused:
        await read(late, budget)

    failed = refused.value.failed
    assert (failed.kind, failed.code, late.read) == (ErrorKind.OVERLOADED, "bodies_full", 0)
    assert failed.retry_after_s is not None


async def test_one_that_grows_out_of_the_budget_is_read_no_further():
    budget, late = BodyBudget(SETTINGS), chunked(4 * MIB)
    await read(whole(3 * MIB + 1), budget)

    with pytest.raises(GatewayError) as refused:
        await read(late, budget)
    budget.release(late.scope, has_failed=True)

    assert (refused.value.failed.code, late.read) == ("bodies_full", 3)
    assert budget.bytes_held == 3 * MIB + 1


async def test_refusals_spread_those_who_come_back():
    budget = BodyBudget(SETTINGS)
    budget.bytes_held = budget.bytes_max
    told = set()
    for _ in range(20):
        with pytest.raises(GatewayError) as refused:
            await read(whole(MIB), budget)
        told.add(refused.value.failed.retry_after_s)

    assert len(told) > 10


@pytest.mark.parametrize("make", [whole, chunked])
async def test_a_small_body_always_fits(make):
    budget = BodyBudget(SETTINGS)
    budget.bytes_held = budget.bytes_max

    assert await read(make(SMALL_BYTES), budget) == SMALL_BYTES


async def test_the_largest_body_fits_into_an_empty_budget_whatever_is_set():
    budget = BodyBudget(SETTINGS.model_copy(update={"bodies_bytes_max": MIB}))

    assert await read(chunked(4 * MIB), budget) == 4 * MIB


async def test_only_a_few_large_bodies_are_worked_on_at_a_time():
    budget = BodyBudget(SETTINGS)
    first = [whole(LARGE_BYTES) for _ in range(AT_ONCE_MAX)]
    for request in first:
        await read(request, budget)
    waiting = asyncio.create_task(read(whole(LARGE_BYTES), budget))
    await read(whole(LARGE_BYTES - 1), budget)
    assert not waiting.done()

    budget.release(first[0].scope, has_failed=False)

    assert await asyncio.wait_for(waiting, 60) == LARGE_BYTES


async def test_a_large_body_leaves_the_loop_to_others():
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    beside = asyncio.create_task(others())
    await in_thread_if_large(LARGE_BYTES, lambda: sum(range(10**6)))
    beside.cancel()

    assert turns > 1


DENSE = [b"[],", b"{},", b"1,", b'"a",', b"[1],"]
MANY = 2_000


@pytest.mark.parametrize("piece", DENSE)
def test_more_values_than_allowed_are_refused_before_they_are_made(piece):
    raw = b'{"a":[' + piece * MANY + b"1]}"

    with pytest.raises(GatewayError) as refused:
        parse_json(raw, 64, MANY - 1)

    assert refused.value.failed.code == "json_too_many_values"
    assert len(parse_json(raw, 64, 3 * MANY)["a"]) == MANY + 1


@pytest.mark.parametrize("text", ["[],{},", 'she said "[]," \\ [', "\\", '\\"'])
def test_what_stands_in_strings_is_no_value(text):
    raw = orjson.dumps({"a": text * MANY})

    assert parse_json(raw, 64, 1_000) == {"a": text * MANY}


@pytest.mark.parametrize("tail", [b"", b"\\", b"x", b'\\"' * 50_000])
def test_a_string_without_an_end_is_looked_at_once(tail):
    with pytest.raises(GatewayError) as refused:
        parse_json(b'{"a":[' + b"[]," * 400 + b'"' + b'\\"[' * 50_000 + tail, 64, 1_000)

    assert refused.value.failed.code == "invalid_json"


async def test_a_large_request_that_failed_is_not_kept_by_its_error():
    class Prompt:
        """Something large."""

    budget, request = BodyBudget(SETTINGS), whole(LARGE_BYTES)
    await read(request, budget)

    def fail() -> "weakref.ref[Prompt]":
        prompt = Prompt()
        try:
            raise ValueError(prompt)
        except ValueError as error:
            kept = error  # It holds the frame, and the frame holds it.
        return weakref.ref(kept.args[0])

    found = fail()
    budget.release(request.scope, has_failed=True)
    await asyncio.sleep(0)

    assert found() is None
