"""How does a vendor that speaks OpenAI's wires differ from OpenAI?

A body in OpenAI's format is adapted to the vendor here. Only fields that the answer does not need are dropped. A field that
would change the answer stays, and the vendor refuses it itself. A vendor without a row gets the body unchanged: most servers
ignore fields that they do not know.

Sources: the vendors' SDKs of 2026-11 (their request types), https://console.groq.com/docs/openai,
https://docs.x.ai/docs/guides/reasoning, https://api-docs.deepseek.com/guides/thinking_mode,
https://learn.microsoft.com/azure/ai-services/openai/api-version-lifecycle, and refusals quoted in public threads.
"""

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from common.dialects.shared.openai_words import REASONING_FIELDS
from common.vendors.models import ModelFacts
from workers.providers.base import Deployment
from workers.providers.shared import openai_fields
from workers.providers.shared.agent_api import fit_agent_body
from workers.providers.shared.history import Carries, Kind
from workers.providers.shared.loose_json import dict_of, list_of, text_of
from workers.providers.shared.roles import fit_roles, is_prefill
from workers.providers.shared.schemas import tool_schema
from workers.providers.shared.thoughts import fit_thoughts
from workers.providers.shared.tool_names import rename_tools

# A server that is not known takes images, and files only if the table of models says that its model reads them.
_IMAGES = Carries(known_only=frozenset({"pdf", "audio"}))
_IMAGES_IN_RESPONSES = Carries(known_only=frozenset({"pdf", "text", "other"}))
# Source: https://developers.openai.com/api/docs/guides/file-inputs
_OPENAI = Carries(kinds=frozenset({"image", "pdf"}), known_only=frozenset({"audio"}), files_at="openai")
# Its chat completions refuse files: https://github.com/openai/openai-python/issues/2826
_AZURE = Carries(known_only=frozenset({"audio"}))
_FILES: frozenset[Kind] = frozenset({"image", "pdf", "text", "other"})
_OPENAI_IN_RESPONSES = Carries(kinds=_FILES, by_url=_FILES, files_at="openai")
# Source: https://docs.mistral.ai/studio-api/document-processing/document_qna
_MISTRAL: frozenset[Kind] = frozenset({"image", "pdf"})

_PDF: frozenset[Kind] = frozenset({"pdf"})

_MISTRAL_CALL_ID = re.compile(r"[a-zA-Z0-9]{9}")


@dataclass(frozen=True, slots=True)
class Quirks:
    """One vendor's differences.

    ``limit``: the field for the most tokens of an answer, if we choose it. ``renamed``: OpenAI's fields for which the
    vendor has another name. ``unknown``: fields that the vendor refuses or silently ignores; ``unknown_in_responses``:
    those of the Responses API, and ``unknown_in_messages`` those of a message or a call. ``carries``,
    ``carries_in_responses``: which images and documents the vendor takes; ``document_part``: the content part that holds a
    document. ``fit_call_id`` returns the id of a call as the vendor takes it, always the same for the same. ``unread``:
    what the vendor refuses in a body that passes, unless the table of models says that this one reads it. ``texts_only``:
    the content of a message must be a string if it is only text, and never null. ``is_agent_api``: its Responses API is
    Perplexity's Agent API.
    """

    limit: str = "max_tokens"
    renamed: Mapping[str, str] = field(default_factory=dict)
    unknown: frozenset[str] = frozenset()
    unknown_in_messages: frozenset[str] = frozenset()
    unknown_in_responses: frozenset[str] = frozenset()
    knows_developer: bool = True
    fit_call_id: Callable[[str], str] | None = None
    refuses_empty_answers: bool = False
    carries: Carries = _IMAGES
    carries_in_responses: Carries = _IMAGES_IN_RESPONSES
    document_part: Literal["file", "document_url"] = "file"
    unread: frozenset[Kind] = frozenset()
    texts_only: bool = False
    is_agent_api: bool = False


def _mistral_call_id(call_id: str) -> str:
    """Return a tool call's id in Mistral's format, nine letters and digits. The same id always gets the same result."""
    return call_id if _MISTRAL_CALL_ID.fullmatch(call_id) else hashlib.sha256(call_id.encode()).hexdigest()[:9]


