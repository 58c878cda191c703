"""What do Anthropic, and servers that speak its Messages API, send us?

The type in the JSON says what an event is; the ``event:`` line only repeats it. Events, blocks and deltas of unknown types are
ignored: new ones appear without notice, and a client of the same family gets them as bytes.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from common.canonical.errors import Failed
from common.canonical.events import (
    Citation,
    Completed,
    Event,
    Finished,
    FinishReason,
    LeftOut,
    ReasoningDelta,
    ReasoningSigned,
    RedactedReasoning,
    Started,
    TextDelta,
    ToolCallDelta,
    Usage,
)
from common.canonical.generation import GenerationRequest
from common.dialects.base import ReplyInfo
from common.dialects.shared.anthropic_words import MESSAGE_STOP, REASON_OF_WORD
from workers.providers.anthropic.passed import (
    lost_efforts,
    remove_thoughts,
    with_own_ids,
    with_system_in_place,
    without_empty_texts,
    without_foreign_reasoning,
)
from workers.providers.anthropic.request import build_body
from workers.providers.base import Deployment, UpstreamRequest
from workers.providers.shared import errors
from workers.providers.shared.figures import Figures, index_of
from workers.providers.shared.fitting import fit_request
from workers.providers.shared.history import Carries
from workers.providers.shared.json_decoder import JsonDecoder
from workers.providers.shared.loose_json import dict_of, list_of, read_json, text_of
from workers.providers.shared.output_parts import left_out
from workers.providers.shared.plain_shape import PlainShape
from workers.providers.shared.refused_thoughts import THOUGHTS

_VERSION = "2023-06-01"
_BINDING_BETA = "thinking-binding-controls-2026-08-01"
# Source: https://platform.claude.com/docs/en/build-with-claude/pdf-support
_CARRIES = Carries(
    kinds=frozenset({"image", "pdf", "text"}),
    by_url=frozenset({"image", "pdf"}),
    files_at="anthropic",
    text_documents=True,
)
_FINISH_REASON = {
    **REASON_OF_WORD,
    "model_context_window_exceeded": FinishReason.LENGTH,
    "refusal": FinishReason.REFUSAL,  # We also write it if a filter cut an answer: Anthropic has no word for that.
}
_NOT_COUNTED = ("max_tokens", "stream", "temperature", "top_p", "top_k", "stop_sequences", "metadata", "service_tier")
_USUAL_TIERS = ("", "standard", "global", "not_available")  # They do not change the price.
_COUNTS = {"input_tokens", "output_tokens", "cache_creation_input_tokens", "cache_read_input_tokens"}


class Anthropic:
    dialect = "anthropic-messages"
    end_mark = MESSAGE_STOP

    def build_request(self, request: GenerationRequest, deployment: Deployment) -> UpstreamRequest:
        request, left_out = fit_request(request, deployment.facts, _CARRIES)
        body, dropped = build_body(request, deployment.model, deployment.facts)
        dropped += left_out
        # A field of a beta version needs its name in a header.
        betas = {"anthropic-beta": _BINDING_BETA} if "block_binding" in body.get("thinking", {}) else {}
        return UpstreamRequest(_url(deployment), _headers(deployment, betas), orjson.dumps(body), dropped)

    def pass_request(self, body: Mapping[str, Any], headers: Mapping[str, str], deployment: Deployment) -> UpstreamRequest:
        passed = orjson.dumps(_passed(body, deployment))
        dropped = [THOUGHTS] if deployment.refuses_thoughts else []
        dropped += lost_efforts(body.get("messages"), deployment.facts)
        return UpstreamRequest(_url(deployment), _headers(deployment, headers), passed, dropped)

    def decoder(self, choices: int = 1) -> "MessageDecoder":
        return MessageDecoder()

    def for_client(self, data: bytes, info: ReplyInfo) -> bytes:
        return data  # No change by ``pass_request`` adds a block.

    def read_error(self, status: int, headers: Mapping[str, str], body: bytes) -> Failed:
        return errors.read_error(status, headers, body)

    def count_request(
        self, request: GenerationRequest, body: Mapping[str, Any], headers: Mapping[str, str], deployment: Deployment
    ) -> UpstreamRequest:
        """Source: https://docs.anthropic.com/en/api/messages-count-tokens"""
        # The counting endpoint refuses these fields. Some clients send the full body of the message that they send next.
        counted = {name: value for name, value in _passed(body, deployment).items() if name not in _NOT_COUNTED}
        url = deployment.url("/v1/messages/count_tokens")
        return UpstreamRequest(url, _headers(deployment, headers), orjson.dumps(counted))

    def read_count(self, body: bytes) -> int | None:
        try:
            return Figures(dict_of(read_json(body))).count("input_tokens") or None
        except ValueError:
            return None


