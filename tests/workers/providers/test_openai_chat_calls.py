"""How calls are put together from pieces that servers wrote wrongly. The usual pieces: test_openai_chat_wire.py."""

from typing import Any

import pytest

from common.canonical.events import Event, FinishReason
from common.canonical.reply import Reply, fold
from tests.workers.providers.test_openai_chat_wire import chunk, decode, reply_of

A, B = '{"path":"a}{\\""}', '{"path":"b"}'


def piece(arguments: str | None = None, name: str | None = None, id_: str | None = None) -> dict[str, Any]:
    """A piece of a server that gives every call the index 0."""
    function = {key: value for key, value in (("name", name), ("arguments", arguments)) if value is not None}
    return {"index": 0, "function": function} | ({"id": id_} if id_ is not None else {})


def answer(*pieces: dict[str, Any], finish: str = "tool_calls") -> list[Event]:
    return decode(*(chunk({"tool_calls": [each]}) for each in pieces), chunk({}, finish))


def calls_of(reply: Reply) -> list[tuple[str, str]]:
    return [(call.name, call.arguments) for call in reply.choices[0].tool_calls]


@pytest.mark.parametrize("id_", [None, ""])
@pytest.mark.parametrize("second", ["glob", "read"])
def test_complete_calls_that_share_an_index_stay_apart(second: str, id_: str | None) -> None:
    reply = fold(answer(piece(A, "glob", id_), piece(B, second, id_)))

    assert calls_of(reply) == [("glob", A), (second, B)]
    assert len({call.id for call in reply.choices[0].tool_calls}) == 2


def test_a_call_may_begin_with_its_name_alone() -> None:
    assert calls_of(fold(answer(piece(A, "glob"), piece("", "read"), piece(B)))) == [("glob", A), ("read", B)]


@pytest.mark.parametrize("length", [1, 2, 7, 100])
def test_arguments_that_follow_each_other_are_calls_of_the_same_tool(length: int) -> None:
    text = f"{A}\n{B} {A}"
    pieces = [piece(text[at : at + length]) for at in range(0, len(text), length)]

    assert calls_of(fold(answer(piece("", "glob", "c1"), *pieces))) == [("glob", A), ("glob", B), ("glob", A)]


@pytest.mark.parametrize(
    "again", [piece(A), piece(A, "glob", "c1"), piece('{"path": "a}{\\""}\n')], ids=["args", "all", "spaced"]
)
def test_arguments_that_are_told_again_are_told_once(again: dict[str, Any]) -> None:
    assert calls_of(fold(answer(piece("", "glob", "c1"), piece(A[:5]), piece(A[5:]), again))) == [("glob", A)]


def test_what_is_no_object_behind_the_arguments_stays() -> None:
    assert calls_of(fold(answer(piece(B, "glob", "c1"), piece(" "), piece("}")))) == [("glob", B + " }")]


def test_endless_arguments_make_a_bounded_number_of_calls() -> None:
    reply = fold(answer(piece("".join(f'{{"n":{number}}}' for number in range(1000)), "glob", "c1")))

    assert len(reply.choices[0].tool_calls) < 200


@pytest.mark.parametrize("finish", ["tool_calls", "stop", "length"])
@pytest.mark.parametrize(
    "pieces", [[piece('{"path": "/tm', "read", "c1")], [piece(A, "glob", "c1"), piece('{"path')]], ids=["first", "next"]
)
def test_a_call_that_ends_within_its_arguments_was_cut_whatever_the_server_says(
    pieces: list[dict[str, Any]], finish: str
) -> None:
    reply = fold(answer(*pieces, finish=finish))

    assert reply.choices[0].finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize("arguments", ["", "{}", A, "no JSON", '["a"]'])
def test_a_call_with_whole_arguments_was_not_cut(arguments: str) -> None:
    assert (
        reply_of(chunk({"tool_calls": [piece(arguments, "f", "c")]}, "stop")).choices[0].finish_reason
        is FinishReason.TOOL_CALLS
    )
