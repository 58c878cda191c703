"""Is a prompt larger than the operator allows? Counts the characters of all its texts together, and its messages."""

from typing import Protocol

from common.guardrails.search import Findings, Prompt, Search
from common.guardrails.table import Guardrail, Side


class Sizes(Protocol):
    """The settings that this guardrail needs."""

    guardrail_input_chars_max: int
    guardrail_messages_max: int


def prepare(settings: Sizes, side: Side) -> Search:
    return SizeSearch(settings.guardrail_input_chars_max, settings.guardrail_messages_max)


class SizeSearch(Search):
    def __init__(self, chars_max: int, messages_max: int) -> None:
        self._chars_max, self._messages_max = chars_max, messages_max

    def examine(self, prompt: Prompt, row: Guardrail, *, blocks: bool) -> Findings:
        findings, chars = Findings(), prompt.chars
        if chars > self._chars_max:
            findings.counts["characters"] = 1
            findings.detail = f"{chars} characters, but at most {self._chars_max} are allowed. Send less"
        if prompt.messages > self._messages_max:
            findings.counts["messages"] = 1
            too_many = f"{prompt.messages} messages, but at most {self._messages_max} are allowed. Send fewer"
            findings.detail = findings.detail or too_many
        return findings
