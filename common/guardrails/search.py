"""How does a guardrail look through texts, whichever it is?

A guardrail's file has ``prepare(settings, side)``, which returns a ``Search``, or None where the settings give it nothing to
look for. Most give only ``finder``; what they find is then counted, refused or replaced here, as their row says. One that
judges a whole text, or a prompt, gives ``examine`` instead, and is for prompts only.

``api.guardrails`` and ``workers.transcode`` get their searches from ``Searches``.
"""

import importlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from common.guardrails.finding import Finder, replace_matches
from common.guardrails.table import Block, Guardrail, Side


@dataclass(slots=True)
class Prompt:
    """The texts of a request, with whose each is (system, assistant or other). ``quoted`` are those of them that were pieces of
    JSON, each as a whole and with its role."""

    texts: list[str]
    roles: list[str] = field(default_factory=list)
    quoted: list[tuple[str, str]] = field(default_factory=list)
    messages: int = 1

    @property
    def chars(self) -> int:
        return sum(map(len, self.texts))


@dataclass(slots=True)
class Findings:
    """What a search found in a prompt.

    ``counts`` are for the log: names and numbers, no text. ``detail`` is for the words of a refusal. ``texts`` are those of the
    prompt with everything replaced that is to be. ``slow`` are the numbers of expressions that took too long.
    """

    counts: Counter[str] = field(default_factory=Counter)
    detail: str = ""
    texts: list[str] | None = None
    slow: Sequence[int] = ()


class Search:
    """One guardrail, ready for one side. One per process; it keeps nothing of what it reads."""

    def finder(self, *, blocks: bool) -> Finder:
        """Return what looks through one text, or one stream; ``blocks``: the guardrail's mode is block, not log."""
        raise NotImplementedError

    def examine(self, prompt: Prompt, row: Guardrail, *, blocks: bool) -> Findings:
        """Return what is in a prompt. In a thread of its own where the prompt is long."""
        if row.block is Block.REPLACE:
            return self._replaced(prompt, blocks=blocks)
        return self._matched(prompt, blocks=blocks)

    def _replaced(self, prompt: Prompt, *, blocks: bool) -> Findings:
        results = [replace_matches(self.finder(blocks=blocks), text) for text in prompt.texts]
        return Findings(sum((result.counts for result in results), Counter[str]()), texts=[result.text for result in results])

    def _matched(self, prompt: Prompt, *, blocks: bool) -> Findings:
        """The first match in each text counts; where it blocks, one is enough."""
        finder, findings = self.finder(blocks=blocks), Findings()
        for text in [*prompt.texts, *(text for text, _ in prompt.quoted)]:
            if match := finder.find(text, 0):
                findings.counts[match.name] += 1
                findings.detail = findings.detail or match.name
                if blocks:
                    break
        findings.slow = finder.slow
        return findings


class Searches:
    """The searches of one side, each loaded when it is first needed. One per process."""

    def __init__(self, settings: object, side: Side) -> None:
        self._settings, self._side = settings, side
        self._searches: dict[str, Search | None] = {}

    def search(self, row: Guardrail) -> Search | None:
        """Return a row's search; None where there is nothing to look for, or its guardrail is the operator's own."""
        if row.block is Block.VERDICT:
            return None
        if row.name not in self._searches:
            guardrail = importlib.import_module(f"common.guardrails.{row.name}")
            self._searches[row.name] = guardrail.prepare(self._settings, self._side)
        return self._searches[row.name]
