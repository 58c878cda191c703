"""What do OpenAI, and servers that speak its chat completions, send us?

Vendors agree on the shape, but not on where usage is, whether ``[DONE]`` comes, or what the pieces of a tool call contain. This
decoder accepts every variant from every vendor: it does not know which vendor it reads.
"""

import hashlib
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import replace
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
    RefusalDelta,
    Started,
    TextDelta,
    ToolCallStarted,
    Usage,
)
from common.canonical.generation import GenerationRequest
from common.dialects.base import ReplyInfo
from common.dialects.openai_chat.call_signatures import without_signatures
from common.dialects.shared.openai_words import DONE_EVENT, REASON_OF_WORD, REASONING_FIELDS
from common.sse import read_block
from common.vendors.prefill import PREFILLS
from workers.providers.base import Deployment, UpstreamRequest
from workers.providers.openai_chat.calls import ChoiceCalls
from workers.providers.openai_chat.passed_texts import thinking_of, with_texts
from workers.providers.openai_chat.request import build_body
from workers.providers.shared import errors
from workers.providers.shared.citations import Citations
from workers.providers.shared.error_words import is_cut_answer
from workers.providers.shared.figures import Figures, index_of
from workers.providers.shared.fitting import fit_request
from workers.providers.shared.history import fit_passed
from workers.providers.shared.json_decoder import JsonDecoder
from workers.providers.shared.loose_json import dict_of, list_of, read_json, text_of, word_of, written_text
from workers.providers.shared.output_parts import image_at, left_out
from workers.providers.shared.passed_wishes import fit_passed_wishes
from workers.providers.shared.plain_shape import PlainShape
from workers.providers.shared.quirks import find_quirks, fit
from workers.providers.shared.reasoning import reasoning_words, reasons
from workers.providers.shared.wishes import drop_sampling

_FINISH_REASON = {
    **REASON_OF_WORD,
    "eos": FinishReason.STOP,
    "model_length": FinishReason.LENGTH,
    "max_tokens": FinishReason.LENGTH,
    "model_context_window_exceeded": FinishReason.LENGTH,
    "repetition": FinishReason.LENGTH,  # vLLM cut an answer that repeated itself.
    "sensitive": FinishReason.CONTENT_FILTER,
    "function_call": FinishReason.TOOL_CALLS,
}
# Finish reasons that mean that the answer failed.
_FAILURES = {"error", "insufficient_system_resource", "abort", "network_error"}
_PASSED_HEADERS = ("openai-beta",)
_CHOICES_MAX = 128
_REASONING_FIELD, _SECOND_REASONING_FIELD = REASONING_FIELDS
# The fields of parts that have their own prices.
_PARTS = {
    "input_audio_tokens": ("prompt_tokens_details", "audio_tokens"),
    "input_image_tokens": ("prompt_tokens_details", "image_tokens"),
    "input_video_tokens": ("prompt_tokens_details", "video_tokens"),
    "cache_audio_read_tokens": ("prompt_tokens_details", "cached_tokens_details", "audio_tokens"),
    "output_audio_tokens": ("completion_tokens_details", "audio_tokens"),
    "output_image_tokens": ("completion_tokens_details", "image_tokens"),
}


