"""Which wishes of a request does its model refuse, and what becomes of them?

A forced tool call and the sampling fields; what a model refuses is in its facts. Reasoning has its own module, ``reasoning``.
"""

from dataclasses import replace
from typing import Any, Literal

from common.canonical.generation import GenerationRequest, Reasoning, ToolChoice
from common.vendors.models import ModelFacts
from workers.providers.shared.reasoning import reasons


def fit_tool_choice(request: GenerationRequest, facts: ModelFacts) -> tuple[GenerationRequest, list[str]]:
    """Return the request without a forced call that its model refuses, and the names of what was left out.

    Where reasoning is in the way, it is switched off. Where nothing helps, the model may choose. Claude Code and LangChain do
    the same: with clear instructions the model calls the tool nearly always, and agents go on, while a refusal would end each
    of their requests. The prompt and the list of tools stay as they are: these models refuse their own reasoning of earlier
    turns once either has changed.

    Sources: https://platform.claude.com/docs/en/models/sonnet-5-5/whats-new-sonnet-5-5,
    https://github.com/langchain-ai/langchain-aws/pull/927, https://github.com/router-for-me/CLIProxyAPI/pull/4797
    """
    if not request.tools or request.tool_choice is None or request.tool_choice.mode not in ("required", "tool"):
        return request, []
    match forced_call(request.reasoning, facts):
        case "stays":
            return request, []
        case "may_choose":
            return replace(request, tool_choice=ToolChoice("auto")), ["tool_choice"]
    is_asked = request.reasoning is not None and request.reasoning.enabled
    return replace(request, reasoning=Reasoning(enabled=False)), ["reasoning"] if is_asked else []


def forced_call(reasoning: Reasoning | None, facts: ModelFacts) -> Literal["stays", "without_reasoning", "may_choose"]:
    """Return what becomes of a forced call."""
    if not facts.forced_tool_choice:
        return "may_choose"
    if facts.forced_tool_choice_while_reasoning or not reasons(reasoning, facts):
        return "stays"
    can_be_off = facts.reasoning in (None, "on_request") or facts.reasoning_off not in ("none", "between_tools")
    return "without_reasoning" if can_be_off else "may_choose"


def drop_sampling(body: dict[str, Any], facts: ModelFacts, *, is_reasoning: bool) -> list[str]:
    """Take the sampling fields that the model refuses out of a body in OpenAI's format, and return their names."""
    refused = facts.refused_fields | facts.refused_while_reasoning if is_reasoning else facts.refused_fields
    return [name for name in list(body) if name in refused and name != "stop" and body.pop(name) is not None]
