"""An account that cannot read the reasoning in a conversation's history answers without it, and the session goes on."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from common.canonical.errors import ErrorKind, Failed
from common.config.groups.models import ProviderSettings
from tests.support.upstreams.wire_answers import STREAMS, AnswerSpec
from tests.workers.test_generate import Setup, setup  # noqa: F401 - a fixture.
from workers.providers.shared.refused_thoughts import refuses_thoughts

WORDS = {
    "openai": "The encrypted content gA...= could not be verified. Reason: Encrypted content could not be decrypted or parsed.",
    "anthropic": "messages.1.content.0: Invalid `signature` in `thinking` block",
    "google-ai-studio": "Thought signature is not valid.",
}
WIRES = {
    "openai": "openai-responses",
    "anthropic": "anthropic-messages",
    "google-ai-studio": "gemini",
    "deepseek": "openai-responses",
}
SIGNED_BY = {"openai": "openai-responses:", "anthropic": "", "google-ai-studio": "gemini:"}
SEALED = "U0VBTEVE"


class OtherAccount:
    """A vendor that refuses sealed reasoning. ``is_strict``: it refuses the request without it too."""

    def __init__(self, provider: str) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.is_strict = False
        self._provider = provider

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        body = await reader.readexactly(int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0]))
        self.bodies.append(orjson.loads(body))
        answer, status, media_type = STREAMS[WIRES[self._provider]](AnswerSpec(text="Hello")), b"200 OK", b"text/event-stream"
        if SEALED.encode() in body or self.is_strict:
            error = {"type": "invalid_request_error", "message": WORDS[self._provider]}
            answer, status, media_type = orjson.dumps({"error": error}), b"400 Bad Request", b"application/json"
        writer.write(b"HTTP/1.1 %b\r\ncontent-type: %b\r\nconnection: close\r\n" % (status, media_type))
        writer.write(b"content-length: %d\r\n\r\n" % len(answer) + answer)
        await writer.drain()
        writer.close()


@pytest.fixture
async def other_account(setup: Setup, provider: str) -> AsyncIterator[OtherAccount]:  # noqa: F811
    upstream = OtherAccount(provider)
    async with await asyncio.start_server(upstream.serve, "127.0.0.1", 0) as server:
        address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        setup.services.settings.providers[provider] = ProviderSettings(base_url=address, api_keys=("k",))
        yield upstream


def messages_body(provider: str) -> dict[str, Any]:
    thinking = {"type": "thinking", "thinking": "t", "signature": SIGNED_BY[provider] + SEALED}
    call = {"type": "tool_use", "id": "c1", "name": "f", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "c1", "content": "done"}
    turns = [("user", "hi"), ("assistant", [thinking, call]), ("user", [result])]
    return {
        "max_tokens": 5000,
        "thinking": {"type": "enabled", "budget_tokens": 2000},
        "messages": [{"role": role, "content": content} for role, content in turns],
        "tools": [{"name": "f", "input_schema": {"type": "object", "properties": {}}}],
    }


def responses_body() -> dict[str, Any]:
    call = {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "f", "arguments": "{}"}
    sealed = {"type": "reasoning", "summary": [], "encrypted_content": SEALED}
    result = {"type": "function_call_output", "call_id": "c1", "output": "done"}
    return {"input": [{"role": "user", "content": "hi"}, sealed, call, result]}


ASKED = [
    ("openai", "gpt-5.6", "openai-responses", responses_body()),
    ("openai", "gpt-5.6", "anthropic-messages", messages_body("openai")),
    ("anthropic", "claude-sonnet-4-5", "anthropic-messages", messages_body("anthropic")),
    ("google-ai-studio", "gemini-3-pro", "anthropic-messages", messages_body("google-ai-studio")),
]


async def ask(setup: Setup, model: str, dialect: str, body: dict[str, Any]) -> dict[str, Any]:  # noqa: F811
    await setup.open(model, dialect=dialect, stream=True, **body)
    await setup.run()
    return await setup.end()


@pytest.mark.parametrize(("provider", "model", "dialect", "body"), ASKED)
async def test_the_call_is_made_once_more_without_the_reasoning_and_names_it(
    setup,  # noqa: F811
    other_account,
    provider,
    model,
    dialect,
    body,
):
    ended = await ask(setup, f"{provider}/{model}", dialect, body)

    assert ended["error"] is None
    assert b"Hello" in await setup.body()
    refused, answered = (orjson.dumps(sent).decode() for sent in other_account.bodies)
    assert SEALED in refused
    assert SEALED not in answered
    assert "fc_1" not in answered  # The item of this id wants the reasoning before it.
    assert "done" in answered  # The call and its result stay.
    assert "budget_tokens" not in answered  # Anthropic takes no budget in a turn that began without thoughts.
    head = orjson.loads((await setup.frames())[1].data)
    assert "reasoning of the history" in head["headers"]["x-sluice-dropped"]


@pytest.mark.parametrize(("provider", "model", "dialect", "body"), ASKED[:1])
async def test_a_second_refusal_is_the_client_s(setup, other_account, provider, model, dialect, body):  # noqa: F811
    other_account.is_strict = True

    ended = await ask(setup, f"{provider}/{model}", dialect, body)

    assert (len(other_account.bodies), ended["error"]["message"]) == (2, WORDS[provider])


@pytest.mark.parametrize("provider", ["deepseek"])
@pytest.mark.parametrize("words", ['input.0: item type "compaction" is not supported', WORDS["openai"]])
async def test_a_compaction_of_another_vendor_is_left_out_and_named(setup, other_account, provider, words, monkeypatch):  # noqa: F811
    monkeypatch.setitem(WORDS, provider, words)
    compaction = {"type": "compaction", "encrypted_content": SEALED}
    body = {"input": [compaction, {"role": "user", "content": "go on"}]}

    ended = await ask(setup, f"{provider}/m", "openai-responses", body)

    assert ended["error"] is None
    assert [item.get("role") for item in other_account.bodies[-1]["input"]] == ["user"]
    head = orjson.loads((await setup.frames())[1].data)
    assert "compactions of the history" in head["headers"]["x-sluice-dropped"]


@pytest.mark.parametrize(
    ("kind", "message", "is_it"),
    [
        *((ErrorKind.UPSTREAM_REJECTED, words, True) for words in WORDS.values()),
        (
            ErrorKind.UPSTREAM_REJECTED,
            "messages.5: `thinking` or `redacted_thinking` blocks in the latest assistant message cannot be modified.",
            True,
        ),
        (
            ErrorKind.UPSTREAM_REJECTED,
            "Item 'rs_1' of type 'reasoning' was provided without its required following item.",
            True,
        ),
        (ErrorKind.UPSTREAM_REJECTED, "messages.3: Expected `thinking` or `redacted_thinking`, but found `tool_use`.", True),
        (
            ErrorKind.UPSTREAM_REJECTED,
            "Item 'fc_1' of type 'function_call' was provided without its required 'reasoning' item: 'rs_1'.",
            True,
        ),
        (
            ErrorKind.UPSTREAM_REJECTED,
            "Item with id 'rs_1' not found. Items are not persisted when `store` is set to false.",
            True,
        ),
        (ErrorKind.UPSTREAM_REJECTED, "messages.1: `thinking` is not supported by this model", False),
        (ErrorKind.UPSTREAM_UNAVAILABLE, WORDS["openai"], False),
    ],
)
def test_refusals_of_reasoning_are_recognised(kind: ErrorKind, message: str, is_it: bool) -> None:
    assert refuses_thoughts(Failed(kind, message, 400)) is is_it
