"""What does Gemini send us?

A stream consists of chunks with the shape of a whole answer. Every chunk repeats the usage so far, and the last one has the
finish reason. Then the bytes end, without an end mark. Older models send "STOP" in every chunk: a reason counts until the
candidate continues. Calls come complete, as objects. Parts about tools that ran at Google (code, searches) are ignored: our
requests cannot ask for them.

Sources: https://ai.google.dev/api/generate-content, https://ai.google.dev/gemini-api/docs/thought-signatures
"""

import hashlib
import re
import secrets
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import quote

import orjson

from common.canonical.errors import Failed
from common.canonical.events import (
    Completed,
    Event,
    Finished,
    FinishReason,
    LeftOut,
    ReasoningDelta,
    ReasoningSigned,
    Started,
    TextDelta,
    ToolCallDelta,
    ToolCallStarted,
    Usage,
)
from common.canonical.generation import GenerationRequest
from common.sse import read_block
from workers.providers.base import Deployment, UpstreamRequest
from workers.providers.gemini.arguments import ArgumentsError, ArgumentsSoFar
from workers.providers.gemini.request import SIGNED_BY, build_body, dropped
from workers.providers.gemini.sources import read_sources
from workers.providers.shared import errors
from workers.providers.shared.citations import Citations
from workers.providers.shared.figures import Figures, index_of
from workers.providers.shared.fitting import fit_request
from workers.providers.shared.history import Carries, Kind
from workers.providers.shared.loose_json import dict_of, list_of, read_json, text_of
from workers.providers.shared.output_parts import image_of, left_out

# Source: https://ai.google.dev/gemini-api/docs/document-processing; other files than these are refused there.
_MEDIA: frozenset[Kind] = frozenset({"image", "pdf", "text", "audio", "video"})
_CARRIES = Carries(kinds=_MEDIA, by_url=_MEDIA)
_FINISH_REASON = {
    "STOP": FinishReason.STOP,
    "MAX_TOKENS": FinishReason.LENGTH,
    "CONTINUATION": FinishReason.LENGTH,
    "SAFETY": FinishReason.CONTENT_FILTER,
    "RECITATION": FinishReason.CONTENT_FILTER,
    "BLOCKLIST": FinishReason.CONTENT_FILTER,
    "PROHIBITED_CONTENT": FinishReason.CONTENT_FILTER,
    "SPII": FinishReason.CONTENT_FILTER,
    "MODEL_ARMOR": FinishReason.CONTENT_FILTER,
    "ESCALATION": FinishReason.CONTENT_FILTER,
    "PUP_LIMITED_DISABLED": FinishReason.CONTENT_FILTER,
    "IMAGE_SAFETY": FinishReason.CONTENT_FILTER,
    "IMAGE_PROHIBITED_CONTENT": FinishReason.CONTENT_FILTER,
    "IMAGE_RECITATION": FinishReason.CONTENT_FILTER,
}
# Finish reasons that mean that the answer failed.
_FAILURES = {
    "LANGUAGE",
    "OTHER",
    "IMAGE_OTHER",
    "NO_IMAGE",
    "MALFORMED_FUNCTION_CALL",
    "MALFORMED_RESPONSE",
    "MISSING_THOUGHT_SIGNATURE",
    "TOO_MANY_TOOL_CALLS",
    "UNEXPECTED_TOOL_CALL",
}
_CHOICES_MAX = 128
_BESIDE_PARTS = {"thought", "thoughtSignature", "videoMetadata", "mediaResolution", "partMetadata"}  # Fields that are no part.
# The fields with figures by modality, and our names for these parts. Pages of a document are images.
_PARTS = {
    "promptTokensDetails": "input_{}_tokens",
    "toolUsePromptTokensDetails": "input_{}_tokens",
    "cacheTokensDetails": "cache_{}_read_tokens",
    "candidatesTokensDetails": "output_{}_tokens",
}
_MODALITIES = {"AUDIO": "audio", "IMAGE": "image", "DOCUMENT": "image", "VIDEO": "video"}
_TRAFFIC = {"on_demand": "standard", "on_demand_flex": "flex", "on_demand_priority": "priority"}
_ENDS_IN_VERSION = re.compile(r"/v\d\w*$")


