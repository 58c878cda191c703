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


FAILURES: dict[str, tuple[Row, ...]] = {
    "A limit of tokens is sent that the model does not have": (
        _row(
            "many tokens",
            "openai/gpt-4o openai/gpt-4.1 openai/gpt-5-chat-latest azure-openai/gpt-4.1",
            "anthropic-messages unified",
        ),
        _row(
            "Claude Code",
            "openai/gpt-4o openai/gpt-4.1 azure-openai/gpt-4.1",
        ),
    ),
    "A message's content is sent as null or as parts to a model that takes texts only": (
        _row(
            "a tool loop that goes on | a tool loop of several turns | a tool loop with thoughts | a tool loop "
            "with thinking on | a result and a text | a result with an image | an id of another vendor | a long "
            "id | a tool loop without tools | system after a result | a result with a PDF | Codex | Claude Code",
            "workers-ai/@cf/meta/llama-3.3-70b-instruct-fp8-fast workers-ai/@cf/qwen/qwen3-30b-a3b-fp8",
        ),
    ),
    "A schema for the answer has keywords or open objects that the vendor refuses": (
        _row(
            "JSON schema, not strict",
            "cohere/*",
            "openai-chat openai-responses anthropic-messages unified",
        ),
    ),
    "A schema for the answer is sent to a model that takes none": (
        _row(
            "JSON schema | JSON schema, not strict",
            "groq/llama-3.3-70b-versatile",
            "openai-chat openai-responses anthropic-messages unified",
        ),
        _row(
            "JSON schema | JSON schema, not strict | JSON schema and tools",
            "deepseek/*",
            "openai-chat anthropic-messages unified",
        ),
    ),
    "An image or PDF in a tool's result is sent to a model that cannot read it, so the session ends": (
        _row(
            "a result with a PDF",
            "mistral/* vllm/* llama-cpp/qwen3.5",
            "openai-chat",
        ),
    ),
    "Tool calls of the history are sent to a model that knows none": (
        _row(
            "a tool loop that goes on | a tool loop of several turns | a tool loop with thoughts | a tool loop "
            "with thinking on | a result and a text | a result with an image | an id of another vendor | a long "
            "id | a tool loop without tools | system after a result | a result with a PDF | Codex | Claude Code",
            "perplexity/*",
        ),
    ),
}
EXCEPTIONS: dict[str, tuple[Row, ...]] = {
    "The model calls no tools": (
        _row(
            "tools | a tool loop that goes on | a tool loop of several turns | a tool loop with thoughts | a tool "
            "loop with thinking on | a result and a text | an id of another vendor | a long id | forced tool | "
            "forced tool by name | forced tool with thinking on | one call at a time | thinking and tools | "
            "thinking off and tools | JSON schema and tools | system after a result | long tool name | tool name "
            "with dots | tool without properties | tool with an empty schema | tool with a choice at the top",
            "openai/gpt-5-chat-latest",
            "anthropic-messages agentary unified",
        ),
        _row(
            "tools | forced tool | forced tool by name | forced tool with thinking on | one call at a time | "
            "thinking and tools | thinking off and tools | JSON schema and tools | long tool name | tool name "
            "with dots | tool without properties | tool with an empty schema | tool with a choice at the top",
            "perplexity/*",
        ),
        _row(
            "a result with an image | a result with a PDF",
            "openai/gpt-5-chat-latest",
            "anthropic-messages unified",
        ),
        _row(
            "Claude Code",
            "openai/gpt-5-chat-latest",
        ),
    ),
    "The model reads no images or PDFs": (
        _row(
            "PDF",
            "mistral/* groq/* cerebras/* workers-ai/@cf/meta/llama-3.3-70b-instruct-fp8-fast "
            "workers-ai/@cf/qwen/qwen3-30b-a3b-fp8 deepseek/* vllm/* llama-cpp/qwen3.5",
            "openai-chat",
        ),
        _row(
            "image",
            "groq/* cerebras/* workers-ai/@cf/meta/llama-3.3-70b-instruct-fp8-fast "
            "workers-ai/@cf/qwen/qwen3-30b-a3b-fp8 deepseek/*",
            "openai-chat",
        ),
    ),
    "The vendor takes fewer stop sequences": (
        _row(
            "six stops",
            "openai/gpt-4o openai/gpt-4.1 openai/gpt-5-chat-latest azure-openai/gpt-4.1",
            "anthropic-messages agentary unified",
        ),
        _row(
            "six stops",
            "groq/* cerebras/* cohere/*",
        ),
    ),
    "The vendor takes no stop sequence of white space": (
        _row(
            "stop at a line's end",
            "anthropic/*",
            "openai-chat agentary unified",
        ),
    ),
    "The vendor takes tools or a schema for the answer, not both": (
        _row(
            "JSON schema and tools",
            "groq/* google-ai-studio/gemini-2.5-flash google-ai-studio/gemini-2.5-pro cerebras/* cohere/*",
            "openai-chat openai-responses anthropic-messages unified",
        ),
    ),
}


if __name__ == "__main__":
    sys.stdout.writelines(f"{line}\n" for line in differences())
