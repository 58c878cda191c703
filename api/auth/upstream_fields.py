"""Which fields of a body could choose a credential, an endpoint or another model at an upstream that is itself a router?

An upstream of the same family gets the body with fields that we do not know. Aggregators and gateways (OpenRouter, LiteLLM,
Vercel, Portkey…) obey some of these: other models to run, fallbacks, somebody's key, another address. Names are compared word
by word, so ``apiBase``, ``api-base`` and ``API_BASE`` are the same.

Sources: https://openrouter.ai/docs/api-reference/overview, https://docs.litellm.ai/docs/proxy/clientside_auth,
https://vercel.com/docs/ai-gateway/provider-options, https://platform.claude.com/docs/en/agents-and-tools/tool-use/advisor-tool
"""

import re
from collections.abc import Iterator
from enum import Enum, auto
from functools import lru_cache
from typing import Any, NamedTuple

from common.canonical.errors import ErrorKind, GatewayError

FIELDS_DEPTH_MAX = 16  # Of bodies inside a body. Anything deeper is refused.
NAME_CHARS_MAX = 200  # How much of a field's name is read and quoted.

# Only the operator decides whose key is used and where a call goes.
_CREDENTIALS = frozenset(
    {"api_base", "api_url", "api_host", "base_url", "endpoint", "endpoint_url", "api_endpoint", "api_key", "api_keys", "apikey"}
    | {"authorization", "credentials", "virtual_key", "byok", "headers", "extra_headers", "default_headers", "custom_headers"}
    | {"extra_query", "user_config", "model_list", "proxy", "proxy_url", "ssl_verify", "callbacks"}
    | {"kv_transfer_params", "bootstrap_host", "bootstrap_port"}  # Self-hosted servers: whose memory is read.
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
# A field whose name has one of the first words names models. One of the second words: it says how models are chosen.
_MODEL_WORDS = frozenset({"model", "models", "fallback", "fallbacks", "deployment", "deployments", "adapter", "lora"})
_ROUTING_WORDS = frozenset({"route", "router", "routing", "provider", "providers", "preset", "gateway", "compound"})
_ROUTING = frozenset({"config", "engine", "targets", "strategy", "organization", "api_version", "api_type", "override_params"})
_BODIES = ("extra_body",)  # They hold more fields of the body itself.
_OPTIONS = ("provider", "provider_options", "options", "plugins", "config", "targets")  # They hold options of an upstream.
_OWN_TOOLS = (None, "function", "custom")  # Their schemas describe the tool's arguments, and choose nothing.


_SEAM = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


class FieldKind(Enum):
    PLAIN = auto()
    CREDENTIAL = auto()
    MODELS = auto()
    ROUTING = auto()
    HOLDER = auto()  # It contains other fields, and chooses nothing itself.


class UpstreamChoices(NamedTuple):
    """``models``: pairs of a field's path and the model that it names. ``routing``: paths of fields that choose otherwise."""

    models: list[tuple[str, str]]
    routing: list[str]


def refuse_credentials(body: dict[str, Any]) -> None:
    """Refuse a body with a field that names a credential or an endpoint, whoever sends it.

    Raises:
        GatewayError: PERMISSION_DENIED, naming the field.
    """
    for path, name, value, kind in _fields(body):
        field = path if kind is FieldKind.CREDENTIAL else _credential_in(value, path) if name in _OPTIONS else None
        if field:
            raise GatewayError(
                ErrorKind.PERMISSION_DENIED,
                f"The field {field} would choose a credential or an endpoint at the upstream. No client may do that. "
                "Leave it out. To use your own key for the provider, send it in the authorization header.",
                code="field_not_allowed",
                param=field,
            )


def upstream_choices(body: dict[str, Any]) -> UpstreamChoices:
    """Return what the fields of a body, except ``model``, would make an upstream run."""
    choices = UpstreamChoices([], [])
    for path, name, value, kind in _fields(body):
        if name == "tools" and isinstance(value, list):
            for index, tool in enumerate(value):
                choices.models.extend(_models_in_tool(tool, f"{path}.{index}", 0))
        elif name == "plugins":
            choices.models.extend(_models_in(value, path, 0))
        elif kind is FieldKind.ROUTING:
            choices.routing.append(path)
        elif kind is FieldKind.MODELS and (path != "model") and not isinstance(value, bool | int | float):
            names = [value] if isinstance(value, str) else value
            if isinstance(names, list) and all(isinstance(model, str) for model in names):
                choices.models.extend((path, model) for model in names)
            else:
                choices.routing.append(path)  # Its structure does not show which models it leads to.
    return choices


def _fields(body: dict[str, Any], path: str = "", depth: int = 0) -> Iterator[tuple[str, str, Any, FieldKind]]:
    """Yield path, name, value and kind of each field that may choose something, also in a body inside the body."""
    # Hot path: once per request and field, and nearly every field is plain.
    for name, value in body.items():
        snake, kind = _classified(name if len(name) <= NAME_CHARS_MAX else name[:NAME_CHARS_MAX])
        if kind is FieldKind.PLAIN or value is None:
            continue
        here = f"{path}{name[:NAME_CHARS_MAX]}"
        if snake in _BODIES and isinstance(value, dict) and depth < FIELDS_DEPTH_MAX:
            yield from _fields(value, f"{here}.", depth + 1)
        else:
            yield here, snake, value, FieldKind.CREDENTIAL if snake in _BODIES else kind


def _credential_in(node: Any, path: str, depth: int = 0) -> str | None:
    """Return the path of the first credential in an upstream's options."""
    if depth > FIELDS_DEPTH_MAX:
        return path
    pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in pairs:
        here = f"{path}.{str(key)[:NAME_CHARS_MAX]}"
        if isinstance(key, str) and value is not None and _kind(key) is FieldKind.CREDENTIAL:
            return here
        if isinstance(value, dict | list) and (credential_path := _credential_in(value, here, depth + 1)):
            return credential_path
    return None


def _models_in_tool(tool: Any, path: str, depth: int) -> Iterator[tuple[str, str]]:
    if isinstance(tool, dict) and tool.get("type") not in _OWN_TOOLS:
        yield from _models_in(tool, path, depth)


def _models_in(node: Any, path: str, depth: int) -> Iterator[tuple[str, str]]:
    """Yield the models that a vendor's own tool or plugin names."""
    pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in pairs:
        here = f"{path}.{str(key)[:NAME_CHARS_MAX]}"
        if isinstance(key, str) and _kind(key) is FieldKind.MODELS:
            names = [value] if isinstance(value, str) else value if isinstance(value, list) else []
            yield from ((here, name) for name in names if isinstance(name, str))
        if key == "tools" and isinstance(value, list):
            for index, tool in enumerate(value):
                yield from _models_in_tool(tool, f"{here}.{index}", depth + 1)
        elif isinstance(value, dict | list):
            yield from _models_in(value, here, depth + 1)


def _kind(name: str) -> FieldKind:
    return _classified(name[:NAME_CHARS_MAX])[1]


@lru_cache(maxsize=2048)
def _classified(name: str) -> tuple[str, FieldKind]:
    """
    >>> _classified("apiBase")
    ('api_base', <FieldKind.CREDENTIAL: 2>)
    """
    snake = _SEAM.sub("_", name).replace("-", "_").lower()
    if snake in _CREDENTIALS or snake.startswith(_CREDENTIAL_PREFIXES) or snake.endswith(_CREDENTIAL_SUFFIXES):
        return snake, FieldKind.CREDENTIAL
    words = set(snake.split("_"))
    if words & _MODEL_WORDS:
        return snake, FieldKind.MODELS
    if snake in _ROUTING or words & _ROUTING_WORDS:
        return snake, FieldKind.ROUTING
    return snake, FieldKind.HOLDER if snake in (*_BODIES, *_OPTIONS, "tools") else FieldKind.PLAIN
