"""Which answers of upstreams do the tests use?

There are two sources. The streams in ``tests/recordings`` are written by hand after observed answers of vendors; every test
uses them. A folder of recorded exchanges beside the repository is used if it exists.
"""

import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest

OWN = Path(__file__).parents[2] / "recordings"
SHARED = Path(__file__).parents[4] / "shared" / "recordings"

WIRE_OF_API = {
    "openai-chat": "openai-chat",
    "openai-responses": "openai-responses",
    "mistral-chat": "openai-chat",
    "perplexity-chat": "openai-chat",
    "anthropic-messages": "anthropic-messages",
    "cohere-v1": "cohere",
    "cohere-v2": "cohere",
    "gemini": "gemini",
}
WIRE_OF_FOLDER = {
    "openai_compatible": "openai-chat",
    "openai_responses": "openai-responses",
    "anthropic": "anthropic-messages",
    "cohere": "cohere",
    "gemini": "gemini",
}


@dataclass(frozen=True)
class Recording:
    id: str
    wire: str
    is_stream: bool
    status: int
    body: bytes = field(repr=False)
    headers: dict[str, str] = field(repr=False, default_factory=dict)
    request: dict[str, Any] | None = field(repr=False, default=None)


@cache
def recordings() -> tuple[Recording, ...]:
    return (*_own(), *_shared())


def _own() -> list[Recording]:
    return [
        Recording(f"own.{path.stem}", wire, is_stream=True, status=200, body=path.read_bytes())
        for folder, wire in WIRE_OF_FOLDER.items()
        for path in sorted((OWN / folder).glob("*.sse"))
    ]


def _shared() -> list[Recording]:
    exchanges = []
    for path in sorted(SHARED.glob("*.*.*.json")):
        exchange = json.loads(path.read_text())
        if exchange.get("api") not in WIRE_OF_API:
            continue
        response = exchange["response"]
        exchanges.append(
            Recording(
                exchange["id"],
                WIRE_OF_API[exchange["api"]],
                exchange["stream"] and not response["body"].startswith("["),  # Gemini's other stream format is one JSON array.
                response["status"],
                response["body"].encode(),
                {name: str(value) for name, value in response["headers"].items()},
                exchange["request"]["json"],
            )
        )
    return exchanges


def parameters(*, wire: str | None = None, is_stream: bool = True, is_error: bool = False) -> list[Any]:
    """Return the recordings as parameters of a test. If the shared folder is missing, a skipped parameter says so."""
    chosen: list[Any] = [
        pytest.param(recording, id=recording.id)
        for recording in recordings()
        if wire in (None, recording.wire) and recording.is_stream == is_stream and (recording.status >= 400) == is_error
    ]
    if not SHARED.is_dir():
        reason = "the folder of recorded exchanges is not beside the repository"
        chosen.append(pytest.param(None, id="shared", marks=pytest.mark.skip(reason=reason)))
    return chosen


def blocks_of(body: bytes) -> list[bytes]:
    """Split a stream at its event boundaries, in the simplest way."""
    text = body.replace(b"\r\n", b"\n")
    blocks = [block.strip(b"\n") + b"\n\n" for block in text.split(b"\n\n") if block.strip(b"\n")]
    rest = text.rpartition(b"\n\n")[2]
    # Google's error in mid-stream is not an event, but plain JSON.
    return [block for block in blocks if b"data:" in block] + [rest] * rest.startswith(b"{")


def data_of(body: bytes) -> list[dict[str, Any]]:
    """Return the JSON of a stream's events."""
    lines = [line for line in body.replace(b"\r\n", b"\n").split(b"\n") if line.startswith(b"data:")]
    return [json.loads(line[5:]) for line in lines if line[5:].strip() != b"[DONE]"]
