"""Which requests a fallback's model cannot take as a whole."""

from dataclasses import replace
from typing import Any

import orjson
import pytest

from common.canonical.job import Job, Policy
from common.dialects.base import ReplyInfo
from common.vendors.models import ModelFacts
from workers.attempt.misfits import find_misfit, surely_overflows
from workers.providers.base import Deployment

TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}
FORMAT = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
CHAT = Deployment("p", "http://x", "k", "m", "openai-chat")
CLAUDE = replace(CHAT, provider="anthropic", wire="anthropic-messages")


def asking(text: str = "hi", **more: Any) -> Job:
    body = {"model": "r", "messages": [{"role": "user", "content": text}], **more}
    return Job("g", "r", "openai-chat", "r", False, Policy.STOP, 0, 1, body=orjson.dumps(body))


def with_image(*turns: dict[str, Any]) -> Job:
    return asking(messages=[{"role": "user", "content": [{"type": "text", "text": "what?"}, IMAGE]}, *turns])


def misfit(job: Job, deployment: Deployment = CHAT, *, refused_window: int = 0, dropped: Any = (), **facts: Any) -> str | None:
    info = ReplyInfo("g", "m", 1, "p", orjson.loads(job.body))
    return find_misfit(job, replace(deployment, facts=ModelFacts(**facts)), info, refused_window, dropped)


@pytest.mark.parametrize("deployment", [CHAT, CLAUDE], ids=["its own family", "another"])
def test_a_part_that_the_model_is_known_not_to_take_is_a_misfit(deployment):
    later = [{"role": "assistant", "content": "a pixel"}, {"role": "user", "content": "and?"}]
    assert misfit(asking(tools=[TOOL]), deployment, tools=False) == "tools"
    assert misfit(asking(response_format=FORMAT), deployment, json_schema=False) == "schema"
    assert misfit(with_image(), deployment, reads=[]) == "media"
    assert misfit(with_image(*later), deployment, reads=[]) == "media", "of the history too"
    assert misfit(with_image(*later), deployment, reads=["image"]) is None
    assert misfit(asking(tools=[TOOL], response_format=FORMAT), deployment) is None, (
        "what is not known is for the vendor to say"
    )


def test_what_the_wire_refuses_is_a_misfit_and_what_it_may_lose_is_none():
    assert misfit(asking(n=2), CLAUDE) == "request"
    assert misfit(asking(seed=1, user="u", tools=[{**TOOL, "function": {**TOOL["function"], "strict": True}}]), CLAUDE) is None


def test_a_schema_that_does_not_go_with_tools_is_a_misfit_unless_the_target_lost_it_too():
    job, facts = asking(tools=[TOOL], response_format=FORMAT), {"json_schema_with_tools": False}
    assert misfit(job, **facts) == "schema"
    assert misfit(job, dropped={"response_format"}, **facts) is None


def test_a_window_that_is_no_larger_than_the_one_that_was_too_small_is_a_misfit():
    assert misfit(asking(), refused_window=1_000, context_tokens=1_000) == "window"
    assert misfit(asking(), refused_window=1_000, context_tokens=1_001) is None
    assert misfit(asking(), refused_window=1_000) is None
    assert misfit(asking("word " * 2_000), context_tokens=1_000) == "window"


@pytest.mark.parametrize(("words", "is_sure"), [(1_590, False), (1_600, True)])
def test_an_overflow_is_sure_from_twice_the_window_on(words, is_sure):
    assert surely_overflows(asking("word " * words), ModelFacts(context_tokens=1_000)) == is_sure


def test_what_is_long_but_has_few_tokens_does_not_surely_overflow():
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 50_000}}
    job = asking(messages=[{"role": "user", "content": [image]}])
    assert not surely_overflows(job, ModelFacts(context_tokens=1_000))
    assert not surely_overflows(asking("word " * 9_000), ModelFacts())
