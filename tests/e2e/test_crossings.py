"""Each client dialect on each upstream wire, streaming and not: what the client reads, and what the upstream was sent."""

import itertools
import json
import re
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from demo_provider.script import answer, reasoning_words, refusal
from tests.support.clients import sdk_clients
from tests.support.clients.sdk_clients import ClientAnswer
from tests.support.fleet import CHAT, DIALECTS, FAMILY_OF, MESSAGES, PATH_OF, Fleet, body_of, sse_events

PROVIDERS = ("openai", "anthropic")
WORDS = {  # How each dialect says why an answer ended.
    CHAT: {"stop": "stop", "sequence": "stop", "length": "length", "tools": "tool_calls"},
    MESSAGES: {"stop": "end_turn", "sequence": "stop_sequence", "length": "max_tokens", "tools": "tool_use"},
}
READ = {
    (CHAT, True): sdk_clients.openai_stream,
    (CHAT, False): sdk_clients.openai_whole,
    (MESSAGES, True): sdk_clients.anthropic_stream,
    (MESSAGES, False): sdk_clients.anthropic_whole,
}
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
PHOTO = "https://images.example/photo.png"
WEATHER = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
CLOCK = {"type": "object", "properties": {"zone": {"type": "string"}}, "required": ["zone"]}


@dataclass
class Crossing:
    """A dialect on a provider. ``ask`` returns what the SDK of the dialect reads in the answer."""

    fleet: Fleet
    dialect: str
    provider: str
    stream: bool

    @property
    def is_chat(self) -> bool:
        return self.dialect == CHAT

    @property
    def is_same_family(self) -> bool:
        return FAMILY_OF[self.dialect] == self.provider

    def finish(self, why: str) -> str:
        return WORDS[self.dialect][why]

    def body(self, spec: str, **more: Any) -> dict[str, Any]:
        usage = {"stream_options": {"include_usage": True}} if self.is_chat and self.stream else {}
        return body_of(self.dialect, f"{self.provider}/demo-d0-{spec}", stream=self.stream, **{**usage, **more})

    def send(self, body: dict[str, Any], **headers: str) -> httpx.Response:
        response = self.fleet.post(self.dialect, body, **headers)
        assert response.status_code == 200, response.text
        return response

    def ask(self, spec: str, **more: Any) -> ClientAnswer:
        return READ[self.dialect, self.stream](self.send(self.body(spec, **more)).content)

    def sent(self) -> dict[str, Any]:
        """What the upstream was sent last."""
        return self.fleet.upstream_requests()[-1]["body"]

    def tools(self) -> list[dict[str, Any]]:
        named = {"get_weather": WEATHER, "get_time": CLOCK}
        if self.is_chat:
            return [{"type": "function", "function": {"name": name, "parameters": of}} for name, of in named.items()]
        return [{"name": name, "input_schema": of} for name, of in named.items()]


@pytest.fixture(
    params=itertools.product(DIALECTS, PROVIDERS, (True, False)),
    ids=lambda p: f"{p[0]}-on-{p[1]}-{'stream' if p[2] else 'whole'}",
)
def crossing(request: pytest.FixtureRequest, shared: Fleet) -> Crossing:
    return Crossing(shared, *request.param)


@pytest.fixture(params=itertools.product(DIALECTS, (True, False)), ids=lambda p: f"{p[0]}-{'stream' if p[1] else 'whole'}")
def same_family(request: pytest.FixtureRequest, shared: Fleet) -> Crossing:
    dialect, stream = request.param
    return Crossing(shared, dialect, FAMILY_OF[dialect], stream)


# What the client reads


@pytest.mark.parametrize("tokens", [1, 20, 120])  # 120: past the sample, where a token begins with U+2028.
def test_the_text_arrives_whole(crossing: Crossing, tokens: int):
    seen = crossing.ask(f"n{tokens}")

    assert seen.text == answer(tokens)
    assert seen.finish == crossing.finish("stop")


def test_an_empty_answer_is_an_answer_of_claude_only(crossing: Crossing):
    if crossing.provider == "anthropic":
        seen = crossing.ask("n0")
        assert (seen.text, seen.finish) == ("", crossing.finish("stop"))
        return

    refused = crossing.fleet.post(crossing.dialect, crossing.body("n0"))

    assert refused.status_code == 502
    assert "empty" in refused.text
    assert [request["body"]["model"] for request in crossing.fleet.upstream_requests()[-2:]] == ["demo-d0-n0"] * 2


