"""How an operator's own guardrail is asked, and what becomes of one that does not answer."""

import asyncio
import sys
import types

import orjson
import pytest

from common.guardrails.custom import (
    SEPARATOR,
    Action,
    Check,
    CustomGuardrails,
    GuardrailUnavailable,
    PluginError,
    Verdict,
    join_texts,
    load,
)

CHECK = Check("input", "some words", "gpt-5", "acme")


class Webhook:
    """A seam's other side: answers as told, and keeps what it was asked."""

    def __init__(self, answer: object) -> None:
        self.answer = answer
        self.asked: list[dict[str, str]] = []

    async def __call__(self, body: bytes) -> bytes:
        self.asked.append(orjson.loads(body))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer if isinstance(self.answer, bytes) else orjson.dumps(self.answer)

    async def close(self) -> None:
        pass


def blocks(check: Check) -> Verdict:
    return Verdict(Action.BLOCK, reason=f"not on the {check.side} side")


async def shouts(check: Check) -> Verdict:
    return Verdict(Action.REPLACE, check.text.upper())


class Object:
    async def __call__(self, check: Check) -> Verdict:
        return Verdict(Action.ALLOW)


@pytest.mark.parametrize(
    ("plugin", "verdict"),
    [
        (blocks, Verdict(Action.BLOCK, reason="not on the input side")),
        (shouts, Verdict(Action.REPLACE, "SOME WORDS")),
        (lambda check: shouts(check), Verdict(Action.REPLACE, "SOME WORDS")),
        (Object(), Verdict(Action.ALLOW)),
    ],
)
async def test_a_callable_is_asked_whether_or_not_it_is_a_coroutine_function(plugin, verdict):
    assert await CustomGuardrails(plugin, None, 5).evaluate(CHECK) == verdict


async def test_a_webhook_is_told_side_text_model_and_tenant():
    webhook = Webhook({"action": "block", "reason": "x" * 1000})

    verdict = await CustomGuardrails(None, webhook, 5).evaluate(CHECK)

    assert webhook.asked == [{"side": "input", "text": "some words", "model": "gpt-5", "tenant": "acme"}]
    assert verdict == Verdict(Action.BLOCK, None, "x" * 200)


async def test_a_webhook_sees_what_the_callable_left():
    webhook = Webhook({"action": "allow"})

    assert await CustomGuardrails(shouts, webhook, 5).evaluate(CHECK) == Verdict(Action.REPLACE, "SOME WORDS")
    assert webhook.asked[0]["text"] == "SOME WORDS"


async def test_what_the_callable_blocks_no_webhook_sees():
    webhook = Webhook({"action": "allow"})

    assert (await CustomGuardrails(blocks, webhook, 5).evaluate(CHECK)).action is Action.BLOCK
    assert webhook.asked == []


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"not json",
        b"[]",
        {"action": "maybe"},
        {"text": "no action"},
        {"action": "replace"},
        {"action": "replace", "text": 7},
        {"action": "replace", "text": f"two{SEPARATOR}texts"},
        OSError("refused"),
        ValueError("status 500"),
    ],
)
async def test_a_webhook_that_says_nothing_clear_is_unavailable(answer):
    with pytest.raises(GuardrailUnavailable):
        await CustomGuardrails(None, Webhook(answer), 5).evaluate(CHECK)


async def test_one_that_takes_too_long_is_unavailable():
    async def slow(check: Check) -> Verdict:
        await asyncio.Event().wait()
        raise AssertionError

    with pytest.raises(GuardrailUnavailable, match=r"within 0\.01 s"):
        await CustomGuardrails(slow, None, 0.01).evaluate(CHECK)


@pytest.mark.parametrize("said", [None, "allow", True, 1 / 3])
async def test_a_callable_that_returns_something_else_is_unavailable(said):
    with pytest.raises(GuardrailUnavailable, match="did not return a Verdict"):
        await CustomGuardrails(lambda check: said, None, 5).evaluate(CHECK)


async def test_what_a_callable_raises_is_not_passed_on():
    def broken(check: Check) -> Verdict:
        raise RuntimeError(check.text)

    with pytest.raises(GuardrailUnavailable) as caught:
        await CustomGuardrails(broken, None, 5).evaluate(CHECK)

    assert str(caught.value) == "RuntimeError", "its message may quote the text"


def test_a_separator_in_a_text_does_not_part_it():
    assert join_texts(["a", f"b{SEPARATOR}c"]).split(SEPARATOR) == ["a", "b c"]


@pytest.fixture
def module(monkeypatch):
    made = types.ModuleType("own_guardrail")
    made.check, made.word, made.nested = blocks, "no", types.SimpleNamespace(check=blocks)
    monkeypatch.setitem(sys.modules, "own_guardrail", made)


@pytest.mark.parametrize("name", ["own_guardrail:check", "own_guardrail:nested.check"])
def test_a_plugin_is_loaded_by_its_name(module, name):
    assert load(name) is blocks


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("own_guardrail", "module:callable"),
        (":check", "module:callable"),
        ("own_guardrail:missing", "AttributeError"),
        ("own_guardrail:word", "not callable"),
        ("no_such_module:check", "ModuleNotFoundError"),
    ],
)
def test_a_plugin_that_cannot_be_loaded_says_why(module, name, reason):
    with pytest.raises(PluginError, match=reason):
        load(name)
