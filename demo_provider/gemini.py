"""How does Google's Gemini API send an answer?

Model and method are in the path; ``server`` puts them into the body as ``model`` and ``stream``. As strict as Gemini 3 about
common mistakes of gateways: turns without parts, results without a call, calls that come back without their signature.
"""

import base64
import binascii
import re
import secrets
from collections.abc import Iterator
from typing import Any

import orjson

from demo_provider.wire import (
    MARK,
    AnswerPart,
    AnswerRequest,
    Finish,
    PartKind,
    Plan,
    Tool,
    WireError,
    content_text,
    count_words,
    dicts_in,
    positive_or_none,
    split_at_token,
    texts_in,
)

NAME = "gemini"
MISSING_KEY = (
    "Method doesn't allow unregistered callers (callers without established identity). Please use API Key or other form "
    "of API consumer identity to call this API."
)
BAD_KEY = "API key not valid. Please pass a valid API key."
INVALID_JSON = "Invalid JSON payload received."

_FINISH_REASON = {
    Finish.STOP: "STOP",
    Finish.STOP_SEQUENCE: "STOP",
    Finish.LENGTH: "MAX_TOKENS",
    Finish.TOOLS: "STOP",
    Finish.REFUSAL: "SAFETY",
    Finish.FILTER: "SAFETY",
}
# status -> (Google's word for it, message)
_ERRORS = {
    400: ("INVALID_ARGUMENT", "The demo provider was asked to reject this request."),
    401: ("UNAUTHENTICATED", "Request had invalid authentication credentials."),
    403: ("PERMISSION_DENIED", "The caller does not have permission"),
    404: (
        "NOT_FOUND",
        "models/{model} is not found for API version v1beta, or is not supported for generateContent. Call ListModels to "
        "see the list of available models and their supported methods.",
    ),
    429: ("RESOURCE_EXHAUSTED", "You exceeded your current quota, please check your plan and billing details."),
    500: ("INTERNAL", "An internal error has occurred. Please retry."),
    503: ("UNAVAILABLE", "The model is overloaded. Please try again later."),
    504: ("DEADLINE_EXCEEDED", "Deadline expired before operation could complete."),
}
_RETRY_DELAY = "0.5s"  # Gemini has no Retry-After header: the delay is in the body.
_CANDIDATES_MAX = 8
_UNDERSCORE = re.compile("_([a-z])")
# Fields whose values have names that are not Google's: schemas, and what tools get and give.
_FREE = {"args", "response", "parameters", "parametersJsonSchema", "responseSchema", "responseJsonSchema", "labels"}
_UNSIGNED = "skip_thought_signature_validator"
_SIGNED_WITH = b"demo signature "


def read(body: dict[str, Any]) -> AnswerRequest:
    body = json_names(body)
    contents = dicts_in(body.get("contents"))
    if not contents:
        raise WireError(400, "* GenerateContentRequest.contents: contents is not specified\n")
    for index, content in enumerate(contents):
        _check(content, contents[index - 1] if index else {}, f"contents[{index}]")
    last = contents[-1]
    results = [part["functionResponse"] for part in _parts(last) if "functionResponse" in part]
    raw_config = body.get("generationConfig")
    config = raw_config if isinstance(raw_config, dict) else {}
    return AnswerRequest(
        model=str(body.get("model")),
        body=body,
        input_tokens=count_words(contents, body.get("systemInstruction"), body.get("tools")),
        is_stream=body.get("stream") is True,
        tools=_tools(body),
        tool_result=", ".join(_result(result) for result in results) if results else None,
        prefill=content_text(_parts(last)) if last.get("role") == "model" else "",
        stops=texts_in(config.get("stopSequences")),
        tokens_max=positive_or_none(config.get("maxOutputTokens")),
        document_schema=_document_schema(config),
        choices=min(positive_or_none(config.get("candidateCount")) or 1, _CANDIDATES_MAX),
    )


def read_prompt(body: dict[str, Any]) -> AnswerRequest:
    """Read a request to count tokens: return the request that it contains."""
    wrapped = body.get("generateContentRequest")
    return read({**wrapped, "model": body.get("model")} if isinstance(wrapped, dict) else body)


def _parts(content: dict[str, Any]) -> list[dict[str, Any]]:
    return dicts_in(content.get("parts"))