def test_usage_is_the_upstreams(crossing: Crossing):
    body = crossing.body("n20", text="four words of prompt")

    seen = READ[crossing.dialect, crossing.stream](crossing.send(body).content)

    # The demo counts the prompt as it gets it, and one word is the role.
    assert (seen.input_tokens, seen.output_tokens) == (
        5 if isinstance(crossing.sent()["messages"][0]["content"], str) else 6,
        20,
    )


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("dialect", DIALECTS)
def test_usage_is_the_same_in_a_stream_and_in_a_whole_reply(shared: Fleet, dialect: str, provider: str):
    found = [Crossing(shared, dialect, provider, stream).ask("think3-n9") for stream in (True, False)]

    assert len({(seen.input_tokens, seen.output_tokens) for seen in found}) == 1
    assert found[0].output_tokens == 12


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_chat_stream_has_a_usage_chunk_only_if_it_was_asked_for(shared: Fleet, provider: str):
    body = body_of(CHAT, f"{provider}/demo-n5-d0", stream=True)

    plain = sse_events(shared.post(CHAT, body).text)
    with_usage = sse_events(shared.post(CHAT, {**body, "stream_options": {"include_usage": True}}).text)

    assert not [event for event in plain[:-1] if event.fields["choices"] == []]
    assert not [event for event in plain[:-1] if event.fields.get("usage")]
    assert [event.fields["choices"] == [] for event in with_usage[:-1]] == [False] * (len(with_usage) - 2) + [True]
    assert plain[-1].data == with_usage[-1].data == "[DONE]"


def test_a_stop_sequence_ends_the_answer(crossing: Crossing):
    stop = "patient"
    seen = crossing.ask("n20", **({"stop": [stop]} if crossing.is_chat else {"stop_sequences": [stop]}))

    assert seen.text == answer(20).partition(stop)[0]
    # Chat completions do not tell which end it was, so neither can a messages answer that comes from them.
    assert seen.finish == crossing.finish("stop" if crossing.provider == "openai" else "sequence")


def test_the_token_limit_ends_the_answer(crossing: Crossing):
    seen = crossing.ask("n20", max_tokens=7)

    assert (seen.text, seen.finish, seen.output_tokens) == (answer(7), crossing.finish("length"), 7)


def test_a_limit_that_only_the_upstream_knows_is_told(crossing: Crossing):
    assert crossing.ask("n5-len").finish == crossing.finish("length")


def test_thinking_comes_before_the_text(crossing: Crossing):
    seen = crossing.ask("think6-n8")

    assert (seen.thinking, seen.text) == ("".join(reasoning_words(6)), answer(8))
    assert seen.finish == crossing.finish("stop")


def test_a_refusal_is_told_apart_from_an_answer(crossing: Crossing):
    seen = crossing.ask("refuse")

    assert seen.text + seen.refusal == "".join(refusal())
    if crossing.is_chat:
        # Messages have no field for a refusal's text, only the reason to stop.
        assert (seen.refusal != "", seen.finish) == ((True, "stop") if crossing.is_same_family else (False, "content_filter"))
    else:
        assert seen.finish == "refusal"


# Conversations


def _said(body: dict[str, Any]) -> list[tuple[str, str]]:
    """A conversation as an upstream was told it, system prompt first; the same for both wires."""
    system = [("system", _text(body["system"]))] if "system" in body else []
    return system + [(message["role"], _text(message["content"])) for message in body["messages"]]


def _text(content: Any) -> str:
    return content if isinstance(content, str) else "".join(block["text"] for block in content)


def test_the_system_prompt_and_the_turns_reach_the_upstream(crossing: Crossing):
    turns = [("user", "hi"), ("assistant", "hello"), ("user", "and now?")]
    messages = [{"role": role, "content": text} for role, text in turns]
    if crossing.is_chat:
        seen = crossing.ask("n3", messages=[{"role": "system", "content": "Be brief."}, *messages])
    else:
        seen = crossing.ask("n3", messages=messages, system="Be brief.")

    assert seen.text == answer(3)
    assert _said(crossing.sent()) == [("system", "Be brief."), *turns]


def test_a_system_prompt_may_be_a_list_of_blocks(crossing: Crossing):
    blocks = [{"type": "text", "text": "Be brief."}]
    messages = [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]
    if crossing.is_chat:
        crossing.ask("n3", messages=[{"role": "developer", "content": blocks}, *messages])
    else:
        crossing.ask("n3", messages=messages, system=blocks)

    system, user = _said(crossing.sent())
    assert system[0] in ("system", "developer")
    assert (system[1], user) == ("Be brief.", ("user", "hi"))


# Tools


def test_a_tool_is_called_with_its_arguments(crossing: Crossing):
    seen = crossing.ask("tool", tools=crossing.tools())

    ((id_, name, arguments),) = seen.calls
    assert (name, arguments, seen.finish) == ("get_weather", {"city": "Zürich"}, crossing.finish("tools"))
    assert id_


def test_two_tools_are_called_at_once(crossing: Crossing):
    seen = crossing.ask("tool2", tools=crossing.tools())

    assert [call[1:] for call in seen.calls] == [("get_weather", {"city": "Zürich"}), ("get_time", {"zone": "demo"})]
    assert len({call[0] for call in seen.calls}) == 2


