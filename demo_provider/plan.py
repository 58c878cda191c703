"""What exactly does the demo provider say to one request?

Script and request in, ``Plan`` out; pure. The order of the rules: a refusal, the quoted result of a tool, tool calls, a
JSON document, the text. Then the request's limits are applied to what was found.
"""

import itertools

import orjson

from demo_provider import script as scripts
from demo_provider.schema import example
from demo_provider.script import Script, Words, split_words
from demo_provider.wire import Ask, Finish, Part, PartKind, Plan, WireError

_FRAGMENT_CHARS = 6  # Small enough that the shortest arguments come in several deltas and cuts fall inside strings.


def make_plan(script: Script, ask: Ask) -> Plan:
    """Return the whole answer.

    Raises:
        WireError: a schema in the request is none.
    """
    plan = _unlimited(script, ask)
    # Whoever brings the beginning of an answer has seen the thinking before it.
    if script.thinking_tokens and not ask.prefill:
        plan.parts.insert(0, Part(PartKind.THINKING, scripts.thought(script.thinking_tokens)))
    if ask.tokens_max is not None:
        _limit(plan, ask.tokens_max)
    if ask.stops:
        _stop(plan, ask.stops)
    if script.is_cut_short and plan.finish is Finish.STOP:
        plan.finish = Finish.LENGTH
    plan.parts = [part for part in plan.parts if part.tokens]
    return plan


def _unlimited(script: Script, ask: Ask) -> Plan:
    if script.is_refusal:
        return Plan([Part(PartKind.REFUSAL, scripts.refusal())], Finish.REFUSAL)
    if ask.tool_result is not None:
        return Plan([Part(PartKind.TEXT, split_words(f"The tool answered: {ask.tool_result}"))], Finish.STOP)
    if script.tool_calls and ask.tools:
        calls = itertools.islice(itertools.cycle(ask.tools), script.tool_calls)
        parts = [Part(PartKind.TOOL, _fragments(_arguments(tool.schema)), tool.name) for tool in calls]
        return Plan(parts, Finish.TOOLS)
    if ask.document_schema is not None:
        return Plan([Part(PartKind.TEXT, _fragments(_document(ask.document_schema)))], Finish.STOP)
    return Plan([Part(PartKind.TEXT, _text(script.tokens, ask.prefill))], Finish.STOP)


def _arguments(schema: object) -> dict[str, object]:
    value = _document(schema)
    return value if isinstance(value, dict) else {}


def _document(schema: object) -> object:
    try:
        return example(schema)
    except ValueError as error:
        raise WireError(400, f"Invalid schema: {error}") from error


def _fragments(value: object) -> list[str]:
    text = orjson.dumps(value).decode()
    return [text[i : i + _FRAGMENT_CHARS] for i in range(0, len(text), _FRAGMENT_CHARS)]


def _text(tokens: int, prefill: str) -> Words | list[str]:
    """Return the tokens of the answer that follow what the request brought of it."""
    if not prefill.strip():
        return Words(0, tokens)
    said, i = "", 0
    while len(said) < len(prefill):
        said += scripts.word(i)
        i += 1
    # Vendors and proxies trim the end of a prefill, so what is missing there is no difference.
    known = prefill if said.startswith(prefill) else prefill.rstrip()
    if not said.startswith(known):
        return Words(0, tokens)
    while i and len(said) - len(scripts.word(i - 1)) >= len(known):
        i -= 1
        said = said.removesuffix(scripts.word(i))
    if i > tokens:
        return []
    rest = said[len(known) :]
    return [rest, *Words(i, tokens)] if rest else Words(i, tokens)


def _limit(plan: Plan, tokens_max: int) -> None:
    if plan.tokens <= tokens_max:
        return
    left = tokens_max
    for part in plan.parts:
        part.tokens = part.tokens[:left]
        left -= len(part.tokens)
    plan.finish = Finish.LENGTH


def _stop(plan: Plan, stops: list[str]) -> None:
    """End the text before the stop sequence that comes first in it, if one does."""
    for part in plan.parts:
        if part.kind is not PartKind.TEXT:
            continue
        text = part.text
        found = [(text.index(stop), stop) for stop in stops if stop in text]
        if not found:
            continue
        end, plan.stop_sequence = min(found)
        plan.finish = Finish.STOP_SEQUENCE
        kept, length = [], 0
        for token in part.tokens:
            if length >= end:
                break
            kept.append(token[: end - length])
            length += len(token)
        part.tokens = kept