_ONE_LIMIT = {"max_completion_tokens": "max_tokens"}
# Clients that speak to many vendors send the old name, and models that reason refuse it.
# Source: https://developers.openai.com/api/docs/guides/reasoning
_NEW_LIMIT = {"max_tokens": "max_completion_tokens"}
# For the vendor's own bookkeeping and caches: they do not change an answer.
_BOOKKEEPING = frozenset({"store", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "verbosity"})
# In these, OpenRouter puts the reasoning of a message, and Google (and we) the signature of a call.
# Source: https://github.com/agentjido/req_llm/issues/772, https://ai.google.dev/gemini-api/docs/thought-signatures
_SEALED = frozenset({"reasoning_details", "extra_content"})
# Fields of an answer that clients send back unchanged.
_ECHOED = _SEALED | {"refusal", "annotations", "audio", "function_call", "reasoning_content"}

QUIRKS: Mapping[str, Quirks] = {
    "openai": Quirks(
        limit="max_completion_tokens",
        renamed=_NEW_LIMIT,
        unknown_in_messages=_SEALED | frozenset(REASONING_FIELDS),
        fit_call_id=openai_fields.call_id,
        carries=_OPENAI,
        carries_in_responses=_OPENAI_IN_RESPONSES,
    ),
    "azure-openai": Quirks(
        limit="max_completion_tokens",
        renamed=_NEW_LIMIT,
        unknown_in_messages=_SEALED | frozenset(REASONING_FIELDS),
        fit_call_id=openai_fields.call_id,
        carries=_AZURE,
        carries_in_responses=_OPENAI_IN_RESPONSES,
    ),
    "mistral": Quirks(
        renamed={**_ONE_LIMIT, "seed": "random_seed"},
        # It always reports usage, and refuses the option that asks for it.
        unknown=_BOOKKEEPING - {"metadata"} | {"stream_options", "user", "service_tier"},
        unknown_in_messages=_ECHOED | {"name", "reasoning"},
        fit_call_id=_mistral_call_id,
        refuses_empty_answers=True,
        carries=Carries(kinds=_MISTRAL, by_url=_MISTRAL),
        document_part="document_url",
    ),
    "groq": Quirks(unknown=_BOOKKEEPING, unknown_in_messages=_ECHOED | {"name"}),
    "grok": Quirks(
        # A file starts an agent at xAI that searches in it: https://docs.x.ai/docs/guides/files. Nobody asked for that.
        carries=Carries(),
        carries_in_responses=Carries(),
        unknown=frozenset({"metadata", "store"}),
        unknown_in_responses=frozenset({"metadata"}),
    ),
    "deepseek": Quirks(
        renamed=_ONE_LIMIT,
        unknown=_BOOKKEEPING | {"seed", "user", "service_tier"},
        texts_only=True,  # Source: https://github.com/Gitlawb/openclaude/issues/774
    ),
    "cerebras": Quirks(unknown=_BOOKKEEPING - {"prompt_cache_key"}, unknown_in_messages=_ECHOED, renamed=_ONE_LIMIT),
    "perplexity": Quirks(
        renamed=_ONE_LIMIT,
        unknown=_BOOKKEEPING | {"stream_options", "seed", "user", "service_tier"},  # Usage comes with every chunk.
        carries_in_responses=Carries(),
        is_agent_api=True,
    ),
    # Source: https://github.com/TencentCloud/TencentDB-Agent-Memory/issues/1313
    "workers-ai": Quirks(renamed=_ONE_LIMIT, unknown=_BOOKKEEPING | {"user", "service_tier"}, texts_only=True),
    "ollama": Quirks(renamed=_ONE_LIMIT, unread=_PDF),
    "vllm": Quirks(unread=_PDF),
    "llama-cpp": Quirks(unread=_PDF),
}
_NONE = Quirks()
_OLD_AZURE = Quirks(renamed=_ONE_LIMIT, unknown=_BOOKKEEPING | {"stream_options", "service_tier"}, knows_developer=False)
_OLD_AZURE_BEFORE = "api-version=2024-09"


def find_quirks(deployment: Deployment) -> Quirks:
    if deployment.provider == "azure-openai" and "api-version=" in deployment.query and deployment.query < _OLD_AZURE_BEFORE:
        return _OLD_AZURE
    return QUIRKS.get(deployment.provider, _NONE)


def fit_response(body: dict[str, Any], deployment: Deployment) -> list[str]:
    """Do the same as ``fit`` for a body of the Responses API."""
    quirks = find_quirks(deployment)
    _fit_tools(body, deployment.facts)
    dropped = [name for name in list(body) if name in quirks.unknown_in_responses and body.pop(name)]
    return dropped + (fit_agent_body(body) if quirks.is_agent_api else [])


