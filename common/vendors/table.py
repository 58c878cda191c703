"""Which providers exist, and what does each need?

A vendor on a wire that we already speak is one row here. Its differences from other vendors on that wire are a row of
``workers/providers/shared/quirks.py``. ``env`` is the prefix of its variables: ``{env}_API_KEY`` enables it (several keys are
separated by commas; when one is refused, the next is used), and ``{env}_BASE_URL`` overrides its address: what the vendor's
own SDK calls the base URL. Settings can add vendors (``Settings.vendors`` has all of them).

Words in braces are replaced with values from the settings, and ``{model}`` with the model's name.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

WireName = Literal["openai-chat", "openai-responses", "anthropic-messages", "gemini", "cohere"]  # The keys of `WIRES`.


@dataclass(frozen=True, slots=True)
class Vendor:
    """``evident`` matches bare model names that can only belong to this vendor.

    ``wires``: the wire with the name of the client's dialect is used if there is one, else the first, unless the model needs
    another one (see ``models``). ``paths`` goes between the base URL and a wire's own path; it is left out if the base URL
    already ends in a version. ``gateway`` is the same under Cloudflare's AI Gateway, for the wires
    that it serves. ``key_header`` is the header for the bare key if the vendor does not accept the wire's usual one.
    """

    id: str
    env: str
    wires: tuple[WireName, ...]
    base_url: str | None
    evident: re.Pattern[str] | None = None
    aliases: tuple[str, ...] = ()
    key_is_needed: bool = True
    key_header: str | None = None
    paths: Mapping[WireName, str] = field(default_factory=dict)
    gateway: Mapping[WireName, str] = field(default_factory=dict)

    def wire_for(self, dialect: str, needed: WireName | None = None) -> WireName:
        """Return the wire for a client's dialect; ``needed`` is the only one that serves the model, if the vendor has it."""
        if needed in self.wires:
            return needed
        return next((wire for wire in self.wires if wire == dialect), self.wires[0])


def _self_hosted(id_: str, env: str) -> Vendor:
    """Return a self-hosted server that speaks OpenAI's chat completions: its address enables it, and it needs no key."""
    return Vendor(id_, env, wires=("openai-chat",), base_url=None, key_is_needed=False, paths={"openai-chat": "/v1"})


# Base URLs as in the vendors' SDKs of 2026-11; paths under the gateway: https://developers.cloudflare.com/ai-gateway/usage/providers/
VENDORS: dict[str, Vendor] = {
    vendor.id: vendor
    for vendor in (
        Vendor(
            "openai",
            env="OPENAI",
            wires=("openai-chat", "openai-responses"),
            base_url="https://api.openai.com/v1",
            evident=re.compile(r"(gpt-(?!oss)|chatgpt-|o\d(-|$)|codex-)"),
            gateway={"openai-chat": "openai", "openai-responses": "openai"},
        ),
        Vendor(
            "anthropic",
            env="ANTHROPIC",
            wires=("anthropic-messages",),
            base_url="https://api.anthropic.com",
            evident=re.compile(r"claude-"),
            gateway={"anthropic-messages": "anthropic"},
        ),
        Vendor(
            "google-ai-studio",
            env="GEMINI",
            wires=("gemini",),
            base_url="https://generativelanguage.googleapis.com",
            evident=re.compile(r"(gemini|gemma)-"),
            aliases=("google", "gemini"),
            gateway={"gemini": "google-ai-studio"},
        ),
        Vendor(
            "mistral",
            env="MISTRAL",
            wires=("openai-chat",),
            base_url="https://api.mistral.ai",
            evident=re.compile(r"(open-)?(mistral|mixtral|ministral|magistral|codestral|devstral|pixtral)(-|$)"),
            paths={"openai-chat": "/v1"},
            gateway={"openai-chat": "mistral/v1"},
        ),
        Vendor(
            "groq",
            env="GROQ",
            wires=("openai-chat",),
            base_url="https://api.groq.com",
            paths={"openai-chat": "/openai/v1"},
            gateway={"openai-chat": "groq"},
        ),
        Vendor(
            "grok",
            env="XAI",
            wires=("openai-chat", "openai-responses"),
            base_url="https://api.x.ai/v1",
            evident=re.compile(r"grok-"),
            aliases=("xai",),
            gateway={"openai-chat": "grok/v1", "openai-responses": "grok/v1"},
        ),
        Vendor(
            "deepseek",
            env="DEEPSEEK",
            wires=("openai-chat", "openai-responses"),
            base_url="https://api.deepseek.com",
            evident=re.compile(r"deepseek-"),
            gateway={"openai-chat": "deepseek", "openai-responses": "deepseek"},
        ),
        Vendor(
            "cerebras",
            env="CEREBRAS",
            wires=("openai-chat",),
            base_url="https://api.cerebras.ai",
            paths={"openai-chat": "/v1"},
            gateway={"openai-chat": "cerebras"},
        ),
        Vendor(
            "perplexity",
            env="PERPLEXITY",
            wires=("openai-responses", "openai-chat"),  # The second only for its former models; see `models`.
            base_url="https://api.perplexity.ai",
            evident=re.compile(r"sonar(-|$)"),
            paths={"openai-responses": "/v1"},
            gateway={"openai-responses": "perplexity-ai/v1", "openai-chat": "perplexity-ai"},
        ),
        Vendor(
            "azure-openai",
            env="AZURE_OPENAI",
            wires=("openai-chat", "openai-responses"),
            base_url="https://{azure_resource}.openai.azure.com",
            aliases=("azure",),
            key_header="api-key",
            # The first is Azure's older path, by deployment. If the base URL ends in /openai/v1, both wires use that.
            paths={
                "openai-chat": "/openai/deployments/{model}?api-version={azure_api_version}",
                "openai-responses": "/openai/v1",
            },
            gateway={"openai-chat": "azure-openai/{azure_resource}/{model}?api-version={azure_api_version}"},
        ),
        Vendor(
            "cohere",
            env="COHERE",
            wires=("cohere",),
            base_url="https://api.cohere.com",
            evident=re.compile(r"(command|c4ai)-"),
            gateway={"cohere": "cohere"},
        ),
        Vendor(
            "workers-ai",
            env="WORKERS_AI",
            wires=("openai-chat",),
            base_url="https://api.cloudflare.com/client/v4/accounts/{ai_gateway_account_id}/ai/v1",
            evident=re.compile(r"@(cf|hf)/"),
            aliases=("cloudflare",),
            gateway={"openai-chat": "workers-ai/v1"},
        ),
        _self_hosted("ollama", "OLLAMA"),
        _self_hosted("vllm", "VLLM"),
        _self_hosted("llama-cpp", "LLAMA_CPP"),
        Vendor(
            "demo",
            env="DEMO",
            wires=("openai-chat",),
            base_url=None,  # Enabled only by DEMO_BASE_URL; `sluice dev` sets it.
            evident=re.compile(r"demo(-|$)"),
            key_is_needed=False,
        ),
    )
}

VENDOR_IDS: dict[str, str] = {name: vendor.id for vendor in VENDORS.values() for name in (vendor.id, *vendor.aliases)}
