"""What do OpenAI, and servers that speak its Responses API, send us?

The type in the JSON says what an event is; some vendors send no ``event:`` line. An item is identified by its ``output_index``:
some gateways change its id with every event. Events and items of unknown types, and those of tools that run at the vendor, are
ignored: a client of the same family gets them as bytes.

Sources: https://platform.openai.com/docs/api-reference/responses-streaming and, for answers that outlive their connection,
https://developers.openai.com/api/docs/guides/background
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
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
    RefusalDelta,
    Started,
    TextDelta,
    ToolCallDelta,
    Usage,
)
from common.canonical.generation import GenerationRequest
from common.canonical.growing_text import GrowingText
from common.dialects.base import ReplyInfo
from common.dialects.openai_responses.ids import response_id
from common.dialects.shared.custom_tools import custom_arguments
from common.dialects.shared.openai_words import REASON_OF_INCOMPLETE
from common.sse import read_block
from workers.providers.base import Deployment, UpstreamRequest
from workers.providers.openai_responses.codex_fields import fit_codex_fields
from workers.providers.openai_responses.passed_input import fit_input
from workers.providers.openai_responses.request import REASONING_MARK, build_body, build_count_body
from workers.providers.shared import errors
from workers.providers.shared.citations import Citations
from workers.providers.shared.figures import Figures, index_of
from workers.providers.shared.fitting import fit_request
from workers.providers.shared.history import fit_passed_input
from workers.providers.shared.json_decoder import JsonDecoder
from workers.providers.shared.loose_json import dict_of, list_of, read_json, text_of
from workers.providers.shared.output_parts import image_of, left_out
from workers.providers.shared.passed_wishes import fit_passed_response_wishes
from workers.providers.shared.plain_shape import NumberedShape
from workers.providers.shared.quirks import find_quirks, fit_response
from workers.providers.shared.refused_thoughts import COMPACTIONS, THOUGHTS

_PASSED_HEADERS = ("openai-beta",)
# Fields that Sluice handles itself for every provider: it stores conversations and answers.
_OWN_FIELDS = ("background", "background_options", "previous_response_id")
_OWN_CHOICES = ("store", "include")  # No client asks for these fields of a body that we build.
# The fields of parts that have their own prices.
_PARTS = {
    "input_audio_tokens": ("input_tokens_details", "audio_tokens"),
    "input_image_tokens": ("input_tokens_details", "image_tokens"),
    "output_audio_tokens": ("output_tokens_details", "audio_tokens"),
    "output_image_tokens": ("output_tokens_details", "image_tokens"),
}
# Items of tools that run at the vendor, and the detail of the usage that each one counts as.
_PAID_CALLS = {
    "web_search_call": "web_searches",
    "search_results": "web_searches",  # Perplexity's.
    "file_search_call": "storage_searches",
    "code_interpreter_call": "code_executions",
    "image_generation_call": "image_generations",
}
_CALLS = ("function_call", "custom_tool_call")
_NO_PREVIOUS = re.compile(rb'("previous_response_id": ?)null')
_BACKGROUND = re.compile(rb'("background": ?)(?:true|false)')


class OpenAiResponses:
    dialect = "openai-responses"
    end_mark = b""  # A stream without its own end event is cut off, and fails.

    def build_request(self, request: GenerationRequest, deployment: Deployment) -> UpstreamRequest:
        request, left_out = fit_request(request, deployment.facts, find_quirks(deployment).carries_in_responses)
        body, dropped = build_body(
            request,
            deployment.model,
            deployment.facts,
            in_background=deployment.in_background,
            refuses_summaries=deployment.refuses_summaries,
        )
        unknown = fit_response(body, deployment)
        dropped += left_out + [name for name in unknown if name not in _OWN_CHOICES]
        return UpstreamRequest(_url(deployment), _headers(deployment, {}), orjson.dumps(body), dropped)

    def pass_request(self, body: Mapping[str, Any], headers: Mapping[str, str], deployment: Deployment) -> UpstreamRequest:
        changed = {name: value for name, value in body.items() if name not in _OWN_FIELDS} | {"model": deployment.model}
        if deployment.in_background:
            changed |= {"background": True, "store": True}
        if isinstance(changed.get("input"), list):
            changed["input"] = fit_input(changed["input"], deployment)
        fit_codex_fields(changed)
        dropped = [THOUGHTS] if deployment.refuses_thoughts else []
        dropped += [COMPACTIONS] if deployment.refuses_compactions else []
        dropped += fit_passed_input(changed, deployment.facts)
        dropped += fit_passed_response_wishes(changed, deployment) + fit_response(changed, deployment)
        return UpstreamRequest(_url(deployment), _headers(deployment, headers), orjson.dumps(changed), dropped)

    def decoder(self, choices: int = 1) -> "ResponseDecoder":
        return ResponseDecoder()

    def for_client(self, data: bytes, info: ReplyInfo) -> bytes:
        """Return the data with our id of the response, and without the effects of what ``pass_request`` changed."""
        # Almost every block is a piece of an item, and does not contain the response.
        if b'"response":' not in data and b'"object":' not in data:
            return data
        response = _response_in(data)
        upstream_id = response.get("id")
        if not isinstance(upstream_id, str) or not upstream_id:
            return data
        # Replaced as bytes, so that everything else stays unchanged. A quote inside a text is escaped, so only the value
        # matches.
        data = data.replace(orjson.dumps(upstream_id), orjson.dumps(response_id(info.generation_id)))
        if isinstance(info.body.get("previous_response_id"), str):
            previous = orjson.dumps(info.body["previous_response_id"])
            data = _NO_PREVIOUS.sub(lambda match: match[1] + previous, data)
        is_background = info.body.get("background") is True
        if response.get("background") is (not is_background):
            data = _BACKGROUND.sub(rb"\1true" if is_background else rb"\1false", data)
        return data

    def read_error(self, status: int, headers: Mapping[str, str], body: bytes) -> Failed:
        return errors.read_error(status, headers, body)

    def reread_request(self, answer_id: str, deployment: Deployment) -> UpstreamRequest:
        url = _url(deployment, answer_id)
        url += "&stream=true" if deployment.query else "?stream=true"
        return UpstreamRequest(url, _headers(deployment, {}), b"", method="GET")

    def cancel_request(self, answer_id: str, deployment: Deployment) -> UpstreamRequest:
        return UpstreamRequest(_url(deployment, answer_id, "/cancel"), _headers(deployment, {}), b"")

    def count_request(
        self, request: GenerationRequest, body: Mapping[str, Any], headers: Mapping[str, str], deployment: Deployment
    ) -> UpstreamRequest:
        """Source: https://platform.openai.com/docs/api-reference/responses/input-tokens"""
        request, _ = fit_request(request, deployment.facts, find_quirks(deployment).carries_in_responses)
        counted = orjson.dumps(build_count_body(request, deployment.model, deployment.facts))
        return UpstreamRequest(deployment.url("/responses/input_tokens"), _headers(deployment, {}), counted)

    def read_count(self, body: bytes) -> int | None:
        try:
            return Figures(dict_of(read_json(body))).count("input_tokens") or None
        except ValueError:
            return None