class _Call:
    """A tool call block. ``input``: the complete input from its start event; usually deltas bring it in pieces instead."""

    def __init__(self, index: int, input_: dict[str, Any]) -> None:
        self.index = index
        self.input = input_
        self.has_arguments = False


class MessageDecoder(JsonDecoder):
    """Decodes Messages events. ``Finished`` waits for ``message_stop`` or the end: message_delta may come more than once."""

    def __init__(self) -> None:
        super().__init__(PlainShape(b'"text":"', b'"thinking":"'))
        self._calls: dict[object, _Call] = {}  # By the index of the block.
        self._call_count = 0
        self._reason: str | None = None
        self._stop_sequence: str | None = None

    def _read_whole(self, answer: dict[str, Any]) -> list[Event]:
        if answer.get("type") == "error" or answer.get("error"):
            return [self._fail(errors.error_in_stream(answer))]
        if not isinstance(answer.get("content"), list):
            return [self._fail(errors.no_answer(answer))]
        events = list(self._read_start(answer))
        for index, block in enumerate(list_of(answer.get("content"))):
            events += self._read_block_start(index, dict_of(block))
            events += self._read_block_stop(index)
        self._read_end(answer, answer.get("usage"))
        return [*events, *self._complete()]

    def _read(self, name: str, fields: dict[str, Any]) -> list[Event]:
        return list(self._events(name, fields))

    def _events(self, name: str, fields: dict[str, Any]) -> Iterator[Event]:
        match fields.get("type"):
            case "content_block_delta":
                yield from self._read_delta(fields.get("index"), dict_of(fields.get("delta")))
            case "content_block_start":
                yield from self._read_block_start(fields.get("index"), dict_of(fields.get("content_block")))
            case "content_block_stop":
                yield from self._read_block_stop(fields.get("index"))
            case "message_start":
                yield from self._read_start(dict_of(fields.get("message")))
            case "message_delta":
                self._read_end(dict_of(fields.get("delta")), fields.get("usage"))
            case "message_stop":
                yield from self._complete()
            case type_ if "error" in (name, type_) or fields.get("error"):
                yield from self._broken(errors.error_in_stream(fields))

    def _read_start(self, message: dict[str, Any]) -> Iterator[Event]:
        self._read_usage(message.get("usage"))
        # Some proxies send it twice.
        if not self._started:
            self._started = True
            self._model = text_of(message.get("model"))
            yield Started(text_of(message.get("id")) or None, self._model or None, _tier(self._report))

    def _read_block_start(self, index: object, block: dict[str, Any]) -> Iterator[Event]:
        match block.get("type"):
            case "text" if text_of(block.get("text")):
                yield TextDelta(block["text"])
                for citation in list_of(block.get("citations")):
                    yield from _citation(dict_of(citation))
            case "thinking":
                if text_of(block.get("thinking")):
                    yield ReasoningDelta(block["thinking"])
                if text_of(block.get("signature")):
                    yield ReasoningSigned(block["signature"])
            case "redacted_thinking":
                yield RedactedReasoning(text_of(block.get("data")))
            case "tool_use":
                call = _Call(self._call_count, dict_of(block.get("input")))
                self._call_count += 1
                if (at := index_of(index)) is not None:
                    self._calls[at] = call
                id_ = text_of(block.get("id")) or f"toolu_{call.index}"
                yield self.start_call(call.index, id_, text_of(block.get("name")), 0)
            case "text":
                pass  # Deltas bring it.
            case type_:
                yield left_out(type_)  # What a tool asked or found at the vendor, for example.

    def _read_delta(self, index: object, delta: dict[str, Any]) -> Iterator[Event]:
        match delta.get("type"):
            case "text_delta" if text_of(delta.get("text")):
                yield TextDelta(delta["text"])
            case "thinking_delta" if text_of(delta.get("thinking")):
                yield ReasoningDelta(delta["thinking"])
            case "citations_delta":
                yield from _citation(dict_of(delta.get("citation")))
            case "signature_delta" if text_of(delta.get("signature")):
                yield ReasoningSigned(delta["signature"])
            case "input_json_delta" if text_of(delta.get("partial_json")):
                call = self._calls.get(index_of(index))
                if call is not None:  # None: the tool runs at the vendor.
                    call.has_arguments = True
                    yield ToolCallDelta(call.index, delta["partial_json"])

    def _read_block_stop(self, index: object) -> Iterator[Event]:
        call = self._calls.pop(index_of(index), None)
        if call is not None and not call.has_arguments:
            yield ToolCallDelta(call.index, orjson.dumps(call.input).decode())

    def _read_end(self, delta: dict[str, Any], usage: object) -> None:
        self._read_usage(usage)
        self._reason = text_of(delta.get("stop_reason")) or self._reason
        self.is_whole = bool(self._reason)
        self._stop_sequence = text_of(delta.get("stop_sequence")) or self._stop_sequence

    def _read_usage(self, usage: object) -> None:
        """Merge a report. Later figures include earlier ones and replace them; figures that are missing stay."""
        reported = {name: value for name, value in dict_of(usage).items() if value is not None}
        if reported:
            self._report = {**self._report, **reported}

    def _complete(self) -> list[Event]:
        self._ended = self.is_whole = True
        reason = _FINISH_REASON.get(self._reason or "", FinishReason.STOP)
        if self._call_count and reason is FinishReason.STOP:
            reason = FinishReason.TOOL_CALLS  # Servers of this format say "end_turn" here too, and agents would stop.
        # Claude may have nothing to add to a tool's result. Source:
        # https://platform.claude.com/docs/en/build-with-claude/handling-stop-reasons#empty-responses-with-end-turn
        may_be_empty = self._reason == "end_turn"
        return [Finished(reason, self._stop_sequence, may_be_empty=may_be_empty), Completed(self.usage)]

    def _usage_of(self, figures: Figures) -> Usage | None:
        """Return the usage. Anthropic's input_tokens do not include its cache figures; ours do."""
        if not self._report.keys() & _COUNTS:
            return None
        # Compactions are billed, but no part of the other figures. Attempts that gave way to a fallback model are not billed.
        # Source: https://platform.claude.com/docs/en/build-with-claude/compaction (usage)
        iterations = map(dict_of, list_of(self._report.get("iterations")))
        compactions = [Figures(fields) for fields in iterations if fields.get("type") == "compaction"]

        def count(*path: str) -> int:
            return sum(report.count(*path) for report in (figures, *compactions))

        read, written = count("cache_read_input_tokens"), count("cache_creation_input_tokens")
        usage = figures.usage(
            figures.main("input_tokens") + sum(report.count("input_tokens") for report in compactions) + read + written,
            figures.main("output_tokens") + sum(report.count("output_tokens") for report in compactions),
            cache_read_tokens=read,
            cache_write_tokens=written,
            cache_write_1h_tokens=count("cache_creation", "ephemeral_1h_input_tokens"),
            reasoning_tokens=figures.count("output_tokens_details", "thinking_tokens"),
            web_searches=figures.count("server_tool_use", "web_search_requests"),
            model=self._model,
            service_tier=_tier(self._report),
        )
        figures.is_absurd |= any(report.is_absurd for report in compactions)
        return usage


