"""Tokens that were read from a prompt's cache, and written to one, are in the usage of every dialect."""

from typing import Any

import pytest

from common.canonical.events import Completed, Event, Finished, FinishReason, Started, TextDelta, Usage
from common.dialects import DIALECTS
from tests.contracts.test_citations import BODIES, encode

# Where each dialect has the two figures: read, written.
PLACES: dict[str, tuple[str, str]] = {
    "openai-chat": ("prompt_tokens_details.cached_tokens", "prompt_tokens_details.cache_write_tokens"),
    "openai-responses": ("input_tokens_details.cached_tokens", "input_tokens_details.cache_write_tokens"),
    "anthropic-messages": ("cache_read_input_tokens", "cache_creation_input_tokens"),
    "unified": ("prompt_tokens_details.cached_tokens", "prompt_tokens_details.cache_write_tokens"),
    "agentary": ("cacheReadTokens", "cacheWriteTokens"),
}


def answer(**usage: int) -> list[Event]:
    return [Started(), TextDelta("hi"), Finished(FinishReason.STOP), Completed(Usage(100, 5, **usage))]


def usage_of(answer: dict[str, Any]) -> dict[str, Any]:
    return answer.get("usage") or answer.get("response", {}).get("usage") or {}


def figure(usage: dict[str, Any], place: str) -> Any:
    for name in place.split("."):
        usage = usage.get(name, {})
    return usage


@pytest.mark.parametrize("dialect", DIALECTS)
def test_reads_and_writes_are_told(dialect: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BODIES["openai-chat"], "stream_options", {"include_usage": True})
    stream, whole = encode(dialect, answer(cache_read_tokens=60, cache_write_tokens=7))

    streamed = [usage for event in stream if (usage := usage_of(event))][-1]
    for usage in (streamed, usage_of(whole)):
        assert [figure(usage, place) for place in PLACES[dialect]] == [60, 7]


@pytest.mark.parametrize("dialect", ["unified", "agentary"])
def test_our_own_dialects_have_no_such_figures_without_a_cache(dialect: str) -> None:
    usage = usage_of(encode(dialect, answer())[1])

    assert len(usage) == 3  # The prompt, the answer, and their sum.
