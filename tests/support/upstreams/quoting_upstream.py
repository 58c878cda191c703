"""An upstream that repeats headers, key and prompt of the request in its answer, in every way in which an answer can fail.

The model's name chooses the way: ``quote-400`` and other statuses, ``quote-break`` in mid-stream, ``quote-garbage``,
``quote-ok``.
"""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import orjson


class QuotingUpstream:
    def __init__(self, answer: str) -> None:
        self.requests = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                outer.requests += 1
                raw = self.rfile.read(int(self.headers["content-length"]))
                body = orjson.loads(raw)
                model = str(body.get("model") or self.path)
                quote = f"refused {dict(self.headers)} and {raw.decode()}"
                error = {
                    "error": {"message": quote, "type": "invalid_request_error", "code": quote[:150], "param": quote[:150]}
                }
                if "quote-garbage" in model:
                    self.answer(200, "text/html", f"<html>{quote}</html>".encode())
                elif "quote-break" in model:
                    chunk = _chunk({"content": answer})
                    self.answer(200, "text/event-stream", _event(chunk) + _event(error))
                elif "quote-ok" in model and body.get("stream"):
                    events = _event(_chunk({"role": "assistant", "content": answer})) + _event(_chunk({}, "stop"))
                    self.answer(200, "text/event-stream", events + b"data: [DONE]\n\n")
                elif "quote-ok" in model:
                    message = {"role": "assistant", "content": answer}
                    choice = {"index": 0, "message": message, "finish_reason": "stop"}
                    completion = {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
                    self.answer(200, "application/json", orjson.dumps(completion))
                else:
                    self.answer(int(model.rpartition("quote-")[2][:3]), "application/json", orjson.dumps(error))

            def answer(self, status: int, media_type: str, body: bytes) -> None:
                self.send_response(status)
                self.send_header("content-type", media_type)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def __enter__(self) -> "QuotingUpstream":
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _chunk(delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    return {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}


def _event(fields: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(fields) + b"\n\n"
