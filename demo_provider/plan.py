"""What exactly does the demo provider answer to one request?

Script and request in, ``Plan`` out; pure. The first rule that applies wins: the content filter, a refusal, the quoted result of
a tool, tool calls, a JSON document, the text. Then the request's limits are applied.
"""

import itertools

import orjson

from demo_provider import script as scripts
from demo_provider.schema import example
from demo_provider.script import Script, Words, split_words
from demo_provider.wire import AnswerPart, AnswerRequest, Finish, PartKind, Plan, WireError

_FRAGMENT_CHARS = 6  # Small, so that even the shortest arguments come in several deltas, and cuts fall inside strings.


def make_plan(script: Script, request: AnswerRequest) -> Plan:
    """Return the complete answer.

    Raises:
        WireError: a schema in the request is invalid.
    """
    plan = _plan_without_limits(script, request)
    # A client that sends the beginning of an answer has already received the reasoning before it.
    if script.reasoning_tokens and not request.prefill:
        plan.parts.insert(0, AnswerPart(PartKind.REASONING, scripts.reasoning_words(script.reasoning_tokens)))
    if request.tokens_max is not None:
        _limit(plan, request.tokens_max)
    if request.stops:
        _stop(plan, request.stops)
    if script.is_cut_short and plan.finish is Finish.STOP:
        plan.finish = Finish.LENGTH
    plan.parts = [part for part in plan.parts if part.tokens]
    return plan


def _plan_without_limits(script: Script, request: AnswerRequest) -> Plan:
    if script.is_filtered:
        return Plan([], Finish.FILTER)
    if script.is_refusal:
        return Plan([AnswerPart(PartKind.REFUSAL, scripts.refusal())], Finish.REFUSAL)
    if request.tool_result is not None:
        return Plan([AnswerPart(PartKind.TEXT, split_words(f"The tool answered: {request.tool_result}"))], Finish.STOP)
    if script.tool_calls and request.tools:
        calls = itertools.islice(itertools.cycle(request.tools), script.tool_calls)
        parts = [AnswerPart(PartKind.TOOL, _fragments(_arguments(tool.schema)), tool.name) for tool in calls]
        return Plan(parts, Finish.TOOLS)
    if request.document_schema is not None:
        return Plan([AnswerPart(PartKind.TEXT, _fragments(_document(request.document_schema)))], Finish.STOP)
    return Plan([AnswerPart(PartKind.TEXT, _text(script.tokens, request.prefill))], Finish.STOP)


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
    """Return the answer's tokens after the prefill. A prefill that is not a beginning of the answer is ignored."""
    if not prefill.strip():
        return Words(0, tokens)
    text, i = "", 0
    while len(text) < len(prefill):
        text += scripts.word(i)
        i += 1
    # Vendors and proxies trim the end of a prefill, so white space there may be missing.
    prefix = prefill if text.startswith(prefill) else prefill.rstrip()
    if not text.startswith(prefix):
        return Words(0, tokens)
    while i and len(text) - len(scripts.word(i - 1)) >= len(prefix):
        i -= 1
        text = text.removesuffix(scripts.word(i))
    if i > tokens:
        return []
    word_end = text[len(prefix) :]
    return [word_end, *Words(i, tokens)] if word_end else Words(i, tokens)


def _limit(plan: Plan, tokens_max: int) -> None:
    if plan.tokens <= tokens_max:
        return
    remaining = tokens_max
    for part in plan.parts:
        part.tokens = part.tokens[:remaining]
        remaining -= len(part.tokens)
    plan.finish = Finish.LENGTH


def _stop(plan: Plan, stops: list[str]) -> None:
    """End the text before the first stop sequence in it, if there is one."""
    for part in plan.parts:
        if part.kind is not PartKind.TEXT:
            continue
        text = part.text
        matches = [(text.index(stop), stop) for stop in stops if stop in text]
        if not matches:
            continue
        end, plan.stop_sequence = min(matches)
        plan.finish = Finish.STOP_SEQUENCE
        tokens, length = [], 0
        for token in part.tokens:
            if length >= end:
                break
            tokens.append(token[: end - length])
            length += len(token)
        part.tokens = tokens
