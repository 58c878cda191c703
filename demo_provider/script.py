"""What should the demo provider say to a request, and how?

The model's name tells, dash by dash: ``demo-n50-d20-f300``. The header ``x-demo`` takes the same syntax and wins over
the name. Parts that are not in this table say nothing, so that any name will do.

============= =========================================================================================================
``nN``        the answer has N tokens; default: the whole sample answer. Past the sample, numbered words go on for ever
``dMS``       MS milliseconds between tokens; default 20. The schedule is absolute: late tokens do not delay others
``fMS``       MS milliseconds before the first token (or error status); default 0. An answer that is not streamed takes
              as long as a streamed one: f, then d for every token
``tool``      answers with a call of the request's first tool; ``toolN``: N parallel calls, of its first N tools, and
              round again if it has fewer. Arguments are made from the tool's schema. Without tools in the request, or
              where ``tool_choice`` is none: text
``think``     thinks before it answers; ``thinkN``: N tokens of it
``refuse``    refuses
``len``       ends as if the token limit had been hit, whatever the request's limit is
``eSTATUS``   answers with this HTTP status and the vendor's error body
``raSECONDS`` ... and this Retry-After header, fractions allowed: ``e429-ra0.5``
``drop``      resets the connection instead of answering
``cutN``      resets the connection after N tokens
``endN``      ends the body cleanly after N tokens, without any of the events that end an answer
``stallN``    goes silent after N tokens, until the client leaves
``errN``      sends the vendor's error event after N tokens (not streamed: the vendor's 500)
``…xM``       any of the six failures above, only for the first M requests with this name and header: ``e503x2``,
              ``cut10x1``. Several failures take their turns in the order in which they are written
============= =========================================================================================================

Always, as vendors do: the request's token limit and stop sequences end the answer, a JSON response format gets a small
document that fits its schema, and where the last message holds a tool's result the answer quotes it, so that agent
loops end. N in ``cutN`` and its kind counts this answer's tokens, thinking and tool arguments included; an answer
shorter than N fails where it would have ended.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import overload

_SAMPLE = (
    "A sluice is a small gate with a patient job: it holds the water back, then lets it through — a little at a time, "
    "exactly as much as the channel below can carry. Upstream the river may rush or pause; downstream the mill, the "
    "café by the bank and every field get a calm, even flow. Nothing is lost, nothing spills over. 🌊"
)
_THOUGHT = "The question is about water, so a short and friendly answer will do."
_REFUSAL = "I'm sorry, but I can't help with that."

_WORD = re.compile(r"\s*\S+|\s+\Z")
TOKENS_MAX = 1_000_000  # More than five hours at the default pace; an answer that is not streamed has to fit in memory.
CALLS_MAX = 32


def split_words(text: str) -> list[str]:
    """Return the text's words, each with the white space before it: together they are the text."""
    return _WORD.findall(text)


_SAMPLE_WORDS = tuple(split_words(_SAMPLE))
SAMPLE_TOKENS = len(_SAMPLE_WORDS)


def word(i: int) -> str:
    """Return token ``i`` of every answer: of the sample first, then numbered words without end."""
    if i < SAMPLE_TOKENS:
        return _SAMPLE_WORDS[i]
    # U+2028 is legal inside model output, and a line break to str.splitlines(): whoever cuts lines that way finds out.
    return f"\u2028ripple{i}" if i % 50 == 0 else f" ripple{i}"


def answer(n: int | None = None) -> str:
    """Return the answer of ``n`` tokens; ``None`` means the whole sample."""
    return "".join(Words(0, SAMPLE_TOKENS if n is None else n))


@dataclass(frozen=True, slots=True)
class Words(Sequence[str]):
    """Tokens ``start`` to ``stop`` of the answer, made when asked for: a long answer takes no memory."""

    start: int
    stop: int

    def __len__(self) -> int:
        return max(0, self.stop - self.start)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> "Words": ...
    def __getitem__(self, index: int | slice) -> "str | Words":
        if isinstance(index, int):
            return word(range(self.start, self.stop)[index])
        part = range(self.start, self.stop)[index]
        if part.step != 1:
            raise ValueError("words are taken one after the other")
        return Words(part.start, part.stop)

    def __iter__(self) -> Iterator[str]:
        return map(word, range(self.start, self.stop))


def thought(n: int) -> list[str]:
    """Return ``n`` tokens of thinking."""
    words = split_words(_THOUGHT)
    return (words + [f" hm{i}" for i in range(len(words), n)])[:n]


def refusal() -> list[str]:
    return split_words(_REFUSAL)


THOUGHT_TOKENS = len(split_words(_THOUGHT))


class FaultKind(StrEnum):
    STATUS = "e"
    DROP = "drop"
    CUT = "cut"
    END = "end"
    STALL = "stall"
    ERROR_EVENT = "err"


@dataclass(frozen=True, slots=True)
class Fault:
    """One way to fail. ``at`` is the HTTP status of ``STATUS``, else the tokens sent before; ``times`` None: always."""

    kind: FaultKind
    at: int = 0
    times: int | None = None


@dataclass(slots=True)
class Script:
    """One parsed spec; the module's docstring has the meanings."""

    tokens: int = SAMPLE_TOKENS
    pace_s: float = 0.020
    first_s: float = 0.0
    thinking_tokens: int = 0
    tool_calls: int = 0
    is_refusal: bool = False
    is_cut_short: bool = False
    retry_after: str | None = None
    faults: tuple[Fault, ...] = ()


_NUMBER = r"(\d{1,9}(?:\.\d{1,6})?)"
_FAULT = re.compile(r"(e)([45]\d\d)(?:x(\d{1,9}))?|(drop)(?:x(\d{1,9}))?|(cut|end|stall|err)(\d{1,9})(?:x(\d{1,9}))?")
_SETTING = re.compile(rf"(n|tool|think)(\d{{0,9}})|(d|f|ra){_NUMBER}|(refuse|len)")


def parse(spec: str) -> Script:
    """Return the script that a model's name or an ``x-demo`` header asks for."""
    script = Script()
    for part in spec.split("-"):
        if fault := _FAULT.fullmatch(part):
            script.faults += (_fault_of(fault),)
        elif setting := _SETTING.fullmatch(part):
            _apply(script, setting)
    return script


def _fault_of(match: re.Match[str]) -> Fault:
    # Each alternative of the pattern has groups of its own; those of the others are None.
    kind, at, times = match[1] or match[4] or match[6], match[2] or match[7], match[3] or match[5] or match[8]
    return Fault(FaultKind(kind), int(at or 0), None if times is None else int(times))


def _apply(script: Script, match: re.Match[str]) -> None:
    match match[1] or match[3] or match[5]:
        case "n" if match[2]:
            script.tokens = min(int(match[2]), TOKENS_MAX)
        case "tool":
            script.tool_calls = min(int(match[2] or 1), CALLS_MAX)
        case "think":
            script.thinking_tokens = min(int(match[2] or THOUGHT_TOKENS), TOKENS_MAX)
        case "d":
            script.pace_s = float(match[4]) / 1000
        case "f":
            script.first_s = float(match[4]) / 1000
        case "ra":
            script.retry_after = match[4]
        case "refuse":
            script.is_refusal = True
        case "len":
            script.is_cut_short = True
