"""An upstream on three vendors' wires that refuses what the vendor refuses, and otherwise takes the next turn of ``work``."""

import base64
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from tests.agents.reading import READERS, Conversation
from tests.agents.work import TURNS, call_of
from tests.support.upstreams.answering_server import AnsweringServer, ReceivedRequest, Reply
from tests.support.upstreams.strict import refusal
from tests.support.upstreams.wire_answers import STREAMS, WHOLES, AnswerSpec

_REQUESTS_MAX = 5 * len(TURNS)  # Then the session ends, whatever the agent does.
# OpenAI and DeepSeek have two wires.
_WIRE_OF_PATH = {"/chat/completions": "openai-chat", "/responses": "openai-responses"}
LAST_WORDS = "All ten turns are done."
# Google's words for a call without a signature: https://ai.google.dev/gemini-api/docs/thought-signatures
SKIP = ("skip_thought_signature_validator", "context_engineering_is_the_way_to_go")


@dataclass
class Request:
    body: dict[str, Any]
    conversation: Conversation

    @property
    def is_of_session(self) -> bool:
        """Whether it is the agent's own: some agents also let the model write a title, without tools."""
        return bool(self.conversation.tools)


@dataclass(frozen=True)
class Wire:
    """How a vendor speaks.

    ``shows_thoughts``, ``seals_thoughts``: whether a request asks for the text of its reasoning, and for its signature.
    ``signs``: whether it has signatures. ``signs_text``: whether reasoning must come back with its text. ``reads_media``:
    whether its model reads images and documents.
    """

    name: str
    vendor: str
    model: str
    call_id: str
    shows_thoughts: Callable[[dict[str, Any]], bool]
    seals_thoughts: Callable[[dict[str, Any]], bool]
    bad_signature: str
    signs_text: bool = False
    signs: bool = True
    reads_media: bool = True


def _claude_thinks(body: dict[str, Any]) -> bool:
    return bool(body.get("thinking", {}).get("type") != "disabled")


WIRES = {
    wire.vendor: wire
    for wire in (
        Wire(
            "anthropic-messages",
            "anthropic",
            "claude-sonnet-5-5",
            "toolu_{}",
            # https://platform.claude.com/docs/en/build-with-claude/thinking: "omitted" is the default since Opus 4.7.
            lambda body: body.get("thinking", {}).get("display") == "summarized",
            _claude_thinks,
            "messages.1.content.0: Invalid `signature` in `thinking` block",
            signs_text=True,
        ),
        Wire(
            "openai-responses",
            "openai",
            "gpt-6.1-sol",
            "call_{}",
            lambda body: bool(body.get("reasoning", {}).get("summary")),
            lambda body: "reasoning.encrypted_content" in (body.get("include") or []),
            "The encrypted content could not be verified.",
        ),
        Wire(
            "gemini",
            "google-ai-studio",
            "gemini-3.8-flash",
            "{}",
            lambda body: bool(body.get("generationConfig", {}).get("thinkingConfig", {}).get("includeThoughts")),
            lambda body: True,
            "Thought signature is not valid.",
        ),
        Wire(
            "openai-chat",
            "deepseek",
            "deepseek-v4-pro",
            "call_{}",
            lambda body: True,
            lambda body: False,
            "The `reasoning_content` in the thinking mode must be passed back to the API.",
            signs_text=True,
            signs=False,
            reads_media=False,
        ),
    )
}


@dataclass
class StrictVendor:
    """``requests``: those that were accepted, in order. ``refused``: the words of each refusal. ``folder``: the agent's."""

    wire: Wire
    folder: Path
    requests: list[Request] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    _sent: dict[int, tuple[str, str]] = field(default_factory=dict)  # The thought of each turn, as it was sent.

    def answer(self, path: str, headers: dict[str, str], body: dict[str, Any]) -> tuple[int, str, bytes]:
        """Return status, media type and body of the answer."""
        wire = next((name for ending, name in _WIRE_OF_PATH.items() if path.endswith(ending)), self.wire.name)
        judgement = refusal(self.wire.vendor, path.partition("?")[0], headers, body)
        if judgement is None:
            request = Request(body, READERS[wire](body))
            judgement = self._refusal_of_signatures(request)
        if judgement is not None:
            status, error = judgement
            self.refused.append(f"{path}: {error}")
            return status, "application/json", orjson.dumps(error)
        self.requests.append(request)
        spec = self._next(request)
        if body.get("stream") or ":stream" in path:
            return 200, "text/event-stream", STREAMS[wire](spec)
        return 200, "application/json", WHOLES[wire](spec)

    def _refusal_of_signatures(self, request: Request) -> tuple[int, dict[str, Any]] | None:
        known = [thoughts for turn in self._sent for thoughts in self.returned_thoughts(turn)]
        for thought in (thought for turn in request.conversation.turns for thought in turn.thoughts):
            if thought[1] not in SKIP and [thought] not in known:
                return 400, {"error": {"message": self.wire.bad_signature, "type": "invalid_request_error"}}
        return None

    def returned_thoughts(self, turn: int) -> list[list[tuple[str, str]]]:
        """Return the thoughts of a turn as they may return: one, with its text or, if the vendor allows it, without."""
        text, seal = self._sent[turn]
        return [[(returned, seal)] for returned in ([text] if self.wire.signs_text else ["", text])]

    def _thought(self, turn: int) -> str:
        return f"Turn {turn + 1}: what is next?"

    def _seal(self, turn: int) -> str:
        return base64.b64encode(hashlib.sha512(f"{self.wire.vendor} {turn}".encode()).digest()).decode()

    def _next(self, request: Request) -> AnswerSpec:
        turn = len(request.conversation.turns)
        id_ = str(len(self.requests))  # Claude Code joins messages with the same id.
        if not request.is_of_session:
            return AnswerSpec(id_, text="A title")
        thinking = self._thought(turn) if self.wire.shows_thoughts(request.body) else ""
        sealed = self._seal(turn) if self.wire.seals_thoughts(request.body) else ""
        self._sent[turn] = (thinking, sealed)
        if turn >= len(TURNS) or len(self.requests) > _REQUESTS_MAX:
            return AnswerSpec(id_, text=LAST_WORDS, thinking=thinking, signature=sealed)
        calls = []
        for index, step in enumerate(TURNS[turn]):
            name, arguments = call_of(step, request.conversation.tools, self.folder)
            calls.append((self.wire.call_id.format(f"{turn}x{index}"), name, arguments))
        text = f"I take step {turn + 1}." if turn % 2 else ""
        return AnswerSpec(id_, text=text, thinking=thinking, signature=sealed, calls=calls)


class VendorServer(AnsweringServer):
    """A vendor on loopback."""

    def __init__(self, vendor: StrictVendor) -> None:
        self._vendor = vendor
        super().__init__()

    def reply(self, request: ReceivedRequest) -> Reply:
        try:
            status, media_type, answer = self._vendor.answer(request.path, request.headers, orjson.loads(request.body))
        except Exception as error:  # It must reach the test, not only a thread's output.
            self._vendor.refused.append(repr(error))
            status, media_type = 500, "application/json"
            answer = json.dumps({"error": {"message": repr(error)}}).encode()
        return Reply(answer, status, media_type)