class OpenAiCompatible:
    dialect = "openai-chat"
    end_mark = DONE_EVENT

    def build_request(self, request: GenerationRequest, deployment: Deployment) -> UpstreamRequest:
        quirks = find_quirks(deployment)
        facts = deployment.facts
        request, left_out = fit_request(request, facts, quirks.carries)
        words = reasoning_words(request.reasoning, facts)
        body = build_body(request, deployment.model, quirks, facts, words)
        refused = [*words.dropped, *drop_sampling(body, facts, is_reasoning=reasons(request.reasoning, facts))]
        dropped = fit(body, deployment) + (["top_k"] if request.top_k is not None else []) + refused + left_out
        return UpstreamRequest(_url(deployment, body), _headers(deployment, {}), orjson.dumps(body), dropped)

    def pass_request(self, body: Mapping[str, Any], headers: Mapping[str, str], deployment: Deployment) -> UpstreamRequest:
        changed = {**body, "model": deployment.model}
        if body.get("stream") and "stream_options" not in find_quirks(deployment).unknown:
            changed["stream_options"] = {**dict_of(body.get("stream_options")), "include_usage": True}
        if isinstance(changed.get("messages"), list):
            changed["messages"] = without_signatures(changed["messages"])
        dropped = fit_passed_wishes(changed, deployment)
        dropped += fit_passed(changed, deployment.facts, find_quirks(deployment).unread)
        dropped += fit(changed, deployment)
        return UpstreamRequest(_url(deployment, changed), _headers(deployment, headers), orjson.dumps(changed), dropped)

    def decoder(self, choices: int = 1) -> "ChunkDecoder":
        return ChunkDecoder(choices)

    def for_client(self, data: bytes, info: ReplyInfo) -> bytes:
        data = with_texts(data)
        # Almost every block has a choice.
        if b'"choices":[]' not in data and b'"choices": []' not in data:
            return data
        if dict_of(info.body.get("stream_options")).get("include_usage"):
            return data
        try:
            chunk = dict_of(read_json(read_block(data)[1]))
        except ValueError:
            return data
        return b"" if chunk.get("choices") == [] and chunk.get("usage") else data

    def read_error(self, status: int, headers: Mapping[str, str], body: bytes) -> Failed:
        return errors.read_error(status, headers, body)


class _Choice:
    def __init__(self, calls: ChoiceCalls) -> None:
        self.calls = calls
        self.reason: str | None = None
        self.has_output = False


