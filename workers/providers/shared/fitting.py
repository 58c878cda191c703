"""What is done to every request before a wire's builder writes it?

Called by all wires, for generating and for counting tokens. The steps depend on each other: what the history cannot carry is
gone before its shape is put right, and a forced call is judged last.
"""

from common.canonical.generation import GenerationRequest
from common.vendors.models import ModelFacts
from workers.providers.shared.history import Carries, fit_history
from workers.providers.shared.shape import fit_shape
from workers.providers.shared.wishes import fit_tool_choice


def fit_request(request: GenerationRequest, facts: ModelFacts, carries: Carries) -> tuple[GenerationRequest, list[str]]:
    """Return the request as the wire and its model can take it, and the names of what was left out.

    Args:
        carries: What the wire has words for.
    Raises:
        GatewayError: INVALID_REQUEST: the question holds something that this model cannot read.
    """
    request, left_out = fit_history(request, facts, carries)
    request, given_up = fit_shape(request, facts)
    request, refused = fit_tool_choice(request, facts)
    return request, [*refused, *left_out, *given_up]
