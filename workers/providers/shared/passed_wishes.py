"""What is changed in the wishes of a body that passes unchanged to another vendor of its family?

Only what the vendor is known to refuse for this model. A request to OpenAI itself, or to Azure, stays as it is: its client
knows the vendor, and gets the vendor's own words.
"""

from typing import Any

from common.canonical.generation import Reasoning
from common.dialects.shared.parts import parse_effort
from common.vendors.models import ModelFacts
from workers.providers.base import Deployment
from workers.providers.shared.answer_format import fit_passed_answer_format
from workers.providers.shared.limits import fit_passed_limits
from workers.providers.shared.loose_json import dict_of
from workers.providers.shared.reasoning import reasoning_words, reasons
from workers.providers.shared.wishes import drop_sampling, forced_call

_FAMILY = ("openai", "azure-openai")


def fit_passed_wishes(body: dict[str, Any], deployment: Deployment) -> list[str]:
    """Change a body of chat completions, and return the names of the dropped fields.

    Raises:
        GatewayError: INVALID_REQUEST: the model takes fewer stop sequences, or none.
    """
    if deployment.provider in _FAMILY:
        return []
    facts = deployment.facts
    changed = fit_passed_limits(body, facts) + fit_passed_answer_format(body, facts)
    reasoning, dropped = _fit_forced_call(body, _reasoning(body), facts)
    if reasoning is not None and "thinking" not in body:
        words = reasoning_words(reasoning, facts)
        _set(body, "reasoning_effort", words.effort)
        _set(body, "thinking", {"type": words.thinking} if words.thinking else None)
        dropped += ["reasoning_effort"] if words.dropped else []
    return changed + dropped + drop_sampling(body, facts, is_reasoning=reasons(reasoning, facts))


def fit_passed_response_wishes(body: dict[str, Any], deployment: Deployment) -> list[str]:
    """Do the same for a body of the Responses API."""
    if deployment.provider in _FAMILY:
        return []
    changed = fit_passed_limits(body, deployment.facts)
    asked = dict_of(body.get("reasoning"))
    effort = asked.get("effort")
    reasoning, dropped = _fit_forced_call(body, parse_effort(effort) if isinstance(effort, str) else None, deployment.facts)
    if reasoning is not None:
        words = reasoning_words(reasoning, deployment.facts)
        rest = {name: value for name, value in asked.items() if name != "effort"}
        word = "none" if words.thinking == "disabled" else words.effort
        _set(body, "reasoning", {**rest, **({"effort": word} if word else {})} or None)
        dropped += ["reasoning.effort"] if words.dropped else []
    return changed + dropped + drop_sampling(body, deployment.facts, is_reasoning=reasons(reasoning, deployment.facts))


def _reasoning(body: dict[str, Any]) -> Reasoning | None:
    """Return what the client asks for. The object ``thinking`` is not OpenAI's: who sends it knows the vendor."""
    if dict_of(body.get("thinking")).get("type") == "disabled":
        return Reasoning(enabled=False)
    effort = body.get("reasoning_effort")
    return parse_effort(effort) if isinstance(effort, str) else None


def _fit_forced_call(
    body: dict[str, Any], reasoning: Reasoning | None, facts: ModelFacts
) -> tuple[Reasoning | None, list[str]]:
    """Change a forced call that the model refuses, and return the reasoning that is left and the dropped fields."""
    choice = body.get("tool_choice")
    if not body.get("tools") or not (choice == "required" or dict_of(choice).get("type") == "function"):
        return reasoning, []
    match forced_call(reasoning, facts):
        case "stays":
            return reasoning, []
        case "may_choose":
            body["tool_choice"] = "auto"
            return reasoning, ["tool_choice"]
    is_asked = body.pop("thinking", None) is not None or (reasoning is not None and reasoning.enabled)
    return Reasoning(enabled=False), ["reasoning"] if is_asked else []


def _set(body: dict[str, Any], name: str, value: Any) -> None:
    if value is None:
        body.pop(name, None)
    else:
        body[name] = value
