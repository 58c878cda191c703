"""How is a canonical request written for Gemini?

A conversation is ``contents``: turns of parts by ``user`` and ``model``. A tool's result belongs to the user. Gemini signs its
calls, and its newer models refuse a call that comes back without a signature. Signatures travel through the client as reasoning
signatures, with a mark: a conversation may have begun at another vendor, whose signatures Google does not accept.

Sources: https://ai.google.dev/api/generate-content and, below /gemini-api/docs of the same site, /function-calling,
/thinking, /thought-signatures, /file-input-methods.
"""

import re
from collections.abc import Iterable, Iterator
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
from common.vendors.models import ModelFacts
from workers.providers.shared.loose_json import arguments_of
from workers.providers.shared.reasoning import ReasoningWords, reasoning_words
from workers.providers.shared.unsupported import invalid_field_error, unsupported_part_error

SIGNED_BY = "gemini:"  # Before every signature on its way to the client. Base64 has no colon.

# Google's value for a call that another model made: the call is accepted without a signature.
_UNSIGNED = "skip_thought_signature_validator"
_CHOICES_MAX = 8
_SEED_MAX = 2**31 - 1
_MODE = {"auto": "AUTO", "none": "NONE", "required": "ANY", "tool": "ANY"}
# Our names of the sampling fields, and Gemini's.
_SAMPLING = {
    "temperature": "temperature",
    "top_p": "topP",
    "top_k": "topK",
    "presence_penalty": "presencePenalty",
    "frequency_penalty": "frequencyPenalty",
}
_BEFORE_3 = re.compile(r"gemini-[12][.-]|gemma|learnlm")
_IMAGE_TYPE = re.compile(r"\.(png|jpe?g|webp|bmp|heic|heif|gif)(?:[?#]|$)", re.IGNORECASE)


def build_body(request: GenerationRequest, model: str, facts: ModelFacts) -> dict[str, Any]:
    """Return the body. The URL says whether it streams.

    Raises:
        GatewayError: INVALID_REQUEST that names what Gemini cannot express.
    """
    for part in request.opaque:
        raise unsupported_part_error(part)
    system, contents = _conversation(request.messages, model)
    body: dict[str, Any] = {"contents": contents}
    if system:
        body["systemInstruction"] = {"parts": [{"text": system}]}
    if request.tools:
        body["tools"] = [{"functionDeclarations": [_declaration(tool) for tool in request.tools]}]
        if request.tool_choice:
            body["toolConfig"] = {"functionCallingConfig": _calling(request.tool_choice)}
    config = _config(request, facts)
    if config:
        body["generationConfig"] = config
    return body


def dropped(request: GenerationRequest, facts: ModelFacts) -> list[str]:
    """Return the fields that ``build_body`` drops because the answer does not need them."""
    has_detail = any(
        isinstance(part, ImagePart) and part.detail not in (None, "auto")
        for message in request.messages
        for part in message.parts
    )
    left_out = {
        "user": request.end_user is not None,
        "prompt_cache_key": request.prompt_cache_key is not None,
        "parallel_tool_calls": request.parallel_tool_calls is False and bool(request.tools),
        "tools.strict": any(tool.strict for tool in request.tools),
        "detail": has_detail,
    }
    names = [name for name, is_left_out in left_out.items() if is_left_out]
    names += [name for name in _SAMPLING if name in facts.refused_fields and getattr(request, name) is not None]
    return names + list(reasoning_words(request.reasoning, facts).dropped)


# The conversation


def _conversation(messages: list[Message], model: str) -> tuple[str, list[dict[str, Any]]]:
    """Return the system prompt and the turns. User and model alternate."""
    leading = next((i for i, message in enumerate(messages) if message.role is not Role.SYSTEM), len(messages))
    system = "\n\n".join(text for message in messages[:leading] for part in message.parts if (text := _text(part)))
    names: dict[str, str] = {}  # The names of the calls so far, by id.
    turns: list[dict[str, Any]] = []
    for message in messages[leading:]:
        if message.role is Role.ASSISTANT:
            role, parts = "model", list(_model_parts(message.parts))
            names |= {part.id: part.name for part in message.parts if isinstance(part, ToolCallPart)}
        else:
            # A later system message keeps its place, as a user's message: Gemini has no other role for it.
            role, parts = "user", [user_part for part in message.parts for user_part in _user_parts(part, names, model)]
        if parts and turns and turns[-1]["role"] == role:
            turns[-1]["parts"] += parts
        elif parts:
            turns.append({"role": role, "parts": parts})
    for turn in turns:
        if turn["role"] == "user":
            # Results answer the calls of the previous turn, so they must come first.
            turn["parts"].sort(key=lambda part: "functionResponse" not in part)
        elif _is_since_3(model):
            _sign_first_call(turn["parts"])
    if not turns:
        # Other vendors accept a system prompt alone. Here it must be the user's message.
        return "", [{"role": "user", "parts": [{"text": system}]}]
    return system, turns


def _text(part: Part) -> str:
    if isinstance(part, TextPart):
        return part.text
    raise unsupported_part_error(part if isinstance(part, OpaquePart) else OpaquePart("image", "messages"))


