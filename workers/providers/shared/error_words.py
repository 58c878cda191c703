"""Which vendors' refusals mean the same, although each vendor words them differently?

``errors`` calls it for every error of an upstream. Clients act on these refusals: an agent compacts its conversation when the
context window is exceeded, and an operator acts when the account's quota is spent. Codes decide if a vendor has one, else
sentences. A limit per minute is not a spent quota, and a request too large for such a limit is no overflow.

Sources: the vendors' pages of errors, https://platform.openai.com/docs/guides/error-codes, https://docs.anthropic.com/en/api/errors,
https://ai.google.dev/gemini-api/docs/troubleshooting, https://console.groq.com/docs/errors,
https://api-docs.deepseek.com/quick_start/error_codes, and refusals that are quoted in public reports.
"""

import re
from collections.abc import Iterable

from common.canonical.errors import ErrorKind

_REFUSALS = (400, 404, 413, 422)  # For which a sentence decides. A 429 without a code is a limit that passes.
_KIND_OF_CODE = {
    "context_length_exceeded": ErrorKind.CONTEXT_LENGTH_EXCEEDED,
    "exceed_context_size_error": ErrorKind.CONTEXT_LENGTH_EXCEEDED,  # llama.cpp
    "model_context_window_exceeded": ErrorKind.CONTEXT_LENGTH_EXCEEDED,
    "content_policy_violation": ErrorKind.CONTENT_POLICY_VIOLATION,
    "content_filter": ErrorKind.CONTENT_POLICY_VIOLATION,  # Azure
    "model_not_found": ErrorKind.UPSTREAM_MODEL_NOT_FOUND,
    "invalid_model": ErrorKind.UPSTREAM_MODEL_NOT_FOUND,  # Mistral
    "DeploymentNotFound": ErrorKind.UPSTREAM_MODEL_NOT_FOUND,  # Azure
    "insufficient_quota": ErrorKind.UPSTREAM_QUOTA_SPENT,
    "billing_hard_limit_reached": ErrorKind.UPSTREAM_QUOTA_SPENT,
    "billing_not_active": ErrorKind.UPSTREAM_QUOTA_SPENT,
}
_KIND_OF_WORDS = (
    (
        re.compile(
            r"prompt is too long|exceeds? (the )?(available |model'?s? )?context (window|limit|size|length)"
            r"|exceeds the context window|maximum context length|maximum prompt length"
            r"|longer than the model'?s (maximum )?context length"  # SGLang
            r"|input token count|exceeds the maximum number of tokens|too large for model with"
            r"|too many tokens: total number of tokens|(this|exceeded) this model context window|input is too long for",
            re.IGNORECASE,
        ),
        ErrorKind.CONTEXT_LENGTH_EXCEEDED,
    ),
    (
        re.compile(r"content violates usage guidelines|safety system|content management policy", re.IGNORECASE),
        ErrorKind.CONTENT_POLICY_VIOLATION,
    ),
    (re.compile(r"credit balance is too low|insufficient balance", re.IGNORECASE), ErrorKind.UPSTREAM_QUOTA_SPENT),
    (
        re.compile(r"model not exist|model ['`\"]?[^ ]{1,200} (does not exist|not found|is not found)", re.IGNORECASE),
        ErrorKind.UPSTREAM_MODEL_NOT_FOUND,
    ),
)

# OpenAI's chat completions refuse a limit that leaves no room for the answer behind its reasoning; every other API ends the
# answer with a finish reason. Source: https://github.com/BerriAI/litellm/issues/35061
_IS_CUT_ANSWER = re.compile(r"could not finish the message because max_tokens or model output limit was reached", re.IGNORECASE)


def is_cut_answer(message: str) -> bool:
    """Whether a refusal only says that the limit of tokens was reached, before there was any output."""
    return bool(_IS_CUT_ANSWER.match(message))


def find_kind(status: int, codes: Iterable[str | None], message: str) -> ErrorKind | None:
    """Return what a refusal means, if it is one of those that clients act on.

    Args:
        codes: The vendor's words for it: its code and its type.
    """
    by_code = next((_KIND_OF_CODE[code] for code in codes if code in _KIND_OF_CODE), None)
    if by_code or status not in _REFUSALS:
        return by_code
    return next((kind for pattern, kind in _KIND_OF_WORDS if pattern.search(message)), None)
