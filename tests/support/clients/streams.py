"""Streams that are read to their end, each in its own thread, while a test disturbs the processes that send them."""

import threading
from typing import Any

import httpx
import orjson

from tests.support.clients import sdk_clients, seed_clients
from tests.support.fleet import KEY, Fleet, headers_of

HI = [{"role": "user", "content": "hi"}]
# Per dialect: path, the rest of the body, and its strict reader.
DIALECTS: dict[str, tuple[str, dict[str, Any], Any]] = {
    "openai-chat": ("/v1/chat/completions", {"stream_options": {"include_usage": True}}, sdk_clients.openai_stream),
    "openai-responses": ("/v1/responses", {"input": "hi"}, sdk_clients.responses_stream),
    "anthropic-messages": ("/v1/messages", {"max_tokens": 100_000}, sdk_clients.anthropic_stream),
    "agentary": ("/api/{provider}", {}, seed_clients.agentary_stream),
    "unified": ("/v1/chat", {}, seed_clients.unified_stream),
}


class ChatStream(threading.Thread):
    """One stream of chat completions."""

    def __init__(self, fleet: Fleet, model: str, **body: Any) -> None:
        super().__init__(daemon=True)
        self.lines: list[str] = []
        self.status: int | None = None
        self.failure: Exception | None = None
        self._fleet = fleet
        self._body = {"model": model, "stream": True, "messages": [{"role": "user", "content": "hi"}], **body}
        self.start()

    def run(self) -> None:
        headers = {"authorization": f"Bearer {KEY}"}
        try:
            url = f"{self._fleet.url}/v1/chat/completions"
            with httpx.stream("POST", url, json=self._body, headers=headers, timeout=120) as response:
                self.status = response.status_code
                self.headers = response.headers
                rest = b""
                for piece in response.iter_bytes():
                    # Not iter_lines: str.splitlines also breaks at U+2028, which is legal inside an answer.
                    *lines, rest = (rest + piece).split(b"\n")
                    self.lines += [line.decode() for line in lines]
        except httpx.HTTPError as error:
            self.failure = error

    @property
    def events(self) -> list[Any]:
        texts = [line.removeprefix("data: ") for line in list(self.lines) if line.startswith("data: ")]
        return [text if text == "[DONE]" else orjson.loads(text) for text in texts]

    @property
    def text(self) -> str:
        deltas = [c["delta"] for e in self.events if isinstance(e, dict) and "choices" in e for c in e["choices"]]
        return "".join(delta.get("content") or "" for delta in deltas)

    @property
    def error(self) -> dict[str, Any] | None:
        return next((event["error"] for event in self.events if isinstance(event, dict) and "error" in event), None)

    def finished(self, within_s: float = 30) -> "ChatStream":
        self.join(within_s)
        assert not self.is_alive(), "the stream hangs"
        assert self.failure is None
        return self


class DialectStream(threading.Thread):
    """One stream in any dialect; ``read`` is its strict reader."""

    def __init__(self, fleet: Fleet, dialect: str, provider: str, model: str, **more: Any) -> None:
        super().__init__(daemon=True)
        path, fields, self.read = DIALECTS[dialect]
        self.name = f"{dialect} on {provider}"
        self.body = b""
        self._url = fleet.url + path.format(provider=provider)
        full_name = model if dialect == "agentary" else f"{provider}/{model}"
        body = {"model": full_name, "stream": True, "messages": HI, **fields, **more}
        if dialect == "unified":
            body |= {"provider": provider, "model": model}
        self._sent = {name: value for name, value in body.items() if not (name == "messages" and "input" in body)}
        self.start()

    def run(self) -> None:
        with httpx.stream("POST", self._url, json=self._sent, headers=headers_of(), timeout=120) as response:
            for piece in response.iter_bytes():
                self.body += piece

    def finished(self) -> "DialectStream":
        self.join(120)
        assert not self.is_alive(), f"{self.name} hangs"
        return self
