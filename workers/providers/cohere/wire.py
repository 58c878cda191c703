"""What does Cohere's chat API, version 2, send us?

The type in the JSON says what an event is; the ``event:`` line only repeats it. Citations are named, events of unknown types
ignored. The plan that the model makes before it calls tools counts as reasoning.
Source: https://docs.cohere.com/reference/chat-stream
"""

from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from common.canonical.errors import Failed
from common.canonical.events import (
    Completed,
    Event,
    Finished,
    FinishReason,
    LeftOut,
    ReasoningDelta,
    Started,
    TextDelta,
    ToolCallDelta,
    Usage,
)
from common.canonical.generation import GenerationRequest
from workers.providers.base import Deployment, UpstreamRequest
from workers.providers.cohere.request import build_body
from workers.providers.shared import errors
from workers.providers.shared.figures import Figures, index_of
from workers.providers.shared.fitting import fit_request
from workers.providers.shared.history import Carries
from workers.providers.shared.json_decoder import JsonDecoder
from workers.providers.shared.loose_json import dict_of, list_of, text_of

_CARRIES = Carries()
_FINISH_REASON = {
    "COMPLETE": FinishReason.STOP,
    "STOP_SEQUENCE": FinishReason.STOP_SEQUENCE,
    "MAX_TOKENS": FinishReason.LENGTH,
    "TOOL_CALL": FinishReason.TOOL_CALLS,
}
# Finish reasons that mean that the answer failed, with fields that add the kind of failure if Cohere's own fields lack it.
_FAILURES: dict[str, dict[str, str]] = {"ERROR": {}, "TIMEOUT": {"type": "timeout_error"}}


class Cohere:
    def build_request(self, request: GenerationRequest, deployment: Deployment) -> UpstreamRequest:
        request, left_out = fit_request(request, deployment.facts, _CARRIES)
        body, dropped = build_body(request, deployment.model, deployment.facts)
        dropped += left_out
        return UpstreamRequest(_url(deployment), deployment.request_headers(), body, dropped)

    def decoder(self, choices: int = 1) -> "EventDecoder":
        return EventDecoder()

    def read_error(self, status: int, headers: Mapping[str, str], body: bytes) -> Failed:
        return errors.read_error(status, headers, body)


class _Call:
    """One tool call. For a call without arguments, Cohere sends nothing or ``null``; we send ``{}``."""

    def __init__(self, index: int) -> None:
        self._index = index
        self._held = ""
        self._has_arguments = False

    def add(self, piece: str) -> list[Event]:
        text, self._held = self._held + piece, ""
        if not self._has_arguments and "null".startswith(text):
            self._held = text  # This may be the beginning of ``null``.
            return []
        self._has_arguments = True
        return [ToolCallDelta(self._index, text)]

    def end(self) -> list[Event]:
        if self._has_arguments:
            return []
        self._has_arguments = True
        return [ToolCallDelta(self._index, "{}")]