class Gemini:
    def build_request(self, request: GenerationRequest, deployment: Deployment) -> UpstreamRequest:
        model = _model(deployment)
        request, left_out = fit_request(request, deployment.facts, _CARRIES)
        body = orjson.dumps(build_body(request, model, deployment.facts))
        names = dropped(request, deployment.facts) + left_out
        url = _url(deployment, "streamGenerateContent")
        url += "&alt=sse" if deployment.query else "?alt=sse"  # Without it the answer would be one JSON array.
        return UpstreamRequest(url, deployment.request_headers("x-goog-api-key", ""), body, names)

    def decoder(self, choices: int = 1) -> "ContentDecoder":
        return ContentDecoder(choices)

    def read_error(self, status: int, headers: Mapping[str, str], body: bytes) -> Failed:
        return errors.read_error(status, headers, body)

    def count_request(
        self, request: GenerationRequest, body: Mapping[str, Any], headers: Mapping[str, str], deployment: Deployment
    ) -> UpstreamRequest:
        """Source: https://ai.google.dev/api/tokens"""
        model = _model(deployment)
        request, _ = fit_request(request, deployment.facts, _CARRIES)
        counted = {"generateContentRequest": {"model": f"models/{model}", **build_body(request, model, deployment.facts)}}
        return UpstreamRequest(
            _url(deployment, "countTokens"), deployment.request_headers("x-goog-api-key", ""), orjson.dumps(counted)
        )

    def read_count(self, body: bytes) -> int | None:
        try:
            return Figures(dict_of(read_json(body))).count("totalTokens") or None
        except ValueError:
            return None


class _Candidate:
    def __init__(self, index: int) -> None:
        self.index = index
        self.calls = 0
        self.arguments: ArgumentsSoFar | None = None  # Of the last call, while more pieces may come.
        self.is_thinking = False  # Whether its last part was a thought.
        self.reason: str | None = None
        self.texts: list[str] = []


