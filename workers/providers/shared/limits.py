"""How many tokens may an answer have, and how many sequences may stop it?

A longer answer than the longest that a model gives cannot come, so the limit becomes the model's own. Fewer stop sequences
would make another answer, so too many are refused by name.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from common.canonical.generation import GenerationRequest
from common.vendors.models import ModelFacts
from workers.providers.shared.unsupported import invalid_field_error

_LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")


def fit_limits(request: GenerationRequest, facts: ModelFacts) -> tuple[GenerationRequest, list[str]]:
    """Return the request with a limit of tokens that its model has, and the name of the limit if it was larger.

    Raises:
        GatewayError: INVALID_REQUEST: the model takes fewer stop sequences, or none.
    """
    check_stops(request.stop, facts, request.names.get("stop", "stop"))
    most = facts.output_tokens_max
    if most is None or (request.max_output_tokens or 0) <= most:
        return request, []
    return replace(request, max_output_tokens=most), ["max_output_tokens"]


def fit_passed_limits(body: dict[str, Any], facts: ModelFacts) -> list[str]:
    """Do the same for a body in one of OpenAI's formats, which is changed."""
    stops = body.get("stop")
    check_stops([stops] if isinstance(stops, str) else stops if isinstance(stops, list) else [], facts, "stop")
    larger = [name for name in _LIMITS if _is_larger(body, name, facts.output_tokens_max)]
    body |= dict.fromkeys(larger, facts.output_tokens_max)
    return larger


def _is_larger(body: Mapping[str, Any], name: str, most: int | None) -> bool:
    return most is not None and isinstance(body.get(name), int) and body[name] > most


def check_stops(stops: Sequence[str], facts: ModelFacts, name: str) -> None:
    """Refuse stop sequences that the model does not take. ``name``: the client's name of the field.

    Raises:
        GatewayError: INVALID_REQUEST that names the field.
    """
    if stops and "stop" in facts.refused_fields:
        raise invalid_field_error(name, "must be left out: this model does not support stop sequences")
    if facts.stops_max is not None and len(stops) > facts.stops_max:
        raise invalid_field_error(name, f"must hold at most {facts.stops_max} sequences: this model takes no more")