class EventDecoder(JsonDecoder):
    """Decodes version 2's events. ``message-end`` completes an answer, not the ``[DONE]`` after it."""

    def __init__(self) -> None:
        super().__init__()
        self._call_count = 0
        self._open_calls: dict[int, _Call] = {}  # By Cohere's own index.

    def _read_whole(self, answer: dict[str, Any]) -> list[Event]:
        if "finish_reason" not in answer:
            return [self._fail(errors.no_answer(answer))]
        events = list(self._start(answer.get("id") or answer.get("generation_id")))
        # Version 1 has only the text, and its usage under "meta".
        message = dict_of(answer.get("message")) or {"content": [{"text": answer.get("text")}]}
        events += _plan(message)
        for part in list_of(message.get("content")):
            events += _content(part)
        if message.get("citations"):
            events.append(LeftOut("citations"))
        for index, call in enumerate(list_of(message.get("tool_calls"))):
            events += self._start_call(index, dict_of(call))
        return [*events, *self._finish(answer, answer.get("usage") or answer.get("meta"))]

    def _read(self, name: str, fields: dict[str, Any]) -> list[Event]:
        return list(self._events(name, fields))

    def _events(self, name: str, fields: dict[str, Any]) -> Iterator[Event]:
        delta, index = dict_of(fields.get("delta")), index_of(fields.get("index")) or 0
        message = dict_of(delta.get("message"))
        match fields.get("type"):
            case "content-delta" | "content-start":
                yield from _content(message.get("content"))
            case "tool-plan-delta":
                yield from _plan(message)
            case "tool-call-start":
                yield from self._start_call(index, dict_of(message.get("tool_calls")))
            case "tool-call-delta" if index in self._open_calls:
                yield from self._open_calls[index].add(_arguments(dict_of(message.get("tool_calls"))))
            case "tool-call-end" if index in self._open_calls:
                yield from self._open_calls.pop(index).end()
            case "citation-start":
                yield LeftOut("citations")  # They name documents and results that the client sent, not pages.
            case "message-start":
                yield from self._start(fields.get("id"))
            case "message-end":
                yield from self._finish(delta, delta.get("usage"))
            case type_ if "error" in (name, type_) or fields.get("error") or fields.get("message"):
                yield self._fail(errors.error_in_stream(fields))

    def _start(self, id_: object) -> Iterator[Event]:
        if not self._started:
            self._started = True
            yield Started(text_of(id_) or None)  # Cohere does not say which model answers.

    def _start_call(self, index: int, fields: dict[str, Any]) -> Iterator[Event]:
        if index in self._open_calls:
            yield from self._open_calls[index].end()
        number, self._call_count = self._call_count, self._call_count + 1
        call = self._open_calls[index] = _Call(number)
        name = text_of(dict_of(fields.get("function")).get("name"))
        yield self.start_call(number, text_of(fields.get("id")) or f"call_{number}", name, 0)
        yield from call.add(_arguments(fields))

    def _finish(self, ending: dict[str, Any], usage: object) -> Iterator[Event]:
        self._report = dict_of(usage)
        reason = text_of(ending.get("finish_reason"))
        if reason in _FAILURES:
            yield self._fail(errors.error_in_stream({**ending, **_FAILURES[reason]}))
            return
        self._ended = self.is_whole = True
        for call in self._open_calls.values():
            yield from call.end()
        finish_reason = _FINISH_REASON.get(reason, FinishReason.STOP)
        yield Finished(FinishReason.TOOL_CALLS if self._call_count and finish_reason is FinishReason.STOP else finish_reason)
        yield Completed(self.usage)

    def _usage_of(self, figures: Figures) -> Usage | None:
        """Return the billed usage. ``tokens`` also counts Cohere's own long prompt, which is not billed.

        ``cached_tokens`` is not used: it belongs to ``tokens``, is often larger than the billed tokens, and does not lower the
        price.
        """
        real = dict_of(self._report.get("tokens"))
        billed = Figures(dict_of(self._report.get("billed_units")) or real)
        if not (real or self._report.get("billed_units")):
            return None
        output_tokens = billed.main("output_tokens")
        reasoning = min(Figures(real).count("reasoning_tokens"), output_tokens)
        usage = billed.usage(billed.main("input_tokens"), output_tokens, reasoning_tokens=reasoning)
        figures.is_absurd = billed.is_absurd
        return usage


def _content(part: object) -> Iterator[Event]:
    fields = dict_of(part)
    if thinking := text_of(fields.get("thinking")):
        yield ReasoningDelta(thinking)
    if text := text_of(fields.get("text")):
        yield TextDelta(text)


def _plan(message: dict[str, Any]) -> Iterator[Event]:
    if plan := text_of(message.get("tool_plan")):
        yield ReasoningDelta(plan)


def _arguments(call: dict[str, Any]) -> str:
    arguments = dict_of(call.get("function")).get("arguments")
    return orjson.dumps(arguments).decode() if isinstance(arguments, dict) else text_of(arguments)


def _url(deployment: Deployment) -> str:
    return deployment.url("/v2/chat")


COHERE = Cohere()
