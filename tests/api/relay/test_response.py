"""How a channel becomes a response, without any process around it."""

import asyncio
import re
from typing import Any

import orjson
import pytest

from api.relay.response import SSE_HEADERS, Relay, RelayTimeouts, headers_of_stream
from api.relay.viewer import Viewer
from api.server.connection import Presence, chunk_of
from common.canonical.errors import ErrorKind, Failed
from common.canonical.events import Completed, Finished, FinishReason, Started, TextDelta, Usage
from common.canonical.generation import GenerationRequest, Role, TextPart
from common.canonical.generation import Message as Turn
from common.canonical.job import Policy
from common.channel.base import START, Append, Claim, Cursor, Frame, FrameId, FrameKind, Message, Opening, State, Stop
from common.channel.memory import MemoryChannel
from common.dialects import DIALECTS
from common.dialects.base import ReplyInfo
from common.records.end import End
from common.records.head import Head
from common.sse import KEEP_ALIVE

HOLD_S, KEEP_ALIVE_S = 5, 15
G = "gen_1"
EVENTS = [Started(), TextDelta("whole"), Finished(FinishReason.STOP), Completed(Usage(1, 1))]
TIMED_OUT = Failed(ErrorKind.UPSTREAM_TIMEOUT, "The provider took too long.")


class Client:
    """One HTTP client: what it was sent, whether it reads, and whether it is still there."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self.reads = asyncio.Event()
        self.reads.set()
        self.presence = Presence()

    async def send(self, message: Any) -> None:
        await self.reads.wait()
        self.sent.append(message)

    async def receive(self) -> Any:
        raise AssertionError("The body is read already.")

    def leave(self) -> None:
        self.presence.leave()

    @property
    def status(self) -> int | None:
        """None before it is known."""
        return self.sent[0]["status"] if self.sent else None

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self.sent[0]["headers"]}

    @property
    def pieces(self) -> list[bytes]:
        return [message["body"] for message in self.sent[1:]]

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)

    @property
    def is_complete(self) -> bool:
        return len(self.sent) > 1 and not self.sent[-1].get("more_body", False)


class Response:
    """A relay at work for one client, and the log that it reads."""

    def __init__(
        self,
        *,
        dialect: str = "openai-chat",
        is_stream: bool = True,
        channel: MemoryChannel | None = None,
        after: Cursor | None = None,
        scope: dict[str, Any] | None = None,
        **fields: Any,
    ) -> None:
        self.client = Client()
        self.done: list[str] = []  # How it ended.
        self.viewer = Viewer(G, channel or MemoryChannel(), 1 << 20, after)
        fields |= {"request_id": "req_1", "model": "m", "created_s": 1, "is_stream": is_stream}
        self.relay = Relay(self.viewer, DIALECTS[dialect], RelayTimeouts(HOLD_S, KEEP_ALIVE_S), self._note_done, **fields)
        self._last = START
        state = {"presence": self.client.presence, **(scope or {}).get("state", {})}
        request = {"type": "http", **(scope or {}), "state": state}
        self._runs = asyncio.create_task(self.relay(request, self.client.receive, self.client.send))

    async def _note_done(self, relay: Relay) -> None:
        self.done.append(relay.outcome)

    def add(self, kind: FrameKind, data: bytes, *, epoch: int = 1) -> None:
        """Publish the next frame. All that are published before the loop turns are one batch to the relay."""
        frame_id = FrameId(epoch, self._last.n + 1 if epoch == self._last.epoch else 0)
        self.viewer.offer(Message(self._last, Frame(frame_id, kind, data)))
        self._last = frame_id

    def fence(self, epoch: int = 1) -> None:
        self.add(FrameKind.FENCE, str(self._last).encode(), epoch=epoch)

    def head(self, **headers: str) -> None:
        self.add(FrameKind.HEAD, Head(headers=headers).pack(), epoch=self._last.epoch or 1)

    def data(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.add(FrameKind.DATA, piece, epoch=self._last.epoch or 1)

    def end(self, failed: Failed | None = None) -> None:
        self.add(FrameKind.END, End(error=failed.to_dict() if failed else None).pack(), epoch=self._last.epoch or 1)

    async def settled(self) -> Client:
        """Return the client once it has been sent all that there is for now."""
        for _ in range(20):
            await asyncio.sleep(0)
        return self.client

    async def over(self) -> Client:
        async with asyncio.timeout(120):
            await self._runs
        return self.client


class Time:
    """The loop's clock, which goes on when a test says so."""

    def __init__(self, now_s: float) -> None:
        self.now_s = now_s

    async def passes(self, seconds: float) -> None:
        self.now_s += seconds
        for _ in range(20):
            await asyncio.sleep(0)


