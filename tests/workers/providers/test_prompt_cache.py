"""Which marks and keys for a prompt's cache reach a vendor?"""

from typing import Any

import orjson
import pytest

from common.dialects import DIALECTS
from workers.providers import WIRES
from workers.providers.base import Deployment, UpstreamRequest

MARK = {"type": "ephemeral"}
HOUR = {"type": "ephemeral", "ttl": "1h"}
HELLO = [{"role": "user", "content": "hi"}]


def build(dialect: str, wire: str, provider: str = "x", **body: Any) -> UpstreamRequest:
    parsed = DIALECTS[dialect].parse({"model": "m", **body})
    return WIRES[wire].build_request(parsed, Deployment(provider, "https://x.example", "k", "m"))


def claude(dialect: str = "openai-chat", **body: Any) -> dict[str, Any]:
    built: dict[str, Any] = orjson.loads(build(dialect, "anthropic-messages", **body).body)
    return built


def text(value: str, **fields: Any) -> dict[str, Any]:
    return {"type": "text", "text": value, **fields}


def test_marks_of_chat_reach_anthropic() -> None:
    body = claude(
        messages=[
            {"role": "system", "content": [text("a"), text("b", cache_control=HOUR)]},
            {"role": "user", "content": [text("c", cache_control=MARK)]},
        ],
        tools=[{"type": "function", "function": {"name": "f"}, "cache_control": MARK}],
    )

    assert body["system"] == [text("a"), text("b", cache_control=HOUR)]
    assert body["messages"] == [{"role": "user", "content": [text("c", cache_control=MARK)]}]
    assert body["tools"][0]["cache_control"] == MARK


def test_a_mark_of_a_message_is_one_of_its_last_part() -> None:
    calls = [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    body = claude(
        messages=[
            {"role": "system", "content": "s", "cache_control": MARK},
            *HELLO,
            {"role": "assistant", "content": None, "tool_calls": calls},
            {"role": "tool", "tool_call_id": "a", "content": "r", "cache_control": MARK},
        ]
    )

    assert body["system"] == [text("s", cache_control=MARK)]
    assert body["messages"][-1]["content"][0]["cache_control"] == MARK


def test_a_mark_within_a_result_is_one_of_the_result() -> None:
    calls = [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    result = {"role": "tool", "tool_call_id": "a", "content": [text("r", cache_control=MARK)]}
    body = claude(messages=[*HELLO, {"role": "assistant", "tool_calls": calls}, result])

    wanted = {"type": "tool_result", "tool_use_id": "a", "content": [text("r")], "cache_control": MARK}
    assert body["messages"][-1]["content"] == [wanted]


def test_openais_breakpoints_are_marks_and_what_is_no_mark_is_ignored() -> None:
    parts = [text("a", prompt_cache_breakpoint={"mode": "explicit"}), text("b", cache_control={"type": "forever"})]

    assert claude(messages=[{"role": "user", "content": parts}])["messages"][0]["content"] == [
        text("a", cache_control=MARK),
        text("b"),
    ]
    part = {"type": "input_text", "text": "a", "prompt_cache_breakpoint": {"mode": "explicit"}}
    body = claude("openai-responses", input=[{"role": "user", "content": [part]}])
    assert body["messages"][0]["content"] == [text("a", cache_control=MARK)]


def test_anthropic_gets_no_more_marks_than_it_takes() -> None:
    parts = [text(str(number), cache_control=MARK) for number in range(6)]

    blocks = claude(messages=[{"role": "user", "content": parts}])["messages"][0]["content"]

    assert ["cache_control" in block for block in blocks] == [False, False, True, True, True, True]


def test_a_key_asks_anthropic_to_choose_the_marks_unless_there_are_some() -> None:
    assert claude(messages=HELLO, prompt_cache_key="k")["cache_control"] == MARK
    assert claude("openai-responses", input="hi", prompt_cache_key="k")["cache_control"] == MARK
    assert claude(messages=HELLO, cache_control=HOUR)["cache_control"] == HOUR
    marked = [{"role": "user", "content": [text("a", cache_control=MARK)]}]
    assert "cache_control" not in claude(messages=marked, prompt_cache_key="k")
    assert "cache_control" not in claude(messages=HELLO)


def test_json_is_asked_for_behind_a_marked_system_prompt() -> None:
    system = {"role": "system", "content": "s", "cache_control": MARK}

    body = claude(messages=[system, *HELLO], response_format={"type": "json_object"})

    assert body["system"][0] == text("s", cache_control=MARK)
    assert "JSON" in body["system"][1]["text"]


@pytest.mark.parametrize(
    ("wire", "provider", "is_carried"),
    [
        ("openai-chat", "openai", True),
        ("openai-responses", "openai", True),
        ("openai-chat", "mistral", False),
        ("gemini", "google", False),
        ("cohere", "cohere", False),
    ],
)
def test_a_key_passes_or_is_named(wire: str, provider: str, is_carried: bool) -> None:
    dialect = "openai-responses" if wire == "openai-chat" else "openai-chat"
    prompt: dict[str, Any] = {"input": "hi"} if dialect == "openai-responses" else {"messages": HELLO}

    built = build(dialect, wire, provider, **prompt, prompt_cache_key="k")

    assert (orjson.loads(built.body).get("prompt_cache_key") == "k") is is_carried
    assert ("prompt_cache_key" in built.dropped) is not is_carried


@pytest.mark.parametrize("system", ["x-anthropic-billing-header: cch=1;\n\nBe brief.", None])
def test_claude_codes_billing_line_reaches_no_other_vendor(system: str | None) -> None:
    blocks = [text("x-anthropic-billing-header: cch=1;"), text("Be brief.")]

    built = build("anthropic-messages", "openai-chat", max_tokens=9, system=system or blocks, messages=HELLO)

    assert orjson.loads(built.body)["messages"][0] == {"role": "system", "content": "Be brief."}


def test_a_client_that_caches_only_what_it_marks_is_obeyed() -> None:
    options = {"prompt_cache_key": "k", "prompt_cache_options": {"mode": "explicit"}}

    assert "cache_control" not in claude(messages=HELLO, **options)
    assert "cache_control" not in claude("openai-responses", input="hi", **options)
    assert claude(messages=HELLO, prompt_cache_key="k", prompt_cache_options={"mode": "implicit"})["cache_control"] == MARK
