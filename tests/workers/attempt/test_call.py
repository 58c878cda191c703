"""One job whose upstream's connection ends badly, on real sockets: what was whole is whole, and paid for."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from pydantic import SecretStr

from common.access.byok_keys import seal_byok_key
from common.canonical.events import Completed
from common.canonical.job import Job, Policy
from common.channel.base import FrameKind, Opening
from common.config.groups.models import ProviderSettings
from common.metering.pricing import Price
from common.records.head import Head
from common.vendors.models import ModelFacts
from tests.support.upstreams.listener import Listener, Redirector
from tests.workers.continuation.test_continuation import MORE, READERS
from tests.workers.test_generate import G, Setup, setup  # noqa: F401 - a fixture.
from workers.attempt.call import event_end
from workers.attempt.reply_headers import reply_headers
from workers.providers.base import Deployment, UpstreamRequest
from workers.transcode.pumps import Passing

DEPLOYMENT = Deployment("openai", "http://x.example", "", "gpt-5")
SECRET = "a long random text of 32 bytes or more"

TEXT, FINISH = {"delta": {"content": "some words "}}, {"delta": {}, "finish_reason": "stop"}
USAGE = {"usage": {"prompt_tokens": 7, "completion_tokens": 9}, "choices": []}


def chunk(**fields: Any) -> bytes:
    head = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    return b"data: " + orjson.dumps({**head, **fields}) + b"\n\n"


def of_choice(choice: dict[str, Any]) -> bytes:
    return chunk(choices=[{"index": 0, **choice}])


class Ending:
    """An upstream whose stream is these bytes, after which it closes, resets, or says nothing more."""

    def __init__(self) -> None:
        self.body, self.end, self.has_left = b"", "close", asyncio.Event()
        self.status, self.headers = b"200 OK", b""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        head = b"HTTP/1.1 %b\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n" % self.status
        head += self.headers + b"\r\n"
        writer.write(head + b"%x\r\n%b\r\n" % (len(self.body), self.body))
        if self.end == "whole":
            writer.write(b"0\r\n\r\n")
        await writer.drain()
        if self.end == "silence":
            await reader.read()  # Returns when the other side has closed.
        elif self.end == "reset":
            await asyncio.sleep(0.1)  # What was sent must be read before the reset, which throws it away.
            writer.transport.abort()
        self.has_left.set()
        writer.close()


@pytest.fixture
async def ending(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Ending]:  # noqa: F811
    monkeypatch.setattr("workers.attempt.call.TAIL_S", 0.1)
    found = Ending()
    async with await asyncio.start_server(found.serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        # A vendor of chat completions alone, that can go on with nothing.
        found_at = ProviderSettings(base_url=f"http://127.0.0.1:{port}/v1", api_keys=("k",))
        setup.services.settings.providers["groq"] = found_at
        yield found


async def ask(setup: Setup, dialect: str, *, stream: bool = True, **more: Any) -> dict[str, Any]:  # noqa: F811
    names_provider = "provider" in MORE[dialect]
    body = {**MORE[dialect], **({"provider": "groq"} if names_provider else {}), **more}
    await setup.open("m" if names_provider else "groq/m", dialect=dialect, stream=stream, **body)
    await setup.run()
    return await setup.end()


@pytest.mark.parametrize("dialect", READERS)
@pytest.mark.parametrize("end", ["close", "reset", "silence"])
async def test_an_answer_is_whole_behind_its_finish_in_every_dialect(setup, ending, dialect, end):  # noqa: F811
    ending.body, ending.end = of_choice(TEXT) + of_choice(FINISH) + chunk(**USAGE), end

    ended = await ask(setup, dialect)

    assert (ended["error"], ended["finish_reason"], ended["estimated"]) == (None, "stop", False)
    assert (ended["usage"]["input_tokens"], ended["usage"]["output_tokens"]) == (7, 9)
    assert READERS[dialect](await setup.body()).text == "some words "
    async with asyncio.timeout(5):
        await ending.has_left.wait()  # The connection was closed.


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("dialect", READERS)
async def test_a_refusal_that_only_names_the_limit_is_a_cut_answer_to_other_families(setup, ending, dialect, stream):  # noqa: F811
    words = "Could not finish the message because max_tokens or model output limit was reached. Please try again."
    ending.status, ending.end = b"400 Bad Request", "whole"
    ending.body = orjson.dumps({"error": {"message": words, "type": "invalid_request_error"}})

    ended = await ask(setup, dialect, stream=stream)

    if dialect == "openai-chat":
        assert (ended["error"]["status"], ended["error"]["message"]) == (400, words)
    else:
        assert (ended["error"], ended["finish_reason"]) == (None, "length")


@pytest.mark.parametrize(("dialect", "stream"), [("openai-chat", True), ("agentary", True), ("agentary", False)])
async def test_a_usage_that_was_lost_with_the_connection_is_estimated(setup, ending, dialect, stream):  # noqa: F811
    ending.body, ending.end = of_choice(TEXT) + of_choice(FINISH), "reset"

    ended = await ask(setup, dialect, stream=stream)

    assert (ended["error"], ended["estimated"]) == (None, True)
    assert ended["usage"]["output_tokens"] >= len("some words ") // 4


@pytest.mark.parametrize("dialect", READERS)
@pytest.mark.parametrize("end", ["close", "reset"])
async def test_without_its_finish_it_is_cut_in_every_dialect_whatever_its_length(setup, ending, dialect, end):  # noqa: F811
    ending.body, ending.end = of_choice(TEXT) * 50, end
    limit = "max_output_tokens" if dialect == "openai-responses" else "max_tokens"

    ended = await ask(setup, dialect, **{limit: 16})  # By the estimate it is used up.

    assert ended["error"]["kind"] == "upstream_unavailable"


@pytest.mark.parametrize("tail", [b"", b"data: cut"])
def test_a_stream_s_frames_are_cut_between_events_alone(monkeypatch, tail):
    monkeypatch.setattr("workers.attempt.call.FRAME_BYTES_MAX", 20)
    data = b"".join(b"data: %d\n\n" % n for n in range(200)) + b"data: " + b"x" * 100 + b"\n\n" + tail
    frames, start = [], 0
    while start < len(data):
        end = event_end(data, start)
        frames.append(data[start:end])
        start = end

    assert b"".join(frames) == data
    assert len(frames) > 50
    assert all(frame.endswith(b"\n\n") for frame in frames[:-1])


@pytest.mark.parametrize(
    ("value", "is_passed"),
    [("MISS", True), ("x" * 1024, True), ("x" * 1025, False), ("déjà vu", False), ("a\tb", False)],
)
def test_a_gateway_s_own_headers_are_passed_back_where_any_client_can_read_them(value, is_passed):
    answer = SimpleNamespace(headers={"cf-aig-cache-status": value, "server": "nginx"})

    headers = reply_headers(UpstreamRequest("http://x.example", {}, b""), answer, DEPLOYMENT)  # type: ignore[arg-type]

    assert headers == ({"cf-aig-cache-status": value} if is_passed else {})


def test_fields_that_the_upstream_cannot_take_are_named_to_the_client():
    request = UpstreamRequest("http://x.example", {}, b"", dropped=["seed", "logit_bias"])

    headers = reply_headers(request, SimpleNamespace(headers={}), DEPLOYMENT)  # type: ignore[arg-type]

    assert headers == {"x-sluice-dropped": "seed, logit_bias"}


@pytest.mark.parametrize(
    ("facts", "value"),
    [
        (ModelFacts(), None),
        (ModelFacts(retires="2026-12-01"), "2026-12-01"),
        (ModelFacts(retires="2026-12-01", successor="gpt-5.2"), "2026-12-01; successor=gpt-5.2"),
        (ModelFacts(retires="2026-12-01", successor="a\nb"), "2026-12-01"),
    ],
)
def test_a_model_that_its_vendor_will_stop_serving_is_told_to_the_client(facts, value):
    request = UpstreamRequest("http://x.example", {}, b"")

    headers = reply_headers(request, SimpleNamespace(headers={}), replace(DEPLOYMENT, facts=facts))  # type: ignore[arg-type]

    assert headers.get("x-sluice-deprecation") == value


@pytest.mark.parametrize(
    ("setup", "kind", "code"),
    [({"secret": SecretStr(SECRET)}, "upstream_credentials", "invalid_api_key")],
    indirect=["setup"],
)
async def test_a_key_that_the_request_brought_is_the_client_s_to_mend(setup, kind, code):  # noqa: F811
    body = {"model": "openai/demo-n5-d0", "messages": [{"role": "user", "content": "hi"}]}
    sealed = seal_byok_key(SecretStr("bad-key"), G, SecretStr(SECRET))
    job = Job(G, "r", "openai-chat", "openai/demo-n5-d0", False, Policy.STOP, 0, 1, body=orjson.dumps(body), brought_key=sealed)
    await setup.channel.subscribe(G, lambda message: None)
    await setup.channel.open(G, Opening("me", "openai-chat", False, "m", 1, Policy.STOP, 0, 60, 600, job.pack()), "r")

    await setup.run()

    error = (await setup.end())["error"]
    assert (error["kind"], error["code"], error["status"]) == (kind, code, 401)
    assert "openai" in error["message"]


async def test_an_upstream_that_sends_elsewhere_is_not_followed(setup):  # noqa: F811
    with Listener() as listener, Redirector(listener.url) as upstream:
        setup.services.settings.providers["groq"] = ProviderSettings(base_url=f"{upstream.url}/v1", api_keys=("k",))

        await setup.open("groq/m-302")
        await setup.run()

    assert (await setup.end())["error"]["kind"] == "upstream_protocol"
    assert (upstream.requests, listener.connections) == (1, 0)


PRICES = {"demo/demo-n5-d0": {"input_usd_per_mtok": 1_000, "output_usd_per_mtok": 2_000}}


@pytest.mark.parametrize("setup", [{"prices": {name: Price(**price) for name, price in PRICES.items()}}], indirect=True)
async def test_a_client_that_is_told_the_cost_is_told_that_of_its_answer(setup):  # noqa: F811
    await setup.open("demo-n5-d0", dialect="unified", stream=False, provider="demo")
    await setup.run()

    body = orjson.loads(await setup.body())
    usage = (await setup.end())["usage"]
    assert usage["output_tokens"] == 5
    assert float(body["cost"]["output_cost_usd"]) == 0.01
    assert float(body["cost"]["input_cost_usd"]) == pytest.approx(usage["input_tokens"] / 1000)


async def test_the_body_of_a_redirect_is_not_waited_for(setup, ending):  # noqa: F811
    ending.status, ending.headers, ending.end = b"302 Found", b"location: http://x.example/\r\n", "silence"
    ending.body = b"moved"

    ended = await ask(setup, "openai-chat")

    assert ended["error"]["kind"] == "upstream_protocol"
    assert "redirects to http://x.example/ (status 302)" in ended["error"]["message"]


async def test_a_connection_that_stays_silent_behind_a_finished_answer_is_given_up(setup, ending, monkeypatch):  # noqa: F811
    monkeypatch.setattr("workers.attempt.call.READ_TO_END_S", 0.05)
    ending.body, ending.end = of_choice(TEXT) + of_choice(FINISH) + b"data: [DONE]\n\n", "silence"

    ended = await ask(setup, "openai-chat")

    assert (ended["error"], ended["finish_reason"], ended["tries"]) == (None, "stop", 1)
    async with asyncio.timeout(60):
        await ending.has_left.wait()


@pytest.mark.parametrize(("dialect", "count"), [("openai-responses", 1), ("openai-chat", 0)])
async def test_a_response_that_is_no_stream_is_kept_whole(setup, monkeypatch, dialect, count):  # noqa: F811
    stored: list[bytes] = []

    async def keep(generation_id: str, data: bytes, failed: object) -> None:
        stored.append(data)

    monkeypatch.setattr(setup.services.responses, "finish", keep)
    await setup.open("demo-n5-d0", dialect=dialect, stream=False, **MORE[dialect])

    await setup.run()

    assert stored == [await setup.body()] * count


async def test_a_response_s_last_events_are_kept_though_the_upstream_just_stopped(setup, ending, monkeypatch):  # noqa: F811
    stored: list[bytes] = []

    async def keep(generation_id: str, data: bytes, failed: object) -> None:
        stored.append(data)

    monkeypatch.setattr(setup.services.responses, "finish", keep)
    ending.body = of_choice(TEXT) + of_choice(FINISH)  # The client's last event is made at the end of the bytes.

    await ask(setup, "openai-responses")

    assert b"response.completed" in stored[0]


class KeepAlive:
    """An upstream whose connections stay open. The end of a body follows its last event after a moment."""

    def __init__(self) -> None:
        self.connections = self.requests = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        body = of_choice(TEXT) + of_choice(FINISH) + b"data: [DONE]\n\n"
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
                await reader.readexactly(int(length.partition(b":")[2]))
                self.requests += 1
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
                writer.write(b"%x\r\n%b\r\n" % (len(body), body))
                await asyncio.sleep(0.05)
                writer.write(b"0\r\n\r\n")
        writer.close()


async def test_the_connection_of_a_finished_stream_is_used_again(setup):  # noqa: F811
    upstream = KeepAlive()
    async with await asyncio.start_server(upstream.serve, "127.0.0.1", 0) as server:
        address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        setup.services.settings.providers["groq"] = ProviderSettings(base_url=address, api_keys=("k",))
        for _ in range(2):
            await ask(setup, "openai-chat")
        await setup.services.upstream.close()

    assert (upstream.requests, upstream.connections) == (2, 1)


async def test_the_id_of_an_upstream_that_is_a_gateway_like_this_one_is_kept(setup, ending):  # noqa: F811
    ending.headers = b"x-generation-id: gen_upstream\r\n"
    ending.body = of_choice(TEXT) + of_choice(FINISH)

    await ask(setup, "openai-chat")

    (head,) = [frame for frame in await setup.frames() if frame.kind is FrameKind.HEAD]
    assert Head.unpack(head.data).upstream_id == "gen_upstream"


@pytest.mark.parametrize(("end", "calls"), [(of_choice(FINISH), 1), (b"", 0)])
async def test_what_is_left_to_do_after_an_answer_is_done_only_if_all_of_it_was_written(setup, ending, monkeypatch, end, calls):  # noqa: F811
    done: list[bool] = []

    async def after_written(pump: Passing) -> None:
        done.append(isinstance(pump.terminal, Completed))

    monkeypatch.setattr(Passing, "after_written", after_written)
    ending.body = of_choice(TEXT) + end

    await ask(setup, "openai-chat")

    assert done == [True] * calls
