"""Which guardrails are there, and what does each of them do?

One row per guardrail, in the order in which they run. To add one that searches text: add its file,
``common/guardrails/NAME.py``, with a function ``prepare`` (see ``search.py``), and its row. The row also creates its field in
the policies of keys, tenants and settings, its error code, its log lines and its metric, in both tiers.

The policies are built from these rows, so every process imports this file. It must not import guardrails: their tables take
memory and time, and a process loads them with the first request that needs them.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

Side = Literal["input", "output"]  # Prompts; answers.


class Mode(StrEnum):
    """From the mildest to the strictest."""

    OFF = "off"
    LOG = "log"
    BLOCK = "block"


class Block(StrEnum):
    """What mode ``block`` does with a match. In mode ``log`` everything passes."""

    REFUSE = "refuse"  # A prompt is refused. An answer ends there, like one that its vendor filtered.
    REPLACE = "replace"  # The match is replaced, and the text continues.
    VERDICT = "verdict"  # The operator's own guardrail decides. It is called once, with all texts; see ``custom.py``.


@dataclass(frozen=True, slots=True)
class Guardrail:
    """One row. ``refusal`` is the message for a client whose prompt is refused. The guardrail adds ``{detail}``, which must not
    quote the prompt. ``needs_one_of`` names settings: if none of them is set, the guardrail checks nothing."""

    name: str
    sides: tuple[Side, ...]
    block: Block
    refusal: str = ""
    needs_one_of: tuple[str, ...] = ()

    @property
    def code(self) -> str:
        """The error code of a refusal."""
        return f"guardrail_{self.name}"


# Size is first, because it costs nothing. Invisible characters are removed before anything that they could hide is searched.
# The operator's own guardrail runs last.
SIZE = Guardrail("size", ("input",), Block.REFUSE, "The prompt has {detail}.")
CUSTOM = Guardrail(
    "custom",
    ("input", "output"),
    Block.VERDICT,
    "The gateway's operator does not allow this prompt{detail}. Change it.",
    needs_one_of=("guardrail_plugin", "guardrail_webhook_url"),
)
GUARDRAILS = (
    SIZE,
    Guardrail("sanitize", ("input",), Block.REPLACE),
    Guardrail(
        "injection",
        ("input",),
        Block.REFUSE,
        "The prompt looks like an attempt to override the application's instructions to the model. "
        "Word it differently, or ask the gateway's operator for an exemption.",
    ),
    Guardrail(
        "patterns",
        ("input", "output"),
        Block.REFUSE,
        "The prompt contains text that the gateway's operator does not allow ({detail}). Remove it.",
        needs_one_of=("guardrail_patterns_in", "guardrail_patterns_out"),
    ),
    Guardrail("pii", ("input", "output"), Block.REPLACE),
    CUSTOM,
)


def guardrails_for_side(side: Side) -> list[Guardrail]:
    """Return the guardrails of one side, in their order."""
    return [row for row in GUARDRAILS if side in row.sides]
