"""What do the demo provider's wires have in common?

A wire reads a request into an ``AnswerRequest`` and encodes a ``Plan`` in its vendor's format; the rest of the package does not
depend on the vendor. A streamed answer is an opening, one piece of bytes per token (a *beat*) and a closing. So a player can
count, pace and cut them without parsing.
"""

import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

import orjson
from aiohttp import hdrs


class WireError(Exception):
    """A request that gets an HTTP error. Without a message, the vendor's usual message for the status is used."""

    def __init__(self, status: int, message: str | None = None, *, param: str | None = None, code: str | None = None):
        super().__init__(message or f"status {status}")
        self.status = status
        self.message = message
        self.param = param
        self.code = code


@dataclass(frozen=True, slots=True)
class Tool:
    name: str
    schema: Any


@dataclass(slots=True)
class AnswerRequest:
    """The parts of a request that affect the answer.

    ``tool_result`` is the text of the tool results at the end of the conversation. ``document_schema`` is set if a JSON
    document is requested. ``prefill`` is the text of the last message, if that is the assistant's.
    """

    model: str
    body: dict[str, Any] = field(repr=False)
    input_tokens: int
    is_stream: bool = False
    tools: list[Tool] = field(default_factory=list)
    tool_result: str | None = None
    prefill: str = ""
    stops: list[str] = field(default_factory=list)
    tokens_max: int | None = None
    document_schema: dict[str, Any] | None = None
    choices: int = 1


class PartKind(StrEnum):
    REASONING = "reasoning"
    TEXT = "text"
    REFUSAL = "refusal"
    TOOL = "tool"


@dataclass(slots=True)
class AnswerPart:
    """One piece of an answer. For a tool call, the tokens are its arguments, and ``name`` is the tool's name."""

    kind: PartKind
    tokens: Sequence[str]
    name: str = ""
    id: str = field(default_factory=lambda: secrets.token_hex(12))

    @property
    def text(self) -> str:
        return "".join(self.tokens)


class Finish(StrEnum):
    STOP = "stop"
    STOP_SEQUENCE = "stop_sequence"
    LENGTH = "length"
    TOOLS = "tools"
    REFUSAL = "refusal"
    FILTER = "filter"


@dataclass(slots=True)
class Plan:
    """A complete answer, before any of it is sent."""

    parts: list[AnswerPart]
    finish: Finish
    stop_sequence: str | None = None

    @property
    def tokens(self) -> int:
        return sum(len(part.tokens) for part in self.parts)

    @property
    def reasoning_tokens(self) -> int:
        return sum(len(part.tokens) for part in self.parts if part.kind is PartKind.REASONING)


class AnswerStream(Protocol):
    """One streamed answer: ``opening``, then the ``beats``, then ``closing`` or, at any point, ``failure``."""

    def opening(self) -> bytes: ...
    def beats(self) -> Iterator[bytes]:
        """Yield one piece per token of the plan: complete events, including the structure around the token."""
        ...

    def closing(self) -> bytes: ...
    def failure(self) -> bytes:
        """Return the vendor's error event and anything that follows it."""
        ...


class Wire(Protocol):
    """One vendor's API. The modules ``chat``, ``responses``, ``messages``, ``cohere`` and ``gemini`` are wires."""

    NAME: str
    MISSING_KEY: str
    BAD_KEY: str
    INVALID_JSON: str

    def read(self, body: dict[str, Any]) -> AnswerRequest:
        """Read a request.

        Raises:
            WireError: the request lacks something that the vendor requires.
        """
        ...

    def build_reply(self, request: AnswerRequest, plan: Plan) -> dict[str, Any]: ...
    def open_stream(self, request: AnswerRequest, plan: Plan) -> AnswerStream: ...
    def error_body(self, error: WireError, request: AnswerRequest | None, request_id: str) -> dict[str, Any]: ...
    def headers(self, request_id: str, error: WireError | None = None) -> dict[str, str]: ...


MARK = "\x00here\x00"


def split_at_token(event: bytes) -> tuple[bytes, bytes]:
    """Return the bytes before and after the token's JSON string in an event that was built with ``MARK`` in its place.

    The event is built once per part; per token, only its own text must be encoded.
    """
    before, _, after = event.rpartition(orjson.dumps(MARK))
    return before, after


def read_key(headers: Mapping[str, str]) -> str:
    """Return the API key of a request; empty if it has none."""
    named = (headers.get(name, "").strip() for name in ("x-api-key", "api-key", "x-goog-api-key"))
    return headers.get(hdrs.AUTHORIZATION, "").removeprefix("Bearer ").strip() or next(filter(None, named), "")


def count_words(*values: Any) -> int:
    """Return the input tokens of a prompt, at least 1: the words of every string in it, roles and types included."""
    count, stack = 0, list(values)
    while stack:
        value = stack.pop()
        if isinstance(value, str):
            count += len(value.split())
        elif isinstance(value, dict):
            stack.extend(value.values())
        elif isinstance(value, list):
            stack.extend(value)
    return max(1, count)


def content_text(content: Any) -> str:
    """Return the text of a message's content: the string itself, or the joined text of its blocks."""
    if isinstance(content, list):
        texts = [block.get("text") for block in content if isinstance(block, dict)]
        return "".join(text for text in texts if isinstance(text, str))
    return content if isinstance(content, str) else ""


def dicts_in(value: Any) -> list[dict[str, Any]]:
    """Return the objects in a list; an empty list for any other value, because a request may contain anything."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def texts_in(value: Any) -> list[str]:
    """Return the non-empty strings in a list; also accepts a single string."""
    items = value if isinstance(value, list) else [value]
    return [item for item in items if isinstance(item, str) and item]


def trailing(items: list[Any], key: str, value: str) -> list[dict[str, Any]]:
    """Return the items at the end of the list whose ``key`` has that value, in order."""
    matches: list[dict[str, Any]] = []
    for item in reversed(items):
        if not isinstance(item, dict) or item.get(key) != value:
            break
        matches.insert(0, item)
    return matches


def positive_or_none(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