def _check(content: dict[str, Any], before: dict[str, Any], path: str) -> None:
    if content.get("role") not in ("user", "model"):
        raise WireError(400, "Please use a valid role: user, model.")
    if not _parts(content):
        raise WireError(400, f"* GenerateContentRequest.{path}.parts: contents.parts must not be empty.\n")
    calls = [part for part in _parts(content) if "functionCall" in part]
    if calls and not _is_signed(calls[0]):
        raise WireError(400, "Function call is missing a thought_signature in functionCall parts.")
    if _names(content, "functionResponse") != _names(before, "functionCall"):
        raise WireError(
            400,
            "Please ensure that the number of function response parts is equal to the number of function call parts of "
            "the function call turn.",
        )


def _names(content: dict[str, Any], kind: str) -> list[str]:
    values = [part[kind] for part in _parts(content) if kind in part]
    return sorted(str(value.get("name")) for value in values if isinstance(value, dict))


def _is_signed(part: dict[str, Any]) -> bool:
    signature = part.get("thoughtSignature")
    if signature == _UNSIGNED:
        return True
    try:
        return base64.b64decode(str(signature), validate=True).startswith(_SIGNED_WITH)
    except binascii.Error:
        return False


def _result(result: dict[str, Any]) -> str:
    response = result.get("response")
    return str(next(iter(response.values()), "")) if isinstance(response, dict) else ""


def _tools(body: dict[str, Any]) -> list[Tool]:
    config = body.get("toolConfig")
    calling = config.get("functionCallingConfig") if isinstance(config, dict) else None
    if isinstance(calling, dict) and calling.get("mode") == "NONE":
        return []
    functions = [item for tool in dicts_in(body.get("tools")) for item in dicts_in(tool.get("functionDeclarations"))]
    return [Tool(str(item.get("name")), _schema(item, "parameters") or {"type": "object"}) for item in functions]


def _document_schema(config: dict[str, Any]) -> dict[str, Any] | None:
    if config.get("responseMimeType") != "application/json":
        return None
    return _schema(config, "responseSchema") or {"type": "object", "properties": {"answer": {"type": "string"}}}


def _schema(fields: dict[str, Any], name: str) -> dict[str, Any] | None:
    """Return the JSON schema in one of the two fields for it: ``name`` has Google's own kind of schema, the other JSON's."""
    schema = fields.get(name.removesuffix("Schema") + "JsonSchema")
    if not isinstance(schema, dict):
        schema = _plain_schema(fields.get(name))
    return schema if isinstance(schema, dict) else None


