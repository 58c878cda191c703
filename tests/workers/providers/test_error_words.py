"""Is a refusal recognised in every vendor's words, and is nothing else taken for one?"""

from typing import Any

import orjson
import pytest

from common.canonical.errors import ErrorKind, Failed
from common.dialects import DIALECTS
from common.dialects.base import OpenStream
from workers.providers.shared.errors import error_in_stream, read_error

OVERFLOWS: list[tuple[int, dict[str, Any]]] = [
    (400, {"error": {"message": "too much", "type": "invalid_request_error", "code": "context_length_exceeded"}}),
    (
        400,
        {"error": {"message": "This model's maximum context length is 8192 tokens. However, you requested 9000.", "code": 400}},
    ),
    (400, {"type": "error", "error": {"type": "invalid_request_error", "message": "prompt is too long: 9 tokens > 8 maximum"}}),
    (
        400,
        {
            "error": {
                "message": "input length and `max_tokens` exceed context limit: 9 + 1 > 8",
                "type": "invalid_request_error",
            }
        },
    ),
    (
        400,
        {
            "error": {
                "code": 400,
                "message": "The input token count (9) exceeds the maximum number of tokens allowed (8).",
                "status": "INVALID_ARGUMENT",
            }
        },
    ),
    (400, {"object": "error", "message": "The input (9 tokens) is longer than the model's context length (8 tokens)."}),
    (400, {"object": "error", "message": "Prompt contains 9 tokens, too large for model with 8 maximum context length"}),
    (400, {"error": "This model's maximum prompt length is 131072 but the request contains 140000 tokens."}),
    (400, {"message": "too many tokens: total number of tokens in the prompt cannot exceed 8 - received 9"}),
    (
        500,
        {
            "error": {
                "code": 500,
                "message": "the request exceeds the available context size",
                "type": "exceed_context_size_error",
            }
        },
    ),
    (
        413,
        {
            "errors": [
                {"code": 5021, "message": "The estimated number of tokens (9) exceeded this model context window limit (8)."}
            ]
        },
    ),
]
OTHERS: list[tuple[int, dict[str, Any], ErrorKind]] = [
    (400, {"error": {"message": "no", "code": "content_filter"}}, ErrorKind.CONTENT_POLICY_VIOLATION),
    (400, {"error": {"message": "no", "code": "content_policy_violation"}}, ErrorKind.CONTENT_POLICY_VIOLATION),
    (
        404,
        {"error": {"message": "The model `x` does not exist", "code": "model_not_found"}},
        ErrorKind.UPSTREAM_MODEL_NOT_FOUND,
    ),
    (400, {"error": {"message": "Model Not Exist", "type": "invalid_request_error"}}, ErrorKind.UPSTREAM_MODEL_NOT_FOUND),
    (404, {"error": "model 'x' not found"}, ErrorKind.UPSTREAM_MODEL_NOT_FOUND),
    (429, {"error": {"message": "no", "code": "insufficient_quota"}}, ErrorKind.UPSTREAM_QUOTA_SPENT),
    (
        400,
        {"error": {"type": "x", "message": "Your credit balance is too low to access the API"}},
        ErrorKind.UPSTREAM_QUOTA_SPENT,
    ),
    (
        429,
        {"error": {"message": "You exceeded your current quota", "status": "RESOURCE_EXHAUSTED"}},
        ErrorKind.UPSTREAM_RATE_LIMITED,
    ),
    (
        413,
        {"error": {"message": "Request too large for model `x` on tokens per minute", "code": "tpm"}},
        ErrorKind.UPSTREAM_REJECTED,
    ),
    (400, {"error": {"message": "temperature is not supported", "code": None}}, ErrorKind.UPSTREAM_REJECTED),
    (503, {"error": {"message": "the maximum context length service is down"}}, ErrorKind.UPSTREAM_UNAVAILABLE),
]


@pytest.mark.parametrize(("status", "body"), OVERFLOWS)
@pytest.mark.parametrize("dialect", ["openai-chat", "openai-responses", "anthropic-messages"])
def test_an_overflow_is_told_as_the_clients_of_a_dialect_know_it(status: int, body: dict[str, Any], dialect: str) -> None:
    failed = read_error(status, {}, orjson.dumps(body))

    assert failed.kind is ErrorKind.CONTEXT_LENGTH_EXCEEDED
    assert DIALECTS[dialect].status(failed) == 400
    error = orjson.loads(DIALECTS[dialect].error_body(failed, "req_1"))["error"]
    assert error["type"] == "invalid_request_error"
    if dialect == "anthropic-messages":
        assert "prompt is too long" in error["message"] or "exceed context limit" in error["message"]
        assert (
            b"prompt is too long" in DIALECTS[dialect].error_event(failed, OpenStream("gen_1")) or "exceed" in error["message"]
        )
    else:
        assert error["code"] == "context_length_exceeded"


@pytest.mark.parametrize(("status", "body", "kind"), OTHERS)
def test_each_refusal_is_of_its_kind(status: int, body: dict[str, Any], kind: ErrorKind) -> None:
    assert read_error(status, {}, orjson.dumps(body)).kind is kind


def test_an_overflow_within_a_stream_is_one_too() -> None:
    failed = error_in_stream({"error": {"message": "m", "type": "exceed_context_size_error"}})

    assert failed.kind is ErrorKind.CONTEXT_LENGTH_EXCEEDED


def test_a_spent_quota_says_nothing_of_our_account_and_is_a_billing_error_for_anthropics_clients() -> None:
    failed = read_error(429, {}, b'{"error": {"message": "org-12345678 has no credit", "code": "insufficient_quota"}}')

    assert "org" not in failed.message
    assert DIALECTS["anthropic-messages"].status(failed) == 402
    assert orjson.loads(DIALECTS["openai-chat"].error_body(failed, "r"))["error"]["code"] == "insufficient_quota"
    assert isinstance(failed, Failed)