def fit(body: dict[str, Any], deployment: Deployment) -> list[str]:
    """Change a chat completions body from OpenAI's format to the vendor's, and return the names of the dropped fields.

    Values inside the body are replaced, never changed in place: other code may use them.
    """
    quirks = find_quirks(deployment)
    for name, renamed_to in quirks.renamed.items():
        value = body.pop(name, None)
        if value is not None and body.get(renamed_to) is None:
            body[renamed_to] = value
    dropped = [name for name in list(body) if name in quirks.unknown and body.pop(name) is not None]
    facts = deployment.facts if quirks.knows_developer else deployment.facts.model_copy(update={"developer_role": False})
    messages = list_of(body.get("messages"))
    if messages and all(isinstance(message, dict) for message in messages):
        if quirks.refuses_empty_answers:
            messages = [message for message in messages if not _is_empty_answer(message)]
        body["messages"] = fit_roles(fit_thoughts(messages, facts), facts)
        dropped += ["prefill"] if facts.prefill is False and is_prefill(messages) else []
    _fit_tools(body, facts)
    rename_tools(body, facts)
    if messages and (quirks.unknown_in_messages or quirks.fit_call_id or quirks.texts_only):
        messages = [dict_of(message) for message in list_of(body.get("messages"))]
        echoed = {name for message in messages for name, value in message.items() if value}
        dropped += [f"messages.{name}" for name in sorted(echoed & quirks.unknown_in_messages)]
        body["messages"] = [_fit_message(message, quirks) for message in messages]
    return dropped


def _is_empty_answer(message: dict[str, Any]) -> bool:
    return message.get("role") == "assistant" and not (message.get("content") or message.get("tool_calls"))


def _fit_tools(body: dict[str, Any], facts: ModelFacts) -> None:
    """Correct the schemas of a body's tools that the vendor would refuse."""
    if (facts.tool_properties_needed or facts.tool_root_refuses) and isinstance(body.get("tools"), list):
        body["tools"] = [_fit_tool(tool, facts) for tool in body["tools"]]


def _fit_tool(tool: Any, facts: ModelFacts) -> Any:
    fields = dict_of(tool)
    if isinstance(fields.get("parameters"), dict):
        return {**fields, "parameters": tool_schema(fields["parameters"], facts)}
    if isinstance(fields.get("function"), dict):  # Chat completions.
        return {**fields, "function": _fit_tool(fields["function"], facts)}
    if isinstance(fields.get("tools"), list):  # A namespace of the Responses API.
        return {**fields, "tools": [_fit_tool(inner, facts) for inner in fields["tools"]]}
    return tool


def _fit_message(message: dict[str, Any], quirks: Quirks) -> dict[str, Any]:
    fitted = {name: value for name, value in message.items() if name not in quirks.unknown_in_messages}
    if calls := list_of(fitted.get("tool_calls")):
        fitted["tool_calls"] = [_fit_call(call, quirks) for call in calls]
    if fit_id := quirks.fit_call_id:
        fitted = _with_id(fitted, "tool_call_id", fit_id)
    if quirks.texts_only or isinstance(fitted.get("content"), list):
        fitted["content"] = _fit_content(fitted.get("content"), quirks)
    return fitted


def _fit_call(call: Any, quirks: Quirks) -> Any:
    if isinstance(call, dict) and not quirks.unknown_in_messages.isdisjoint(call):
        call = {name: value for name, value in call.items() if name not in quirks.unknown_in_messages}
    return _with_id(call, "id", quirks.fit_call_id) if quirks.fit_call_id else call


def _with_id(fields: Any, name: str, fit_id: Callable[[str], str]) -> Any:
    id_ = dict_of(fields).get(name)
    return {**fields, name: fit_id(id_)} if isinstance(id_, str) else fields


def _fit_content(content: Any, quirks: Quirks) -> Any:
    parts = [dict_of(part) for part in list_of(content)]
    if quirks.texts_only and not isinstance(content, str) and all(part.get("type") == "text" for part in parts):
        return "\n\n".join(text_of(part.get("text")) for part in parts)
    if quirks.document_part == "document_url" and parts:
        return [_document_url(part) for part in parts]
    return content


def _document_url(part: dict[str, Any]) -> dict[str, Any]:
    """Return OpenAI's part for a file, if it holds the file, as Mistral's part."""
    file = dict_of(part.get("file"))
    if part.get("type") != "file" or not file.get("file_data"):
        return part
    named = {"document_name": file["filename"]} if file.get("filename") else {}
    return {"type": "document_url", "document_url": file["file_data"], **named}
