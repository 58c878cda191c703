"""Which headers does an attempt add to the client's response?

Called once per answer of an upstream. They are part of the log's head, so every API that reads the log sends them.
"""

from collections.abc import Iterable

from common.vendors.models import ModelFacts
from workers.providers.base import Deployment, UpstreamRequest
from workers.upstream.http_client import UpstreamAnswer

PASSED_HEADER_PREFIXES = ("cf-aig-",)  # Cloudflare AI Gateway's own: cache status, log id.
PASSED_HEADER_CHARS_MAX = 1024


def reply_headers(request: UpstreamRequest, answer: UpstreamAnswer, deployment: Deployment) -> dict[str, str]:
    """Return extra headers of the client's response: the fields that were dropped, when the model's vendor stops serving it,
    and an AI gateway's own headers.
    """
    headers = {
        name: value
        for name, value in answer.headers.items()
        if name.startswith(PASSED_HEADER_PREFIXES) and _is_safe_header_value(value)
    }
    if request.dropped:
        headers["x-sluice-dropped"] = ", ".join(request.dropped)
    if deprecation := _deprecation(deployment.facts):
        headers["x-sluice-deprecation"] = deprecation
    return headers


def add_left_out(headers: dict[str, str], names: Iterable[str]) -> None:
    """Name the parts of a complete answer that the client's format does not carry. A stream's record names them."""
    if parts := [f"answer.{name}" for name in names]:
        headers["x-sluice-dropped"] = ", ".join([*filter(None, [headers.get("x-sluice-dropped")]), *parts])


def _deprecation(facts: ModelFacts) -> str | None:
    """Return the day on which the vendor stops serving the model, and the successor that it names."""
    if facts.retires is None:
        return None
    is_told = facts.successor is not None and _is_safe_header_value(facts.successor)
    return f"{facts.retires}; successor={facts.successor}" if is_told else facts.retires


def _is_safe_header_value(value: str) -> bool:
    """Whether any client can read this header value. An upstream may send anything."""
    return value.isascii() and value.isprintable() and len(value) <= PASSED_HEADER_CHARS_MAX
