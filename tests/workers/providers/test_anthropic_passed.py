"""What of a body in Anthropic's own format is changed on its way to one of its models."""

from typing import Any

import orjson
import pytest

from common.vendors.models import MODELS
from workers.providers.anthropic.wire import ANTHROPIC
from workers.providers.base import Deployment

BEFORE_4_8 = ["claude-haiku-4-5", "claude-sonnet-5", "claude-opus-4-7"]
MODELS_THAT_TAKE_IT = ["claude-opus-4-8", "claude-sonnet-5-5"]
CALL = ("assistant", [{"type": "tool_use", "id": "a", "name": "f", "input": {}}])
RESULT = ("user", [{"type": "tool_result", "tool_use_id": "a", "content": "r"}])
EFFORT = {"role": "system", "content": [], "output_config": {"effort": "low"}}


def messages_of(turns: list[Any]) -> list[dict[str, Any]]:
    return [turn if isinstance(turn, dict) else {"role": turn[0], "content": turn[1]} for turn in turns]


def passed(turns: list[Any], model: str) -> list[dict[str, Any]]:
    deployment = Deployment("anthropic", "http://h", "k", model, facts=MODELS.facts("anthropic", model))
    body = {"model": "asked", "max_tokens": 9, "messages": messages_of(turns)}
    return orjson.loads(ANTHROPIC.pass_request(body, {}, deployment).body)["messages"]


@pytest.mark.parametrize("model", BEFORE_4_8)
def test_a_system_message_in_the_conversation_is_a_user_s_for_models_that_take_none(model: str) -> None:
    turns = [("user", "hi"), ("system", "a"), ("assistant", "yo"), ("system", [{"type": "text", "text": "b"}]), ("user", "on")]

    as_user_s = [("user", turn[1]) if turn[0] == "system" else turn for turn in turns]
    assert passed(turns, model) == messages_of(as_user_s)
    assert passed([*turns, EFFORT], model) == messages_of(as_user_s)


@pytest.mark.parametrize(("model", "named"), [("claude-opus-4-7", ["messages.output_config"]), ("claude-opus-4-8", [])])
def test_an_effort_within_the_conversation_that_the_model_does_not_know_is_named(model: str, named: list[str]) -> None:
    deployment = Deployment("anthropic", "http://h", "k", model, facts=MODELS.facts("anthropic", model))
    body = {"model": model, "messages": messages_of([("user", "hi"), EFFORT])}

    assert ANTHROPIC.pass_request(body, {}, deployment).dropped == named


@pytest.mark.parametrize("model", BEFORE_4_8)
def test_a_result_follows_its_call_though_a_system_message_stood_between_them(model: str) -> None:
    assert passed([("user", "hi"), CALL, ("system", "a"), RESULT], model) == messages_of(
        [("user", "hi"), CALL, RESULT, ("user", "a")]
    )


@pytest.mark.parametrize("model", MODELS_THAT_TAKE_IT)
@pytest.mark.parametrize(
    "turns",
    [
        [("user", "hi"), ("system", "a")],
        [("user", "hi"), ("system", "a"), ("assistant", "yo"), ("user", "on")],
        [("user", "hi"), CALL, RESULT, ("system", "a")],
        [("user", "hi"), ("assistant", "yo"), EFFORT, ("user", "on")],
    ],
)
def test_a_system_message_that_the_model_takes_stays(turns: list[Any], model: str) -> None:
    assert passed(turns, model) == messages_of(turns)


@pytest.mark.parametrize("model", MODELS_THAT_TAKE_IT)
@pytest.mark.parametrize(
    ("turns", "placed"),
    [
        ([("system", "a"), ("user", "hi")], [("user", "a"), ("user", "hi")]),
        ([("user", "hi"), ("system", "a"), ("user", "on")], [("user", "hi"), ("user", "a"), ("user", "on")]),
        (
            [("user", "hi"), ("system", "a"), ("system", [{"type": "text", "text": "b"}])],
            [("user", "hi"), ("system", [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}])],
        ),
        (
            [("user", "hi"), ("assistant", "yo"), ("system", "a"), ("user", "on")],
            [("user", "hi"), ("assistant", "yo"), ("user", "a"), ("user", "on")],
        ),
    ],
)
def test_one_where_the_model_takes_none_is_a_user_s(turns: list[Any], placed: list[Any], model: str) -> None:
    assert passed(turns, model) == messages_of(placed)


def test_a_server_of_one_s_own_gets_the_roles_unchanged() -> None:
    deployment = Deployment("anthropic", "http://h", "k", "m")
    body = {"model": "m", "messages": messages_of([("system", "a"), ("system", "b"), ("user", "hi")])}

    assert orjson.loads(ANTHROPIC.pass_request(body, {}, deployment).body)["messages"] == body["messages"]


def test_ids_that_other_vendors_made_are_in_anthropic_s_format() -> None:
    def turns(id_: str) -> list[Any]:
        call = {"type": "tool_use", "id": id_, "name": "f", "input": {"id": "a.b"}}
        result = {"type": "tool_result", "tool_use_id": id_, "content": "r"}
        return [("user", "hi"), ("assistant", [call]), ("user", [result])]

    assert passed(turns("functions.f:0"), "claude-sonnet-4-5") == messages_of(turns("functions_f_0"))


EMPTY, SPACE = {"type": "text", "text": ""}, {"type": "text", "text": "\n\n"}


@pytest.mark.parametrize(
    ("turns", "kept"),
    [
        ([("user", "hi"), ("assistant", [EMPTY, *CALL[1]]), RESULT], [("user", "hi"), CALL, RESULT]),
        ([("user", "hi"), ("assistant", [EMPTY]), ("user", "on")], [("user", "hi"), ("user", "on")]),
        ([("user", "hi"), ("assistant", [SPACE]), ("user", "on")], [("user", "hi"), ("user", "on")]),
        ([("user", [EMPTY, {"type": "text", "text": "hi"}])], [("user", [{"type": "text", "text": "hi"}])]),
    ],
)
def test_empty_texts_that_other_models_wrote_are_left_out(turns: list[Any], kept: list[Any]) -> None:
    assert passed(turns, "claude-sonnet-4-5") == messages_of(kept)


@pytest.mark.parametrize(
    "turns",
    [
        [
            ("user", "hi"),
            ("assistant", [SPACE, *CALL[1]]),
            RESULT,
        ],  # Claude writes this itself, and thoughts may be bound to it.
        [("user", "hi"), CALL, ("user", [{**RESULT[1][0], "content": [EMPTY]}])],
        [("user", [EMPTY])],  # The client's own fault, which the vendor explains.
    ],
)
def test_blank_texts_that_anthropic_takes_stay(turns: list[Any]) -> None:
    assert passed(turns, "claude-sonnet-4-5") == messages_of(turns)