class _Item:
    """An output item. ``call``: the index of its tool call; None: it is not a tool call."""

    def __init__(self, call: int | None = None) -> None:
        self.call = call
        self.arguments = GrowingText()  # The arguments of a call, until its item is done.
        self.has_output = False
        self.has_summary = False


class ResponseDecoder(JsonDecoder):
    """Decodes the events of a response. Only the last one says that it is complete, and has the usage. Paid calls are items."""

    def __init__(self) -> None:
        super().__init__(NumberedShape())
        self._items: dict[int | None, _Item] = {}  # By output_index.
        self._call_count = 0
        self._paid_calls: Counter[str] = Counter()
        self._citations = Citations()

    def _read_whole(self, answer: dict[str, Any]) -> list[Event]:
        if not isinstance(answer.get("output"), list) and not answer.get("error"):
            return [self._fail(errors.no_answer(answer))]
        return [*self._read_start(answer), *self._read_end(answer)]

    def _read(self, name: str, fields: dict[str, Any]) -> list[Event]:
        return list(self._events(name, fields))

    def _events(self, name: str, fields: dict[str, Any]) -> Iterator[Event]:
        index = index_of(fields.get("output_index"))
        match fields.get("type"):
            case "response.output_text.delta":
                yield from self._piece(index, TextDelta, fields)
            case "response.reasoning_summary_text.delta" | "response.reasoning_text.delta":
                yield from self._piece(index, ReasoningDelta, fields)
            case "response.refusal.delta":
                yield from self._piece(index, RefusalDelta, fields)
            case "response.function_call_arguments.delta":
                yield from self._read_arguments(self._item(index), text_of(fields.get("delta")))
            case "response.created" | "response.in_progress" | "response.queued":
                yield from self._read_start(dict_of(fields.get("response")))
            # Perplexity adds its own searches as complete calls, and ends them as something else.
            case "response.output_item.added" if dict_of(fields.get("item")).get("status") != "completed":
                yield from self._read_item_start(index, dict_of(fields.get("item")))
            case "response.reasoning_summary_part.added":
                item = self._item(index)
                if item.has_summary:
                    yield ReasoningDelta("\n\n")  # Each part is a paragraph with its own heading.
                item.has_summary = True
            case "response.output_item.done":
                yield from self._read_item_done(index, dict_of(fields.get("item")))
            case "response.completed" | "response.incomplete":
                yield from self._read_end(dict_of(fields.get("response")))
            case "response.failed":
                yield from self._read_end({**dict_of(fields.get("response")), "status": "failed"})
            case "error":
                yield self._fail(errors.error_in_stream(fields))
            case _ if name == "error" or fields.get("error"):
                yield self._fail(errors.error_in_stream(fields))

    def _item(self, index: int | None) -> _Item:
        return self._items.setdefault(index, _Item())

    def _piece(
        self, index: int | None, kind: type[TextDelta | ReasoningDelta | RefusalDelta], fields: dict[str, Any]
    ) -> Iterator[Event]:
        text = text_of(fields.get("delta"))
        if text:
            self._item(index).has_output = True
            yield kind(text)

    def _read_start(self, response: dict[str, Any]) -> Iterator[Event]:
        if not self._started:
            self._started = True
            tier = text_of(response.get("service_tier"))
            yield Started(text_of(response.get("id")) or None, text_of(response.get("model")) or None, tier)

    def _read_item_start(self, index: int | None, item: dict[str, Any]) -> Iterator[Event]:
        if item.get("type") not in _CALLS or self._item(index).call is not None:
            return
        self._items[index] = _Item(self._call_count)
        call_id = text_of(item.get("call_id")) or text_of(item.get("id")) or f"call_{self._call_count}"
        yield self.start_call(self._call_count, call_id, text_of(item.get("name")), 0)
        self._call_count += 1

    def _read_arguments(self, item: _Item, arguments: str) -> Iterator[Event]:
        if item.call is not None and arguments:
            item.has_output = True
            item.arguments.add(arguments)
            yield ToolCallDelta(item.call, arguments)

    def _read_item_done(self, index: int | None, fields: dict[str, Any]) -> Iterator[Event]:
        """Yield the events of a complete item. Content that came in pieces is not repeated; some vendors send no pieces."""
        yield from self._read_item_start(index, fields)
        item = self._item(index)
        if (index is None or not item.has_output) and (paid := _paid_call(fields)):
            self._paid_calls[paid] += 1
        match fields.get("type"):
            case "function_call" if not item.has_output:
                yield from self._read_arguments(item, text_of(fields.get("arguments")).strip() or "{}")
            case "custom_tool_call" if not item.has_output:
                yield from self._read_arguments(item, custom_arguments(text_of(fields.get("input"))))
            case "message" if not item.has_output:
                yield from _read_content(list_of(fields.get("content")))
            case "reasoning":
                if not item.has_output:
                    yield from _read_reasoning(fields)
                if text_of(fields.get("encrypted_content")):
                    yield ReasoningSigned(REASONING_MARK + fields["encrypted_content"])
            case "image_generation_call" if not item.has_output:
                yield image_of(text_of(fields.get("result")), f"image/{text_of(fields.get('output_format')) or 'png'}")
            case "search_results":  # Perplexity's.
                self._citations.read_lists({"search_results": fields.get("results")})
            case "message" | "function_call" | "custom_tool_call" | "image_generation_call":
                pass
            case type_ if not item.has_output:
                yield left_out(type_)
        if fields.get("type") == "message":
            for part in map(dict_of, list_of(fields.get("content"))):
                self._citations.read_annotations(part.get("annotations"))
                if part.get("logprobs"):
                    yield LeftOut("logprobs")
            yield from self._citations.events()
        item.has_output = True
        item.arguments = GrowingText()

    def _read_end(self, response: dict[str, Any]) -> Iterator[Event]:
        self._report = dict_of(response.get("usage")) or self._report
        self._model, self._tier = text_of(response.get("model")), text_of(response.get("service_tier"))
        status = response.get("status") or "completed"
        if response.get("error"):
            yield self._fail(errors.error_in_stream(response))
        elif status not in ("completed", "incomplete"):
            yield self._fail(errors.cut_short())
        elif status == "completed" and any(_is_cut(str(item.arguments)) for item in self._items.values()):
            yield self._fail(errors.cut_short())  # Otherwise a client would run a call with cut arguments.
        else:
            if not self._items:  # A body, or a stream of a gateway that sends only complete answers.
                for index, item in enumerate(list_of(response.get("output"))):
                    yield from self._read_item_done(index, dict_of(item))
            for item in self._items.values():
                if item.call is not None and not item.has_output:
                    yield ToolCallDelta(item.call, "{}")
            yield Finished(self._finish_reason(status, dict_of(response.get("incomplete_details"))))
            yield Completed(self.usage)
            self._ended = self.is_whole = True

    def _usage_of(self, figures: Figures) -> Usage | None:
        if not self._report:
            return None
        return figures.usage(
            figures.main("input_tokens"),
            figures.main("output_tokens"),
            cache_read_tokens=figures.count("input_tokens_details", "cached_tokens"),
            cache_write_tokens=figures.count("input_tokens_details", "cache_write_tokens"),
            reasoning_tokens=figures.count("output_tokens_details", "reasoning_tokens"),
            **figures.counts(_PARTS),
            **self._paid_calls,
            model=self._model,
            service_tier=self._tier,
        )

    def _finish_reason(self, status: str, details: dict[str, Any]) -> FinishReason:
        if status == "incomplete":
            return REASON_OF_INCOMPLETE.get(text_of(details.get("reason")), FinishReason.LENGTH)
        return FinishReason.TOOL_CALLS if self._call_count else FinishReason.STOP


