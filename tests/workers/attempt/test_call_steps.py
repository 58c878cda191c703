"""What a call commits to, what it tells the client first, and what it makes of the last bytes. Without an upstream, or with
one that sends exactly these bytes."""

import asyncio
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from structlog.testing import capture_logs

from common.access.principal import Limits
from common.canonical.errors import ErrorKind, Failed
from common.canonical.events import Completed, Usage
from common.canonical.job import Job, Policy
from common.channel.base import FrameKind
from common.config.groups.models import ProviderSettings
from common.metering.attempt_cost import Attempt, unpack
from tests.workers.test_generate import Setup, setup  # noqa: F401 - a fixture.
from workers.attempt import call
from workers.attempt.call import build_head, final_blocks, message_count
from workers.outcome import ActiveJob, CallResult, Total
from workers.providers.base import Deployment
from workers.publish.writer import Writer
from workers.quota.gate import CallUsage
from workers.transcode.pumps import Passing, PassingWhole
from workers.upstream.http_client import UpstreamAnswer

JOB = Job("gen_1", "r", "openai-chat", "m", True, Policy.STOP, 0, 1, {}, b"{}")
DEPLOYMENT = Deployment("groq", "http://x.example", "k", "m", "openai-chat")


def chunk(delta: dict[str, Any], finish: str | None = None) -> bytes:
    return b"data: %s\n\n" % orjson.dumps({"id": "c", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})


ROLE = chunk({"role": "assistant"})
WHOLE = [ROLE, chunk({"content": "hi"}), chunk({}, "stop"), b"data: [DONE]\n\n"]


class Upstream:
    """Each connection gets the next of these streams, and is then reset."""

    def __init__(self, *bodies: bytes) -> None:
        self._bodies = list(bodies)
        self.calls = 0
        self.status, self.headers = b"200 OK", b""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        body = self._bodies[min(self.calls, len(self._bodies) - 1)]
        self.calls += 1
        kind = b"text/event-stream" if self.status.startswith(b"200") else b"application/json"
        writer.write(b"HTTP/1.1 %b\r\ncontent-type: %b\r\ntransfer-encoding: chunked\r\n" % (self.status, kind))
        writer.write(self.headers + b"\r\n")
        writer.write(b"%x\r\n%b\r\n" % (len(body), body))
        if not self.status.startswith(b"200"):
            writer.write(b"0\r\n\r\n")
        await writer.drain()
        writer.close()


@pytest.fixture
async def run(setup: Setup) -> AsyncIterator[Any]:  # noqa: F811
    servers = []

    async def run(*bodies: bytes, status: bytes = b"200 OK", headers: bytes = b"", key: str = "k") -> Upstream:
        upstream = Upstream(*bodies)
        upstream.status, upstream.headers = status, headers
        servers.append(await asyncio.start_server(upstream.serve, "127.0.0.1", 0))
        address = f"http://127.0.0.1:{servers[0].sockets[0].getsockname()[1]}/v1"
        setup.services.settings.providers["groq"] = ProviderSettings(base_url=address, api_keys=(key,))
        await setup.open("groq/m")
        await setup.run()
        return upstream

    yield run
    for server in servers:
        server.close()


# The commit point


@pytest.mark.parametrize(("count", "is_committed"), [(64, False), (65, True)])
async def test_so_many_events_without_output_are_held_back(setup, run, count, is_committed):  # noqa: F811
    await run(ROLE * count, b"".join(WHOLE))  # The first call breaks off.

    heads = [frame for frame in await setup.frames() if frame.kind is FrameKind.HEAD]
    assert (len(heads), (await setup.body()).startswith(ROLE * count)) == ((2, True) if is_committed else (1, False))


@pytest.mark.parametrize("is_committed", [False, True])
async def test_so_many_bytes_without_output_are_held_back(setup, run, monkeypatch, is_committed):  # noqa: F811
    monkeypatch.setattr(call, "START_BYTES_MAX", 3 * len(ROLE) - is_committed)

    await run(ROLE * 3, b"".join(WHOLE))

    assert (await setup.body()).startswith(ROLE * 3) == is_committed


async def test_the_head_comes_with_the_first_output_and_before_it(setup, run):  # noqa: F811
    await run(b"".join(WHOLE))

    kinds = [frame.kind for frame in await setup.frames()]
    assert kinds[:3] == [FrameKind.FENCE, FrameKind.HEAD, FrameKind.DATA]
    assert kinds.count(FrameKind.HEAD) == 1
    assert kinds[-1] is FrameKind.END


