"""What a guard lets through of an answer's events."""

import asyncio
import math
from dataclasses import replace
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from common.canonical.errors import ErrorKind, Failed, GatewayError
from common.canonical.events import (
    Citation,
    Completed,
    Event,
    Finished,
    FinishReason,
    ReasoningDelta,
    ReasoningSigned,
    RedactedReasoning,
    RefusalDelta,
    Started,
    TextDelta,
    ToolCallDelta,
    ToolCallStarted,
    Usage,
)
from common.canonical.job import Job, Policy
from common.canonical.reply import fold
from common.config.settings import Settings
from common.dialects import DIALECTS
from common.dialects.base import ReplyInfo
from common.guardrails.custom import SEPARATOR, Action, Check, CustomGuardrails, Verdict
from workers.attempt.prepare import prepare_request
from workers.metrics import Metrics
from workers.providers import WIRES
from workers.providers.base import Deployment
from workers.transcode.continuing import Continuing, Rereading
from workers.transcode.guarded_pump import GuardedPump, guarded
from workers.transcode.output_guardrails import OutputGuard, OutputGuards
from workers.transcode.pump import Pump
from workers.transcode.pumps import Folding, FoldingWhole, Translating
from workers.transcode.splice import Splice

MAIL = "john@example.com"
USAGE = Usage(5, 7)
STOP = Finished(FinishReason.STOP)
FILTERED = Finished(FinishReason.CONTENT_FILTER)


def job(**guardrails: str) -> Job:
    return Job("gen_1", "r", "openai-chat", "m", True, Policy.STOP, 0, 1, guardrails=guardrails, tenant="acme", body=b"{}")


def guards(custom: CustomGuardrails | None = None, patterns: tuple[str, ...] = ("secret",)) -> OutputGuards:
    return OutputGuards(Settings(guardrail_patterns_out=patterns), custom, Metrics(CollectorRegistry()))


def guard(guardrail: CustomGuardrails | None = None, /, **modes: str) -> OutputGuard:
    found = guards(guardrail).for_job(job(**modes))
    assert found is not None
    return found


def fed(found: OutputGuard, *events: Event) -> list[Event]:
    """What comes of events that are read one by one."""
    return [passed for event in events for passed in found.feed([event], lambda: USAGE)]


