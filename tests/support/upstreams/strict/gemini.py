"""What does Google's Gemini API refuse? https://ai.google.dev/api/generate-content has the fields, its guides the limits."""

import re
from typing import Any

from tests.support.upstreams.strict.rules import ByModel, Call, Complaint, Rule, objects_in, unknown_field, value_for

_FIELDS = (
    "contents",
    "systemInstruction",
    "tools",
    "toolConfig",
    "safetySettings",
    "generationConfig",
    "cachedContent",
    "serviceTier",
    "store",
    "labels",
)
_CONFIG_FIELDS = (
    "stopSequences",
    "responseMimeType",
    "responseSchema",
    "responseJsonSchema",
    "responseModalities",
    "candidateCount",
    "maxOutputTokens",
    "temperature",
    "topP",
    "topK",
    "seed",
    "presencePenalty",
    "frequencyPenalty",
    "responseLogprobs",
    "logprobs",
    "enableEnhancedCivicAnswers",
    "speechConfig",
    "thinkingConfig",
    "imageConfig",
    "mediaResolution",
)
_DATA = ("text", "inlineData", "functionCall", "functionResponse", "fileData", "executableCode", "codeExecutionResult")
_PART_FIELDS = (
    *_DATA,
    "thought",
    "thoughtSignature",
    "partMetadata",
    "videoMetadata",
    "mediaResolution",
    "toolCall",
    "toolResponse",
)
# https://ai.google.dev/gemini-api/docs/image-understanding, /document-processing, /audio; EvanZhouDev/gemini-ai issue 3
_MEDIA = r"image/(png|jpeg|webp|heic|heif)|application/pdf|text/.+|audio/.+|video/.+"

# https://ai.google.dev/gemini-api/docs/thinking: levels of Gemini 3, and budgets of 2.5 (AstrBot issue 7100 for 2.5 Pro).
_LEVELS: ByModel[tuple[str, ...]] = [
    (r"gemini-3-pro", ("low", "high")),
    (r"gemini-3\.\d-pro", ("low", "medium", "high")),
    (r"gemini-3\.[78]-flash", ("low", "medium", "high")),
    (r"gemini-3", ("minimal", "low", "medium", "high")),
]
_BUDGETS: ByModel[tuple[int, int, bool]] = [  # Least, most, and whether 0 is allowed.
    (r"gemini-2\.5-pro", (128, 32_768, False)),
    (r"gemini-2\.5-flash-lite", (512, 24_576, True)),
    (r"gemini-2\.5-flash", (1, 24_576, True)),
]
_OUTPUT_TOKENS = 65_536  # https://ai.google.dev/gemini-api/docs/models, the same for all since 2.5.


def _unknown(name: str, place: str) -> Complaint:
    where = f" at '{place}'" if place else ""
    return Complaint(f'Invalid JSON payload received. Unknown name "{name}"{where}: Cannot find field.')


def _known_fields(call: Call) -> Complaint | None:
    if name := unknown_field(call.body, _FIELDS):
        return _unknown(name, "")
    if name := unknown_field(call.get("generationConfig") or {}, _CONFIG_FIELDS):
        return _unknown(name, "generation_config")
    for index, content in enumerate(call.items("contents")):
        for position, part in enumerate(content.get("parts") or []):
            if name := unknown_field(part, _PART_FIELDS):
                return _unknown(name, f"contents[{index}].parts[{position}]")
    return None


def _parts(call: Call) -> Complaint | None:
    """https://github.com/boldsoftware/sketch/issues/68, https://github.com/54xzh/FLIT/pull/70"""
    contents = call.items("contents")
    if not contents:
        return Complaint("* GenerateContentRequest.contents: contents is not specified")
    for index, content in enumerate(contents):
        place = f"GenerateContentRequest.contents[{index}]"
        if content.get("role") not in ("user", "model"):
            return Complaint("Please use a valid role: user, model.")
        if not content.get("parts"):
            return Complaint(f"* {place}.parts: contents.parts must not be empty.")
        for position, part in enumerate(content["parts"]):
            if not any(part.get(name) not in (None, "") for name in _DATA):
                words = "required oneof field 'data' must have one initialized field"
                return Complaint(f"* {place}.parts[{position}].data: {words}")
            media_type = part.get("inlineData", {}).get("mimeType", "image/png")
            if not re.fullmatch(_MEDIA, media_type):
                return Complaint(f"Unsupported MIME type: {media_type}")
    return None