@pytest.fixture
async def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    loop = asyncio.get_running_loop()
    time = Time(loop.time())
    monkeypatch.setattr(loop, "time", lambda: time.now_s)
    return time


# The status and the headers of a stream


async def test_a_stream_is_opened_by_the_head_whose_headers_it_carries():
    response = Response(extra_headers={"x-asked": "yes"})
    response.fence()
    response.head(**{"x-from-head": "h"})
    client = await response.settled()

    assert (client.status, client.pieces) == (200, [])
    assert client.headers == {**SSE_HEADERS, "x-generation-id": G, "x-asked": "yes", "x-from-head": "h"}


async def test_the_status_is_held_until_there_is_a_first_frame_of_output(time):
    response = Response()
    response.fence()
    await time.passes(HOLD_S - 0.1)
    assert (await response.settled()).status is None

    response.end(TIMED_OUT)
    client = await response.over()

    assert client.status == 504
    assert client.headers["content-type"] == "application/json"
    assert client.headers["x-generation-id"] == G
    assert orjson.loads(client.body)["error"]["message"] == TIMED_OUT.message
    assert response.done == [ErrorKind.UPSTREAM_TIMEOUT]


async def test_past_the_hold_a_stream_is_opened_and_a_failure_is_an_event_in_it(time):
    response = Response()
    await response.settled()
    await time.passes(HOLD_S + 0.1)
    client = await response.settled()
    assert (client.status, client.pieces) == (200, [KEEP_ALIVE])

    response.end(TIMED_OUT)
    await response.over()

    assert TIMED_OUT.message.encode() in client.pieces[1]
    assert client.is_complete


async def test_who_comes_back_to_a_quiet_answer_is_not_kept_waiting_for_its_status():
    response = Response(has_begun=True, has_ids=True, is_resumable=True)

    assert (await response.settled()).status == 200


@pytest.mark.parametrize("has_text", [True, False])
@pytest.mark.parametrize("name", DIALECTS)
async def test_a_failure_that_comes_with_the_first_output_is_an_event_behind_it(name: str, has_text: bool):
    """All of it in one batch: the client must not get a 5xx for an answer that had begun."""
    response = Response(dialect=name)
    text = encoded(name)[1] if has_text else b""
    response.head()
    if has_text:
        response.data(text)
    response.end(TIMED_OUT)
    client = await response.over()

    assert client.status == 200
    assert client.body.startswith(text)
    assert TIMED_OUT.message.encode() in client.body[len(text) :]
    assert client.is_complete
    assert response.done == [ErrorKind.UPSTREAM_TIMEOUT]


# The body of a stream


async def test_each_piece_is_passed_on_as_it_came_and_the_last_one_ends_the_body():
    response = Response()
    response.head()
    for piece in (b"data: 1\n\n", b"data: 2\n\n"):
        response.data(piece)
        await response.settled()
    response.data(b"data: 3\n\n")
    response.end()
    client = await response.over()

    assert client.pieces == [b"data: 1\n\n", b"data: 2\n\n", b"data: 3\n\n"]
    assert [message["more_body"] for message in client.sent[1:]] == [True, True, False]
    assert response.done == ["completed"]


async def test_all_that_waits_for_a_slow_client_goes_out_at_once():
    response = Response()
    response.head()
    response.data(b"data: 1\n\n")
    client = await response.settled()
    client.reads.clear()
    for n in range(2, 6):
        response.data(b"data: %d\n\n" % n)
        await response.settled()
    client.reads.set()
    await response.settled()

    assert client.pieces == [b"data: 1\n\n", b"data: 2\n\n", b"data: 3\n\ndata: 4\n\ndata: 5\n\n"]


