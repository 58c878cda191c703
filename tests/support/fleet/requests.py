"""Requests of clients, and events of streams, for the two dialects that most tests use."""

from typing import Any, NamedTuple

import orjson

KEY = "sk-test"
OTHER_KEY = "sk-other"
CHAT, MESSAGES = "openai-chat", "anthropic-messages"
DIALECTS = (CHAT, MESSAGES)
PATH_OF = {CHAT: "/v1/chat/completions", MESSAGES: "/v1/messages"}
FAMILY_OF = {CHAT: "openai", MESSAGES: "anthropic"}  # The provider that speaks a dialect's own wire.


def headers_of(key: str = KEY, **headers: str) -> dict[str, str]:
    """Return a request's headers; with an empty key, without credentials."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return {"authorization": f"Bearer {key}", **named} if key else named


def body_of(dialect: str, model: str, *, stream: bool = False, text: str = "hi", **more: Any) -> dict[str, Any]:
    """Return the smallest valid body of a request, with the fields that ``more`` adds or replaces."""
    limit = {"max_tokens": 100_000} if dialect == MESSAGES else {}
    return {"model": model, "stream": stream, "messages": [{"role": "user", "content": text}], **limit, **more}


class SseEvent(NamedTuple):
    """``name`` and ``id`` are empty if the event has none."""

    name: str
    data: str
    id: str

    @property
    def fields(self) -> dict[str, Any]:
        return orjson.loads(self.data)


def sse_events(text: str) -> list[SseEvent]:
    """Return the events of a whole stream, exactly as the specification says, except that line ends must be LF."""
    events = []
    for block in text.split("\n\n"):
        lines = [line.partition(":") for line in block.split("\n") if line and not line.startswith(":")]
        fields: dict[str, list[str]] = {}
        for name, _, value in lines:
            fields.setdefault(name, []).append(value.removeprefix(" "))
        if "data" in fields:
            events.append(SseEvent("".join(fields.get("event", [])), "\n".join(fields["data"]), "".join(fields.get("id", []))))
    return events
