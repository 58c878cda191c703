"""One job whose answer breaks off behind its first token, on a channel in memory and a real demo provider over HTTP."""

from dataclasses import replace
from typing import Any

import orjson
import pytest

from common.canonical.events import Usage
from common.channel.base import Append, Claim, Frame, FrameId, FrameKind
from common.config.groups.models import ProviderSettings
from common.dialects import DIALECTS
from common.dialects.base import Progress, ReplyInfo
from common.sse import split_blocks
from common.vendors.prefill import find_prefill
from demo_provider.script import answer
from tests.support.clients import sdk_clients, seed_clients
from tests.workers.test_generate import G, Setup, setup  # noqa: F401 - a fixture.
from workers.continuation.continuation import CONTINUATIONS_MAX, Continuation, Past
from workers.providers.base import Deployment

READERS = {
    "openai-chat": sdk_clients.openai_stream,
    "openai-responses": sdk_clients.responses_stream,
    "anthropic-messages": sdk_clients.anthropic_stream,
    "agentary": seed_clients.agentary_stream,
    "unified": seed_clients.unified_stream,
}
MORE: dict[str, dict[str, Any]] = {
    "openai-chat": {"stream_options": {"include_usage": True}},
    "openai-responses": {"messages": None, "input": "hi"},
    "anthropic-messages": {"max_tokens": 10_000},
    "agentary": {"provider": "demo"},
    "unified": {"provider": "demo"},
}
# On its own wire an answer is passed through until it breaks off, on the other encoded.
MODELS = {"openai": "demo-n{}-d0", "anthropic": "anthropic/claude-3-n{}-d0"}
every_dialect = pytest.mark.parametrize("dialect", READERS)


@pytest.fixture
def demo(setup: Setup) -> Setup:  # noqa: F811
    setup.services.settings.providers["anthropic"].base_url = setup.address
    return setup


async def open_as(setup: Setup, dialect: str, model: str, **body: Any) -> None:  # noqa: F811
    more = dict(MORE[dialect])
    if model.startswith("anthropic/"):
        more.pop("provider", None)
        if dialect in ("agentary", "unified"):
            more["provider"], model = "anthropic", model.removeprefix("anthropic/")
    await setup.open(model, dialect=dialect, **{**more, **body})


async def lose(setup: Setup, data: list[bytes], epoch: int = 1, **head: Any) -> None:  # noqa: F811
    """Leave the log as a worker does that is killed: a head, and these frames of data."""
    claim = Claim(G, epoch, f"lost{epoch}")
    await setup.channel.fence(claim, is_handover=False)
    first = Frame(FrameId(epoch, 1), FrameKind.HEAD, orjson.dumps({"headers": {}, "tries": 1, **head}))
    frames = [first, *(Frame(FrameId(epoch, n), FrameKind.DATA, each) for n, each in enumerate(data, start=2))]
    await setup.channel.append([Append(claim, FrameId(epoch, 0), frames)])


async def whole_answer(setup: Setup, dialect: str, model: str) -> list[bytes]:  # noqa: F811
    await open_as(setup, dialect, model)
    await setup.run()
    return split_blocks(await setup.body())


@every_dialect
@pytest.mark.parametrize("family", MODELS)
async def test_a_lost_worker_s_answer_goes_on_behind_every_event(demo, dialect, family):
    model = MODELS[family].format(12)
    blocks = await whole_answer(demo, dialect, model)
    for k in range(len(blocks) + 1):
        await open_as(demo, dialect, model)
        await lose(demo, blocks[:k])

        await demo.run(epoch=2)

        body = await demo.body()
        seen = READERS[dialect](body)
        assert seen.text == answer(12), k
        assert (await demo.end())["error"] is None
        assert body.startswith(b"".join(blocks[:k]))
        assert seen.output_tokens == (await demo.end())["usage"]["output_tokens"]


@every_dialect
@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("fault", ["cut5x1", "end5x1", "err5x1", "cut5x1-end4x1-err3x1"])
async def test_a_lost_upstream_s_answer_goes_on(demo, dialect, family, fault):
    paced = MODELS[family].format(20).replace("-d0", "-d5")  # An error in one read with all before it would be retried unseen.
    await open_as(demo, dialect, f"{paced}-{fault}")

    await demo.run()

    assert READERS[dialect](await demo.body()).text == answer(20)
    end = await demo.end()
    assert (end["error"], end["finish_reason"], end["estimated"]) == (None, "stop", True)
    assert end["tries"] == 1 + fault.count("x1")
    assert end["usage"]["output_tokens"] >= 20


@pytest.mark.parametrize("setup", [{"between_tokens_timeout_s": 0.1}], indirect=True)
async def test_a_silent_upstream_s_answer_goes_on(demo):
    await open_as(demo, "openai-chat", "demo-n20-d0-stall5x1")

    await demo.run()

    assert READERS["openai-chat"](await demo.body()).text == answer(20)