def _citation(fields: dict[str, Any]) -> Iterator[Event]:
    """Yield a citation of a page. One of a document or of a search result that the client sent has no URL."""
    url = text_of(fields.get("url"))
    yield Citation(url, text_of(fields.get("title"))) if url else LeftOut("citations")


def _tier(report: Mapping[str, Any]) -> str:
    """Return how the request was served, as far as it changes the price: tier, speed and region."""
    words = [text_of(report.get(name)) for name in ("service_tier", "speed", "inference_geo")]
    return "+".join(word for word in words if word not in _USUAL_TIERS)


def _url(deployment: Deployment) -> str:
    return deployment.url("/v1/messages")


def _passed(body: Mapping[str, Any], deployment: Deployment) -> dict[str, Any]:
    passed = {**body, "model": deployment.model}
    if isinstance(passed.get("messages"), list):
        messages = without_foreign_reasoning(without_empty_texts(passed["messages"]))
        passed["messages"] = with_own_ids(with_system_in_place(messages, deployment.facts))
        if deployment.refuses_thoughts:
            remove_thoughts(passed)
    return passed


def _headers(deployment: Deployment, passed: Mapping[str, str]) -> dict[str, str]:
    headers = deployment.request_headers("x-api-key", "")
    headers["anthropic-version"] = passed.get("anthropic-version", _VERSION)
    if "anthropic-beta" in passed:
        headers["anthropic-beta"] = passed["anthropic-beta"]
    return headers


ANTHROPIC = Anthropic()