async def test_the_head_counts_the_calls_of_the_generation(setup, run):  # noqa: F811
    await run(ROLE, ROLE, b"".join(WHOLE))

    head = orjson.loads(next(frame.data for frame in await setup.frames() if frame.kind is FrameKind.HEAD))
    assert (head["tries"], head["provider"], head["upstream_model"]) == (3, "groq", "m")


# What the head says


def test_a_head_has_what_the_next_claim_and_the_client_need():
    spent, earlier = Usage(5, 7), Attempt("openai", "gpt-5", Usage(5, 7))
    total = Total(attempts=[earlier], spent=spent, continuations=2)
    total.set_deployment(DEPLOYMENT)
    result = CallResult(DEPLOYMENT, 3, ttft_ms=40, headers={"x-a": "b"}, upstream_id="up_1")

    head = build_head(ActiveJob(JOB, waited_s=1.5156), result, total)

    assert (head.headers, head.provider, head.upstream_model) == ({"x-a": "b"}, "groq", "m")
    assert (head.attempt_count, head.queue_wait_ms, head.ttft_ms) == (3, 1516, 40)
    assert (head.continuations, head.spent, head.attempts, head.upstream_id) == (2, spent, [earlier], "up_1")


def test_the_head_of_a_call_that_reads_an_answer_again_leaves_out_the_attempt_that_it_replaces():
    total = Total(attempts=[Attempt("openai", "gpt-5", Usage(1, 1)), Attempt("groq", "m", Usage(2, 2))])

    head = build_head(ActiveJob(JOB), CallResult(DEPLOYMENT, 3, is_reread=True), total)

    assert head.attempts == total.attempts[:1]


@pytest.mark.parametrize(
    ("body", "count"),
    [
        ({"messages": [{}, {}, {}]}, 3),
        ({"input": [{}, {}]}, 2),
        ({"input": "one text"}, 1),
        ({"messages": [], "input": [{}, {}]}, 2),
        ({"contents": [{}]}, 1),
        ({}, 1),
    ],
)
def test_messages_are_counted_in_every_dialect(body, count):
    assert message_count(body) == count


# The last bytes


@pytest.mark.parametrize(
    ("rest", "blocks"),
    [
        (b"", []),
        (b" \r\n", []),
        (b'data: {"a":1}', [b'data: {"a":1}\n\n']),
        (b'data: {"a":1}\n', [b'data: {"a":1}\n\n']),
        (b'event: e\ndata: {"a":1}\r\n', [b'event: e\ndata: {"a":1}\n\n']),
        (b"data: [DONE]", [b"data: [DONE]\n\n"]),
        (b'data: {"a":', []),  # Cut in the middle.
        (b"dat", []),
        (b"event: e", []),
        (b"<html>no</html>", [b"<html>no</html>\n\n"]),  # No event at all.
        (b'{"error":"x"}\n', [b'{"error":"x"}\n\n']),
        (b"data: " + b"[" * 5_000 + b"]" * 5_000, [b"data: " + b"[" * 5_000 + b"]" * 5_000 + b"\n\n"]),
    ],
)
def test_a_last_event_that_lacks_its_blank_line_only_is_one(rest, blocks):
    assert [bytes(block) for block in final_blocks(rest)] == blocks


# What the quota is told


@pytest.mark.parametrize(("bodies", "usages"), [((WHOLE,), [(None, 1, True)]), ((WHOLE[:2], WHOLE), [(None, 1, False)])])
async def test_a_call_s_usage_counts_as_whole_only_where_its_answer_has_finished(setup, run, monkeypatch, bodies, usages):  # noqa: F811
    recorded: list[tuple[Any, ...]] = []
    record = CallUsage.record

    def kept(call_usage: CallUsage, usage: Usage | None, output_events: int, *, is_whole: bool) -> None:
        recorded.append((usage, output_events, is_whole))
        record(call_usage, usage, output_events, is_whole=is_whole)

    monkeypatch.setattr(CallUsage, "record", kept)

    await run(*(b"".join(body) for body in bodies))

    assert recorded[:1] == usages