async def test_an_answer_goes_on_only_so_often(demo):
    await open_as(demo, "openai-chat", "demo-n100-d0-cut5")

    await demo.run()

    assert (await demo.end())["error"]["kind"] == "upstream_unavailable"
    assert (await demo.stats())["requests"] == 1 + CONTINUATIONS_MAX
    assert b"[DONE]" not in await demo.body()


async def test_what_another_worker_went_on_with_counts(demo):
    blocks = await whole_answer(demo, "openai-chat", "demo-n20-d0")
    await open_as(demo, "openai-chat", "demo-n20-d0")
    await lose(demo, blocks[:4], continuations=CONTINUATIONS_MAX, spent={"input_tokens": 5, "output_tokens": 7})

    await demo.run(epoch=2)

    end = await demo.end()
    assert end["error"]["code"] == "worker_lost"
    assert end["usage"]["output_tokens"] > 7


async def test_a_stream_that_was_complete_is_only_ended(demo):
    blocks = await whole_answer(demo, "openai-chat", "demo-n5-d0")
    before = await demo.stats()
    await open_as(demo, "openai-chat", "demo-n5-d0")
    await lose(demo, blocks)

    await demo.run(epoch=2)

    end = await demo.end()
    assert (end["error"], end["usage"]["output_tokens"], end["estimated"]) == (None, 5, False)
    assert await demo.body() == b"".join(blocks)
    assert (await demo.stats())["requests"] == before["requests"]


@pytest.mark.parametrize(
    ("model", "body"),
    [
        ("demo-n20-d0", {"n": 2}),
        ("demo-n20-d0", {"response_format": {"type": "json_object"}}),
        ("demo-n20-d0", {"logprobs": True}),
        ("demo-n20-d0-think10", {}),
        ("demo-tool", {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]}),
        ("openai/demo-n20-d0", {}),  # OpenAI takes no prefill.
        ("anthropic/claude-opus-4-6-n20-d0", {}),  # Nor does this one.
    ],
)
async def test_what_cannot_go_on_ends_in_its_error(demo, model, body):
    demo.services.settings.providers["openai"].api_keys = demo.services.settings.providers["openai"].api_keys[1:]
    await open_as(demo, "openai-chat", f"{model}-cut2", **body)

    await demo.run()

    assert (await demo.end())["error"]["kind"] == "upstream_unavailable"
    assert (await demo.stats())["requests"] == 1


async def test_what_is_not_streamed_starts_over(demo):
    await open_as(demo, "openai-chat", "demo-n5-d0", stream=False)
    await lose(demo, [b'{"id":"half an ans'])

    await demo.run(epoch=2)

    last = max(frame.id.epoch for frame in await demo.frames())
    pieces = [frame.data for frame in await demo.frames() if frame.kind is FrameKind.DATA and frame.id.epoch == last]
    assert orjson.loads(b"".join(pieces))["choices"][0]["message"]["content"] == answer(5)


async def test_the_limit_of_tokens_shrinks_by_what_was_said(demo):
    blocks = await whole_answer(demo, "openai-chat", "demo-n40-d0")
    for k, finish in [(4, "length"), (30, "length")]:
        await open_as(demo, "openai-chat", "demo-n40-d0", max_tokens=12)
        await lose(demo, blocks[:k])

        await demo.run(epoch=2)

        seen = READERS["openai-chat"](await demo.body())
        assert seen.finish == finish
        assert answer(40).startswith(seen.text)


async def test_an_instruction_is_asked_for_where_the_settings_say_so(demo):
    demo.services.settings.providers["openai"] = ProviderSettings(
        base_url=f"{demo.address}/v1", api_keys=("good-key",), continuation="instruction"
    )
    await open_as(demo, "openai-chat", "openai/demo-n20-d0-cut10x1")

    await demo.run()

    assert (await demo.end())["error"] is None
    # The demo provider knows nothing of instructions: it says its answer from the start, which is an echo.
    assert READERS["openai-chat"](await demo.body()).text == answer(20)


