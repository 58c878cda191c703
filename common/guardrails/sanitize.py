"""Which characters of a text are invisible?

Removed: control characters, zero-width characters, overrides of the writing direction (Trojan Source), tag characters and
runs of variation selectors (both can carry hidden text), noncharacters. Kept: white space and line ends, emoji joiners, flags
of regions, and the joiners of scripts that need them. Direction marks of right-to-left text are kept too: they override
nothing.

Source: https://www.unicode.org/reports/tr36/ and https://trojansource.codes/
"""

from collections import Counter

import regex

from common.guardrails.search import Findings, Prompt, Search
from common.guardrails.table import Guardrail, Side

# In these scripts ZWJ and ZWNJ are part of the spelling: Persian plurals, Hindi half letters.
_JOINING = "".join(
    rf"\p{{Script={name}}}"
    for name in [
        "Arabic",
        "Syriac",
        "Mongolian",
        "Nko",
        "Devanagari",
        "Bengali",
        "Gurmukhi",
        "Gujarati",
        "Oriya",
        "Tamil",
        "Telugu",
        "Kannada",
        "Malayalam",
        "Sinhala",
        "Thai",
        "Lao",
        "Tibetan",
        "Myanmar",
        "Khmer",
        "Balinese",
        "Javanese",
    ]
)
_KEPT = rf"""
    (?<= [\p{{Extended_Pictographic}}\p{{Emoji_Modifier}}\ufe0f] ) \u200d (?= \p{{Extended_Pictographic}} )
  | (?<= [{_JOINING}] ) [\u200c\u200d]
  | \U0001f3f4 [\U000e0030-\U000e0039\U000e0061-\U000e007a]{{3,6}} \U000e007f
"""
_REMOVED = r"""
    [\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f]
  | [\u00ad\u180e\u200b-\u200d\u2060-\u206f\ufeff\u202a-\u202e\u3164\uffa0\ufff9-\ufffb]
  | [\ufdd0-\ufdef\ufffe\uffff]
  | [\U000e0000-\U000e007f]
  | (?<= [\ufe00-\ufe0f\U000e0100-\U000e01ef] ) [\ufe00-\ufe0f\U000e0100-\U000e01ef]
"""
_INVISIBLE = regex.compile(f"(?P<kept> {_KEPT} ) | {_REMOVED}", regex.VERBOSE)
_TAGS = regex.compile("[\U000e0020-\U000e007e]{2,}")


class SanitizeSearch(Search):
    def examine(self, prompt: Prompt, row: Guardrail, *, blocks: bool) -> Findings:
        cleaned = [sanitize(text) for text in prompt.texts]
        removed = sum(count for _, count in cleaned)
        counts = Counter(characters=removed) if removed else Counter[str]()
        return Findings(counts, texts=[text for text, _ in cleaned])


def prepare(settings: object, side: Side) -> Search:
    return SanitizeSearch()


def sanitize(text: str) -> tuple[str, int]:
    """Return a text without invisible characters, and how many were removed."""
    if text.isascii() and text.isprintable():
        return text, 0  # The most common case; costs a hundredth.
    removed = 0

    def replacement(match: regex.Match[str]) -> str:
        nonlocal removed
        kept: str | None = match["kept"]
        removed += kept is None
        return kept or ""

    cleaned = _INVISIBLE.sub(replacement, text)
    return (cleaned, removed) if removed else (text, 0)


def hidden_text(text: str) -> str:
    """Return the text that tag characters spell: models can read it, people cannot see it. Flags of regions do not count."""
    if text.isascii():
        return ""
    without_flags = _INVISIBLE.sub(lambda match: "" if len(match["kept"] or "") > 1 else match[0], text)
    return " ".join("".join(chr(ord(char) - 0xE0000) for char in run) for run in _TAGS.findall(without_flags))
