"""In which order vendors of chat completions get a conversation's roles."""

from typing import Any

import pytest

from common.vendors.models import UNKNOWN, ModelFacts
from workers.providers.shared.roles import fit_roles


def say(*words: str) -> list[dict[str, Any]]:
    """Return messages: ``say("user hi")``."""
    return [{"role": role, "content": content} for role, _, content in (word.partition(" ") for word in words)]


def test_without_facts_the_messages_stay():
    messages = say("developer d", "user u", "system s", "assistant a")

    assert fit_roles(messages, UNKNOWN) is messages


def test_a_developer_is_a_system_where_the_role_is_not_known():
    assert fit_roles(say("developer d", "user u"), ModelFacts(developer_role=False)) == say("system d", "user u")


def test_later_system_messages_keep_their_place():
    messages = say("system a", "system b", "user u", "system c", "user v")

    assert fit_roles(messages, ModelFacts(system_position="leading")) == say(
        "system a", "system b", "user u", "user c", "user v"
    )
    assert fit_roles(messages, ModelFacts(system_position="first")) == say("system a\n\nb", "user u", "user c", "user v")


def test_parts_are_joined_as_parts():
    part = {"type": "text", "text": "b"}
    messages = [*say("system a"), {"role": "system", "content": [part]}, *say("user u")]

    joined = fit_roles(messages, ModelFacts(system_position="first"))[0]

    assert joined == {"role": "system", "content": [{"type": "text", "text": "a"}, part]}


def test_an_assistant_stands_between_a_result_and_the_user():
    facts = ModelFacts(user_after_tool=False, system_position="leading")
    roles = [message["role"] for message in fit_roles(say("user u", "assistant a", "tool r", "tool r", "system s"), facts)]

    assert roles == ["user", "assistant", "tool", "tool", "assistant", "user"]


def test_roles_alternate_where_they_must():
    facts = ModelFacts(roles_alternate=True)
    messages = [
        *say("user u", "user v", "assistant a"),
        {"role": "assistant", "content": None, "tool_calls": [1]},
        *say("tool r"),
    ]

    assert fit_roles(messages, facts) == [
        *say("user u\n\nv"),
        {"role": "assistant", "content": "a", "tool_calls": [1]},
        *say("tool r"),
    ]


@pytest.mark.parametrize(("last", "is_prefill"), [("assistant {", True), ("assistant ", False), ("user x", False)])
def test_only_the_beginning_of_an_answer_is_marked(last, is_prefill):
    messages = fit_roles(say("user u", "assistant a", "user v", last), ModelFacts(prefill_flag="prefix"))

    assert [message.get("prefix", False) for message in messages] == [False, False, False, is_prefill]