async def test_only_the_last_piece_of_a_stream_waits_for_no_other(setup, monkeypatch):  # noqa: F811
    urgent: list[bool] = []
    written = asyncio.Event()
    write, write_frame = Writer.write, Writer.write_frame

    def kept(writer: Writer, data: bytes, *, is_urgent: bool = False) -> None:
        urgent.append(is_urgent)
        written.set()
        write(writer, data, is_urgent=is_urgent)

    def kept_frame(writer: Writer, kind: FrameKind, data: bytes) -> None:
        written.set()
        write_frame(writer, kind, data)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
        for piece in (chunk({"content": "a"}), chunk({"content": "b"}), chunk({"content": "c"}), b"".join(WHOLE[2:])):
            written.clear()
            writer.write(piece)
            await written.wait()  # So that each piece is read by itself.
        writer.close()

    monkeypatch.setattr(Writer, "write", kept)
    monkeypatch.setattr(Writer, "write_frame", kept_frame)
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        setup.services.settings.providers["groq"] = ProviderSettings(base_url=address, api_keys=("k",))
        await setup.open("groq/m")
        await setup.run()

    assert urgent == [False, False, True]


# What is noted for the next claim


async def noted_with_frames(run: Any, monkeypatch: pytest.MonkeyPatch, *bodies: bytes) -> list[tuple[FrameKind, bytes]]:
    """Run a job, and return what is noted for the next claim whenever a head or an end is written."""
    noted: list[tuple[FrameKind, bytes]] = []
    write_frame = Writer.write_frame

    def kept(writer: Writer, kind: FrameKind, data: bytes) -> None:
        if kind is not FrameKind.DATA:
            noted.append((kind, writer.packed_attempts))
        write_frame(writer, kind, data)

    monkeypatch.setattr(Writer, "write_frame", kept)
    await run(*bodies)
    return noted


async def test_calls_are_noted_until_the_log_names_them(setup, run, monkeypatch):  # noqa: F811
    noted = await noted_with_frames(run, monkeypatch, ROLE, b"".join(WHOLE))

    assert noted == [(FrameKind.HEAD, b""), (FrameKind.END, b"")]


async def test_calls_without_an_answer_stay_noted(setup, run, monkeypatch):  # noqa: F811
    ((kind, noted),) = await noted_with_frames(run, monkeypatch, ROLE)

    attempts = unpack(noted)
    assert kind is FrameKind.END
    assert {(attempt.provider, attempt.model) for attempt in attempts} == {("groq", "m")}


# What else a call does, however it ends


async def test_an_event_that_is_too_large_is_named_to_the_client(setup, run):  # noqa: F811
    setup.services.settings = setup.services.settings.model_copy(update={"upstream_event_bytes_max": 64})

    await run(b"data: " + b"x" * 1000)

    error = (await setup.end())["error"]
    assert error["kind"] == "upstream_protocol"
    assert error["message"].startswith("The provider sent ")


async def test_who_may_not_be_called_now_is_an_overload_in_the_gateway_s_own_words(setup):  # noqa: F811
    # Nobody can count its calls: this worker has no Redis.
    limited = ProviderSettings(base_url="http://127.0.0.1:9/v1", api_keys=("k",), limits=Limits(requests=1))
    setup.services.settings.providers["groq"] = limited
    await setup.open("groq/m")

    await setup.run()

    error = (await setup.end())["error"]
    assert error["kind"] == "overloaded"
    assert error["message"]
    assert sample(setup, "errors_total", kind="overloaded") == 1


async def test_only_the_first_part_of_an_answer_names_the_upstream_s_id(setup, run):  # noqa: F811
    await run(ROLE * 65, b"".join(WHOLE), headers=b"x-generation-id: gen_upstream\r\n")

    heads = [orjson.loads(frame.data) for frame in await setup.frames() if frame.kind is FrameKind.HEAD]
    assert [head.get("upstream_id") for head in heads] == ["gen_upstream", ""]


async def test_a_long_body_is_read_in_a_thread_and_is_the_same(setup, monkeypatch):  # noqa: F811
    threads: list[str] = []
    feed_whole = PassingWhole.feed_whole

    def kept(pump: PassingWhole, body: bytes) -> bytes:
        threads.append(threading.current_thread().name)
        return feed_whole(pump, body)

    monkeypatch.setattr(PassingWhole, "feed_whole", kept)
    bodies = []
    for limit in (10**9, 1):
        monkeypatch.setattr(PassingWhole, "loop_bytes_max", limit)
        await setup.open("demo-n5-d0", stream=False)
        await setup.run()
        bodies.append(orjson.loads(await setup.body())["choices"])

    assert bodies[0] == bodies[1] != []
    assert [name == threading.main_thread().name for name in threads] == [True, False]