def _model_parts(parts: list[Part]) -> Iterator[dict[str, Any]]:
    """Yield the parts of a model's turn. A signature moves to the part after its reasoning. The reasoning itself is dropped."""
    signature = ""
    for part in parts:
        if isinstance(part, ReasoningPart):
            is_ours = part.signature is not None and part.signature.startswith(SIGNED_BY)
            signature = (part.signature or "").removeprefix(SIGNED_BY) if is_ours else ""
            continue
        wire_part = _call(part) if isinstance(part, ToolCallPart) else {"text": _text(part)}
        if signature:
            wire_part["thoughtSignature"] = signature
        if wire_part != {"text": ""}:
            yield wire_part
        signature = ""


def _call(part: ToolCallPart) -> dict[str, Any]:
    return {"functionCall": {"id": part.id, "name": part.name, "args": arguments_of(part.arguments)}}


def _sign_first_call(parts: list[dict[str, Any]]) -> None:
    """Sign the first call of a turn. Gemini requires a signature there, but not on the other calls."""
    call = next((part for part in parts if "functionCall" in part), None)
    if call is not None:
        call.setdefault("thoughtSignature", _UNSIGNED)


def _user_parts(part: Part, names: dict[str, str], model: str) -> Iterable[dict[str, Any]]:
    match part:
        case TextPart():
            return [{"text": part.text}] if part.text else []
        case ImagePart() | DocumentPart():
            return [_media(part)]
        case ToolResultPart():
            return _result(part, names, model)
        case ReasoningPart():
            return []
        case ToolCallPart():
            return [_call(part)]
        case OpaquePart():
            raise unsupported_part_error(part)


def _media(part: ImagePart | DocumentPart) -> dict[str, Any]:
    if part.url is None:
        return {"inlineData": {"mimeType": part.media_type, "data": part.data}}
    file = {"fileUri": part.url}  # Google fetches it. We must guess an image's media type.
    if isinstance(part, DocumentPart):
        return {"fileData": {**file, "mimeType": part.media_type}}
    if match := _IMAGE_TYPE.search(part.url):
        file["mimeType"] = "image/" + match[1].lower().replace("jpg", "jpeg")
    return {"fileData": file}


def _result(part: ToolResultPart, names: dict[str, str], model: str) -> list[dict[str, Any]]:
    """Return a tool's result. Media are inside it if the model supports that and they are inline, otherwise after it.

    Source: https://ai.google.dev/gemini-api/docs/function-calling (multimodal function responses: images, PDF, text)
    """
    text = "\n\n".join(_text(inner) for inner in part.content if not isinstance(inner, ImagePart | DocumentPart))
    media = [_media(inner) for inner in part.content if isinstance(inner, ImagePart | DocumentPart)]
    within = [medium for medium in media if _is_since_3(model) and _fits_in_result(medium)]
    result: dict[str, Any] = {"id": part.tool_call_id, "name": names[part.tool_call_id]}
    result["response"] = {"error" if part.is_error else "output": text}
    if within:
        result["parts"] = within
    return [{"functionResponse": result}, *(medium for medium in media if medium not in within)]


def _fits_in_result(medium: dict[str, Any]) -> bool:
    media_type = medium.get("inlineData", {}).get("mimeType") or ""
    return media_type.startswith("image/") or media_type == "application/pdf"


# Tools and settings


def _declaration(tool: Tool) -> dict[str, Any]:
    fields: dict[str, Any] = {"name": tool.name}
    if tool.description is not None:
        fields["description"] = tool.description
    # Gemini refuses an object without properties, so a function without parameters gets no schema.
    if tool.parameters.get("properties") or tool.parameters.keys() & {"$ref", "anyOf", "oneOf", "allOf"}:
        fields["parametersJsonSchema"] = tool.parameters
    return fields


def _calling(choice: ToolChoice) -> dict[str, Any]:
    return {"mode": _MODE[choice.mode]} | ({"allowedFunctionNames": [choice.name]} if choice.mode == "tool" else {})


def _config(request: GenerationRequest, facts: ModelFacts) -> dict[str, Any]:
    if request.choices > _CHOICES_MAX:
        raise invalid_field_error("n", f"must be at most {_CHOICES_MAX}: the provider of this model supports no more choices")
    config = {
        "maxOutputTokens": request.max_output_tokens,
        **{theirs: getattr(request, ours) for ours, theirs in _SAMPLING.items() if ours not in facts.refused_fields},
        "stopSequences": request.stop or None,
        # Google's seeds have 32 bits. The same seed always gives the same value.
        "seed": None if request.seed is None else request.seed & _SEED_MAX,
        "candidateCount": request.choices if request.choices > 1 else None,
        "responseMimeType": "application/json" if request.response_format else None,
        "responseJsonSchema": request.response_format.schema if request.response_format else None,
        "thinkingConfig": _thinking(reasoning_words(request.reasoning, facts)) or None,
    }
    return {name: value for name, value in config.items() if value is not None}


def _is_since_3(model: str) -> bool:
    """Whether a model is Gemini 3 or newer. An unknown name, such as ``gemini-flash-latest``, counts as newer."""
    return not _BEFORE_3.match(model)


def _thinking(words: ReasoningWords) -> dict[str, Any]:
    """Return the thinking settings: a budget for 2.5, a level since 3."""
    config: dict[str, Any] = {"includeThoughts": True} if words.is_shown else {}
    if words.budget_tokens is not None:
        config["thinkingBudget"] = words.budget_tokens
    elif words.effort is not None:
        config["thinkingLevel"] = words.effort
    return config
