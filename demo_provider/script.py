"""What should the demo provider answer to a request, and how?

The model's name says it, in parts separated by dashes: ``demo-n50-d20-f300``. The header ``x-demo`` has the same syntax and
overrides the name. Parts that are not in this table are ignored, so any name works.

============= =========================================================================================================
``nN``        the answer has N tokens; default: the complete sample answer. After the sample, numbered words follow
``dMS``       MS milliseconds between tokens; default 20. The schedule is absolute: late tokens do not delay others
``fMS``       MS milliseconds before the first token (or error status); default 0. An answer that is not streamed takes
              as long as a streamed one: f, then d for every token
``tool``      answers with a call of the request's first tool; ``toolN``: N parallel calls, of its first N tools; if it
              has fewer, they repeat. Arguments are made from the tool's schema. Without tools in the request, or if
              ``tool_choice`` is none: text
``think``     reasons before it answers; ``thinkN``: N tokens of reasoning
``refuse``    refuses
``filter``    ends before its first token, as the vendor's content filter ends an answer
``len``       ends as if the token limit was reached, whatever the request's limit is
``eSTATUS``   answers with this HTTP status and the vendor's error body
``overflow``  answers that the conversation is longer than the model's context window
``policy``    answers that the vendor's content policy refuses the request
``spent``     answers that the account has no credit left, with OpenAI's status for it: 429
``raSECONDS`` ... and this Retry-After header, fractions allowed: ``e429-ra0.5``
``drop``      resets the connection instead of answering
``cutN``      resets the connection after N tokens
``endN``      ends the body cleanly after N tokens, without the events that end an answer
``stallN``    goes silent after N tokens, until the client leaves
``errN``      sends the vendor's error event after N tokens (not streamed: the vendor's 500)
``…xM``       any of the nine failures above, only for the first M requests with this name and header: ``e503x2``,
              ``cut10x1``. Several failures happen in the order in which they are written
============= =========================================================================================================

Always, as at vendors: the request's token limit and stop sequences end the answer, a JSON response format gets a small
document that matches its schema, and if the last message has a tool's result the answer quotes it, so that agent loops end.
N in ``cutN`` and similar failures counts this answer's tokens, including reasoning and tool arguments; an answer shorter than
N fails at its end.
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
_REASONING = "The question is about water, so a short and friendly answer will do."
_REFUSAL = "I'm sorry, but I can't help with that."

_WORD = re.compile(r"\s*\S+|\s+\Z")
TOKENS_MAX = 1_000_000  # More than five hours at the default pace. An answer that is not streamed must fit in memory.
CALLS_MAX = 32


def split_words(text: str) -> list[str]:
    """Return the text's words, each with the white space before it. Joined they are the text again."""
    return _WORD.findall(text)


_SAMPLE_WORDS = tuple(split_words(_SAMPLE))
SAMPLE_TOKENS = len(_SAMPLE_WORDS)


def word(i: int) -> str:
    """Return token ``i`` of every answer: first the sample's words, then numbered words without end."""
    if i < SAMPLE_TOKENS:
        return _SAMPLE_WORDS[i]
    # U+2028 is legal in model output, but str.splitlines() treats it as a line break: this exposes code that splits so.
    return f"\u2028ripple{i}" if i % 50 == 0 else f" ripple{i}"


def answer(n: int | None = None) -> str:
    """Return the answer of ``n`` tokens; ``None`` means the complete sample."""
    return "".join(Words(0, SAMPLE_TOKENS if n is None else n))


@dataclass(frozen=True, slots=True)
class Words(Sequence[str]):
    """Tokens ``start`` to ``stop`` of the answer, created on access: a long answer needs no memory."""

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
            raise ValueError("the step of a slice must be 1")
        return Words(part.start, part.stop)

    def __iter__(self) -> Iterator[str]:
        return map(word, range(self.start, self.stop))


def reasoning_words(n: int) -> list[str]:
    """Return ``n`` tokens of reasoning."""
    words = split_words(_REASONING)
    return (words + [f" hm{i}" for i in range(len(words), n)])[:n]


def refusal() -> list[str]:
    return split_words(_REFUSAL)


REASONING_TOKENS = len(split_words(_REASONING))


class FaultKind(StrEnum):
    STATUS = "e"
    OVERFLOW = "overflow"
    POLICY = "policy"
    SPENT = "spent"
    DROP = "drop"
    CUT = "cut"
    END = "end"
    STALL = "stall"
    ERROR_EVENT = "err"


@dataclass(frozen=True, slots=True)
class Fault:
    """One failure. ``at`` is the HTTP status for ``STATUS``, else the tokens sent before it. ``times`` None means always."""

    kind: FaultKind
    at: int = 0
    times: int | None = None


@dataclass(slots=True)
class Script:
    """One parsed spec; the module's docstring explains it."""

    tokens: int = SAMPLE_TOKENS
    pace_s: float = 0.020
    first_s: float = 0.0
    reasoning_tokens: int = 0
    tool_calls: int = 0
    is_refusal: bool = False
    is_filtered: bool = False
    is_cut_short: bool = False
    retry_after: str | None = None
    faults: tuple[Fault, ...] = ()


_NUMBER = r"(\d{1,9}(?:\.\d{1,6})?)"
_FAULT = re.compile(
    r"(e)([45]\d\d)(?:x(\d{1,9}))?|(drop|overflow|policy|spent)(?:x(\d{1,9}))?|(cut|end|stall|err)(\d{1,9})(?:x(\d{1,9}))?"
)
_SETTING = re.compile(rf"(n|tool|think)(\d{{0,9}})|(d|f|ra){_NUMBER}|(refuse|filter|len)")


def parse(spec: str) -> Script:
    """Return the script in a model's name or an ``x-demo`` header."""
    script = Script()
    for part in spec.split("-"):
        if fault := _FAULT.fullmatch(part):
            script.faults += (_parse_fault(fault),)
        elif setting := _SETTING.fullmatch(part):
            _apply(script, setting)
    return script


def _parse_fault(match: re.Match[str]) -> Fault:
    # Each alternative of the pattern has its own groups; the groups of the other alternatives are None.
    kind, at, times = match[1] or match[4] or match[6], match[2] or match[7], match[3] or match[5] or match[8]
    return Fault(FaultKind(kind), int(at or 0), None if times is None else int(times))


def _apply(script: Script, match: re.Match[str]) -> None:
    match match[1] or match[3] or match[5]:
        case "n" if match[2]:
            script.tokens = min(int(match[2]), TOKENS_MAX)
        case "tool":
            script.tool_calls = min(int(match[2] or 1), CALLS_MAX)
        case "think":
            script.reasoning_tokens = min(int(match[2] or REASONING_TOKENS), TOKENS_MAX)
        case "d":
            script.pace_s = float(match[4]) / 1000
        case "f":
            script.first_s = float(match[4]) / 1000
        case "ra":
            script.retry_after = match[4]
        case "refuse":
            script.is_refusal = True
        case "filter":
            script.is_filtered = True
        case "len":
            script.is_cut_short = True
