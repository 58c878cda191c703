"""Which requests does Sluice send that their vendor refuses?

``FAILURES`` are faults: who mends one removes it here. ``EXCEPTIONS`` are wishes that the vendor cannot fulfil, so that its own
refusal is the right answer. Both are checked by tests/contracts/test_strict_vendors.py, and shown in docs/compatibility.md.

`python -m tests.support.compatibility.strict_failures` names the combinations that are refused and not listed, or listed and
not refused.
"""

import itertools
import sys
from dataclasses import dataclass
from functools import cache

from common.dialects import DIALECTS
from tests.support.compatibility.strict_cells import MODELS_OF, TARGETS, WISHES, outcome


@dataclass(frozen=True)
class Row:
    """All combinations of these wishes, targets and dialects. ``vendor/*`` are all models of a vendor, ``*`` are all dialects.

    A dialect that cannot say a wish does not count.
    """

    wishes: tuple[str, ...]
    targets: tuple[str, ...]
    dialects: tuple[str, ...] = ("*",)


def _row(wishes: str, targets: str, dialects: str = "*") -> Row:
    return Row(tuple(wish.strip() for wish in wishes.split("|")), tuple(targets.split()), tuple(dialects.split()))


Combination = tuple[str, str, str]  # Dialect, target, wish.


def _combinations(row: Row) -> list[Combination]:
    targets = [
        f"{vendor}/{model}"
        for target in row.targets
        for vendor, name in [target.split("/", 1)]
        for model in (MODELS_OF[vendor] if name == "*" else (name,))
    ]
    dialects = list(DIALECTS) if row.dialects == ("*",) else row.dialects
    unknown = [wish for wish in row.wishes if wish not in WISHES]
    assert not unknown, unknown
    every = [(dialect, target, wish) for dialect in dialects for target in targets for wish in row.wishes]
    return [each for each in every if outcome(*each) is not None]


@cache
def failures() -> dict[Combination, str]:
    """Return the cause of each combination that fails."""
    return {each: cause for cause, rows in FAILURES.items() for row in rows for each in _combinations(row)}


@cache
def exceptions() -> dict[Combination, str]:
    """Return the reason of each combination that the vendor may refuse."""
    return {each: reason for reason, rows in EXCEPTIONS.items() for row in rows for each in _combinations(row)}


def differences() -> list[str]:
    """Return a line for each combination that the lists are wrong about."""
    listed, lines = failures() | exceptions(), []
    for dialect, target, wish in itertools.product(DIALECTS, TARGETS, WISHES):
        found = outcome(dialect, target, wish)
        is_refused = found is not None and found.verdict == "refused"
        if is_refused != ((dialect, target, wish) in listed):
            words = f"not listed: {found.words}" if found and is_refused else "listed, and no longer refused"
            lines.append(f"{wish} | {target} | {dialect} | {words}")
    return lines


FAILURES: dict[str, tuple[Row, ...]] = {}
EXCEPTIONS: dict[str, tuple[Row, ...]] = {
    "The model reads no images or PDFs; the vendor says so, because the body passes to its own family": (
        _row(
            "PDF",
            "groq/* cerebras/* workers-ai/@cf/meta/llama-3.3-70b-instruct-fp8-fast workers-ai/@cf/qwen/qwen3-30b-a3b-fp8 "
            "deepseek/* vllm/* llama-cpp/* ollama/*",
            "openai-chat",
        ),
        _row("PDF", "perplexity/perplexity/sonar perplexity/low", "openai-responses"),
        _row(
            "image",
            "groq/* cerebras/* workers-ai/@cf/meta/llama-3.3-70b-instruct-fp8-fast workers-ai/@cf/qwen/qwen3-30b-a3b-fp8 "
            "deepseek/*",
            "openai-chat",
        ),
    ),
}


if __name__ == "__main__":
    sys.stdout.writelines(f"{line}\n" for line in differences())
