"""Which fields of a body would choose a credential, an endpoint or another model at an upstream that is itself a router?

A body passes to an upstream of the same family with fields that we do not know, and aggregators and gateways (OpenRouter,
LiteLLM, Vercel, Portkey…) take some of these as orders: other models to run, fallbacks, somebody's key, another address.
Names are compared by their words, so ``apiBase``, ``api-base`` and ``API_BASE`` are one.

Sources: https://openrouter.ai/docs/api-reference/overview, https://docs.litellm.ai/docs/proxy/clientside_auth,
https://vercel.com/docs/ai-gateway/provider-options, https://platform.claude.com/docs/en/agents-and-tools/tool-use/advisor-tool
"""

import re
from collections.abc import Iterator
from enum import Enum, auto
from functools import lru_cache
from typing import Any, NamedTuple

from common.canonical.errors import ErrorKind, GatewayError

FIELDS_DEPTH_MAX = 16  # Of bodies inside a body; what is deeper is refused.
NAME_CHARS_MAX = 200  # Of a field's name, as far as it is looked at and told.

# Whose key is used and where a call goes is the operator's to say.
_CREDENTIALS = frozenset(
    {"api_base", "api_url", "api_host", "base_url", "endpoint", "endpoint_url", "api_endpoint", "api_key", "api_keys", "apikey"}
    | {"authorization", "credentials", "virtual_key", "byok", "headers", "extra_headers", "default_headers", "custom_headers"}
    | {"extra_query", "user_config", "model_list", "proxy", "proxy_url", "ssl_verify", "callbacks"}
    | {"kv_transfer_params", "bootstrap_host", "bootstrap_port"}  # Of one's own servers: where another one's memory is read.
)
_CREDENTIAL_PREFIXES = (
    "litellm_",
    "portkey_",
    "aws_",
    "azure_",
    "vertex_",
    "watsonx_",
    "langfuse_",
    "langsmith_",
    "s3_",
    "gcs_",
)
_CREDENTIAL_SUFFIXES: tuple[str, ...] = (
    *("_api_key", "_api_base", "_base_url", "_endpoint", "_credentials", "_access_key", "_secret_key"),
    *("_access_token", "_session_token", "_ad_token", "_callback"),
)
# A field with one of these words names models, one with one of those how they are chosen.
_MODEL_WORDS = frozenset({"model", "models", "fallback", "fallbacks", "deployment", "deployments", "adapter", "lora"})
_ROUTING_WORDS = frozenset({"route", "router", "routing", "provider", "providers", "preset", "gateway", "compound"})
_ROUTING = frozenset({"config", "engine", "targets", "strategy", "organization", "api_version", "api_type", "override_params"})
_BODIES = ("extra_body",)  # Hold fields of the body's own.
_OPTIONS = ("provider", "provider_options", "options", "plugins", "config", "targets")  # Hold options of an upstream.
_OWN_TOOLS = (None, "function", "custom")  # Their schemas describe what a tool gets, and choose nothing.


_SEAM = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


class Kind(Enum):
    PLAIN = auto()
    CREDENTIAL = auto()
    MODELS = auto()
    ROUTING = auto()
    HOLDER = auto()  # It chooses nothing itself.


class Choices(NamedTuple):
    """``models`` are pairs of a field's path and a model's name, ``routing`` the paths of fields that choose otherwise."""

    models: list[tuple[str, str]]
    routing: list[str]


def refuse_credentials(body: dict[str, Any]) -> None:
    """Raise for a field that names a credential or an endpoint, whoever asks.

    Raises:
        GatewayError: PERMISSION_DENIED, naming the field.
    """
    for path, name, value, kind in _fields(body):
        found = path if kind is Kind.CREDENTIAL else _credential_in(value, path) if name in _OPTIONS else None
        if found:
            raise GatewayError(
                ErrorKind.PERMISSION_DENIED,
                f"The field {found} would choose a credential or an endpoint for the upstream, which nobody may from here. "
                "Leave it out; a provider's key of your own goes into the authorization header.",
                code="field_not_allowed",
                param=found,
            )