def _plain_schema(schema: Any) -> Any:
    """Return one of Google's own schemas as a JSON schema: the names of its types are in capitals."""
    if isinstance(schema, list):
        return [_plain_schema(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    plain = {name: _plain_schema(value) for name, value in schema.items()}
    return plain | {"type": plain["type"].lower()} if isinstance(plain.get("type"), str) else plain


def json_names(message: Any) -> Any:
    """Return a message with the JSON names of its fields.

    Google takes the fields' own names too, as every parser of protobuf's JSON does, and its Python client mixes both.
    Source: https://protobuf.dev/programming-guides/json/
    """
    if isinstance(message, list):
        return [json_names(item) for item in message]
    if not isinstance(message, dict):
        return message
    names = {name: _UNDERSCORE.sub(lambda match: match[1].upper(), name) for name in message}
    return {names[name]: value if names[name] in _FREE else json_names(value) for name, value in message.items()}


def error_body(error: WireError, request: AnswerRequest | None, request_id: str) -> dict[str, Any]:
    word, message = _ERRORS.get(error.status) or _ERRORS[500 if error.status >= 500 else 400]
    message = error.message or message.replace("{model}", request.model if request else "")
    fields: dict[str, Any] = {"code": error.status, "message": message, "status": word}
    if message == BAD_KEY:
        fields["details"] = [{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}]
    elif error.status == 429:
        fields["details"] = [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": _RETRY_DELAY}]
    return {"error": fields}


def headers(request_id: str, error: WireError | None = None) -> dict[str, str]:
    return {"x-gemini-service-tier": "standard"}


def _usage(request: AnswerRequest, text_tokens: int, reasoning_tokens: int) -> dict[str, Any]:
    usage: dict[str, Any] = {"promptTokenCount": request.input_tokens}
    if text_tokens:
        usage["candidatesTokenCount"] = text_tokens
    usage["totalTokenCount"] = request.input_tokens + text_tokens + reasoning_tokens
    usage["promptTokensDetails"] = [{"modality": "TEXT", "tokenCount": request.input_tokens}]
    if reasoning_tokens:
        usage["thoughtsTokenCount"] = reasoning_tokens
    return usage


def _final_usage(request: AnswerRequest, plan: Plan) -> dict[str, Any]:
    reasoning_tokens = plan.reasoning_tokens * request.choices
    return _usage(request, plan.tokens * request.choices - reasoning_tokens, reasoning_tokens)


def _answer_fields(request: AnswerRequest) -> dict[str, Any]:
    return {"modelVersion": request.model, "responseId": secrets.token_urlsafe(16)}


def _call(part: AnswerPart, choice: int, *, is_first: bool) -> dict[str, Any] | None:
    """Return the part for a tool call; ``None`` if the token limit cut it off, because Gemini sends only complete calls."""
    try:
        arguments = orjson.loads(part.text)
    except orjson.JSONDecodeError:
        return None
    fields: dict[str, Any] = {"functionCall": {"id": f"{part.id[:8]}{choice or ''}", "name": part.name, "args": arguments}}
    if is_first:
        fields["thoughtSignature"] = _signature(part)
    return fields


def _signature(part: AnswerPart) -> str:
    return base64.b64encode(_SIGNED_WITH + part.id.encode()).decode()


def _first_call(plan: Plan) -> AnswerPart | None:
    return next((part for part in plan.parts if part.kind is PartKind.TOOL), None)


def build_reply(request: AnswerRequest, plan: Plan) -> dict[str, Any]:
    """Return the body of an answer that is not streamed."""
    candidates = [
        {
            "content": {"parts": _reply_parts(plan, choice), "role": "model"},
            "finishReason": _FINISH_REASON[plan.finish],
            "index": choice,
        }
        for choice in range(request.choices)
    ]
    return {"candidates": candidates, "usageMetadata": _final_usage(request, plan), **_answer_fields(request)}


def _reply_parts(plan: Plan, choice: int) -> list[dict[str, Any]]:
    parts: list[dict[str, Any] | None] = []
    for part in plan.parts:
        if part.kind is PartKind.TOOL:
            parts.append(_call(part, choice, is_first=part is _first_call(plan)))
        else:
            parts.append(_text_part(part, part.text))
    return [part for part in parts if part is not None]


def _text_part(part: AnswerPart, text: str) -> dict[str, Any]:
    return {"text": text, "thought": True} if part.kind is PartKind.REASONING else {"text": text}


def open_stream(request: AnswerRequest, plan: Plan) -> "ContentStream":
    return ContentStream(request, plan)


class ContentStream:
    """One streamed answer. Every chunk repeats the usage so far. All candidates have the same text; they take turns."""

    def __init__(self, request: AnswerRequest, plan: Plan) -> None:
        self._request = request
        self._plan = plan
        self._fields = orjson.dumps(_answer_fields(request))[1:]

    def opening(self) -> bytes:
        return b""

    def beats(self) -> Iterator[bytes]:
        text_tokens = reasoning_tokens = 0
        choices = range(self._request.choices)
        for part in self._plan.parts:
            frames = [split_at_token(_candidate(choice, _text_part(part, MARK))) for choice in choices]
            for token in part.tokens:
                if part.kind is PartKind.REASONING:
                    reasoning_tokens += self._request.choices
                else:
                    text_tokens += self._request.choices
                if part.kind is PartKind.TOOL:
                    yield b""  # A call is sent complete, after its last token.
                    continue
                text, usage = orjson.dumps(token), _usage(self._request, text_tokens, reasoning_tokens)
                yield b"".join([self._chunk(prefix + text + suffix, usage) for prefix, suffix in frames])

    def closing(self) -> bytes:
        usage, reason = _final_usage(self._request, self._plan), _FINISH_REASON[self._plan.finish]
        return b"".join(
            self._chunk(_candidate(choice, *self._last_parts(choice), finishReason=reason), usage)
            for choice in range(self._request.choices)
        )

    def _last_parts(self, choice: int) -> list[dict[str, Any]]:
        """Return the calls or, if there are none, an empty text that carries the signature."""
        first = _first_call(self._plan)
        calls = [_call(part, choice, is_first=part is first) for part in self._plan.parts if part.kind is PartKind.TOOL]
        signed = [{"text": "", "thoughtSignature": _signature(part)} for part in self._plan.parts[:1]]
        return [call for call in calls if call is not None] or signed or [{"text": ""}]

    def failure(self) -> bytes:
        # As at Google: the bare error object, not an event.
        return orjson.dumps(error_body(WireError(503), self._request, ""), option=orjson.OPT_INDENT_2) + b"\n"

    def _chunk(self, candidate: bytes, usage: dict[str, Any]) -> bytes:
        return b'data: {"candidates":[%b],"usageMetadata":%b,%b\r\n\r\n' % (candidate, orjson.dumps(usage), self._fields)


def _candidate(choice: int, *parts: dict[str, Any], **more: Any) -> bytes:
    return orjson.dumps({"content": {"parts": list(parts), "role": "model"}, **more, "index": choice})
