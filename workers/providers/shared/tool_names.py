"""Under which name does a vendor know a client's tool?

Vendors limit the length and the characters of tool names, each in its own way, and some keep names for tools of their own. A
name that a vendor would refuse is replaced by one that follows from the name and the limits alone. So a conversation keeps its
prefix from turn to turn, and every worker can derive the names again: nothing is stored.
"""

import hashlib
import re
from functools import lru_cache

from common.canonical.generation import GenerationRequest, ToolCallPart
from common.vendors.models import ModelFacts

_NAMELESS = "unnamed"  # Some models call a tool without a name. Every vendor refuses that in the history.
_DIGEST_CHARS = 8
_CACHED_NAMES_MAX = 8_192


def vendor_name(name: str, facts: ModelFacts) -> str:
    """Return a tool's name at the vendor: mostly the client's own."""
    return _vendor_name(name, facts.tool_name_chars_max, facts.tool_name_pattern, facts.tool_names_reserved)


@lru_cache(_CACHED_NAMES_MAX)
def _vendor_name(name: str, chars_max: int | None, pattern: str | None, reserved: frozenset[str]) -> str:
    name = name or _NAMELESS
    is_fitting = re.compile(pattern).fullmatch if pattern else re.compile(".+", re.DOTALL).fullmatch
    if is_fitting(name) and (chars_max is None or len(name) <= chars_max) and name not in reserved:
        return name
    cleaned = "".join(char if is_fitting(f"a{char}") else "_" for char in name)
    cleaned = cleaned if is_fitting(cleaned) else f"_{cleaned}"
    digest = hashlib.sha256(name.encode()).hexdigest()[:_DIGEST_CHARS]  # Keeps shortened names apart.
    return f"{cleaned[: (chars_max or len(cleaned) + 9) - _DIGEST_CHARS - 1]}_{digest}"


def client_names(request: GenerationRequest, facts: ModelFacts) -> dict[str, str]:
    """Map the vendor's names that differ back to the client's, for the tools of a request and the calls of its history."""
    names = {tool.name for tool in request.tools}
    names |= {part.name for message in request.messages for part in message.parts if isinstance(part, ToolCallPart)}
    return {vendor: name for name in names if name and (vendor := vendor_name(name, facts)) != name}