class ContentDecoder:
    """Decodes chunks to events."""

    def __init__(self, choices: int = 1) -> None:
        self.start_call: Callable[[int, str, str, int], ToolCallStarted] = ToolCallStarted
        self.is_whole = False
        self._choices_due = choices
        self._repeats_reasons = False
        self._started = False
        self._ended = False
        self._candidates: dict[int, _Candidate] = {}
        self._report: dict[str, Any] = {}  # The last usage report, unchanged. It is read only on demand.
        self._citations = Citations()
        self._id = self._model = ""

    @property
    def usage(self) -> Usage | None:
        return self._read_figures()[0]

    @property
    def has_absurd_usage(self) -> bool:
        return self._read_figures()[1]

    def _read_figures(self) -> tuple[Usage | None, bool]:
        figures = Figures(self._report)
        return _usage(self._report, figures, self._model) if self._report else None, figures.is_absurd

    def decode(self, block: bytes) -> list[Event]:
        if self._ended:
            return []
        if block.startswith((b"data", b"event")):
            data = read_block(block)[1]
        elif block.startswith(b"{"):
            data = block  # A stream that breaks off may end with a bare error that is not an event.
        else:
            return []
        try:
            chunk = read_json(data)
        except ValueError:
            return [self._fail(errors.not_json(data))]
        return self._read(chunk)

    def decode_whole(self, body: bytes) -> list[Event]:
        try:
            answer = read_json(body)
        except ValueError:
            return [self._fail(errors.not_json(body))]
        # A stream without ``alt=sse`` is one array of chunks.
        events = [event for chunk in (answer if isinstance(answer, list) else [answer]) for event in self._read(chunk)]
        for candidate in self._candidates.values():
            candidate.reason = candidate.reason or "STOP"  # The answer is complete, even if the finish reason is missing.
        if not (self._candidates or self._ended):
            return [*events, self._fail(errors.no_answer(answer))]
        return events + self.end()

    def end(self) -> list[Event]:
        if self._ended:
            return []
        reasons = [candidate.reason for candidate in self._candidates.values()]
        if not reasons or None in reasons:
            return [self._fail(errors.cut_short())]
        for reason in reasons:
            if reason in _FAILURES:
                return [self._fail(errors.failed_answer(reason))]
        try:
            last_events = [event for candidate in self._candidates.values() for event in self._close_call(candidate)]
        except ArgumentsError as error:
            return [self._fail(errors.unreadable_answer(str(error)))]
        self._ended = True
        last_events += self._citations.events()
        ends = [Finished(_finish_reason(candidate), choice=index) for index, candidate in sorted(self._candidates.items())]
        return [*last_events, *ends, Completed(self.usage)]

    def is_plain(self, block: bytes) -> bool:
        return False  # Only needed where bytes pass unchanged, and no client speaks this wire.

    def plain_head(self, run: bytes) -> tuple[int, int]:
        return 0, 0

    def _fail(self, failed: Failed) -> Failed:
        self._ended = True
        return failed

    def _read(self, chunk: object) -> list[Event]:
        if self._ended:
            return []
        if not isinstance(chunk, dict):
            return [self._fail(errors.no_answer(chunk))]
        if chunk.get("error"):
            return [self._fail(errors.error_in_stream(chunk))]
        try:
            return list(self._read_chunk(chunk))
        except ArgumentsError as error:
            return [self._fail(errors.unreadable_answer(str(error)))]

    def _read_chunk(self, chunk: dict[str, Any]) -> Iterator[Event]:
        if not self._started:
            self._started = True
            self._id, self._model = text_of(chunk.get("responseId")), text_of(chunk.get("modelVersion"))
            yield Started(self._id or None, self._model or None, _tier(dict_of(chunk.get("usageMetadata"))))
        usage = dict_of(chunk.get("usageMetadata"))
        if "totalTokenCount" in usage or "promptTokenCount" in usage:  # Vertex's first chunks have only the tier.
            self._report = usage  # Replaced, never added: it is the sum so far.
        for fields in list_of(chunk.get("candidates")):
            if isinstance(fields, dict):
                yield from self._read_candidate(fields)
        if text_of(dict_of(chunk.get("promptFeedback")).get("blockReason")):
            self._candidate(0).reason = "SAFETY"  # The prompt itself was refused: there are no candidates.
            self._choices_due = 1
        self._update_is_whole()

    def _update_is_whole(self) -> None:
        reasons = [candidate.reason for candidate in self._candidates.values()]
        has_all = len(reasons) >= self._choices_due and not self._repeats_reasons
        self.is_whole = has_all and all(reason is not None and reason not in _FAILURES for reason in reasons)

    def _candidate(self, number: object) -> _Candidate:
        index = index_of(number, _CHOICES_MAX) or 0
        return self._candidates.setdefault(index, _Candidate(index))

    def _read_candidate(self, fields: dict[str, Any]) -> Iterator[Event]:
        candidate = self._candidate(fields.get("index"))
        had_reason = candidate.reason is not None
        for part in list_of(dict_of(fields.get("content")).get("parts")):
            if isinstance(part, dict):
                for event in self._read_part(part, candidate):
                    self._repeats_reasons = self._repeats_reasons or had_reason
                    yield event
        if fields.get("logprobsResult"):
            yield LeftOut("logprobs")
        read_sources(fields, candidate.texts, self._citations)
        candidate.reason = text_of(fields.get("finishReason")) or candidate.reason

    def _read_part(self, part: dict[str, Any], candidate: _Candidate) -> Iterator[Event]:
        signature, text = text_of(part.get("thoughtSignature")), text_of(part.get("text"))
        if isinstance(part.get("functionCall"), dict):
            yield from self._read_call(part["functionCall"], signature, candidate)
        elif part.get("thought"):
            if text:
                candidate.is_thinking = True
                yield ReasoningDelta(text, candidate.index)
            yield from _signed(signature, candidate)
        else:
            # The signature of a text is only kept if there is a reasoning block to carry it. Google does not require it.
            if candidate.is_thinking:
                yield from _signed(signature, candidate)
            if text:
                candidate.is_thinking = False
                candidate.texts.append(text)
                yield TextDelta(text, candidate.index)
            elif "text" not in part:
                yield from _read_other(part, candidate.index)

    def _read_call(self, call: dict[str, Any], signature: str, candidate: _Candidate) -> Iterator[Event]:
        name = text_of(call.get("name"))
        if name:
            yield from self._close_call(candidate)
            yield from _signed(signature, candidate)
            id_ = text_of(call.get("id")) or self._invent_call_id(candidate)
            yield self.start_call(candidate.calls, id_, name, candidate.index)
            candidate.calls += 1
            candidate.arguments = ArgumentsSoFar(dict_of(call.get("args")))
        if candidate.arguments is not None:
            for piece in list_of(call.get("partialArgs")):
                candidate.arguments.add(dict_of(piece))
        if not call.get("willContinue"):
            yield from self._close_call(candidate)

    def _close_call(self, candidate: _Candidate) -> Iterator[Event]:
        arguments, candidate.arguments = candidate.arguments, None
        if arguments is not None:
            yield ToolCallDelta(candidate.calls - 1, arguments.text(), candidate.index)

    def _invent_call_id(self, candidate: _Candidate) -> str:
        self._id = self._id or secrets.token_hex(12)
        return "call_" + hashlib.sha256(f"{self._id}.{candidate.index}.{candidate.calls}".encode()).hexdigest()[:24]


