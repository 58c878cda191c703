"""How is a canonical request written for Anthropic?

Anthropic refuses what other vendors accept: empty texts, turns out of order, ids with dots, a thinking budget together with a
temperature. Problems of form are corrected here. What would change the meaning of the request is refused.
"""

import re
from typing import Any

from common.canonical.generation import (
    CacheMark,
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
from common.vendors.models import ModelFacts
from workers.providers.shared.answer_format import json_prompt
from workers.providers.shared.loose_json import arguments_of, dict_of
from workers.providers.shared.reasoning import ReasoningWords, reasoning_words
from workers.providers.shared.unsupported import invalid_field_error, unsupported_part_error

_MAX_TOKENS = 4096  # Anthropic requires a number. Every current model can write this many.
_MAX_TOKENS_ADAPTIVE = 32_000  # A quarter of what the smallest of the models can write that decide how much to think.
_BUDGET_TOKENS_MIN = 1024  # Anthropic's own limit.
# Of a top_p it takes only the last part of its range.
_REFUSED_WITH_THINKING = frozenset({"temperature", "top_p", "top_k"})
_TOOL_CHOICE = {"auto": "auto", "required": "any", "none": "none"}
_TITLE_CHARS_MAX = 500
_CACHE_MARKS_MAX = 4  # Anthropic's own limit for one request.
THOUGHT_TYPES = ("thinking", "redacted_thinking")
_NOT_IN_IDS = re.compile(r"[^a-zA-Z0-9_-]")


def build_body(request: GenerationRequest, model: str, facts: ModelFacts) -> tuple[dict[str, Any], list[str]]:
    """Return the body of a streaming request, and the names of the harmless fields that are dropped.

    Raises:
        GatewayError: INVALID_REQUEST that names what the Messages API cannot express.
    """
    for part in request.opaque:
        raise unsupported_part_error(part)
    if request.choices > 1:
        raise invalid_field_error("n", "must be 1: the provider of this model gives one choice")
    system, turns = _conversation(request.messages)
    body: dict[str, Any] = {"model": model, "messages": turns, "stream": True}
    if system:
        body["system"] = system
    is_adaptive = facts.reasoning_on == "adaptive"
    body["max_tokens"] = request.max_output_tokens or (_MAX_TOKENS_ADAPTIVE if is_adaptive else _MAX_TOKENS)
    if any(not sequence.strip() for sequence in request.stop):
        fault = "must not hold a sequence of white space only: the provider of this model takes none"
        raise invalid_field_error(request.names.get("stop", "stop"), fault)
    if request.stop:
        body["stop_sequences"] = request.stop
    if request.end_user is not None:
        body["metadata"] = {"user_id": request.end_user}
    _add_tools(body, request)
    _add_format(body, request)
    _add_cache_mark(body, request)
    words = reasoning_words(request.reasoning, facts, has_efforts=False)
    _add_thinking(body, words, request, facts)
    _add_sampling(body, request, facts)
    if facts.reasoning_is_bound:
        _unbind_thoughts(body)
    return body, _left_out(body, request, words)


def _left_out(body: dict[str, Any], request: GenerationRequest, words: ReasoningWords) -> list[str]:
    """Return the dropped fields: those that Anthropic does not have, or refuses together with other fields of this body."""
    names = ["seed", "presence_penalty", "frequency_penalty", "temperature", "top_p", "top_k"]
    dropped = [name for name in names if getattr(request, name) is not None and name not in body]
    if words.dropped or (words.budget_tokens and "thinking" not in body):
        dropped.append("reasoning")
    if any(tool.strict for tool in request.tools):
        dropped.append("tools.strict")
    images = [part for message in request.messages for part in message.parts if isinstance(part, ImagePart)]
    if any(image.detail not in (None, "auto") for image in images):
        dropped.append("detail")
    return dropped


def _conversation(messages: list[Message]) -> tuple[str | list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the system prompt and the turns. User and assistant alternate, and no turn is empty."""
    leading = next((i for i, message in enumerate(messages) if message.role is not Role.SYSTEM), len(messages))
    system = _system([part for message in messages[:leading] for part in message.parts])
    turns: list[dict[str, Any]] = []
    for message in messages[leading:]:
        # A later system message keeps its place, as a user's message: Anthropic has no other role for it.
        role = "assistant" if message.role is Role.ASSISTANT else "user"
        blocks = [block for part in message.parts if (block := _block(part)) is not None]
        if not blocks:
            continue
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += blocks
        else:
            turns.append({"role": role, "content": blocks})
    for turn in turns:
        if turn["role"] == "user":
            # Results answer the calls of the previous turn, so they must come first.
            turn["content"].sort(key=lambda block: block["type"] != "tool_result")
    if not turns:
        # Other vendors accept a system prompt alone. Here it must be the user's message.
        content = [{"type": "text", "text": system}] if isinstance(system, str) else system
        return "", [{"role": "user", "content": content}]
    return system, turns


def _system(parts: list[Part]) -> str | list[dict[str, Any]]:
    """Return the system prompt: one text, or blocks if a part of it has a mark for the cache."""
    texts = [text for part in parts if (text := _text(part))]
    if not any(isinstance(part, TextPart) and part.cache_mark for part in parts):
        return "\n\n".join(texts)
    return [block for part in parts if (block := _block(part)) is not None]


def _text(part: Part) -> str:
    if isinstance(part, TextPart):
        return part.text
    raise unsupported_part_error(part if isinstance(part, OpaquePart) else OpaquePart("image", "messages"))


def _block(part: Part) -> dict[str, Any] | None:
    """Return the content block; None: Anthropic would refuse it, and the answer does not need it."""
    match part:
        case TextPart():
            return _marked({"type": "text", "text": part.text}, part.cache_mark) if part.text.strip() else None
        case ImagePart():
            return _marked(_image(part), part.cache_mark)
        case DocumentPart():
            document = _document(part)
            return _marked(document, part.cache_mark) if document else None
        case ReasoningPart(redacted=str()):
            return {"type": "redacted_thinking", "data": part.redacted}
        case ReasoningPart():
            is_own = is_own_signature(part.signature) and part.is_whole
            return {"type": "thinking", "thinking": part.text, "signature": part.signature} if is_own else None
        case ToolCallPart():
            return {"type": "tool_use", "id": call_id_of(part.id), "name": part.name, "input": arguments_of(part.arguments)}
        case ToolResultPart():
            return _result(part)
        case OpaquePart():
            raise unsupported_part_error(part)


def _marked(block: dict[str, Any], mark: CacheMark | None) -> dict[str, Any]:
    return {**block, "cache_control": mark} if mark else block


def is_own_signature(signature: object) -> bool:
    """Whether a signature is Anthropic's. Signatures that our other wires make contain a colon."""
    return isinstance(signature, str) and signature != "" and ":" not in signature


def _image(part: ImagePart) -> dict[str, Any]:
    if part.url is not None:
        return {"type": "image", "source": {"type": "url", "url": part.url}}
    return {"type": "image", "source": {"type": "base64", "media_type": part.media_type, "data": part.data}}


def _document(part: DocumentPart) -> dict[str, Any] | None:
    """Source: https://platform.claude.com/docs/en/build-with-claude/pdf-support"""
    if part.text is not None:
        if not part.text.strip():
            return None
        source = {"type": "text", "media_type": "text/plain", "data": part.text}
    elif part.url is not None:
        source = {"type": "url", "url": part.url}
    elif part.file_id is not None:
        source = {"type": "file", "file_id": part.file_id}
    else:
        source = {"type": "base64", "media_type": part.media_type, "data": part.data or ""}
    return {"type": "document", "source": source} | ({"title": part.name[:_TITLE_CHARS_MAX]} if part.name else {})


def _result(part: ToolResultPart) -> dict[str, Any]:
    block: dict[str, Any] = {"type": "tool_result", "tool_use_id": call_id_of(part.tool_call_id)}
    content = [inner for content_part in part.content if (inner := _block(content_part)) is not None]
    # A mark within a result belongs on the whole result.
    marks = [mark for inner in content if (mark := inner.pop("cache_control", None))]
    if content:
        block["content"] = content
    if part.is_error:
        block["is_error"] = True
    return _marked(block, part.cache_mark or next(reversed(marks), None))


def call_id_of(call_id: str) -> str:
    """Return the id in Anthropic's format: Groq's ids have dots and colons. The same id always gets the same result."""
    return _NOT_IN_IDS.sub("_", call_id) or "call"


def _add_tools(body: dict[str, Any], request: GenerationRequest) -> None:
    if not request.tools:
        return
    body["tools"] = [_tool(tool) for tool in request.tools]
    choice = request.tool_choice
    if choice is None and request.parallel_tool_calls is not False:
        return
    body["tool_choice"] = _tool_choice(choice or ToolChoice("auto"))
    if request.parallel_tool_calls is False and body["tool_choice"]["type"] != "none":
        body["tool_choice"]["disable_parallel_tool_use"] = True


def _tool(tool: Tool) -> dict[str, Any]:
    # Anthropic requires a type in every schema. OpenAI accepts a function without parameters and without a schema.
    fields: dict[str, Any] = {"name": tool.name, "input_schema": {"type": "object", **tool.parameters}}
    if tool.description is not None:
        fields["description"] = tool.description
    return _marked(fields, tool.cache_mark)


def _tool_choice(choice: ToolChoice) -> dict[str, Any]:
    return {"type": "tool", "name": choice.name} if choice.mode == "tool" else {"type": _TOOL_CHOICE[choice.mode]}


def _add_cache_mark(body: dict[str, Any], request: GenerationRequest) -> None:
    """Let Anthropic choose what to cache if the client asks for that, or has no marks but a key: its prompts begin alike.

    docs/decisions/prompt-cache-key.md has the reasons.
    Source: https://platform.claude.com/docs/en/build-with-claude/prompt-caching#automatic-caching
    """
    blocks = [*body.get("tools", []), *(body["system"] if isinstance(body.get("system"), list) else [])]
    blocks += [block for turn in body["messages"] for block in turn["content"]]
    marked = [block for block in blocks if "cache_control" in block]
    may_choose = request.prompt_cache_key and not marked and not request.caches_marked_only
    automatic = request.cache_mark or ({"type": "ephemeral"} if may_choose else None)
    if automatic:
        body["cache_control"] = automatic
    # The last marks include what the first ones mark.
    for block in marked[: max(0, len(marked) + bool(automatic) - _CACHE_MARKS_MAX)]:
        del block["cache_control"]


def _add_format(body: dict[str, Any], request: GenerationRequest) -> None:
    response_format = request.response_format
    if response_format is None:
        return
    if response_format.schema is None:
        # Anthropic has no plain JSON mode.
        system, prompt = body.get("system", ""), json_prompt(None)
        if isinstance(system, list):
            system.append({"type": "text", "text": prompt})
        else:
            body["system"] = "\n\n".join(filter(None, [system, prompt]))
        return
    body["output_config"] = {"format": {"type": "json_schema", "schema": response_format.schema}}


def _add_thinking(body: dict[str, Any], words: ReasoningWords, request: GenerationRequest, facts: ModelFacts) -> None:
    """Add what the model takes: an effort within which it decides itself, or a budget, which is part of max_tokens."""
    if words.effort is not None:
        body["output_config"] = {**body.get("output_config", {}), "effort": words.effort}
    if words.thinking is not None:
        body["thinking"] = {"type": words.thinking}
    elif words.is_on and facts.reasoning_on == "adaptive":
        body["thinking"] = {"type": "adaptive"}
        if facts.reasoning_is_hidden and words.is_shown:
            # Source: https://platform.claude.com/docs/en/build-with-claude/thinking (display)
            body["thinking"]["display"] = "summarized"
    elif budget_tokens := _budget_tokens(words, request, body["messages"]):
        body["thinking"] = {"type": "enabled", "budget_tokens": budget_tokens}
        if request.max_output_tokens is None:
            body["max_tokens"] = budget_tokens + _MAX_TOKENS


def _unbind_thoughts(body: dict[str, Any]) -> None:
    """Let the vendor drop earlier thoughts before which something has changed, instead of refusing the request.

    Clients of other dialects do not know this rule: they change their tools and their instructions within a conversation.
    Without thinking the setting is not possible, so the thoughts are left out.

    Source: https://platform.claude.com/docs/en/build-with-claude/preserved-thinking/prefix-checks
    """
    if not any(block["type"] in THOUGHT_TYPES for turn in body["messages"] for block in turn["content"]):
        return
    if body.get("thinking", {}).get("type", "adaptive") == "adaptive":
        body.setdefault("thinking", {"type": "adaptive"})["block_binding"] = {"prefix_mismatch_behavior": "drop_block"}
        return
    for turn in body["messages"]:
        turn["content"] = [block for block in turn["content"] if block["type"] not in THOUGHT_TYPES]
    body["messages"] = [turn for turn in body["messages"] if turn["content"]]


def _budget_tokens(words: ReasoningWords, request: GenerationRequest, turns: list[dict[str, Any]]) -> int:
    """Return the model's thinking budget in tokens; 0 if Anthropic would refuse the request with thinking."""
    if not words.budget_tokens or calls_came_without_thinking(turns):
        return 0
    budget_tokens = min(
        words.budget_tokens, request.max_output_tokens - 1 if request.max_output_tokens else words.budget_tokens
    )
    return budget_tokens if budget_tokens >= _BUDGET_TOKENS_MIN else 0


def calls_came_without_thinking(turns: list[dict[str, Any]]) -> bool:
    """Whether the current turn began without thinking (some clients do not keep it). Then it must continue without."""
    last: list[dict[str, Any]] = next((turn["content"] for turn in reversed(turns) if turn.get("role") == "assistant"), [])
    types = [dict_of(block).get("type") for block in last]
    return "tool_use" in types and types[0] not in THOUGHT_TYPES


def _add_sampling(body: dict[str, Any], request: GenerationRequest, facts: ModelFacts) -> None:
    is_thinking = body.get("thinking", {}).get("type") in ("enabled", "adaptive")
    refused = facts.refused_fields | (_REFUSED_WITH_THINKING if is_thinking else frozenset())
    if request.temperature is not None and "temperature" not in refused:
        body["temperature"] = min(request.temperature, 1.0)  # Other vendors accept up to 2.
    elif request.top_p is not None and "top_p" not in refused:
        # Newer models accept only one of the two. Clients of other vendors often send both, with top_p at its default.
        body["top_p"] = request.top_p
    if request.top_k is not None and "top_k" not in refused:
        body["top_k"] = request.top_k