async def test_a_key_in_an_upstream_s_error_does_not_reach_the_client(setup, run):  # noqa: F811
    error = orjson.dumps({"error": {"message": "Incorrect key: sk-secret-1234567890", "type": "invalid_request_error"}})

    await run(error, status=b"400 Bad Request", key="sk-secret-1234567890")

    message = (await setup.end())["error"]["message"]
    assert "Incorrect key" in message
    assert "1234567890" not in message


@pytest.mark.parametrize("status", [b"200 OK", b"400 Bad Request"])
async def test_an_upstream_s_headers_are_read_for_its_quota_whatever_its_status(setup, run, monkeypatch, status):  # noqa: F811
    read: list[tuple[str, str | None]] = []
    monkeypatch.setattr(
        setup.services.quota,
        "read_headers",
        lambda deployment, headers: read.append((deployment.provider, headers.get("x-quota"))),
    )

    await run(b"".join(WHOLE) if status == b"200 OK" else b"{}", status=status, headers=b"x-quota: 7\r\n")

    assert set(read) == {("groq", "7")}


@pytest.mark.parametrize("bodies", [(WHOLE,), (WHOLE[:2],), (WHOLE[:1], WHOLE)])
async def test_each_call_closes_its_pump_once(setup, run, monkeypatch, bodies):  # noqa: F811
    closed: list[Passing] = []
    monkeypatch.setattr(Passing, "close", lambda pump: closed.append(pump))

    upstream = await run(*(b"".join(body) for body in bodies))

    assert len(closed) == len(set(map(id, closed))) == upstream.calls


async def test_a_wait_that_the_upstream_asks_for_is_the_client_s_too(setup, run):  # noqa: F811
    await run(b'{"error":{"message":"slow down"}}', status=b"429 Too Many", headers=b"retry-after: 17\r\n")

    error = (await setup.end())["error"]
    assert error["kind"] == "upstream_rate_limited"
    assert 10 < error["retry_after_s"] <= 17  # What is left of it.


@pytest.mark.parametrize("bodies", [(WHOLE,), ([ROLE] * 65, WHOLE)])
async def test_an_answer_is_filtered_in_each_of_its_parts(setup, run, bodies):  # noqa: F811
    """The second case is continued by another call after its first part."""
    mail = [b"".join(body).replace(b'"hi"', b'"to john@example.com"') for body in bodies]
    packed = Job.pack
    opened = setup.open

    async def open_guarded(model: str, **more: Any) -> None:
        await opened(model, **more)
        log = setup.channel._logs["gen_1"]  # type: ignore[attr-defined]
        job = Job.unpack(log.opening.request)
        log.opening.request = packed(replace(job, guardrails={"pii": "block"}))

    setup.open = open_guarded  # type: ignore[method-assign]
    await run(*mail)

    body = await setup.body()
    assert b"[EMAIL]" in body
    assert b"john@example.com" not in body


FAILED = Failed(ErrorKind.UPSTREAM_UNAVAILABLE, "down")


@pytest.mark.parametrize(
    ("in_background", "upstream_id", "terminal", "is_cut", "runs_on"),
    [
        (True, "resp_1", Completed(Usage(1, 1)), False, False),
        (True, "resp_1", Completed(Usage(1, 1)), True, True),  # A guardrail ended it: its provider still writes.
        (True, "resp_1", FAILED, False, True),
        (True, "resp_1", None, False, True),
        (True, "", None, False, False),  # It never began.
        (False, "resp_1", None, False, False),
    ],
)
def test_what_still_runs_at_its_provider_is_known_however_a_call_ends(in_background, upstream_id, terminal, is_cut, runs_on):
    result = CallResult(replace(DEPLOYMENT, in_background=in_background))
    state = {"output_events": 3, "finish_reason": "stop", "usage": Usage(1, 2), "left_out": {"images": None}}
    pump = SimpleNamespace(upstream_id=upstream_id, terminal=terminal, is_cut=is_cut, **state)

    call._record_result(result, pump)  # type: ignore[arg-type]

    running = result.background_answer
    assert (running and (running.answer_id, running.deployments)) == (("resp_1", [result.deployment]) if runs_on else None)
    assert (result.output_events, result.finish_reason, result.usage) == (3, "stop", Usage(1, 2))
    assert (result.is_cut, result.left_out) == (is_cut, ["images"])


