"""What does a stream say, in each dialect, read in the plainest way there is?

None of Sluice's own decoders: a client knows nothing of them. A reader takes one event at a time, adds up the text, and
notes whatever no stream may do.
"""

from collections.abc import Callable
from typing import Any

import orjson

CHAT, MESSAGES, RESPONSES, AGENTARY, UNIFIED = "openai-chat", "anthropic-messages", "openai-responses", "agentary", "unified"


BROWSERS_RETRY_S = 3.0  # Where no event has said another: Chromium's.


class Stream:
    """One stream, over all of its connections. ``end`` is "completed" or an error's code once it has ended."""

    def __init__(self, dialect: str) -> None:
        self.text = ""
        self.end: str | None = None
        self.problems: list[str] = []
        self.last_id = ""
        self.retry_s = BROWSERS_RETRY_S
        self.events: list[tuple[str, bytes]] = []  # Id (or nothing) and the block without it, as they came.
        self._read = _READERS[dialect]
        self._rest = b""
        self._last_key: tuple[int, ...] = (0,)
        self._constant: dict[str, Any] = {}
        self.sequence = 0  # The next event's number, where a dialect has one.
        self._sequence_before = 0
        self.has_started = False  # Messages: message_start has come.
        self.has_finished = False  # Chat and agentary: the last piece has come, the mark of the end has not.

    def feed(self, data: bytes) -> None:
        *blocks, self._rest = (self._rest + data).split(b"\n\n")
        for block in blocks:
            self._take(block)

    def broken(self) -> None:
        """The connection is gone; half an event says nothing."""
        self._rest = b""

    def reopen(self) -> None:
        """The error was this connection's, not the generation's: the stream goes on elsewhere."""
        self.end = None
        if self.events and not self.events[-1][0]:
            self.events.pop()
        self.sequence = self._sequence_before

    def _take(self, block: bytes) -> None:
        kept, event_id = [], ""
        for line in block.split(b"\n"):
            if line.startswith(b"id: "):
                event_id = line[4:].decode()
            elif line.startswith(b"retry: "):
                self.retry_s = int(line[7:]) / 1000
            elif line and not line.startswith(b":"):
                kept.append(line)
        if not kept:
            self.problems.append("an event without data")
            return
        if self.end:
            self.problems.append(f"an event after the end ({self.end}): {kept[-1][:80]!r}")
        if event_id:
            self._note_id(event_id)
        self.events.append((event_id, b"\n".join(kept) + b"\n\n"))
        self._sequence_before = self.sequence
        try:
            self._read(self, kept)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            self.problems.append(f"an event that cannot be read ({error!r}): {kept[-1][:200]!r}")

    def _note_id(self, event_id: str) -> None:
        key = tuple(int(part) for part in event_id.replace(".", "-").split("-"))
        if key <= self._last_key:
            self.problems.append(f"id {event_id} after {self.last_id}")
        self._last_key, self.last_id = key, event_id

    def same(self, name: str, value: Any) -> None:
        """Note it where a field changes that must not."""
        if self._constant.setdefault(name, value) != value:
            self.problems.append(f"{name} changed from {self._constant[name]!r} to {value!r}")


def _fields(lines: list[bytes]) -> dict[str, Any]:
    fields = orjson.loads(lines[-1].removeprefix(b"data: "))
    assert isinstance(fields, dict)
    return fields


def _chat(stream: Stream, lines: list[bytes]) -> None:
    if lines == [b"data: [DONE]"]:
        if not stream.has_finished:
            stream.problems.append("[DONE] without a finish_reason")
        stream.end = "completed"
        return
    fields = _fields(lines)
    if "error" in fields:
        stream.end = fields["error"]["code"]
        return
    stream.same("id", fields["id"])
    for choice in fields["choices"]:
        stream.text += choice["delta"].get("content") or ""
        stream.has_finished = stream.has_finished or choice.get("finish_reason") is not None


def _messages(stream: Stream, lines: list[bytes]) -> None:
    fields = _fields(lines)
    match fields["type"]:
        case "message_start":
            if stream.has_started:
                stream.problems.append("a second message_start")
            stream.has_started = True
        case "content_block_delta":
            stream.text += fields["delta"].get("text", "")
        case "message_stop":
            stream.end = "completed"
        case "error":
            stream.end = fields["error"].get("code") or fields["error"]["type"]


def _responses(stream: Stream, lines: list[bytes]) -> None:
    fields = _fields(lines)
    # Where a reader stood is unknown to an API that finds none of the events before his cursor.
    is_lost = fields["type"] == "response.failed" and fields["response"]["error"]["code"] == "frames_lost"
    if fields["sequence_number"] != stream.sequence and not is_lost:
        stream.problems.append(f"sequence_number {fields['sequence_number']} in the place of {stream.sequence}")
    stream.sequence = fields["sequence_number"] + 1
    match fields["type"]:
        case "response.output_text.delta":
            stream.text += fields["delta"]
        case "response.completed":
            stream.end = "completed"
            if (said := _said_in(fields["response"])) != stream.text:
                stream.problems.append(f"the last event has {len(said)} characters, the deltas {len(stream.text)}")
        case "response.failed":
            stream.end = fields["response"]["error"]["code"]


def _agentary(stream: Stream, lines: list[bytes]) -> None:
    if lines == [b"data: [DONE]"]:
        if not stream.has_finished:
            stream.problems.append("[DONE] without the last chunk")
        stream.end = "completed"
    elif lines[0].startswith(b"error: "):
        stream.end = orjson.loads(lines[0][7:])["code"]
    else:
        fields = _fields(lines)
        if fields["tokenId"] != stream.sequence:
            stream.problems.append(f"tokenId {fields['tokenId']} in the place of {stream.sequence}")
        stream.sequence = fields["tokenId"] + 1
        stream.text += fields["token"]
        stream.has_finished = bool(fields.get("isLast"))


def _unified(stream: Stream, lines: list[bytes]) -> None:
    fields = _fields(lines)
    match lines[0]:
        case b"event: chunk":
            stream.text += fields["content"]
        case b"event: done":
            stream.end = "completed"
        case b"event: error":
            stream.end = fields["code"]


_READERS: dict[str, Callable[[Stream, list[bytes]], None]] = {
    CHAT: _chat,
    MESSAGES: _messages,
    RESPONSES: _responses,
    AGENTARY: _agentary,
    UNIFIED: _unified,
}


def _said_in(response: dict[str, Any]) -> str:
    return "".join(part["text"] for item in response["output"] if item["type"] == "message" for part in item["content"])


def whole_text(dialect: str, body: bytes) -> str:
    """Return the text of a JSON answer."""
    fields = orjson.loads(body)
    match dialect:
        case "openai-chat":
            text = fields["choices"][0]["message"]["content"]
        case "anthropic-messages":
            text = "".join(block["text"] for block in fields["content"])
        case "openai-responses":
            text = _said_in(fields)
        case "agentary":
            text = fields["content"]
        case _:
            text = fields["message"]["content"]
    assert isinstance(text, str)
    return text


def error_code(body: bytes) -> str:
    """Return the code (or, where a dialect has none, the type) of a JSON error body.

    Raises:
        ValueError: it is none.
    """
    fields = orjson.loads(body)
    error = fields.get("error")
    inner = error if isinstance(error, dict) else fields
    code = inner.get("code") or inner.get("type")
    if not isinstance(code, str):
        raise TypeError("no code")
    return code
