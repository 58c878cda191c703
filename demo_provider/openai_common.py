"""What do both OpenAI wires share: errors, headers, response formats?"""

from typing import Any

from demo_provider.wire import AnswerRequest, WireError

BAD_KEY = "Incorrect API key provided. You can find your API key at https://platform.openai.com/account/api-keys."
MISSING_KEY = (
    "You didn't provide an API key. You need to provide your API key in an Authorization header using Bearer auth "
    "(i.e. Authorization: Bearer YOUR_KEY)."
)
INVALID_JSON = (
    "We could not parse the JSON body of your request. (HINT: This likely means you aren't using your HTTP library "
    "correctly. The OpenAI API expects a JSON payload, but what was sent was not valid JSON.)"
)
# status -> (type, code, message)
_ERRORS: dict[int, tuple[str, str | None, str]] = {
    400: ("invalid_request_error", None, "The demo provider was asked to reject this request."),
    401: ("invalid_request_error", "invalid_api_key", BAD_KEY),
    402: ("insufficient_quota", "billing_not_active", "Your account is not active, please check your billing details."),
    403: ("request_forbidden", "unsupported_country_region_territory", "Country, region, or territory not supported"),
    404: (
        "invalid_request_error",
        "model_not_found",
        "The model `{model}` does not exist or you do not have access to it.",
    ),
    429: (
        "tokens",
        "rate_limit_exceeded",
        "Rate limit reached for {model} in organization org-demo on tokens per min (TPM): Limit 200000, Used 200000, "
        "Requested 42. Please try again in 1.574s. Visit https://platform.openai.com/account/rate-limits to learn "
        "more.",
    ),
    500: ("server_error", None, "The server had an error while processing your request. Sorry about that!"),
    503: ("server_error", None, "The engine is currently overloaded, please try again later"),
}


def error_object(error: WireError, request: AnswerRequest | None) -> dict[str, Any]:
    """Return the value of ``error`` in the vendor's body."""
    kind, code, message = _ERRORS.get(error.status) or _ERRORS[500 if error.status >= 500 else 400]
    if error.message is None:
        message = message.replace("{model}", request.model if request else "")
    else:
        message, code = error.message, error.code
    return {"message": message, "type": kind, "param": error.param, "code": code}


def error_body(error: WireError, request: AnswerRequest | None, request_id: str) -> dict[str, Any]:
    return {"error": error_object(error, request)}


def headers(request_id: str, error: WireError | None = None) -> dict[str, str]:
    return {"x-request-id": request_id, "openai-version": "2020-10-01", "openai-processing-ms": "1"}


def require_model(body: dict[str, Any]) -> str:
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise WireError(400, "you must provide a model parameter")
    return model


def document_schema(response_format: Any) -> dict[str, Any] | None:
    """Return the JSON schema that a response format requests; ``None`` if it requests text."""
    kind = response_format.get("type") if isinstance(response_format, dict) else None
    if kind == "json_object":
        return {"type": "object", "properties": {"answer": {"type": "string"}, "ok": {"type": "boolean"}}}
    if kind == "json_schema":
        # Chat nests name and schema in an object of their own, responses does not.
        schema = response_format.get("json_schema", response_format).get("schema")
        return schema if isinstance(schema, dict) else {"type": "object"}
    return None
