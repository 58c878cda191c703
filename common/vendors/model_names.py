"""Which model names do we know in advance, and what does each vendor call them?

Public names that people use, by vendor. A bare name in this table identifies its vendor. Other names go upstream unchanged.
A name never becomes another model: for a retired model (most that are older than 2025) the vendor answers with its own 404,
and an alias in the settings can name a replacement.

Sources: https://platform.claude.com/docs/en/about-claude/model-deprecations, https://docs.mistral.ai/getting-started/models
"""

from collections.abc import Mapping


def _same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


MODEL_NAMES: Mapping[str, Mapping[str, str]] = {
    "openai": {
        **_same("gpt-5", "gpt-5-mini", "gpt-5-nano"),
        **_same("gpt-4o", "gpt-4o-mini", "gpt-4-turbo", "gpt-4", "gpt-4-vision-preview", "gpt-3.5-turbo"),
        **_same("o1", "o1-mini", "o3", "o3-mini"),
    },
    "anthropic": {
        **_same("claude-opus-5-5", "claude-sonnet-5-5", "claude-haiku-5-5"),
        **_same("claude-sonnet-4-5", "claude-haiku-4-5", "claude-opus-4-1"),
        "claude-sonnet-4": "claude-sonnet-4-20250514",
        "claude-opus-4": "claude-opus-4-20250514",
        "claude-3-7-sonnet": "claude-3-7-sonnet-20250219",
        **_same("claude-3-5-sonnet-20241022", "claude-3-5-haiku-20241022"),
        "claude-3-5-sonnet": "claude-3-5-sonnet-20241022",
        "claude-3-5-haiku": "claude-3-5-haiku-20241022",
        "claude-3-opus": "claude-3-opus-20240229",
        "claude-3-haiku": "claude-3-haiku-20240307",
    },
    "google-ai-studio": _same("gemini-2.5-pro", "gemini-2.5-flash", "gemini-2.0-flash"),
    "mistral": {
        "mistral-large": "mistral-large-latest",
        "mistral-medium": "mistral-medium-latest",
        "mistral-small": "mistral-small-latest",
        **_same("mistral-large-latest", "mistral-medium-latest", "mistral-small-latest"),
        "mistral-nemo": "open-mistral-nemo",
        "pixtral-12b": "pixtral-12b-2409",
        "codestral": "codestral-latest",
    },
    "groq": _same("mixtral-8x7b-32768"),
    "demo": _same("demo", "demo-think", "demo-tool", "demo-n500-d5"),
}

# For clients that know only OpenAI's names, when only Anthropic is configured. Other gateways have long mapped these names.
# The Claude models that they mapped them to are retired, so these are the successors.
CLAUDE_FOR_OPENAI: Mapping[str, str] = {
    "gpt-4": "anthropic/claude-sonnet-5-5",
    "gpt-4-turbo": "anthropic/claude-sonnet-5-5",
    "gpt-4o": "anthropic/claude-sonnet-5-5",
    "gpt-4o-mini": "anthropic/claude-haiku-5-5",
    "gpt-3.5-turbo": "anthropic/claude-haiku-5-5",
}

VENDOR_OF: Mapping[str, str] = {name: vendor for vendor, names in MODEL_NAMES.items() for name in names}


def canonical_name(name: str, vendor_ids: Mapping[str, str]) -> str:
    """Return ``provider/model`` with the provider's id and the vendor's own model name; any other name unchanged."""
    provider, mark, model = name.partition("/")
    id_ = vendor_ids.get(provider.lower()) if mark else None
    return f"{id_}/{MODEL_NAMES.get(id_, {}).get(model, model)}" if id_ else name
