"""A provider that records its requests with their headers, and answers all of them: for tests of where requests go."""

from dataclasses import dataclass
from typing import Any

import orjson

from tests.support.upstreams.answering_server import AnsweringServer, ReceivedRequest, Reply

REFUSED_KEY = "sk-refused-by-the-provider"
CHUNK = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
CHUNKS = (
    {**CHUNK, "choices": [{"index": 0, "delta": {"role": "assistant", "content": "Hello"}, "finish_reason": None}]},
    {**CHUNK, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
)
WHOLE = {
    **CHUNK,
    "object": "chat.completion",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}],
}
MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "m",
    "content": [{"type": "text", "text": "Hello"}],
    "stop_reason": "end_turn",
    "usage": {"input_tokens": 1, "output_tokens": 1},
}


@dataclass
class Request:
    """Header names are in lower case."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]


class RecordingUpstream(AnsweringServer):
    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.rate_limited: dict[str, str] = {}  # Keys that are rate limited, each with its Retry-After.
        super().__init__()

    @property
    def last(self) -> Request:
        return self.requests[-1]

    def reply(self, request: ReceivedRequest) -> Reply:
        headers, body = request.headers, orjson.loads(request.body)
        self.requests.append(Request(request.path, headers, body))
        reply = self._answer(request.path, headers, is_stream=bool(body.get("stream")))
        reply.headers = {**reply.headers, "cf-aig-cache-status": "MISS"}
        return reply

    def _answer(self, path: str, headers: dict[str, str], *, is_stream: bool) -> Reply:
        if any(REFUSED_KEY in value for value in headers.values()):
            error = {"message": f"Incorrect API key provided: {REFUSED_KEY}.", "code": "invalid_api_key"}
            return Reply(orjson.dumps({"error": error}), 401)
        if retry_after := self.rate_limited.get(headers.get("authorization", "").removeprefix("Bearer ")):
            error = {"message": "Rate limit reached.", "type": "requests", "code": "rate_limit_exceeded"}
            return Reply(orjson.dumps({"error": error}), 429, headers={"retry-after": retry_after})
        if path.endswith("/messages"):
            return Reply(orjson.dumps(MESSAGE))
        if is_stream:
            events = b"".join(b"data: " + orjson.dumps(chunk) + b"\n\n" for chunk in CHUNKS)
            return Reply(events + b"data: [DONE]\n\n", media_type="text/event-stream")
        return Reply(orjson.dumps(WHOLE))
