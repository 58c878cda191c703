"""How is a canonical request written for OpenAI's Responses API?

The conversation is a flat list of items: messages, calls, results of calls, reasoning. Nothing is stored at the vendor, except
background answers. Each request contains the whole conversation, with encrypted reasoning.

Source: https://platform.openai.com/docs/api-reference/responses/create
"""

from collections.abc import Iterable
from typing import Any

from common.canonical.generation import (
    DocumentPart,
    GenerationRequest,
    ImagePart,
    Message,
    OpaquePart,
    Part,
    ReasoningPart,
    Role,
    TextPart,
    Tool,
    ToolCallPart,
    ToolChoice,
    ToolResultPart,
)
from common.vendors.models import UNKNOWN, ModelFacts
from workers.providers.shared import openai_fields
from workers.providers.shared.reasoning import reasoning_words, reasons
from workers.providers.shared.unsupported import invalid_field_error, unsupported_part_error
from workers.providers.shared.wishes import drop_sampling

# The prefix of every signature that the decoder makes from a reasoning item. A conversation may have begun at another vendor,
# whose signatures do not have it. OpenAI would refuse those, so they are dropped.
REASONING_MARK = "openai-responses:"

SUMMARY_FIELD = "reasoning.summary"
_OUTPUT_TOKENS_MIN = 16  # OpenAI refuses less, and some clients send 1 as a test.


def build_body(
    request: GenerationRequest,
    model: str,
    facts: ModelFacts = UNKNOWN,
    *,
    in_background: bool = False,
    refuses_summaries: bool = False,
) -> tuple[dict[str, Any], list[str]]:
    """Return the body of a streaming request, not yet adapted to the vendor, and the names of the dropped fields.

    Args:
        refuses_summaries: This account may not ask for summaries of reasoning: OpenAI refuses them to organisations that it
            has not verified.
    Raises:
        GatewayError: INVALID_REQUEST that names what the Responses API cannot express.
    """
    if request.choices > 1:
        raise invalid_field_error("n", "must be 1: the provider of this model gives one choice")
    if request.stop:
        raise invalid_field_error(
            request.names.get("stop", "stop"), "must be left out: the provider of this model does not support stop sequences"
        )
    left_out = ("top_k", "seed", "presence_penalty", "frequency_penalty")
    fields: dict[str, Any] = {
        **build_count_body(request, model, facts),
        "stream": True,
        "background": in_background or None,
        "store": in_background,
        "max_output_tokens": max(request.max_output_tokens, _OUTPUT_TOKENS_MIN) if request.max_output_tokens else None,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "user": openai_fields.end_user(request.end_user),
        "prompt_cache_key": request.prompt_cache_key,
    }
    words = reasoning_words(request.reasoning, facts)
    dropped = [name for name in left_out if getattr(request, name) is not None] + [*words.dropped]
    if words.is_shown and facts.reasoning_is_hidden:
        if refuses_summaries:
            dropped.append(SUMMARY_FIELD)
        else:
            fields["reasoning"] = {**fields.get("reasoning", {}), "summary": "auto"}
    # A model that cannot reason refuses this option.
    has_thoughts = any(item.get("type") == "reasoning" for item in fields["input"])
    will_reason = facts.reasoning is not None and reasons(request.reasoning, facts)
    if "reasoning" in fields or has_thoughts or will_reason:
        fields["include"] = ["reasoning.encrypted_content"]
    body = {name: value for name, value in fields.items() if value is not None}
    dropped += drop_sampling(body, facts, is_reasoning=reasons(request.reasoning, facts))
    return body, dropped


def build_count_body(request: GenerationRequest, model: str, facts: ModelFacts = UNKNOWN) -> dict[str, Any]:
    """Return the fields of the prompt. Only these count for its tokens.

    Raises:
        GatewayError: as for ``build_body``.
    """
    for part in request.opaque:
        raise unsupported_part_error(part)
    leading = next((i for i, message in enumerate(request.messages) if message.role is not Role.SYSTEM), len(request.messages))
    instructions = "\n\n".join(
        text for message in request.messages[:leading] for part in message.parts if (text := _text(part))
    )
    items = _with_followers([item for message in request.messages[leading:] for item in _items(message)])
    fields: dict[str, Any] = {"model": model}
    if items:
        fields |= {"instructions": instructions, "input": items} if instructions else {"input": items}
    else:
        # Other vendors accept instructions alone. Here there must be a user's message.
        fields["input"] = [_message("user", [{"type": "input_text", "text": instructions}])]
    if request.tools:
        fields["tools"] = [_tool(tool) for tool in request.tools]
        if request.tool_choice:
            fields["tool_choice"] = _tool_choice(request.tool_choice)
        if request.parallel_tool_calls is not None:
            fields["parallel_tool_calls"] = request.parallel_tool_calls
    if request.response_format:
        fields["text"] = {"format": _format(request)}
    words = reasoning_words(request.reasoning, facts)
    # The object `thinking` is of chat completions. Source: https://api-docs.deepseek.com/guides/thinking_mode
    if effort := "none" if words.thinking == "disabled" else words.effort:
        fields["reasoning"] = {"effort": effort}
    return fields