async def test_the_pieces_of_a_body_pass_middleware_by():
    direct = Client()
    response = Response(scope={"state": {"direct_send": direct.send}})
    response.head()
    response.data(b"data: 1\n\n")
    response.end()
    client = await response.over()

    assert [message["type"] for message in client.sent] == ["http.response.start"]
    assert [message["body"] for message in direct.sent] == [b"data: 1\n\n"]


async def test_a_quiet_stream_is_kept_alive_and_one_that_speaks_is_not(time):
    response = Response()
    response.head()
    response.data(b"data: 1\n\n")
    client = await response.settled()
    for n in range(2, 6):  # Each alone, as it nearly always is, within the time that a stream may be quiet.
        await time.passes(KEEP_ALIVE_S * 0.7)
        response.data(b"data: %d\n\n" % n)
        await response.settled()
    assert KEEP_ALIVE not in client.pieces

    for _ in range(2):
        await time.passes(KEEP_ALIVE_S + 0.1)

    assert client.pieces[-3:] == [b"data: 5\n\n", KEEP_ALIVE, KEEP_ALIVE]


async def test_what_ends_an_answer_without_its_log_is_told_as_a_failure():
    lost = Failed(ErrorKind.WORKER_LOST, "It is gone.")
    early, late = Response(), Response()
    late.head()
    await late.settled()

    for response in (early, late):
        response.viewer.fail(lost)
        await response.over()

    assert (early.client.status, late.client.status) == (503, 200)
    assert all(b"It is gone." in response.client.body for response in (early, late))
    assert early.done == late.done == [ErrorKind.WORKER_LOST]


# Chunks that are written at once


class Direct:
    """The server's way to write a chunk without waiting. It refuses while the client is slow."""

    def __init__(self) -> None:
        self.chunks: list[bytes] = []
        self.is_slow = False

    def __call__(self, chunk: bytes) -> bool:
        if not self.is_slow:
            self.chunks.append(chunk)
        return not self.is_slow


async def opened(**fields: Any) -> tuple[Response, Direct]:
    """Return a response that has sent its first piece."""
    direct = Direct()
    response = Response(scope={"state": {"direct_write": direct}}, **fields)
    response.fence()
    response.head()
    response.data(b"data: a\n\n")
    await response.settled()
    return response, direct


async def test_a_live_frame_is_written_at_once_as_a_chunk():
    response, direct = await opened()

    response.data(b"data: b\n\n", b"data: c\n\n")

    assert direct.chunks == [b"9\r\ndata: b\n\n\r\n", b"9\r\ndata: c\n\n\r\n"]
    response.end()
    client = await response.over()
    assert (client.pieces, client.is_complete) == ([b"data: a\n\n", b""], True)


async def test_a_chunk_that_is_written_at_once_carries_ids():
    response, direct = await opened(has_ids=True)

    response.data(b"data: b\n\ndata: c\n\n")

    assert direct.chunks == [chunk_of(b"id: 1-3.1\ndata: b\n\nid: 1-3.2\ndata: c\n\n")]
    assert b"retry:" in response.client.body


async def test_the_event_that_says_when_to_come_back_is_the_first_one_however_it_comes():
    direct = Direct()
    response = Response(scope={"state": {"direct_write": direct}}, has_ids=True, has_begun=True)
    await response.settled()
    response.fence()
    await response.settled()

    response.data(b"data: a\n\n")
    client = await response.settled()

    assert direct.chunks == []
    assert re.fullmatch(rb"id: 1-1\.1\nretry: \d+\ndata: a\n\n", client.body)


async def test_nothing_overtakes_what_a_slow_client_has_not_got():
    response, direct = await opened()
    direct.is_slow = True
    response.data(b"data: b\n\n")
    direct.is_slow = False
    response.data(b"data: c\n\n")
    client = await response.settled()

    assert direct.chunks == []
    assert client.pieces == [b"data: a\n\n", b"data: b\n\ndata: c\n\n"]


async def test_what_is_written_at_once_keeps_a_stream_alive(time):
    response, direct = await opened()
    for _ in range(3):
        await time.passes(KEEP_ALIVE_S * 0.7)
        response.data(b"data: b\n\n")
    assert (len(direct.chunks), KEEP_ALIVE in response.client.pieces) == (3, False)

    await time.passes(KEEP_ALIVE_S + 0.1)

    assert response.client.pieces[-1] == KEEP_ALIVE


