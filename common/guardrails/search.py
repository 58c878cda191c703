"""How does any guardrail search texts?

A guardrail's file has ``prepare(settings, side)``, which returns a ``Search``, or None if the settings give it nothing to
search for. Most implement only ``finder``; their matches are counted, refused or replaced here, as their row says. A guardrail
that evaluates a complete text or prompt implements ``examine`` instead, and works for prompts only.

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
    """The texts of a request and their roles (system, assistant or other).

    ``quoted`` are complete strings that contain JSON, each with its role; the texts inside them are in ``texts``.
    """

    texts: list[str]
    roles: list[str] = field(default_factory=list)
    quoted: list[tuple[str, str]] = field(default_factory=list)
    messages: int = 1

    @property
    def chars(self) -> int:
        return sum(map(len, self.texts))


@dataclass(slots=True)
class Findings:
    """The result of a search in a prompt.

    ``counts`` are for the log: names and numbers, no text. ``detail`` is inserted into the refusal. ``texts`` are the prompt's
    texts after replacement. ``slow`` are the numbers of expressions that timed out.
    """

    counts: Counter[str] = field(default_factory=Counter)
    detail: str = ""
    texts: list[str] | None = None
    slow: Sequence[int] = ()


class Search:
    """One guardrail, prepared for one side. One per process; it stores none of the texts."""

    def finder(self, *, blocks: bool) -> Finder:
        """Return a finder for one text, or one stream. ``blocks``: the guardrail's mode is block, not log."""
        raise NotImplementedError

    def examine(self, prompt: Prompt, row: Guardrail, *, blocks: bool) -> Findings:
        """Search a prompt. Runs in a thread if the prompt is long."""
        if row.block is Block.REPLACE:
            return self._replace(prompt, blocks=blocks)
        return self._count(prompt, blocks=blocks)

    def _replace(self, prompt: Prompt, *, blocks: bool) -> Findings:
        results = [replace_matches(self.finder(blocks=blocks), text) for text in prompt.texts]
        return Findings(sum((result.counts for result in results), Counter[str]()), texts=[result.text for result in results])

    def _count(self, prompt: Prompt, *, blocks: bool) -> Findings:
        """Count the first match in each text; in mode block, stop at the first."""
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
    """The searches of one side, each loaded on first use. One per process."""

    def __init__(self, settings: object, side: Side) -> None:
        self._settings, self._side = settings, side
        self._searches: dict[str, Search | None] = {}

    def search(self, row: Guardrail) -> Search | None:
        """Return a row's search; None if there is nothing to search for, or for the operator's own guardrail."""
        if row.block is Block.VERDICT:
            return None
        if row.name not in self._searches:
            guardrail = importlib.import_module(f"common.guardrails.{row.name}")
            self._searches[row.name] = guardrail.prepare(self._settings, self._side)
        return self._searches[row.name]
