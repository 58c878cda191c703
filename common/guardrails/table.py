"""Which guardrails are there, and what does each of them do?

One row for each, in the order in which a prompt, or an answer, goes through them. To add one that finds something in text:
its file, ``common/guardrails/NAME.py``, with a function ``prepare`` (see ``search.py``), and its row. Its field in the policies
of keys, tenants and settings, both tiers, the error code, the log and the metric follow from the row.

The policies are made of these rows, so every process imports this file. It must import no guardrail: their tables take
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
    """What mode ``block`` does with what a guardrail finds. In mode ``log`` everything passes."""

    REFUSE = "refuse"  # A prompt is refused. An answer ends there, as one does that its vendor filtered.
    REPLACE = "replace"  # The text goes on with something else in its place.
    VERDICT = "verdict"  # What the operator's own guardrail says. It is asked once, with all texts; see ``custom.py``.


@dataclass(frozen=True, slots=True)
class Guardrail:
    """One row. ``refusal`` is the message for a client whose prompt is refused. The guardrail adds ``{detail}``, which must not
    quote the prompt. ``needs_one_of`` names the settings of which at least one must be set, or the guardrail checks nothing."""

    name: str
    sides: tuple[Side, ...]
    block: Block
    refusal: str = ""
    needs_one_of: tuple[str, ...] = ()

    @property
    def code(self) -> str:
        """The error code of a refusal."""
        return f"guardrail_{self.name}"


# Size first, for it costs nothing; invisible characters go before whatever they could hide; an operator's own sees the rest.
SIZE = Guardrail("size", ("input",), Block.REFUSE, "The prompt has {detail}.")
CUSTOM = Guardrail(
    "custom",
    ("input", "output"),
    Block.VERDICT,
    "The gateway's operator does not let this prompt pass{detail}. Change it.",
    needs_one_of=("guardrail_plugin", "guardrail_webhook_url"),
)
GUARDRAILS = (
    SIZE,
    Guardrail("sanitize", ("input",), Block.REPLACE),
    Guardrail(
        "injection",
        ("input",),
        Block.REFUSE,
        "The prompt looks like an attempt to give the model other instructions than its application did. "
        "Word it differently, or ask the gateway's operator for an exemption.",
    ),
    Guardrail(
        "patterns",
        ("input", "output"),
        Block.REFUSE,
        "The prompt holds what the gateway's operator lets nobody send ({detail}). Take it out.",
        needs_one_of=("guardrail_patterns_in", "guardrail_patterns_out"),
    ),
    Guardrail("pii", ("input", "output"), Block.REPLACE),
    CUSTOM,
)


def guardrails_for_side(side: Side) -> list[Guardrail]:
    """Return the guardrails of one side, in their order."""
    return [row for row in GUARDRAILS if side in row.sides]