async def test_nothing_is_written_at_once_before_the_stream_is_open_or_after_it_is_over():
    direct = Direct()
    response = Response(scope={"state": {"direct_write": direct}})
    await response.settled()
    response.data(b"data: a\n\n")
    assert direct.chunks == []
    await response.settled()
    response.client.leave()
    await response.over()

    response.data(b"data: b\n\n")

    assert direct.chunks == []


# Ids


async def test_every_event_carries_its_id_and_the_first_says_when_to_come_back():
    response = Response(has_ids=True)
    response.fence()
    response.head()
    response.data(b"data: a\n\ndata: b\n\n", b"event: x\ndata: c\n\n")
    response.end()
    client = await response.over()

    first, rest = client.body.split(b"\n\n", 1)
    assert re.fullmatch(rb"id: 1-2\.1\nretry: \d+\ndata: a", first)
    assert rest == b"id: 1-2.2\ndata: b\n\nid: 1-3.1\nevent: x\ndata: c\n\n"


async def test_who_comes_back_reads_on_behind_its_id():
    channel, claim = MemoryChannel(), Claim(G, 1, "t")
    await channel.open(G, Opening("me", "openai-chat", True, "m", 1, Policy.DETACH, 0, 60, 600, b""), "r")
    await channel.fence(claim, is_handover=False)
    frames = [
        Frame(FrameId(1, 1), FrameKind.DATA, b"data: a\n\ndata: b\n\n"),
        Frame(FrameId(1, 2), FrameKind.END, End().pack()),
    ]
    await channel.append([Append(claim, FrameId(1, 0), frames)])

    response = Response(channel=channel, after=Cursor(FrameId(1, 1), 1), has_ids=True, has_begun=True)
    client = await response.over()

    assert re.fullmatch(rb"id: 1-1\.2\nretry: \d+\ndata: b\n\n", client.body)


async def test_a_failure_has_an_id_too_so_that_nobody_comes_back_for_more():
    response = Response(has_ids=True)
    response.head()
    response.data(b"data: a\n\n")
    response.end(TIMED_OUT)
    client = await response.over()

    ids = re.findall(rb"^id: (\S+)$", client.body, re.MULTILINE)
    assert ids == [b"1-1.1", b"1-2.1"]


# A process that stops


async def test_who_can_resume_is_sent_away_at_once_and_without_an_error():
    response = Response(has_ids=True, is_resumable=True)
    response.head()
    response.data(b"data: a\n\n")
    await response.settled()

    response.relay.drain(is_over=False)
    client = await response.over()

    assert client.is_complete
    assert b"restarting" not in client.body
    assert response.done == ["drained"]


async def test_who_cannot_resume_has_the_grace_to_the_end_of_it():
    response = Response()
    response.head()
    response.data(b"data: a\n\n")
    await response.settled()

    response.relay.drain(is_over=False)
    client = await response.settled()
    assert not client.is_complete

    response.data(b"data: b\n\n")
    await response.settled()
    assert client.pieces[-1] == b"data: b\n\n"

    assert response.viewer.leave_reason is Stop.LEFT
    response.relay.drain(is_over=True)
    await response.over()
    assert b"restarting" in client.pieces[-1]
    assert response.viewer.leave_reason is Stop.API_ENDED


@pytest.mark.parametrize(("has_ids", "remedy"), [(True, f"GET /v1/generations/{G}"), (False, "Send the request again")])
async def test_a_client_that_can_come_back_is_told_where_to_read_on_and_not_to_pay_twice(has_ids: bool, remedy: str):
    response = Response(has_ids=has_ids)
    response.head()
    response.data(b"data: a\n\n")
    await response.settled()

    response.relay.drain(is_over=True)
    client = await response.over()

    assert remedy.encode() in client.pieces[-1]


async def test_a_process_that_stops_while_a_client_is_slow_ends_its_stream_too():
    """The stop comes while a piece is being sent, which is the moment at which nobody waits for news."""
    response = Response()
    response.head()
    response.data(b"data: a\n\n")
    client = await response.settled()
    client.reads.clear()
    response.data(b"data: b\n\n")
    await response.settled()

    response.relay.drain(is_over=True)
    client.reads.set()
    await response.over()

    assert client.pieces[:2] == [b"data: a\n\n", b"data: b\n\n"]
    assert b"restarting" in client.pieces[2]
    assert client.is_complete


