"""What does a response object look like, and the items of its output?

Field by field as recorded. The fields that OpenAI repeats from the request are copied from the client's body.
Source: https://platform.openai.com/docs/api-reference/responses/object
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from common.canonical.errors import ErrorKind, Failed
from common.canonical.events import Citation, Finished, OutputImage, Usage
from common.canonical.reply import Block, ImageBlock, ReasoningBlock, RefusalBlock, TextBlock, ToolCall
from common.dialects.openai_responses.ids import response_id
from common.dialects.openai_responses.wrapped_reasoning import wrap
from common.dialects.shared.custom_tools import custom_input
from common.dialects.shared.openai_citations import citation_fields
from common.dialects.shared.openai_errors import error_code
from common.dialects.shared.openai_words import INCOMPLETE_WORD

# Request fields that a response repeats, with OpenAI's defaults.
_ECHOED: dict[str, Any] = {
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "parallel_tool_calls": True,
    "presence_penalty": 0.0,
    "previous_response_id": None,
    "prompt_cache_key": None,
    "prompt_cache_retention": None,
    "safety_identifier": None,
    "service_tier": "default",
    "store": True,
    "temperature": 1.0,
    "tool_choice": "auto",
    "top_logprobs": 0,
    "top_p": 1.0,
    "truncation": "disabled",
    "user": None,
    "metadata": {},
}
_ITEM_ID = re.compile(r"(?:msg|rs|fc|ctc|ig)_([0-9a-f]{32})[0-9a-f]{2,4}")
_NO_IMAGE_TOKENS = {"image_tokens": 0, "text_tokens": 0}
# Usage of OpenAI's own tools, which run only there.
_TOOL_USAGE = {
    "image_gen": {
        "input_tokens": 0,
        "input_tokens_details": _NO_IMAGE_TOKENS,
        "output_tokens": 0,
        "output_tokens_details": _NO_IMAGE_TOKENS,
        "total_tokens": 0,
    },
    "web_search": {"num_requests": 0},
}
# The failures that have a code of their own in a response; all others are "server_error".
_CODED = (ErrorKind.RATE_LIMITED, ErrorKind.UPSTREAM_RATE_LIMITED, ErrorKind.CANCELLED)


@dataclass(slots=True)
class ResponseInfo:
    """Facts about a response that do not depend on its outcome. ``body`` is the client's body. ``announced`` is the response
    object that the client has already received, if another call began the response."""

    generation_id: str
    model: str = ""
    created_s: int = 0
    body: Mapping[str, Any] = field(default_factory=dict, repr=False)
    announced: Mapping[str, Any] = field(default_factory=dict, repr=False)


def unfinished_response(info: ResponseInfo, status: str = "in_progress") -> dict[str, Any]:
    """Return a response without output: as it begins, or before that (``queued``)."""
    if info.announced:
        return {**info.announced, "status": status}
    body = info.body
    echoed = {name: default if body.get(name) is None else body[name] for name, default in _ECHOED.items()}
    return {
        "id": response_id(info.generation_id),
        "object": "response",
        "created_at": info.created_s,
        "status": status,
        "background": body.get("background") is True,
        "completed_at": None,
        "error": None,
        "frequency_penalty": 0.0,
        "incomplete_details": None,
        "model": info.model,
        "moderation": None,
        "output": [],
        "reasoning": {"effort": None, "summary": None, **(body.get("reasoning") or {})},
        "text": _text(body.get("text") or {}),
        "tool_usage": _TOOL_USAGE,
        "tools": [_tool(tool) for tool in body.get("tools") or []],
        "usage": None,
        **echoed,
    }


def final_response(
    info: ResponseInfo, output: Sequence[dict[str, Any]], finished: Finished | None, usage: Usage | None, completed_s: int
) -> dict[str, Any]:
    """Return a response that has ended: ``status`` is "incomplete" if a limit or filter cut it, else "completed"."""
    reason = incomplete_reason(finished)
    return {
        **unfinished_response(info, "incomplete" if reason else "completed"),
        "completed_at": None if reason else completed_s,
        "incomplete_details": {"reason": reason} if reason else None,
        "output": output,
        "usage": _usage(usage or Usage()),
    }


def failed_response(info: ResponseInfo, failed: Failed, status: str = "failed") -> dict[str, Any]:
    code = failed.code or (error_code(failed.kind) if failed.kind in _CODED else "server_error")
    return {**unfinished_response(info, status), "error": {"code": code, "message": failed.message}}


def incomplete_reason(finished: Finished | None) -> str | None:
    return INCOMPLETE_WORD.get(finished.reason) if finished else None


def _text(text: Mapping[str, Any]) -> dict[str, Any]:
    format_ = text.get("format") or {"type": "text"}
    if format_.get("type") == "json_schema":
        format_ = {"description": None, "strict": False, **format_}
    return {"format": format_, "verbosity": text.get("verbosity") or "medium"}


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    if tool.get("type") != "function":
        return tool
    return {"description": None, "output_schema": None, "parameters": None, "strict": False, **tool}


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.input_tokens,
        "input_tokens_details": {"cache_write_tokens": usage.cache_write_tokens, "cached_tokens": usage.cache_read_tokens},
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.input_tokens + usage.output_tokens,
    }


class Items:
    """Builds the output items of one response, by their index. ``namespaces``, ``customs``: see ``request.namespaces`` and
    ``request.custom_tools``.
    """

    def __init__(
        self, generation_id: str, namespaces: Mapping[str, tuple[str, str]], customs: frozenset[str] = frozenset()
    ) -> None:
        self._suffix = generation_id.removeprefix("gen_")
        self._namespaces = namespaces
        self._customs = customs
        self.announced: dict[int, str] = {}  # Index to id: items that another call has already sent to the client.

    def id(self, kind: str, index: int) -> str:
        if index in self.announced:
            return self.announced[index]
        # The id contains the response's id, because some clients send items back as references.
        return f"{kind}_{self._suffix}{index:02x}"

    def message(self, index: int, content: list[dict[str, Any]], status: str) -> dict[str, Any]:
        id_ = self.id("msg", index)
        return {"id": id_, "type": "message", "status": status, "content": content, "role": "assistant"}

    def reasoning(self, index: int, summary: list[dict[str, Any]], wrapped: str | None = None) -> dict[str, Any]:
        item = {"id": self.id("rs", index), "type": "reasoning", "summary": summary}
        return {**item, "encrypted_content": wrapped} if wrapped else item

    def image(self, index: int, image: OutputImage) -> dict[str, Any]:
        """Return the item of an image. OpenAI's has only the data, so an image with an address becomes a message's text.

        Source: https://platform.openai.com/docs/guides/tools-image-generation
        """
        if image.url:
            return self.message(index, [output_text(f"![image]({image.url})")], "completed")
        item = {"id": self.id("ig", index), "type": "image_generation_call", "status": "completed", "result": image.data}
        return {**item, "output_format": image.media_type.removeprefix("image/")}

    def call(self, index: int, call: ToolCall, status: str) -> dict[str, Any]:
        space, name = self._namespaces.get(call.name, (None, call.name))
        if self.is_custom(call):
            item = {"id": self.id("ctc", index), "type": "custom_tool_call", "status": status}
            item["input"] = custom_input(call.arguments)
        else:
            item = {"id": self.id("fc", index), "type": "function_call", "status": status, "arguments": call.arguments}
        item |= {"call_id": call.id, "name": name}
        return {**item, "namespace": space} if space else item

    def is_custom(self, call: ToolCall) -> bool:
        return call.name in self._customs

    def from_block(
        self,
        index: int,
        block: Block,
        status: str,
        citations: Sequence[Citation] = (),
    ) -> dict[str, Any]:
        match block:
            case TextBlock():
                return self.message(index, [output_text(block.text, citations)], status)
            case RefusalBlock():
                return self.message(index, [refusal(block.text)], status)
            case ImageBlock():
                return self.image(index, block.image)
            case ReasoningBlock():
                wrapped = wrap(signature=block.signature, redacted=block.redacted)
                return self.reasoning(index, [summary_text(block.text)] if block.text else [], wrapped)
            case ToolCall():
                return self.call(index, ToolCall(block.id, block.name, block.arguments or "{}"), status)


def generation_of_item(id_: object) -> str | None:
    """Return the id of the generation that made an item; None for an item that is not ours.

    >>> generation_of_item("fc_0123456789abcdef0123456789abcdef02")
    'gen_0123456789abcdef0123456789abcdef'
    """
    match = _ITEM_ID.fullmatch(id_) if isinstance(id_, str) else None
    return f"gen_{match[1]}" if match else None


def output_text(text: str, citations: Sequence[Citation] = ()) -> dict[str, Any]:
    annotations = [annotation(citation) for citation in citations]
    return {"type": "output_text", "annotations": annotations, "logprobs": [], "text": text}


def annotation(citation: Citation) -> dict[str, Any]:
    return {"type": "url_citation", **citation_fields(citation)}


def refusal(text: str) -> dict[str, Any]:
    return {"type": "refusal", "refusal": text}


def summary_text(text: str) -> dict[str, Any]:
    return {"type": "summary_text", "text": text}
