import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.cache.key import comparable_body, request_key

BODY = {"model": "m", "messages": [{"role": "user", "content": "Hello"}], "temperature": 0}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"cache_control": {}}}}}


def key(body, dialect="openai-chat", shared_with=("key", "k", ""), route=("openai/m",), **others):
    return request_key(dialect, body, shared_with=shared_with, route=route, others=others)


def chat(*parts):
    return {**BODY, "messages": [{"role": "user", "content": list(parts)}]}


@pytest.mark.parametrize(
    ("dialect", "one", "other"),
    [
        ("openai-chat", BODY, dict(reversed(BODY.items()))),
        ("openai-chat", BODY, {**BODY, "user": "u", "metadata": {"a": "b"}, "prompt_cache_key": "c", "store": True}),
        ("openai-chat", BODY, {**BODY, "top_p": None}),
        ("openai-chat", BODY, {**BODY, "stream": True}),  # The caller says whether it streams: the query may, too.
        ("openai-chat", BODY, chat({"type": "text", "text": "Hello"})),
        ("openai-chat", BODY, chat({"type": "text", "text": "Hello", "cache_control": {"type": "ephemeral"}})),
        ("anthropic-messages", {**BODY, "system": "s"}, {**BODY, "system": [{"type": "text", "text": "s"}]}),
        (
            "anthropic-messages",
            {**BODY, "tools": [TOOL]},
            {**BODY, "tools": [{**TOOL, "cache_control": {"type": "ephemeral"}}]},
        ),
        ("anthropic-messages", BODY, {**BODY, "metadata": {"user_id": "u"}}),
        ("openai-responses", {"input": "a"}, {"input": "a", "client_metadata": {"x": "y"}}),
    ],
)
def test_what_does_not_change_the_answer_does_not_change_the_key(dialect, one, other):
    assert key(one, dialect) == key(other, dialect)


@pytest.mark.parametrize(
    "other",
    [
        {**BODY, "temperature": 0.1},
        {**BODY, "messages": [{"role": "user", "content": "Hello "}]},
        {**BODY, "messages": [{"role": "system", "content": "Hello"}]},
        {**BODY, "model": "alias-of-m"},
        {**BODY, "tools": [TOOL]},
        {**BODY, "tool_choice": "none"},
        {**BODY, "a_field_of_tomorrow": 1},
        {**BODY, "stream_options": {"include_usage": True}},
        chat({"type": "text", "text": "Hello"}, IMAGE),
        chat({"type": "file", "file": {"file_data": "data:application/pdf;base64,AAAA"}}),
        {**BODY, "messages": [*BODY["messages"], {"role": "tool", "tool_call_id": "1", "content": "42"}]},
    ],
)
def test_what_may_change_the_answer_changes_the_key(other):
    assert key(other) != key(BODY)


@pytest.mark.parametrize(
    ("path", "values"),
    [
        (("messages", 0, "content", 1, "image_url", "url"), ("data:image/png;base64,AAAA", "data:image/png;base64,AAAB")),
        (("tools", 0, "function", "parameters", "properties", "cache_control"), ({}, {"type": "string"})),
        (("messages", 1, "content"), ("41", "42")),
    ],
)
def test_images_tools_and_results_are_parts_of_the_key(path, values):
    keys = set()
    for value in values:
        body = chat({"type": "text", "text": "Hello"}, dict(IMAGE, image_url=dict(IMAGE["image_url"])))
        body["messages"].append({"role": "tool", "tool_call_id": "1", "content": "41"})
        body["tools"] = [{"type": "function", "function": {"parameters": {"properties": {"cache_control": {}}}}}]
        place = body
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = value
        keys.add(key(body))
    assert len(keys) == 2


def test_keys_differ_by_dialect_scope_route_and_everything_else_that_the_answer_depends_on():
    keys = {
        key(BODY),
        key(BODY, "unified"),
        key(BODY, shared_with=("tenant", "k", "")),
        key(BODY, shared_with=("key", "k2", "")),
        key(BODY, shared_with=("key", "k", "digest of the client's own provider key")),
        key(BODY, route=("azure/m",)),
        key(BODY, route=("openai/m", "azure/m")),
        key(BODY, stream=True),
        key(BODY, headers={"anthropic-beta": "x"}),
        key(BODY, guardrails={"pii": "block"}),
    }
    assert len(keys) == 10


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=150)
@given(st.dictionaries(st.sampled_from(["messages", "input", "tools", "system", "x"]), JSON, max_size=4))
def test_any_json_has_a_key_and_comparing_twice_changes_nothing(body):
    comparable = comparable_body("openai-chat", body)

    assert comparable_body("openai-chat", comparable) == comparable
    assert key(body) == key(comparable)