def encoded(name: str) -> list[bytes]:
    """What a worker would write of ``EVENTS``, one piece for each."""
    request = GenerationRequest("m", [Turn(Role.USER, [TextPart("hi")])])
    encode = DIALECTS[name].encoder(request, ReplyInfo(G, "m", 1)).encode
    return [encode(event) for event in EVENTS]


async def drained_after(name: str, data: bytes) -> bytes:
    """Return what a client has got when its API stops after a head and ``data``, the end not yet in the log."""
    response = Response(dialect=name)
    response.head()
    response.data(data)
    await response.settled()
    response.relay.drain(is_over=True)
    return (await response.over()).body


@pytest.mark.parametrize("name", DIALECTS)
async def test_an_answer_that_is_whole_gets_no_error_behind_it(name: str):
    pieces = encoded(name)

    assert await drained_after(name, b"".join(pieces)) == b"".join(pieces)
    cut = await drained_after(name, b"".join(pieces[:2]))
    assert cut.startswith(b"".join(pieces[:2]))
    assert b"restarting" in cut


# A client that leaves


@pytest.mark.parametrize("is_stream", [True, False])
@pytest.mark.parametrize("has_begun", [True, False])
async def test_a_client_that_leaves_is_sent_nothing_more_and_its_response_is_over(is_stream: bool, has_begun: bool):
    response = Response(is_stream=is_stream)
    if has_begun:
        response.head()
        response.data(b"data: a\n\n")
    client = await response.settled()
    sent = len(client.sent)

    client.leave()
    await response.over()

    assert len(client.sent) == sent
    assert response.done == ["left"]


# An answer that is not streamed


async def test_a_whole_answer_is_sent_once_it_has_ended():
    response = Response(is_stream=False)
    response.fence()
    response.head(**{"x-from-head": "h"})
    response.data(b'{"a":', b"1}")
    assert (await response.settled()).status is None

    response.end()
    client = await response.over()

    assert (client.status, client.body) == (200, b'{"a":1}')
    assert client.headers["content-type"] == "application/json"
    assert client.headers["x-from-head"] == "h"
    assert response.done == ["completed"]


@pytest.mark.parametrize("is_one_batch", [True, False])
async def test_a_whole_answer_whose_worker_died_in_it_is_the_next_one_s_alone(is_one_batch: bool):
    response = Response(is_stream=False)
    response.fence()
    response.head()
    response.data(b'{"text": "half of it')
    if not is_one_batch:
        await response.settled()
    response.fence(epoch=2)
    response.head()
    response.data(b'{"text": "all of it"}')
    response.end()
    client = await response.over()

    assert client.body == b'{"text": "all of it"}'
    assert client.headers["content-length"] == str(len(client.body))


async def test_a_whole_answer_that_fails_in_it_is_an_error_and_nothing_else():
    response = Response(is_stream=False)
    response.head()
    response.data(b'{"text": "half of it')
    response.end(TIMED_OUT)
    client = await response.over()

    assert client.status == 504
    assert orjson.loads(client.body)["error"]["message"] == TIMED_OUT.message


async def test_a_whole_answer_is_waited_for_until_the_grace_of_a_stopping_process_is_over():
    response = Response(is_stream=False)
    response.head()
    response.relay.drain(is_over=False)
    assert (await response.settled()).status is None

    response.relay.drain(is_over=True)
    client = await response.over()

    assert client.status == 503
    assert orjson.loads(client.body)["error"]["code"] == "gateway_restarting"


# HEAD


@pytest.mark.parametrize("is_stream", [True, False])
def test_head_is_told_what_a_read_would_begin_with(is_stream: bool):
    head = Head(headers={"x-from-head": "h"})
    state = State("me", "openai-chat", is_stream, "m", 1, Policy.STOP, START, has_ended=False, head=head)

    fresh, resumed = (headers_of_stream(G, state, has_begun=has_begun).headers for has_begun in (False, True))

    assert fresh["content-type"] == ("text/event-stream; charset=utf-8" if is_stream else "application/json")
    assert (fresh["x-generation-id"], fresh["x-from-head"]) == (G, "h")
    assert "x-from-head" not in resumed
    assert "content-length" not in fresh