# What is measured


def sample(setup: Setup, name: str, **labels: str) -> float | None:  # noqa: F811
    return setup.services.metrics.registry.get_sample_value(f"sluice_{name}", labels)


async def test_calls_failures_and_retries_are_counted_by_provider(setup, run):  # noqa: F811
    await run(ROLE, b"".join(WHOLE))

    assert sample(setup, "upstream_calls_total", provider="groq", status="200") == 2
    assert sample(setup, "retries_total", provider="groq") == 1
    assert sample(setup, "errors_total", kind="upstream_unavailable") == 1
    assert sample(setup, "time_to_first_token_seconds_count", provider="groq") == 1
    assert 0 < sample(setup, "time_to_first_token_seconds_sum", provider="groq") < 60
    assert sample(setup, "absurd_usage_total", provider="groq") is None


async def test_a_call_without_an_answer_has_no_status(setup):  # noqa: F811
    setup.services.settings.providers["groq"] = ProviderSettings(base_url="http://127.0.0.1:9/v1", api_keys=("k",))
    await setup.open("groq/m")

    await setup.run()

    assert sample(setup, "upstream_calls_total", provider="groq", status="0") == 3
    assert sample(setup, "retries_total", provider="groq") == 2
    assert sample(setup, "errors_total", kind="upstream_unavailable") == 3


async def test_each_failed_call_is_logged_with_its_number_and_the_wait_for_the_next_one(setup, run):  # noqa: F811
    with capture_logs() as logs:
        await run(ROLE)

    failed = [line for line in logs if line["event"] == "try_failed"]
    assert [line["tries"] for line in failed] == [1, 2, 3]
    assert [line["wait_s"] is not None for line in failed] == [True, True, False]


async def test_a_usage_that_cannot_be_is_counted_and_logged(setup, run):  # noqa: F811
    usage = {"prompt_tokens": 10**15, "completion_tokens": 1}
    absurd = b"data: %s\n\n" % orjson.dumps({"id": "c", "choices": [], "usage": usage})

    with capture_logs() as logs:
        await run(b"".join([*WHOLE[:3], absurd, WHOLE[3]]))

    assert sample(setup, "absurd_usage_total", provider="groq") == 1
    (line,) = [line for line in logs if line["event"] == "usage_absurd"]
    assert (line["provider"], line["model"]) == ("groq", "m")


async def test_the_gap_between_two_reads_of_a_stream_is_measured(setup):  # noqa: F811
    await setup.open("demo-n5-d5")

    await setup.run()

    assert sample(setup, "inter_token_seconds_count") >= 1
    assert 0 < sample(setup, "inter_token_seconds_sum") < 60


async def test_an_answer_that_is_continued_is_counted_by_what_it_broke_off_with(setup):  # noqa: F811
    await setup.open("demo-n10-d5-cut3x1")

    await setup.run()

    assert (await setup.end())["error"] is None
    assert sample(setup, "continuations_total", kind="upstream_unavailable") == 1


# How the upstream is read


async def test_reads_may_linger_once_the_client_has_a_part_and_time_is_short_after_the_finish(setup, monkeypatch):  # noqa: F811
    reads: list[bool] = []
    marks: list[str] = []
    read = UpstreamAnswer.read

    async def kept(answer: UpstreamAnswer, *, may_linger: bool = False) -> bytes:
        reads.append(may_linger)
        return await read(answer, may_linger=may_linger)

    monkeypatch.setattr(UpstreamAnswer, "read", kept)
    monkeypatch.setattr(UpstreamAnswer, "mark_begun", lambda answer: marks.append("begun"))
    monkeypatch.setattr(UpstreamAnswer, "mark_finished", lambda answer, tail_s: marks.append(f"{tail_s}"))
    await setup.open("demo-n5-d5")

    await setup.run()

    assert reads[0] is False
    assert True in reads
    assert marks[0] == "begun"
    assert set(marks) <= {"begun", str(call.TAIL_S)}
