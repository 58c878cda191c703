"""What is done to every request before a wire's builder writes it?

Called by all wires, for generating and for counting tokens. The steps depend on each other: what the history cannot carry is
gone before its shape is put right, calls have their results before they become text, and a forced call is judged last.
"""

from collections.abc import Callable

from common.canonical.generation import GenerationRequest
from common.vendors.models import ModelFacts
from workers.providers.shared.answer_format import fit_answer_format
from workers.providers.shared.history import Carries, fit_history
from workers.providers.shared.limits import fit_limits
from workers.providers.shared.shape import fit_shape
from workers.providers.shared.wishes import fit_tool_choice
from workers.providers.shared.without_tools import fit_tools

_Step = Callable[[GenerationRequest, ModelFacts], tuple[GenerationRequest, list[str]]]
_STEPS: tuple[_Step, ...] = (fit_limits, fit_answer_format, fit_shape, fit_tools, fit_tool_choice)


def fit_request(request: GenerationRequest, facts: ModelFacts, carries: Carries) -> tuple[GenerationRequest, list[str]]:
    """Return the request as the wire and its model can take it, and the names of what was left out.

    Args:
        carries: What the wire has words for.
    Raises:
        GatewayError: INVALID_REQUEST: the client asks for something that this model cannot read or do.
    """
    request, left_out = fit_history(request, facts, carries)
    for step in _STEPS:
        request, names = step(request, facts)
        left_out += names
    return request, left_out