class ChunkDecoder(JsonDecoder):
    """Decodes chunks to events.

    ``Finished`` waits for the end of the stream, because some vendors send more of a choice with or after its finish reason.
    """

    def __init__(self, choices: int = 1) -> None:
        super().__init__(PlainShape(b'"content":"', *(b'"%b":"' % name.encode() for name in REASONING_FIELDS)))
        self._choices: dict[int, _Choice] = {}
        self._citations = Citations()
        self._choices_due = choices  # The answer is complete only if this many have come.
        self._id = ""

    def _read(self, name: str, fields: dict[str, Any]) -> list[Event]:
        if name != "error" and not _is_error(fields):
            return list(self._read_chunk(fields))
        # OpenRouter repeats the finish reason "length" as an error. That error has the usage.
        last = list(self._read_chunk(fields)) if self.is_whole else []
        return last + self._broken(errors.error_in_stream(fields))

    def _read_done(self) -> list[Event]:
        self._expect_no_more()
        return self.end()

    def _read_whole(self, answer: dict[str, Any]) -> list[Event]:
        if _is_error(answer):
            failed = errors.error_in_stream(answer)
            if not is_cut_answer(failed.message):
                return [self._fail(failed)]
            self._ended = self.is_whole = True
            return [Started(), Finished(FinishReason.LENGTH), Completed()]
        if not list_of(answer.get("choices")):
            return [self._fail(errors.no_answer(answer))]
        for choice in list_of(answer.get("choices")):
            if isinstance(choice, dict) and isinstance(choice.get("message"), dict):
                choice["delta"] = choice["message"]  # Perplexity also has an empty delta.
        events = list(self._read_chunk(answer))
        for choice in self._choices.values():
            choice.reason = choice.reason or "stop"  # The answer is complete, even if the finish reason is missing.
        self._expect_no_more()
        return events + self.end()

    def _complete(self) -> list[Event]:
        if any(choice.calls.lacks_name for choice in self._choices.values()):
            return [self._fail(errors.unreadable_answer("a tool call has arguments and no name"))]
        self._ended = True
        events: list[Event] = []
        for index, choice in sorted(self._choices.items()):
            events += choice.calls.end()
            events.append(Finished(_finish_reason(choice), choice=index))
        events[:0] = self._citations.events()
        return [*events, Completed(self.usage)]

    def _usage_of(self, figures: Figures) -> Usage | None:
        return _usage(self._report, figures, self._model, self._tier) if self._report else None

    def _expect_no_more(self) -> None:
        """The server has sent everything. It may give fewer choices than the request asked for."""
        self._choices_due = 1
        self._update_is_whole()

    def _update_is_whole(self) -> None:
        reasons = [choice.reason for choice in self._choices.values()]
        has_all = len(reasons) >= self._choices_due
        self.is_whole = has_all and all(reason is not None and reason not in _FAILURES for reason in reasons)

    def _read_chunk(self, chunk: dict[str, Any]) -> Iterator[Event]:
        if not self._started:
            self._started = True
            self._id, self._model = word_of(chunk.get("id")), word_of(chunk.get("model"))
            self._tier = text_of(chunk.get("service_tier"))
            yield Started(self._id or None, self._model or None, self._tier)
        usage = dict_of(chunk.get("usage")) or dict_of(dict_of(chunk.get("x_groq")).get("usage"))
        if usage and not (self._report and _is_empty(usage)):
            self._report = usage  # Replaced, never added: some send it in every chunk.
            # Azure's first chunk has no model, and only the last chunk has the final tier.
            self._model = word_of(chunk.get("model")) or self._model
            self._tier = text_of(chunk.get("service_tier")) or text_of(usage.get("service_tier")) or self._tier
        if "citations" in chunk or "search_results" in chunk:
            self._citations.read_lists(chunk)
        for choice in list_of(chunk.get("choices")):
            if isinstance(choice, dict):
                yield from self._read_choice(choice)

    def _read_choice(self, fields: dict[str, Any]) -> Iterator[Event]:
        index = index_of(fields.get("index"), _CHOICES_MAX) or 0
        if index not in self._choices:
            self._choices[index] = _Choice(ChoiceCalls(index, self.start_call, self._invent_call_id))
        choice = self._choices[index]
        self.is_whole = self.is_whole and choice.reason is not None
        delta = fields.get("delta")
        if not isinstance(delta, dict):
            # A complete message instead of a piece. (With a delta beside it, it would be Perplexity's text so far.)
            delta = {} if choice.has_output else dict_of(fields.get("message"))
        if "annotations" in delta:
            self._citations.read_annotations(delta["annotations"], index)
        if fields.get("logprobs"):
            yield LeftOut("logprobs")
        for event in _read_delta(delta, index):
            choice.has_output = True
            yield event
        for event in self._read_calls(delta, choice):
            choice.has_output = True
            yield event
        reason = word_of(fields.get("finish_reason"))
        if reason and choice.reason is None:
            choice.reason = reason
            self._update_is_whole()

    def _read_calls(self, delta: dict[str, Any], choice: _Choice) -> Iterator[Event]:
        items = list_of(delta.get("tool_calls"))
        legacy = delta.get("function_call")
        if isinstance(legacy, dict):
            items = [*items, {"index": 0, "function": legacy}]
        for item in items:
            if isinstance(item, dict):
                for event in choice.calls.read(item):
                    if isinstance(event, ToolCallStarted):
                        yield from self._citations.events()  # They belong to the text before the call.
                    yield event

    def _invent_call_id(self, choice: int, call: int) -> str:
        self._id = self._id or secrets.token_hex(12)
        return "call_" + hashlib.sha256(f"{self._id}.{choice}.{call}".encode()).hexdigest()[:24]


def _is_error(chunk: dict[str, Any]) -> bool:
    return bool(chunk.get("error")) or (chunk.get("object") == "error" and "choices" not in chunk)


def _is_empty(usage: dict[str, Any]) -> bool:
    """Whether a report has zeros only, as some servers fill the last chunk."""
    return not (usage.get("prompt_tokens") or usage.get("completion_tokens"))


