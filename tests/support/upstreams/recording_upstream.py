"""A provider that records its requests with their headers, and answers all of them: for tests of where requests go."""

import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import orjson

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


class RecordingUpstream:
    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.rate_limited: dict[str, str] = {}  # Keys that are rate limited, each with its Retry-After.
        requests, rate_limited = self.requests, self.rate_limited

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = orjson.loads(self.rfile.read(int(self.headers["content-length"])))
                headers = {name.lower(): value for name, value in self.headers.items()}
                requests.append(Request(self.path, headers, body))
                if any(REFUSED_KEY in value for value in headers.values()):
                    error = {"message": f"Incorrect API key provided: {REFUSED_KEY}.", "code": "invalid_api_key"}
                    self.answer(401, "application/json", orjson.dumps({"error": error}))
                elif retry_after := rate_limited.get(headers.get("authorization", "").removeprefix("Bearer ")):
                    error = {"message": "Rate limit reached.", "type": "requests", "code": "rate_limit_exceeded"}
                    self.answer(429, "application/json", orjson.dumps({"error": error}), retry_after)
                elif self.path.endswith("/messages"):
                    self.answer(200, "application/json", orjson.dumps(MESSAGE))
                elif body.get("stream"):
                    events = b"".join(b"data: " + orjson.dumps(chunk) + b"\n\n" for chunk in CHUNKS)
                    self.answer(200, "text/event-stream", events + b"data: [DONE]\n\n")
                else:
                    self.answer(200, "application/json", orjson.dumps(WHOLE))

            def answer(self, status: int, media_type: str, body: bytes, retry_after: str = "") -> None:
                self.send_response(status)
                if retry_after:
                    self.send_header("retry-after", retry_after)
                self.send_header("content-type", media_type)
                self.send_header("content-length", str(len(body)))
                self.send_header("cf-aig-cache-status", "MISS")
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def last(self) -> Request:
        return self.requests[-1]

    def __enter__(self) -> "RecordingUpstream":
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