def upstream_choices(body: dict[str, Any]) -> Choices:
    """Return what the fields of a body, but for ``model``, would have an upstream run."""
    found = Choices([], [])
    for path, name, value, kind in _fields(body):
        if name == "tools" and isinstance(value, list):
            for index, tool in enumerate(value):
                found.models.extend(_models_in_tool(tool, f"{path}.{index}", 0))
        elif name == "plugins":
            found.models.extend(_models_in(value, path, 0))
        elif kind is Kind.ROUTING:
            found.routing.append(path)
        elif kind is Kind.MODELS and (path != "model") and not isinstance(value, bool | int | float):
            names = [value] if isinstance(value, str) else value
            if isinstance(names, list) and all(isinstance(each, str) for each in names):
                found.models.extend((path, each) for each in names)
            else:
                found.routing.append(path)  # Too rich to tell what it leads to.
    return found


def _fields(body: dict[str, Any], path: str = "", depth: int = 0) -> Iterator[tuple[str, str, Any, Kind]]:
    """Yield path, name, value and kind of each field that may choose something, those of bodies inside the body included."""
    # Hot path: once per request and field, and nearly every field is plain.
    for name, value in body.items():
        snake, kind = _classified(name if len(name) <= NAME_CHARS_MAX else name[:NAME_CHARS_MAX])
        if kind is Kind.PLAIN or value is None:
            continue
        here = f"{path}{name[:NAME_CHARS_MAX]}"
        if snake in _BODIES and isinstance(value, dict) and depth < FIELDS_DEPTH_MAX:
            yield from _fields(value, f"{here}.", depth + 1)
        else:
            yield here, snake, value, Kind.CREDENTIAL if snake in _BODIES else kind


def _credential_in(node: Any, path: str, depth: int = 0) -> str | None:
    """Return the path of the first credential among an upstream's options."""
    if depth > FIELDS_DEPTH_MAX:
        return path
    pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in pairs:
        here = f"{path}.{str(key)[:NAME_CHARS_MAX]}"
        if isinstance(key, str) and value is not None and _kind(key) is Kind.CREDENTIAL:
            return here
        if isinstance(value, dict | list) and (found := _credential_in(value, here, depth + 1)):
            return found
    return None


def _models_in_tool(tool: Any, path: str, depth: int) -> Iterator[tuple[str, str]]:
    if isinstance(tool, dict) and tool.get("type") not in _OWN_TOOLS:
        yield from _models_in(tool, path, depth)


def _models_in(node: Any, path: str, depth: int) -> Iterator[tuple[str, str]]:
    """Yield the models that a vendor's own tool or plugin names."""
    pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in pairs:
        here = f"{path}.{str(key)[:NAME_CHARS_MAX]}"
        if isinstance(key, str) and _kind(key) is Kind.MODELS:
            names = [value] if isinstance(value, str) else value if isinstance(value, list) else []
            yield from ((here, name) for name in names if isinstance(name, str))
        if key == "tools" and isinstance(value, list):
            for index, tool in enumerate(value):
                yield from _models_in_tool(tool, f"{here}.{index}", depth + 1)
        elif isinstance(value, dict | list):
            yield from _models_in(value, here, depth + 1)


def _kind(name: str) -> Kind:
    return _classified(name[:NAME_CHARS_MAX])[1]


@lru_cache(maxsize=2048)
def _classified(name: str) -> tuple[str, Kind]:
    """
    >>> _classified("apiBase")
    ('api_base', <Kind.CREDENTIAL: 2>)
    """
    snake = _SEAM.sub("_", name).replace("-", "_").lower()
    if snake in _CREDENTIALS or snake.startswith(_CREDENTIAL_PREFIXES) or snake.endswith(_CREDENTIAL_SUFFIXES):
        return snake, Kind.CREDENTIAL
    words = set(snake.split("_"))
    if words & _MODEL_WORDS:
        return snake, Kind.MODELS
    if snake in _ROUTING or words & _ROUTING_WORDS:
        return snake, Kind.ROUTING
    return snake, Kind.HOLDER if snake in (*_BODIES, *_OPTIONS, "tools") else Kind.PLAIN