def test_an_agent_loop_runs_to_its_end(crossing: Crossing):
    # The model calls two tools…
    calls = crossing.ask("tool2-think4", tools=crossing.tools()).calls
    # … the client answers both, with the ids that it was given…
    results = list(zip([call[0] for call in calls], ["18 degrees", "noon"], strict=True))
    if crossing.is_chat:
        own = [
            {"id": id_, "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
            for id_, name, arguments in calls
        ]
        more = [{"role": "assistant", "content": None, "tool_calls": own}]
        more += [{"role": "tool", "tool_call_id": id_, "content": text} for id_, text in results]
    else:
        own = [{"type": "tool_use", "id": id_, "name": name, "input": arguments} for id_, name, arguments in calls]
        told = [{"type": "tool_result", "tool_use_id": id_, "content": text} for id_, text in results]
        more = [{"role": "assistant", "content": own}, {"role": "user", "content": told}]
    seen = crossing.ask("tool2-think4", tools=crossing.tools(), messages=[{"role": "user", "content": "hi"}, *more])

    # … and the model makes an answer of it.
    assert (seen.text, seen.calls) == ("The tool answered: 18 degrees, noon", [])
    assert seen.finish == crossing.finish("stop")
    assert _results(crossing.sent()) == results


def _results(body: dict[str, Any]) -> list[tuple[str, str]]:
    """The tool results of a conversation as an upstream was told it."""
    found = [(item["tool_call_id"], item["content"]) for item in body["messages"] if item["role"] == "tool"]
    blocks = [block for item in body["messages"] if isinstance(item["content"], list) for block in item["content"]]
    return found + [(each["tool_use_id"], _text(each["content"])) for each in blocks if each["type"] == "tool_result"]


@pytest.mark.parametrize("mode", ["auto", "none", "required", "named"])
def test_the_tool_choice_reaches_the_upstream(crossing: Crossing, mode: str):
    chat = {"named": {"type": "function", "function": {"name": "get_time"}}}.get(mode, mode)
    messages = {"required": {"type": "any"}, "named": {"type": "tool", "name": "get_time"}}.get(mode, {"type": mode})

    seen = crossing.ask("tool-n4", tools=crossing.tools(), tool_choice=chat if crossing.is_chat else messages)

    assert crossing.sent()["tool_choice"] == (chat if crossing.provider == "openai" else messages)
    assert bool(seen.calls) == (mode != "none")
    assert seen.text == (answer(4) if mode == "none" else "")


# Images


@pytest.mark.parametrize("kind", ["data", "url"])
def test_an_image_reaches_the_upstream(crossing: Crossing, kind: str):
    data_url = f"data:image/png;base64,{PIXEL}"
    chat = {"type": "image_url", "image_url": {"url": data_url if kind == "data" else PHOTO}}
    source = {"type": "base64", "media_type": "image/png", "data": PIXEL} if kind == "data" else {"type": "url", "url": PHOTO}
    messages = {"type": "image", "source": source}
    content = [{"type": "text", "text": "what is this?"}, chat if crossing.is_chat else messages]

    seen = crossing.ask("n4", messages=[{"role": "user", "content": content}])

    assert seen.text == answer(4)
    sent = crossing.sent()["messages"][0]["content"]
    assert sent == [{"type": "text", "text": "what is this?"}, chat if crossing.provider == "openai" else messages]


# What only one family has

SEARCH = {"type": "web_search_20250305", "name": "web_search"}


def test_a_json_schema_is_obeyed(crossing: Crossing):
    schema = {"type": "object", "properties": {"city": {"type": "string"}, "warm": {"type": "boolean"}}}
    if crossing.is_chat:
        wanted = {"response_format": {"type": "json_schema", "json_schema": {"name": "report", "schema": schema}}}
    else:
        wanted = {"output_config": {"format": {"type": "json_schema", "schema": schema}}}

    assert json.loads(crossing.ask("n4", **wanted).text) == {"city": "Zürich", "warm": True}


@pytest.mark.parametrize(
    ("dialect", "provider", "more", "path"),
    [
        (CHAT, "anthropic", {"n": 2}, "n"),
        (CHAT, "anthropic", {"logprobs": True}, "logprobs"),
        (MESSAGES, "openai", {"mcp_servers": [{"type": "url", "url": "https://x.example", "name": "x"}]}, "mcp_servers"),
        (MESSAGES, "openai", {"tools": [SEARCH], "tool_choice": {"type": "any"}}, "tools.0"),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_what_the_other_wire_cannot_say_is_refused_by_name(
    shared: Fleet, dialect: str, provider: str, more: dict[str, Any], path: str, stream: bool
):
    shared.reset_demo()

    response = shared.post(dialect, body_of(dialect, f"{provider}/demo-n3-d0", stream=stream, **more))

    assert response.status_code == 400
    assert path in response.json()["error"]["message"]
    assert shared.stats()["requests"] == 0


@pytest.mark.parametrize("stream", [True, False])
def test_what_an_answer_can_do_without_is_left_out_and_named(shared: Fleet, stream: bool):
    shared.reset_demo()
    more = {"tools": [SEARCH], "context_management": {"edits": []}, "top_k": 3}

    response = shared.post(MESSAGES, body_of(MESSAGES, "openai/demo-n3-d0", stream=stream, **more))

    assert response.status_code == 200
    assert set(response.headers["x-sluice-dropped"].split(", ")) >= {"tools.0", "context_management"}
    (sent,) = shared.upstream_requests()
    assert not {"tools", "context_management"} & sent["body"].keys()


# The same family on both sides

_RANDOM = re.compile(
    r'(?<="id":")(?:chatcmpl-|msg_|call_|toolu_)[0-9a-f]+|(?<="created":)\d+|(?<="signature":")[A-Za-z0-9+/=]+'
)


def _fixed(text: str) -> str:
    """The text without what differs from answer to answer."""
    return _RANDOM.sub("…", text)


@pytest.mark.parametrize("spec", ["n1", "n20", "n120", "think5-n7", "tool2", "think3-tool", "refuse", "n9-len"])
def test_the_bytes_of_the_same_family_pass_as_they_came(same_family: Crossing, spec: str):
    body = same_family.body(spec, tools=same_family.tools())
    response = same_family.send(body)
    direct = same_family.fleet.client.post(
        same_family.fleet.demo_url + PATH_OF[same_family.dialect],
        json={**body, "model": body["model"].partition("/")[2]},
        headers={"x-api-key": "any"},
    )

    if same_family.stream:
        assert _fixed(response.text).split("\n\n") == _fixed(direct.text).split("\n\n")
    else:
        assert _fixed(response.text) == _fixed(direct.text)


def test_the_request_of_the_same_family_passes_as_it_came(same_family: Crossing):
    content = [{"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}, "from_tomorrow": {"a": [1, None, 0.5]}}]
    body = same_family.body(
        "n3", messages=[{"role": "user", "content": content}], unknown_field={"b": "ü\u2028"}, temperature=1
    )
    versions = {"anthropic_version": "2026-10-21", "anthropic_beta": "from-tomorrow-2031-01-01", "openai_beta": "assistants=v9"}

    same_family.send(body, **versions)

    request = same_family.fleet.upstream_requests()[-1]
    assert request["body"] == {**body, "model": "demo-d0-n3"}
    passed = ("openai-beta",) if same_family.is_chat else ("anthropic-version", "anthropic-beta")
    assert {name: request["headers"][name] for name in passed} == {name: versions[name.replace("-", "_")] for name in passed}


def test_a_chat_stream_asks_the_upstream_for_usage_even_if_the_client_did_not(shared: Fleet):
    body = body_of(CHAT, "openai/demo-n3-d0", stream=True)

    shared.post(CHAT, body)

    sent = shared.upstream_requests()[-1]["body"]
    assert sent == {**body, "model": "demo-n3-d0", "stream_options": {"include_usage": True}}


def test_a_signed_thought_comes_back_to_the_upstream_unchanged(shared: Fleet):
    body = body_of(MESSAGES, "anthropic/demo-think4-n5-d0")
    content = shared.post(MESSAGES, body).json()["content"]
    turns = [*body["messages"], {"role": "assistant", "content": content}, {"role": "user", "content": "go on"}]

    streamed = sse_events(shared.post(MESSAGES, {**body, "messages": turns, "stream": True}).text)

    assert [block["type"] for block in content] == ["thinking", "text"]
    assert content[0]["signature"]
    assert shared.upstream_requests()[-1]["body"]["messages"] == turns
    deltas = [event.fields["delta"] for event in streamed if event.name == "content_block_delta"]
    assert [delta["signature"] for delta in deltas if delta["type"] == "signature_delta"]


def test_another_familys_thought_is_not_sent_to_an_upstream_that_would_refuse_it(shared: Fleet):
    first = shared.post(MESSAGES, body_of(MESSAGES, "openai/demo-think4-n5-d0")).json()["content"]
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": first}, {"role": "user", "content": "go on"}]

    response = shared.post(MESSAGES, body_of(MESSAGES, "openai/demo-n5-d0", messages=turns))

    assert first[0] == {"type": "thinking", "thinking": "".join(reasoning_words(4)), "signature": ""}
    assert response.status_code == 200
    assert _said(shared.upstream_requests()[-1]["body"]) == [("user", "hi"), ("assistant", answer(5)), ("user", "go on")]