def text_of(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


def arguments_of(events: list[Event]) -> str:
    return "".join(event.arguments for event in events if isinstance(event, ToolCallDelta))


def test_a_guard_needs_something_to_look_for():
    assert guards().for_job(job()) is None
    assert guards(patterns=()).for_job(job(patterns="block", custom="log")) is None
    assert guards(patterns=()).for_job(job(patterns="block", pii="log")) is not None


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_personal_data_is_replaced_in_every_kind_of_text(sizes):
    for kind in (TextDelta, RefusalDelta, ReasoningDelta):
        text, found, said, start, turn = f"Ask {MAIL} or +1 415 555 2671.", guard(pii="block"), "", 0, 0
        while start < len(text):
            size = sizes[turn % len(sizes)]
            said += "".join(event.text for event in fed(found, kind(text[start : start + size])))
            start, turn = start + size, turn + 1
        said += "".join(event.text for event in fed(found, STOP, Completed(USAGE)) if isinstance(event, kind))

        assert said == "Ask [EMAIL] or [PHONE]."


def test_each_choice_is_a_text_of_its_own():
    found = guard(pii="block")

    passed = fed(
        found,
        TextDelta("john@exa", 0),
        TextDelta("no mail ", 1),
        TextDelta("mple.com ", 0),
        STOP,
        Finished(FinishReason.STOP, choice=1),
    )

    assert "".join(event.text for event in passed if isinstance(event, TextDelta) and event.choice == 0) == "[EMAIL] "
    assert "".join(event.text for event in passed if isinstance(event, TextDelta) and event.choice == 1) == "no mail "


def test_a_blocked_pattern_ends_the_answer_as_vendors_do():
    found = guard(patterns="block")

    passed = fed(found, Started(), TextDelta("all sec"), TextDelta("ret, and more"), TextDelta(" of it"), STOP)

    assert passed == [Started(), TextDelta("all "), FILTERED, Completed(USAGE)]
    assert found.blocked == "patterns"
    assert found.is_cut


def test_a_blocked_pattern_ends_all_choices_that_still_speak():
    passed = fed(
        guard(patterns="block"),
        TextDelta("a", 0),
        TextDelta("b", 1),
        Finished(FinishReason.STOP, choice=1),
        TextDelta("secret.", 0),
    )

    assert passed[-2:] == [FILTERED, Completed(USAGE)]
    assert fold(passed).choices[1].finish_reason is FinishReason.STOP


def test_a_pattern_that_only_the_end_decides_is_found_there():
    passed = fed(guard(patterns="block"), TextDelta("a secre"), TextDelta("t"), STOP, Completed(USAGE))

    assert passed == [TextDelta("a "), FILTERED, Completed(USAGE)]


def test_patterns_are_looked_for_in_the_arguments_of_calls():
    found = guard(patterns="block", pii="block")

    passed = fed(
        found,
        ToolCallStarted(0, "c", "mail"),
        ToolCallDelta(0, f'{{"to": "{MAIL}", '),
        ToolCallDelta(0, '"text": "sec'),
        ToolCallDelta(0, 'ret"}'),
    )

    assert arguments_of(passed) == '{"to": "[EMAIL]", "text": "'
    assert passed[-2:] == [FILTERED, Completed(USAGE)]


@pytest.mark.parametrize("arguments", ['{"card": 4111111111111111}', '{"john@example.com": "j\\u006fhn@example.com"}'])
def test_personal_data_in_the_arguments_of_calls_is_replaced_wherever_it_is_cut(arguments):
    for cut in range(len(arguments)):
        passed = fed(
            guard(pii="block"),
            ToolCallStarted(0, "c", "pay"),
            ToolCallDelta(0, arguments[:cut]),
            ToolCallDelta(0, arguments[cut:]),
            Finished(FinishReason.TOOL_CALLS),
        )

        assert orjson.loads(arguments_of(passed)) in ({"card": "[CARD]"}, {"[EMAIL]": "[EMAIL]"})


def test_in_mode_log_they_are_counted_and_stay():
    found = guard(pii="log")

    passed = fed(found, ToolCallStarted(0, "c", "pay"), ToolCallDelta(0, '{"card": 4111111111111111}'), STOP)

    assert arguments_of(passed) == '{"card": 4111111111111111}'
    assert sum(text.counts()["pii"]["card"] for text in found._texts.values() if text.counts()) == 1


def test_what_is_held_comes_before_the_block_that_follows():
    events = [
        TextDelta("mail me: jo"),
        ToolCallStarted(0, "c", "f"),
        ToolCallDelta(0, "{}"),
        ReasoningDelta("hm"),
        RedactedReasoning("x"),
        TextDelta("so"),
    ]

    passed = fed(guard(pii="block"), *events, STOP, Completed(USAGE))

    assert fold(passed) == fold([*events, STOP, Completed(USAGE)])
    assert text_of(passed[: passed.index(ToolCallStarted(0, "c", "f"))]) == "mail me: jo"


def test_a_match_around_a_tool_call_is_found_as_far_as_it_is_not_out():
    passed = fed(
        guard(pii="block"),
        TextDelta("4111 1111 "),
        ToolCallStarted(0, "c", "f"),
        ToolCallDelta(0, "{}"),
        TextDelta("1111 1111."),
        STOP,
    )

    assert text_of(passed) == "4111 1111 [CARD]."


def test_the_signature_of_thinking_that_was_changed_is_left_out():
    changed = fed(guard(pii="block"), ReasoningDelta(f"ask {MAIL} "), ReasoningSigned("s"), TextDelta("ok"))
    unchanged = fed(guard(pii="block"), ReasoningDelta("ask him "), ReasoningSigned("s"), TextDelta("ok"))

    assert ReasoningSigned("s") not in changed
    assert ReasoningSigned("s") in unchanged


def test_in_mode_log_everything_passes_at_once_and_is_counted():
    metrics = Metrics(CollectorRegistry())
    found = OutputGuards(Settings(guardrail_patterns_out=("secret",)), None, metrics).for_job(job(patterns="log", pii="log"))
    assert found is not None
    events = [TextDelta("a sec"), TextDelta("ret for john@"), TextDelta("example.com."), STOP, Completed(USAGE)]

    assert [found.feed([event], lambda: USAGE) for event in events] == [[event] for event in events]
    found.report()
    for guardrail in ("patterns", "pii"):
        assert (
            metrics.registry.get_sample_value(
                "sluice_guardrails_total", {"guardrail": guardrail, "mode": "log", "side": "output"}
            )
            == 1
        )


def test_what_is_held_is_not_said_where_the_upstream_fails():
    failed = Failed(ErrorKind.UPSTREAM_UNAVAILABLE, "gone")

    assert fed(guard(pii="block"), TextDelta("write to jo"), failed) == [TextDelta("write to "), failed]


# Through decoders and pumps


def chunk(text: str | None = None, **more: Any) -> bytes:
    choice = {"index": 0, "delta": {"content": text} if text is not None else {}, "finish_reason": None, **more}
    return b"data: " + orjson.dumps({"id": "c", "object": "chat.completion.chunk", "choices": [choice]}) + b"\n\n"


def pump_of(kind: type, found: OutputGuard, dialect: str = "openai-chat") -> Any:
    turns = {"input": "hi"} if dialect == "openai-responses" else {"messages": [{"role": "user", "content": "hi"}]}
    body = {"model": "m", "provider": "demo", "stream": True, "max_tokens": 9, **turns}
    parsed = DIALECTS[dialect].parse(body)
    pump = kind(WIRES["openai-chat"], DIALECTS[dialect], parsed, ReplyInfo("gen_1", "m", 1, "demo", body))
    return GuardedPump(pump, found)


@pytest.mark.parametrize(
    ("dialect", "word"),
    [
        ("openai-chat", b'"finish_reason":"content_filter"'),
        ("openai-responses", b'"reason":"content_filter"'),
        ("anthropic-messages", b'"stop_reason":"refusal"'),
        ("agentary", b"content_filter"),
        ("unified", b'"finish_reason":"content_filter"'),
    ],
)
def test_every_dialect_says_it_in_its_own_word(dialect, word):
    pump = pump_of(Translating, guard(patterns="block"), dialect)

    said = pump.feed([chunk("all "), chunk("sec"), chunk("ret"), chunk("more")])

    assert word in said
    assert b"sec" not in said
    assert pump.terminal == Completed(pump.usage)
    assert pump.usage.output_tokens > 0, "what its upstream did not tell is estimated"


def test_a_stream_that_is_folded_ends_there_too():
    pump = pump_of(Folding, guard(patterns="block"))

    pump.feed([chunk("all "), chunk("sec"), chunk("ret"), chunk(".")])
    answer = orjson.loads(pump.end())

    assert answer["choices"][0]["message"]["content"] == "all "
    assert answer["choices"][0]["finish_reason"] == "content_filter"


def test_a_whole_answer_is_filtered_and_its_usage_is_its_upstream_s():
    found = guard(patterns="block", pii="block")
    choice = {"index": 0, "message": {"role": "assistant", "content": f"{MAIL} has a secret"}, "finish_reason": "stop"}
    body = {"id": "c", "object": "chat.completion", "choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 4}}
    pump = pump_of(FoldingWhole, found)

    answer = orjson.loads(pump.feed_whole(orjson.dumps(body)))

    assert answer["choices"][0]["message"]["content"] == "[EMAIL] has a "
    assert answer["choices"][0]["finish_reason"] == "content_filter"
    assert (pump.usage.input_tokens, pump.usage.output_tokens) == (3, 4)


@pytest.mark.parametrize("is_stream", [True, False])
@pytest.mark.parametrize("wire", ["openai-chat", "anthropic-messages"])
def test_without_guardrails_nothing_stands_around_a_pump(wire, is_stream):
    asked = job() if is_stream else replace(job(), stream=False)
    body = {"model": "m", "stream": is_stream, "messages": [{"role": "user", "content": "hi"}]}
    info, place = ReplyInfo("gen_1", "m", 1, "p", body), Deployment("p", "http://x", "k", "m", wire)

    _, plain = prepare_request(asked, WIRES[wire], place, info, guards().for_job(asked))
    _, watched = prepare_request(asked, WIRES[wire], place, info, guard(pii="log"))

    assert not isinstance(plain, GuardedPump)
    assert isinstance(watched, GuardedPump)
    assert not (plain.awaits_verdict or plain.is_cut or plain.has_activity or plain.loop_bytes_max < math.inf)


def test_to_its_user_a_guarded_pump_is_as_the_pump_in_it():
    guarded_one, plain = pump_of(Translating, guard(pii="log")), pump_of(Translating, guard(pii="log"))._pump
    blocks = [chunk("hello "), chunk("there", finish_reason="stop"), b"data: [DONE]\n\n"]

    assert guarded_one.feed(blocks) + guarded_one.end() == plain.feed(blocks) + plain.end()
    names = {*Pump.__annotations__, *(name for name, what in vars(Pump).items() if isinstance(what, property))}
    for name in names - {"loop_bytes_max"}:
        assert getattr(guarded_one, name) == getattr(plain, name), name


def continuing(said: str, found: OutputGuard, *, reattaches: bool) -> Pump:
    body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
    dialect = DIALECTS["openai-chat"]
    request, info = dialect.parse(body), ReplyInfo("gen_1", "m", 1, "demo", body)
    progress = dialect.resume(request, info, [chunk("", role="assistant"), chunk(said)])
    assert progress.text == said
    if reattaches:
        return guarded(Rereading(WIRES["openai-chat"], progress, Splice(said, is_whole=True), request), found)
    return guarded(Continuing(WIRES["openai-chat"], progress, Splice(said), USAGE, 3), found, known_text=said)


def contents(data: bytes) -> str:
    chunks = [orjson.loads(line[6:]) for line in data.split(b"\n\n") if line.startswith(b"data: {")]
    return "".join(each["choices"][0]["delta"].get("content") or "" for each in chunks if each["choices"])


def test_a_continuation_is_filtered_behind_what_the_client_has():
    pump = continuing("The word is sec", guard(patterns="block"), reattaches=False)

    said = pump.feed([chunk("re"), chunk("t."), chunk(" More")])

    assert contents(said) == ""
    assert b"content_filter" in said
    assert pump.terminal == Completed(Usage(5 + 3, 7 + pump.usage.output_tokens))


def test_an_answer_that_is_read_again_begins_with_what_was_said_of_it():
    """What was replaced the first time is replaced again."""
    pump = continuing("Ask [EMAIL] or ", guard(pii="block"), reattaches=True)

    said = pump.feed([chunk("Ask john@exam"), chunk("ple.com or a"), chunk("@b.org, "), chunk("please")])

    assert contents(said) == "[EMAIL], "


# An operator's own guardrail


def own(action: Action, text: str | None = None) -> tuple[CustomGuardrails, list[Check]]:
    asked: list[Check] = []

    async def check(what: Check) -> Verdict:
        asked.append(what)
        return Verdict(action, text)

    return CustomGuardrails(check, None, 5), asked


SPOKEN: list[Event] = [ReasoningDelta("hm"), ReasoningSigned("s"), TextDelta("one "), TextDelta("two"), STOP, Completed(USAGE)]


async def test_one_s_own_guardrail_sees_the_whole_answer_before_its_client_does():
    custom, asked = own(Action.ALLOW)
    found = guard(custom, custom="block")

    assert fed(found, Started(), *SPOKEN) == [Started()]
    assert found.awaits_verdict
    assert found.has_activity, "its upstream is not silent"
    assert await found.release_held() == SPOKEN
    assert asked == [Check("output", f"hm{SEPARATOR}one two", "m", "acme")]


async def test_what_one_s_own_guardrail_replaces_comes_in_the_place_of_the_text():
    custom, _ = own(Action.REPLACE, f"hm{SEPARATOR}three")
    found = guard(custom, custom="block")
    fed(found, *SPOKEN)

    assert await found.release_held() == [
        ReasoningDelta("hm"),
        ReasoningSigned("s"),
        TextDelta("three"),
        STOP,
        Completed(USAGE),
    ]


async def test_what_one_s_own_guardrail_blocks_nobody_sees():
    custom, _ = own(Action.BLOCK)
    found = guard(custom, custom="block")
    fed(found, *SPOKEN)

    assert await found.release_held() == [FILTERED, Completed(USAGE)]
    assert not found.is_cut, "the upstream was done: its usage is whole"


async def test_one_s_own_guardrail_that_does_not_answer_is_closed_in_mode_block():
    async def silent(check: Check) -> Verdict:
        await asyncio.Event().wait()
        raise AssertionError

    found = guard(CustomGuardrails(silent, None, 0.01), custom="block")
    fed(found, *SPOKEN)

    with pytest.raises(GatewayError) as caught:
        await found.release_held()

    assert caught.value.failed.code == "guardrail_unavailable"


async def test_where_the_settings_name_no_guardrail_of_one_s_own_nothing_passes_in_mode_block():
    found = guards(patterns=()).for_job(job(custom="block"))
    assert found
    fed(found, *SPOKEN)

    with pytest.raises(GatewayError) as caught:
        await found.release_held()

    assert caught.value.failed.code == "guardrail_unavailable"


async def test_in_mode_log_one_s_own_guardrail_holds_nothing():
    custom, asked = own(Action.BLOCK)
    found = guard(custom, custom="log")

    assert fed(found, *SPOKEN) == SPOKEN
    assert not found.awaits_verdict
    await found.check_afterwards()
    assert asked[0].text == f"hm{SEPARATOR}one two"


async def test_the_pump_says_what_was_held_only_when_it_is_released():
    custom, _ = own(Action.ALLOW)
    found = guard(custom, custom="block", pii="block")
    pump = pump_of(Translating, found)

    before = pump.feed([chunk("to "), chunk(MAIL), chunk(finish_reason="stop"), b"data: [DONE]\n\n"])
    assert contents(before) == ""
    assert pump.end() == b""
    assert not pump.has_output
    assert pump.awaits_verdict
    assert isinstance(pump.terminal, Completed), "its upstream is done, and need not be read on"
    said = await pump.release_held()

    assert contents(said) == "to [EMAIL]"
    assert said.endswith(b"data: [DONE]\n\n")
    assert isinstance(pump.terminal, Completed)


def test_sources_are_not_searched_and_so_do_not_pass():
    passed = fed(guard(pii="redact"), TextDelta("It is so."), Citation("https://a.example/1", MAIL), STOP, Completed(USAGE))

    assert text_of(passed) == "It is so."
    assert not any(isinstance(event, Citation) for event in passed)