@pytest.mark.parametrize(
    ("provider", "chosen", "url", "message", "body"),
    [
        ("mistral", None, "https://x.example/v1/chat/completions", {"prefix": True}, {}),
        ("deepseek", None, "https://x.example/beta/chat/completions", {"prefix": True}, {}),
        (
            "lab",
            "prefill",
            "https://x.example/v1/chat/completions",
            {},
            {"continue_final_message": True, "add_generation_prompt": False},
        ),
    ],
)
def test_a_prefill_is_marked_as_its_server_wants_it(provider, chosen, url, message, body):
    dialect, info = DIALECTS["openai-chat"], ReplyInfo(G, "m", 1)
    asked = dialect.parse({"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 10})
    progress = Progress("It is ", is_plain=True, encoder=dialect.encoder(asked, info))
    past = Past(asked, progress, Usage(), 0, True, 1, None, [], provider, "")
    deployment = Deployment(provider, "https://x.example/v1", "k", "m", "openai-chat")

    request, _ = Continuation(deployment, find_prefill(provider, "m", "openai-chat", chosen)).prepare(past, dialect, info)

    sent = orjson.loads(request.body)
    assert request.url == url
    assert sent["messages"][-1] == {"role": "assistant", "content": "It is", **message}
    assert {name: sent.get(name) for name in body} == body
    assert sent["max_tokens"] == 8


def past_of(messages: list[dict[str, Any]], text: str, **more: Any) -> tuple[Past, ReplyInfo]:
    dialect, info = DIALECTS["openai-chat"], ReplyInfo(G, "m", 1)
    request = dialect.parse({"model": "m", "messages": messages, **more})
    progress = Progress(text, is_plain=True, encoder=dialect.encoder(request, info))
    return Past(request, progress, Usage(), [], 0, 1, None, [], "lab", "up/1"), info


def rest_of(continuation: Continuation, past: Past, info: ReplyInfo) -> Any:
    request, _ = continuation.prepare(past, DIALECTS["openai-chat"], info)
    return request


LAB = Deployment("lab", "https://x.example/v1", "k", "m", "openai-chat", headers={"x-org": "ours"})


def test_what_the_client_began_itself_and_what_the_model_said_are_one_text():
    past, info = past_of([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "It "}], "is late ")

    request = rest_of(Continuation(LAB, find_prefill("lab", "m", "openai-chat", "prefill")), past, info)

    assert orjson.loads(request.body)["messages"] == [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "It is late"},
    ]


def test_only_the_last_message_is_marked_as_a_prefill():
    turns = [{"role": role, "content": role} for role in ("user", "assistant", "user")]
    past, info = past_of(turns, "It is")

    sent = orjson.loads(rest_of(Continuation(LAB, find_prefill("mistral", "m", "openai-chat", None)), past, info).body)

    assert sent["messages"] == [*turns, {"role": "assistant", "content": "It is", "prefix": True}]


def test_without_a_prefill_the_model_is_asked_to_go_on():
    past, info = past_of([{"role": "user", "content": "hi"}], "It is")

    request = rest_of(Continuation(LAB), past, info)

    messages = orjson.loads(request.body)["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant", "user"]
    assert messages[1]["content"] == "It is"
    assert "max_tokens" not in orjson.loads(request.body)


def test_where_nothing_was_said_the_request_is_sent_again_as_it_was():
    past, info = past_of([{"role": "user", "content": "hi"}], " ", max_tokens=7)

    sent = orjson.loads(rest_of(Continuation(LAB), past, info).body)

    assert (sent["messages"], sent["max_tokens"]) == ([{"role": "user", "content": "hi"}], 7)


def test_at_least_one_token_is_left_to_a_rest():
    past, info = past_of([{"role": "user", "content": "hi"}], "x" * 400, max_tokens=7)

    assert orjson.loads(rest_of(Continuation(LAB), past, info).body)["max_tokens"] == 1


@pytest.mark.parametrize(("key", "authorization"), [("k", {"authorization": "Bearer k"}), ("", {})])
def test_an_answer_that_its_server_still_has_is_read_by_its_id(key, authorization):
    past, info = past_of([{"role": "user", "content": "hi"}], "It is")

    request = rest_of(Continuation(replace(LAB, api_key=key), reattaches=True), past, info)

    assert (request.method, request.url, request.body) == ("GET", "https://x.example/v1/generations/up%2F1", b"")
    assert request.headers == {"x-org": "ours", "accept": "text/event-stream", "accept-encoding": "identity", **authorization}


@pytest.mark.parametrize(
    ("provider", "model", "takes"),
    [
        ("anthropic", "claude-3-haiku-20240307", True),
        ("anthropic", "claude-3-7-sonnet-latest", True),
        ("anthropic", "claude-sonnet-4-20250514", True),
        ("anthropic", "claude-opus-4-1-20250805", True),
        ("anthropic", "claude-haiku-4-5", True),
        ("anthropic", "claude-sonnet-4-5-20250929", True),
        ("anthropic", "claude-opus-4-6", False),
        ("anthropic", "claude-sonnet-5-5", False),
        ("anthropic", "claude-opus-10", False),
        ("openai", "gpt-5", False),
    ],
)
def test_who_takes_a_prefill_is_data(provider, model, takes):
    wire = "anthropic-messages" if provider == "anthropic" else "openai-chat"

    assert (find_prefill(provider, model, wire, None) is not None) == takes
    assert find_prefill(provider, model, wire, "none") is None
