"""Which rules hold for a call?"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from demo_provider.gemini import json_names
from tests.support.upstreams.strict import (
    anthropic,
    cerebras,
    chat_templates,
    cohere,
    deepseek,
    gemini,
    grok,
    groq,
    mistral,
    openai,
    perplexity,
    workers_ai,
)
from tests.support.upstreams.strict.rules import Call, Complaint, Judgement, Rule, first_complaint

_ErrorBody = Callable[[Complaint], dict[str, Any]]
# For each vendor: what its paths end in, the rules there, and the form of its errors.
_COURTS: dict[str, tuple[tuple[tuple[str, Sequence[Rule]], ...], _ErrorBody]] = {
    "openai": ((("/chat/completions", openai.CHAT), ("/responses", openai.RESPONSES)), openai.error_body),
    "azure-openai": ((("/chat/completions", openai.CHAT), ("/responses", openai.RESPONSES)), openai.error_body),
    "anthropic": ((("/v1/messages", anthropic.MESSAGES),), anthropic.error_body),
    "mistral": ((("/v1/chat/completions", mistral.RULES),), mistral.error_body),
    "groq": ((("/openai/v1/chat/completions", groq.RULES),), groq.error_body),
    "deepseek": ((("/chat/completions", deepseek.CHAT), ("/responses", deepseek.RESPONSES)), deepseek.error_body),
    "google-ai-studio": (((":streamGenerateContent", gemini.RULES), (":generateContent", gemini.RULES)), gemini.error_body),
    "grok": ((("/v1/chat/completions", grok.CHAT), ("/v1/responses", grok.RESPONSES)), grok.error_body),
    "cerebras": ((("/v1/chat/completions", cerebras.RULES),), cerebras.error_body),
    "perplexity": ((("/chat/completions", perplexity.CHAT), ("/v1/responses", perplexity.AGENT)), perplexity.error_body),
    "cohere": ((("/v2/chat", cohere.RULES),), cohere.error_body),
    "workers-ai": ((("/ai/v1/chat/completions", workers_ai.RULES),), workers_ai.error_body),
    "vllm": ((("/v1/chat/completions", chat_templates.RULES),), chat_templates.error_body),
    "llama-cpp": ((("/v1/chat/completions", chat_templates.RULES),), chat_templates.error_body),
    "ollama": ((("/v1/chat/completions", chat_templates.RULES),), chat_templates.error_body),
}
VENDORS = tuple(_COURTS)


def refusal(vendor: str, path: str, headers: Mapping[str, str], body: Mapping[str, Any]) -> Judgement | None:
    """Return the status and the body of the vendor's refusal; None: it accepts the call.

    ``path`` has no host and no query.
    """
    rules_by_path, error_body = _COURTS[vendor]
    rules = next((rules for ending, rules in rules_by_path if path.endswith(ending)), None)
    if rules is None:
        return 404, error_body(Complaint(f"Unknown request URL: POST {path}.", status=404))
    if vendor == "google-ai-studio":
        body = json_names(body)
    call = Call(vendor, path, {name.lower(): value for name, value in headers.items()}, body)
    complaint = first_complaint(rules, call)
    return (complaint.status, error_body(complaint)) if complaint else None