def _read_other(part: dict[str, Any], choice: int) -> Iterator[Event]:
    """Yield the event of a part that is no text, no thought and no call."""
    blob = part.get("inlineData")
    if isinstance(blob, dict):
        yield image_of(text_of(blob.get("data")), text_of(blob.get("mimeType")), choice)
    elif name := next((name for name in part if name not in _BESIDE_PARTS), None):
        yield left_out(name)  # Such as code that ran at Google.


def _signed(signature: str, candidate: _Candidate) -> Iterator[Event]:
    """Yield the signature, for the reasoning before it or without any. Our events have signatures only for the first choice."""
    candidate.is_thinking = False
    if signature and candidate.index == 0:
        yield ReasoningSigned(SIGNED_BY + signature)


def _finish_reason(candidate: _Candidate) -> FinishReason:
    reason = _FINISH_REASON.get(candidate.reason or "", FinishReason.STOP)
    # Google has no finish reason for tool calls.
    return FinishReason.TOOL_CALLS if candidate.calls and reason is FinishReason.STOP else reason


def _usage(report: dict[str, Any], figures: Figures, model: str) -> Usage | None:
    """Return the usage.

    Google's answer count excludes thoughts, and its prompt count excludes its own tools' tokens but includes cached ones.
    """
    thoughts = figures.main("thoughtsTokenCount")
    return figures.usage(
        figures.main("promptTokenCount") + figures.main("toolUsePromptTokenCount"),
        figures.main("candidatesTokenCount") + thoughts,
        cache_read_tokens=figures.count("cachedContentTokenCount"),
        reasoning_tokens=thoughts,
        **_parts(report, figures),
        model=model,
        service_tier=_tier(report),
    )


def _parts(report: dict[str, Any], figures: Figures) -> Counter[str]:
    """Return the parts that have their own price: all that is not text."""
    counts: Counter[str] = Counter()
    for field_name, part in _PARTS.items():
        for fields in map(dict_of, list_of(report.get(field_name))):
            if modality := _MODALITIES.get(text_of(fields.get("modality"))):
                part_figures = Figures(fields)
                counts[part.format(modality)] += part_figures.count("tokenCount")
                figures.is_absurd |= part_figures.is_absurd
    return counts


def _tier(report: dict[str, Any]) -> str:
    """Return how the request was served. Vertex has its own words for it."""
    traffic = text_of(report.get("trafficType")).lower()
    return text_of(report.get("serviceTier")).lower() or _TRAFFIC.get(traffic, traffic)


def _model(deployment: Deployment) -> str:
    return deployment.model.removeprefix("models/")


def _url(deployment: Deployment, method: str) -> str:
    """Return the URL. The SDK's base URL has no version, others may have one. The model's name is one segment of the path."""
    version = "" if _ENDS_IN_VERSION.search(deployment.base_url) else "/v1beta"
    return deployment.url(f"{version}/models/{quote(_model(deployment), safe='')}:{method}")


GEMINI = Gemini()