def _message(role: str, content: list[dict[str, Any]]) -> dict[str, Any]:
    return {"role": role, "content": content}


def _items(message: Message) -> Iterable[dict[str, Any]]:
    """Yield one message as items, in the order of its parts."""
    is_own = message.role is Role.ASSISTANT
    # A later system message keeps its place. OpenAI calls this role "developer".
    role = "developer" if message.role is Role.SYSTEM else message.role.value
    content_items: list[dict[str, Any]] = []
    for part in message.parts:
        item = _item(part)
        if item is None:
            content_items += [content] if (content := _content(part, is_own=is_own)) else []
            continue
        if content_items:
            yield _message(role, content_items)
            content_items = []
        if item:
            yield item
    if content_items:
        yield _message(role, content_items)


def _with_followers(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the items without the reasoning that no other item of the model follows: OpenAI refuses it.

    A turn that was interrupted while the model thought ends like this. Source: https://github.com/continuedev/continue/issues/8933
    """
    kept: list[dict[str, Any]] = []
    for item in reversed(items):
        follower = kept[-1] if kept else {}
        is_followed = follower.get("type") in ("reasoning", "function_call") or follower.get("role") == "assistant"
        if item.get("type") != "reasoning" or is_followed:
            kept.append(item)
    return kept[::-1]


def _item(part: Part) -> dict[str, Any] | None:
    """Return a part's item; None: the part is content of a message; empty: it is dropped."""
    match part:
        case ReasoningPart():
            return _reasoning(part)
        case ToolCallPart():
            called = {"call_id": openai_fields.call_id(part.id), "name": part.name, "arguments": part.arguments}
            return {"type": "function_call", **called}
        case ToolResultPart():
            call_id = openai_fields.call_id(part.tool_call_id)
            return {"type": "function_call_output", "call_id": call_id, "output": _output(part)}
        case _:
            return None


def _reasoning(part: ReasoningPart) -> dict[str, Any]:
    if not part.signature or not part.signature.startswith(REASONING_MARK):
        return {}
    summary = [{"type": "summary_text", "text": part.text}] if part.text else []
    return {"type": "reasoning", "summary": summary, "encrypted_content": part.signature.removeprefix(REASONING_MARK)}


def _output(result: ToolResultPart) -> str | list[dict[str, Any]]:
    """Return a string if there is only text: other vendors of this family do not support content parts in results."""
    media = [part for part in result.content if isinstance(part, ImagePart | DocumentPart)]
    text = "\n\n".join(_text(part) for part in result.content if not isinstance(part, ImagePart | DocumentPart))
    text = openai_fields.result_text(result, text)
    if not media:
        return text
    texts = [{"type": "input_text", "text": text}] if text else []
    return texts + [_image(part) if isinstance(part, ImagePart) else _document(part) for part in media]


def _content(part: Part, *, is_own: bool) -> dict[str, Any] | None:
    if isinstance(part, ImagePart):
        return _image(part)
    if isinstance(part, DocumentPart):
        return _document(part)
    text = _text(part)
    return {"type": "output_text" if is_own else "input_text", "text": text} if text else None


def _text(part: Part) -> str:
    if isinstance(part, TextPart):
        return part.text
    raise unsupported_part_error(part if isinstance(part, OpaquePart) else OpaquePart("image", "messages"))


def _image(part: ImagePart) -> dict[str, Any]:
    image = {"type": "input_image", "image_url": part.address}
    if part.detail is not None:
        image["detail"] = part.detail
    return image


def _document(part: DocumentPart) -> dict[str, Any]:
    """Source: https://developers.openai.com/api/docs/guides/file-inputs"""
    return {"type": "input_file", **({"file_url": part.url} if part.url is not None else openai_fields.file(part))}


def _tool(tool: Tool) -> dict[str, Any]:
    # The API's default is strict, which restricts the schema. Tools of other families are not strict by default.
    fields = {"type": "function", "name": tool.name, "strict": bool(tool.strict)}
    fields["parameters"] = tool.parameters or {"type": "object", "properties": {}}
    if tool.description is not None:
        fields["description"] = tool.description
    return fields


def _tool_choice(choice: ToolChoice) -> Any:
    return {"type": "function", "name": choice.name} if choice.mode == "tool" else choice.mode


def _format(request: GenerationRequest) -> dict[str, Any]:
    response_format = request.response_format
    assert response_format is not None
    if response_format.schema is None:
        return {"type": "json_object"}
    schema: dict[str, Any] = {"type": "json_schema", "name": response_format.name or "answer", "schema": response_format.schema}
    if response_format.strict is not None:
        schema["strict"] = response_format.strict
    return schema