def _calls(parts: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [part[name] for part in parts if name in part]


# Of these it was measured: https://github.com/LibreChat-AI/agents/pull/323 and https://github.com/anomalyco/opencode/issues/47034
_NO_PREFILL: ByModel[bool] = [(r"gemini-3\.5-flash-lite|gemini-3\.[678]-flash|gemini-4", True)]


def _turns(call: Call) -> Complaint | None:
    """https://ai.google.dev/gemini-api/docs/function-calling; https://github.com/continuedev/continue/issues/9562"""
    waiting = 0
    for index, content in enumerate(call.items("contents")):
        calls, responses = _calls(content["parts"], "functionCall"), _calls(content["parts"], "functionResponse")
        if responses and not waiting:
            return Complaint("Please ensure that function response turn comes immediately after a function call turn.")
        if waiting and len(responses) != waiting:
            words = (
                "the number of function response parts is equal to the number of function call parts of the function call turn."
            )
            return Complaint(f"Please ensure that {words}")
        if calls and (index == 0 or call.items("contents")[index - 1]["role"] != "user"):
            words = "function call turn comes immediately after a user turn or after a function response turn."
            return Complaint(f"Please ensure that {words}")
        waiting = len(calls)
    if value_for(call.model, _NO_PREFILL, False) and call.items("contents")[-1]["role"] == "model":
        return Complaint("Requests ending with a model turn are not supported.")
    return None


def _signatures(call: Call) -> Complaint | None:
    """https://ai.google.dev/gemini-api/docs/thought-signatures: Gemini 3 checks the first call of each step of this turn."""
    if not call.model.startswith("gemini-3"):
        return None
    contents = call.items("contents")
    own_words = [index for index, content in enumerate(contents) if content["role"] == "user" and _says(content)]
    for index in range(own_words[-1] if own_words else 0, len(contents)):
        calls = [part for part in contents[index]["parts"] if "functionCall" in part]
        if calls and not calls[0].get("thoughtSignature"):
            name = calls[0]["functionCall"].get("name")
            words = "Function call is missing a thought_signature in functionCall parts."
            return Complaint(f"{words} Additional data, function call `default_api:{name}`, position {index + 1}.")
    return None


def _says(content: dict[str, Any]) -> bool:
    return not any("functionResponse" in part for part in content["parts"])


def _functions(call: Call) -> list[tuple[str, dict[str, Any]]]:
    return [
        (f"tools[{index}].function_declarations[{place}]", function)
        for index, tool in enumerate(call.items("tools"))
        for place, function in enumerate(tool.get("functionDeclarations") or [])
    ]


# `parameters` is a part of OpenAPI's schema, not JSON schema: https://ai.google.dev/api/caching#Schema
_SCHEMA_KEYWORDS = {
    "type",
    "format",
    "title",
    "description",
    "nullable",
    "enum",
    "maxItems",
    "minItems",
    "properties",
    "required",
    "minProperties",
    "maxProperties",
    "minLength",
    "maxLength",
    "pattern",
    "example",
    "anyOf",
    "propertyOrdering",
    "default",
    "items",
    "minimum",
    "maximum",
}


def _tools(call: Call) -> Complaint | None:
    """https://github.com/google-gemini/gemini-cli/issues/6704"""
    names = []
    for place, function in _functions(call):
        name = function.get("name", "")
        names.append(name)
        if not re.fullmatch(r"[A-Za-z_][\w.:-]{0,63}", name):
            rule = "Must be alphanumeric (a-z, A-Z, 0-9), underscores (_), dots (.), colons (:), or dashes (-)"
            words = f"Invalid function name. Must start with a letter or an underscore. {rule}, with a maximum length of 64."
            return Complaint(f"* GenerateContentRequest.{place}.name: {words}")
        for path, node in objects_in(function.get("parameters")):
            if keyword := next((key for key in node if key not in _SCHEMA_KEYWORDS), None):
                return _unknown(keyword, f"{place}.parameters.{path}".rstrip("."))
    allowed = call.get("toolConfig", "functionCallingConfig", "allowedFunctionNames") or []
    if stray := next((name for name in allowed if name not in names), None):
        return Complaint(f"allowed_function_names contains a function that is not declared: {stray}")
    if call.get("toolConfig", "functionCallingConfig", "mode") == "ANY" and not names:
        return Complaint("Function calling config is set without function_declarations.")
    return None


def _thinking(call: Call) -> Complaint | None:
    config = call.get("generationConfig", "thinkingConfig") or {}
    level, budget = config.get("thinkingLevel"), config.get("thinkingBudget")
    if level is not None and budget is not None:
        return Complaint("You can only set only one of thinking budget and thinking level.")
    if level is not None and level.lower() not in value_for(call.model, _LEVELS, ()):
        return Complaint(f"Thinking level {level.upper()} is not supported for this model.")
    if budget is None or budget == -1:
        return None
    least, most, may_be_off = value_for(call.model, _BUDGETS, (0, 32_768, not re.match(r"gemini-3.*-pro", call.model)))
    if budget == 0 and not may_be_off:
        return Complaint("Budget 0 is invalid. This model only works in thinking mode.")
    if budget and not least <= budget <= most:
        return Complaint(f"The thinking budget {budget} is invalid. Please choose a value between {least} and {most}.")
    return None


def _schema_and_tools(call: Call) -> Complaint | None:
    """Only Gemini 3 takes both: https://ai.google.dev/gemini-api/docs/structured-output; symfony/ai issue 803"""
    if call.get("generationConfig", "responseMimeType") != "application/json":
        wanted = call.get("generationConfig", "responseJsonSchema") or call.get("generationConfig", "responseSchema")
        return Complaint("response_schema is only supported with response_mime_type application/json.") if wanted else None
    if _functions(call) and not call.model.startswith("gemini-3"):
        return Complaint("Function calling with a response mime type: 'application/json' is unsupported")
    return None


def _limits(call: Call) -> Complaint | None:
    """https://ai.google.dev/api/generate-content#generationconfig: up to 5 stop sequences; temperature 0 to 2"""
    config = call.get("generationConfig") or {}
    if len(config.get("stopSequences") or []) > 5:
        return Complaint("* GenerateContentRequest.generation_config.stop_sequences: at most 5 stop sequences are allowed.")
    if not 0 <= config.get("temperature", 1) <= 2:
        return Complaint("* GenerateContentRequest.generation_config.temperature: must be in the range [0.0, 2.0].")
    tokens = config.get("maxOutputTokens", 1)
    if not 1 <= tokens <= _OUTPUT_TOKENS:
        return Complaint(
            f"* GenerateContentRequest.generation_config.max_output_tokens: {tokens} is not between 1 and {_OUTPUT_TOKENS}."
        )
    if re.match(r"gemini-(2\.5|3)", call.model):  # https://github.com/PublicAffairs/openai-gemini/issues/40
        for field in ("presencePenalty", "frequencyPenalty"):
            if config.get(field):
                return Complaint("Penalty is not enabled for this model")
    return None


RULES: tuple[Rule, ...] = (_known_fields, _parts, _turns, _signatures, _tools, _thinking, _schema_and_tools, _limits)


def error_body(complaint: Complaint) -> dict[str, Any]:
    return {"error": {"code": complaint.status, "message": complaint.message, "status": "INVALID_ARGUMENT"}}
