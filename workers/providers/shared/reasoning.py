"""In which words does a model take the client's wish for reasoning?

A canonical ``Reasoning`` is off, or on with an effort, with a budget of tokens, or with neither. Which of these words a model
has is in its facts (``common.vendors.models``). What it does not have becomes the nearest that it has, and an effort that is
not the requested one is named to the client. The builders only write the words into their fields.
"""

from dataclasses import dataclass
from typing import Literal

from common.canonical.generation import Reasoning
from common.vendors.models import ModelFacts

# Efforts, least first, and the budgets that mean the same. OpenAI's first six, and "max" of Anthropic and DeepSeek.
# The budgets are between those of https://ai.google.dev/gemini-api/docs/openai#thinking and what clients of Anthropic set.
_BUDGET_TOKENS_OF = {"minimal": 1024, "low": 2048, "medium": 8192, "high": 24_576, "xhigh": 28_672, "max": 32_768}
_RANK = {word: rank for rank, word in enumerate(_BUDGET_TOKENS_OF)}
_EVERYWHERE = ("low", "medium", "high")  # What a budget may become for a model whose efforts are not known.
_NAME = "reasoning"  # The name under which the client is told.


@dataclass(frozen=True, slots=True)
class ReasoningWords:
    """``is_on``: whether the client wants reasoning, and the model can. ``is_shown``: whether it wants to see it, too.

    ``thinking``: the type of an object ``thinking``.
    ``dropped``: the name of the field, if the model does not do what was requested.
    """

    is_on: bool = False
    is_shown: bool = False
    effort: str | None = None
    budget_tokens: int | None = None
    thinking: Literal["enabled", "disabled", "between_tools"] | None = None
    dropped: tuple[str, ...] = ()


_NOTHING = ReasoningWords()


def reasoning_words(reasoning: Reasoning | None, facts: ModelFacts, *, has_efforts: bool = True) -> ReasoningWords:
    """Return the words for a model. ``has_efforts``: whether its wire has efforts; else a budget says them."""
    if reasoning is None:
        return _NOTHING
    if not reasoning.enabled:
        return _off(facts)
    is_on = facts.reasoning != "never"
    is_shown = is_on and reasoning.is_shown
    if not is_on or facts.reasoning_on == "none":
        return ReasoningWords(is_on, is_shown, dropped=_named(_asks(reasoning)))
    if facts.reasoning_on == "budget" or (facts.reasoning_on == "effort" and not has_efforts):
        budget_tokens = _budget_tokens(reasoning, facts)
        is_dropped = budget_tokens is None and _asks(reasoning)
        return ReasoningWords(is_on, is_shown, budget_tokens=budget_tokens, dropped=_named(is_dropped))
    effort = _effort(reasoning, facts)
    is_other = effort != reasoning.effort if reasoning.effort else effort is None and _asks(reasoning)
    thinking: Literal["enabled"] | None = "enabled" if facts.reasoning_on == "thinking" else None
    return ReasoningWords(is_on, is_shown, effort, thinking=thinking, dropped=_named(is_other))


def reasons(reasoning: Reasoning | None, facts: ModelFacts) -> bool:
    """Whether the model will reason, as far as its facts say."""
    if reasoning is not None and reasoning.enabled:
        return facts.reasoning != "never"
    if reasoning is None:
        return facts.reasoning in ("by_default", "always")
    return facts.reasoning_off == "none" and facts.reasoning in ("by_default", "always")


def _off(facts: ModelFacts) -> ReasoningWords:
    """Return what switches reasoning off, or the least of it where nothing does."""
    if facts.reasoning == "never":
        return _NOTHING
    match facts.reasoning_off:
        case "effort":
            return ReasoningWords(effort="none")
        case "thinking":
            return ReasoningWords(thinking="disabled")
        case "between_tools":
            return ReasoningWords(thinking="between_tools")
        case "budget":
            return ReasoningWords(budget_tokens=0)
    if facts.reasoning == "on_request":
        return _NOTHING
    least = next((word for word in facts.efforts or () if word in _RANK), None)
    return ReasoningWords(effort=least, budget_tokens=facts.budget_tokens_min, dropped=(_NAME,))


def _asks(reasoning: Reasoning) -> bool:
    return reasoning.effort is not None or reasoning.budget_tokens is not None


def _named(is_dropped: bool) -> tuple[str, ...]:
    return (_NAME,) if is_dropped else ()


def _budget_tokens(reasoning: Reasoning, facts: ModelFacts) -> int | None:
    tokens = reasoning.budget_tokens
    if tokens is None:
        if reasoning.effort is None or (reasoning.effort_is_hint and facts.reasoning_on != "budget"):
            return None
        tokens = _BUDGET_TOKENS_OF.get(reasoning.effort, _BUDGET_TOKENS_OF["medium"])
    return min(max(tokens, facts.budget_tokens_min or 0), facts.budget_tokens_max or tokens)


def _effort(reasoning: Reasoning, facts: ModelFacts) -> str | None:
    if reasoning.budget_tokens is not None:
        return _nearest(_effort_of(reasoning.budget_tokens), facts.efforts if facts.efforts is not None else _EVERYWHERE)
    if reasoning.effort is None or (reasoning.effort_is_hint and facts.efforts is None):
        return None
    return reasoning.effort if facts.efforts is None else _nearest(reasoning.effort, facts.efforts)


def _effort_of(budget_tokens: int) -> str:
    """Return the least effort with this budget. None is "minimal": clients set budgets to let the model reason."""
    return next((word for word, tokens in _BUDGET_TOKENS_OF.items() if budget_tokens <= tokens and word != "minimal"), "max")


def _nearest(effort: str, efforts: tuple[str, ...]) -> str | None:
    """Return the nearest effort that reasons. Of two equally near ones it is the one nearer to "high", as DeepSeek maps them.

    Source: https://api-docs.deepseek.com/guides/thinking_mode
    """
    if effort in efforts:
        return effort
    ranked = [word for word in efforts if word in _RANK]
    if not ranked:
        return next((word for word in efforts if word != "none"), None)  # Such as Groq's "default".
    rank = _RANK.get(effort, _RANK["medium"])
    return min(ranked, key=lambda word: (abs(_RANK[word] - rank), abs(_RANK[word] - _RANK["high"])))