def _read_delta(delta: dict[str, Any], index: int) -> Iterator[Event]:
    # Some servers send the same reasoning in both fields.
    reasoning = written_text(delta.get(_REASONING_FIELD)) or written_text(delta.get(_SECOND_REASONING_FIELD))
    if reasoning:
        yield ReasoningDelta(reasoning, index)
    content = delta.get("content")
    if isinstance(content, list):
        for part in content:
            yield from _read_part(dict_of(part), index)
    elif text := written_text(content):
        yield TextDelta(text, index)
    refusal = text_of(delta.get("refusal"))
    if refusal:
        yield RefusalDelta(refusal, index)
    for image in list_of(delta.get("images")):
        yield image_at(text_of(dict_of(dict_of(image).get("image_url")).get("url")), index)
    if delta.get("audio"):
        yield LeftOut("audio")


def _read_part(part: dict[str, Any], index: int) -> Iterator[Event]:
    """Yield the events of one item of a content list: Mistral's mix thinking and text."""
    if part.get("type") == "thinking":
        if text := thinking_of(part):
            yield ReasoningDelta(text, index)
    elif text_of(part.get("text")):
        yield TextDelta(part["text"], index)
    elif part.get("type") == "image_url":
        yield image_at(text_of(dict_of(part.get("image_url")).get("url")) or text_of(part.get("image_url")), index)
    elif part.get("type") != "text":
        yield left_out(part.get("type"))


def _finish_reason(choice: _Choice) -> FinishReason:
    reason = _FINISH_REASON.get(choice.reason or "", FinishReason.STOP)
    if choice.calls.is_cut and reason in (FinishReason.STOP, FinishReason.TOOL_CALLS):
        return FinishReason.LENGTH  # vLLM says "tool_calls" also where a limit cut the call.
    # "stop" also comes after a call that the client forced.
    return FinishReason.TOOL_CALLS if choice.calls and reason is FinishReason.STOP else reason


def _usage(report: Mapping[str, Any], figures: Figures, model: str, tier: str) -> Usage | None:
    prompt, completion = figures.main("prompt_tokens"), figures.main("completion_tokens")
    cached = figures.count("prompt_tokens_details", "cached_tokens") or figures.count("prompt_cache_hit_tokens")
    reasoning = figures.count("completion_tokens_details", "reasoning_tokens")
    # OpenAI includes reasoning in the completion, xAI counts it separately; the total shows which. Some gateways report more
    # reasoning than completion, and a total without it. The reasoning was generated all the same.
    is_beside = reasoning and report.get("total_tokens") == prompt + completion + reasoning
    completion = completion + reasoning if is_beside else max(completion, reasoning)
    # Perplexity's figures are never part of the completion, whatever the total says.
    reasoning_tokens, citations = 0 if reasoning else figures.count("reasoning_tokens"), figures.count("citation_tokens")
    # Cached tokens are part of the prompt, except with Azure's Grok.
    if cached > prompt:
        prompt += cached
    return figures.usage(
        prompt,
        completion + reasoning_tokens + citations,
        cache_read_tokens=cached,
        cache_write_tokens=figures.count("prompt_tokens_details", "cache_write_tokens"),
        reasoning_tokens=reasoning + reasoning_tokens,
        output_citation_tokens=citations,
        web_searches=figures.count("num_search_queries"),
        **figures.counts(_PARTS),
        model=model,
        service_tier=tier,
    )


def _url(deployment: Deployment, body: Mapping[str, Any]) -> str:
    """Return the URL. DeepSeek continues the beginning of an answer only at another path."""
    prefill, messages = PREFILLS.get(deployment.provider), list_of(body.get("messages"))
    if not (prefill and prefill.path and messages and dict_of(messages[-1]).get("prefix")):
        return deployment.url("/chat/completions")
    base_url = deployment.base_url.removesuffix("/v1").removesuffix(prefill.path) + prefill.path
    return replace(deployment, base_url=base_url).url("/chat/completions")


def _headers(deployment: Deployment, passed: Mapping[str, str]) -> dict[str, str]:
    return {name: passed[name] for name in _PASSED_HEADERS if name in passed} | deployment.request_headers()


OPENAI_COMPATIBLE = OpenAiCompatible()
