"""How a channel becomes a response, without any process around it."""

import asyncio
from typing import Any

import orjson
import pytest

from api.relay.response import Relay, RelayTimes
from api.relay.viewer import Viewer
from common.canonical.events import Completed, Finished, FinishReason, Started, TextDelta, Usage
from common.canonical.generation import GenerationRequest, Role, TextPart
from common.canonical.generation import Message as Turn
from common.channel.base import START, Frame, FrameId, FrameKind, Message
from common.channel.memory import MemoryChannel
from common.dialects import DIALECTS
from common.dialects.base import ReplyInfo

EVENTS = [Started(), TextDelta("whole"), Finished(FinishReason.STOP), Completed(Usage(1, 1))]


class Client:
    """One HTTP client of the relay: what it was sent, and that it stays."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self.has_body = asyncio.Event()

    async def send(self, message: Any) -> None:
        self.sent.append(message)
        if message["type"] == "http.response.body":
            self.has_body.set()

    async def receive(self) -> Any:
        await asyncio.Event().wait()

    @property
    def body(self) -> bytes:
        return b"".join(message["body"] for message in self.sent if message["type"] == "http.response.body")


async def done(_: Relay) -> None:
    pass


async def test_who_comes_back_to_a_quiet_answer_is_not_kept_waiting_for_its_status() -> None:
    viewer, client = Viewer("gen_1", MemoryChannel(), 1 << 20), Client()
    told = {"request_id": "req_1", "is_stream": True, "model": "m", "created_s": 1, "has_ids": True, "is_resumable": True}
    relay = Relay(viewer, DIALECTS["openai-chat"], RelayTimes(5, 15), done, has_begun=True, **told)

    response = asyncio.create_task(relay({"type": "http"}, client.receive, client.send))
    while not client.sent:
        await asyncio.sleep(0)

    assert (client.sent[0]["type"], client.sent[0]["status"]) == ("http.response.start", 200)
    relay.drain(is_over=False)
    await response


async def drained_after(name: str, data: bytes) -> bytes:
    """Return what a client has got when its API stops after a head and ``data``, the end not yet in the log."""
    viewer, client, dialect = Viewer("gen_1", MemoryChannel(), 1 << 20), Client(), DIALECTS[name]
    relay = Relay(viewer, dialect, RelayTimes(5, 15), done, request_id="req_1", is_stream=True, model="m", created_s=1)
    head, first = FrameId(1, 1), FrameId(1, 2)
    viewer.offer(Message(START, Frame(head, FrameKind.HEAD, orjson.dumps({"status": 200}))))
    viewer.offer(Message(head, Frame(first, FrameKind.DATA, data)))
    response = asyncio.create_task(relay({"type": "http"}, client.receive, client.send))
    await client.has_body.wait()
    relay.drain(is_over=True)
    await response
    return client.body


@pytest.mark.parametrize("name", DIALECTS)
async def test_an_answer_that_is_whole_gets_no_error_behind_it(name: str) -> None:
    request = GenerationRequest("m", [Turn(Role.USER, [TextPart("hi")])])
    encode = DIALECTS[name].encoder(request, ReplyInfo("gen_1", "m", 1)).encode
    pieces = [encode(event) for event in EVENTS]

    assert await drained_after(name, b"".join(pieces)) == b"".join(pieces)
    cut = await drained_after(name, b"".join(pieces[:2]))
    assert cut.startswith(b"".join(pieces[:2]))
    assert b"restarting" in cut
