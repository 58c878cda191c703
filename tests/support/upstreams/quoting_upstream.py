"""An upstream that repeats headers, key and prompt of the request in its answer, in every way in which an answer can fail.

The model's name chooses the way: ``quote-400`` and other statuses, ``quote-break`` in mid-stream, ``quote-garbage``,
``quote-ok``.
"""

from typing import Any

import orjson

from tests.support.upstreams.answering_server import AnsweringServer, ReceivedRequest, Reply


class QuotingUpstream(AnsweringServer):
    def __init__(self, answer: str) -> None:
        self.requests = 0
        self._answer = answer
        super().__init__()

    def reply(self, request: ReceivedRequest) -> Reply:
        self.requests += 1
        body = orjson.loads(request.body)
        model = str(body.get("model") or request.path)
        quote = f"refused {request.headers} and {request.body.decode()}"
        error = {"error": {"message": quote, "type": "invalid_request_error", "code": quote[:150], "param": quote[:150]}}
        if "quote-garbage" in model:
            return Reply(f"<html>{quote}</html>".encode(), media_type="text/html")
        if "quote-break" in model:
            return Reply(_event(_chunk({"content": self._answer})) + _event(error), media_type="text/event-stream")
        if "quote-ok" in model and body.get("stream"):
            events = _event(_chunk({"role": "assistant", "content": self._answer})) + _event(_chunk({}, "stop"))
            return Reply(events + b"data: [DONE]\n\n", media_type="text/event-stream")
        if "quote-ok" in model:
            message = {"role": "assistant", "content": self._answer}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            completion = {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
            return Reply(orjson.dumps(completion))
        return Reply(orjson.dumps(error), int(model.rpartition("quote-")[2][:3]))


def _chunk(delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    return {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}


def _event(fields: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(fields) + b"\n\n"