def _is_cut(arguments: str) -> bool:
    """Whether the arguments of a call without a "done" event are incomplete JSON."""
    try:
        return bool(arguments) and read_json(arguments.encode()) is None
    except ValueError:
        return True


def _read_content(content: list[Any]) -> Iterator[Event]:
    for part in map(dict_of, content):
        if text_of(part.get("text")):
            yield TextDelta(part["text"])
        elif text_of(part.get("refusal")):
            yield RefusalDelta(part["refusal"])


def _read_reasoning(item: dict[str, Any]) -> Iterator[Event]:
    """Yield the summary of the reasoning if there is one (some vendors hide the rest), otherwise the reasoning itself."""
    parts = list_of(item.get("summary")) or list_of(item.get("content"))
    text = "\n\n".join(text_of(dict_of(part).get("text")) for part in parts)
    if text:
        yield ReasoningDelta(text)


def _paid_call(item: dict[str, Any]) -> str | None:
    """Return which paid call an item is; None: it is free. Opening a page of a search result costs nothing."""
    if item.get("type") == "web_search_call" and text_of(dict_of(item.get("action")).get("type")) not in ("", "search"):
        return None
    return _PAID_CALLS.get(text_of(item.get("type")))


def _response_in(data: bytes) -> dict[str, Any]:
    """Return the response in a block or in a whole body."""
    try:
        fields = dict_of(read_json(read_block(data)[1] if data.startswith((b"data:", b"event:")) else data))
    except ValueError:
        return {}
    return fields if fields.get("object") == "response" else dict_of(fields.get("response"))


def _url(deployment: Deployment, answer_id: str = "", action: str = "") -> str:
    return deployment.url(f"/responses/{quote(answer_id, safe='')}{action}" if answer_id else "/responses")


def _headers(deployment: Deployment, passed: Mapping[str, str]) -> dict[str, str]:
    return {name: passed[name] for name in _PASSED_HEADERS if name in passed} | deployment.request_headers()


OPENAI_RESPONSES = OpenAiResponses()
