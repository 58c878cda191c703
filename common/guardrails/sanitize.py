"""Which characters of a text does nobody see?

Control characters, zero-width ones, those that turn the direction of writing around (Trojan Source), tag characters and
runs of variation selectors (both carry hidden text), noncharacters. Kept: white space and line ends, what joins emoji,
flags of regions, and the joiners of scripts that need them. Reordering marks of right-to-left text stay too: they override
nothing.

Source: https://www.unicode.org/reports/tr36/ and https://trojansource.codes/
"""

from collections import Counter

import regex

from common.guardrails.search import Findings, Prompt, Search
from common.guardrails.table import Guardrail, Side

# In these scripts ZWJ and ZWNJ are orthography: Persian's plural, Hindi's half letters.
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
    """Return a text without what nobody sees, and how many characters that were."""
    if text.isascii() and text.isprintable():
        return text, 0  # The most common case, at a hundredth of the cost.
    removed = 0

    def kept(match: regex.Match[str]) -> str:
        nonlocal removed
        found: str | None = match["kept"]
        removed += found is None
        return found or ""

    cleaned = _INVISIBLE.sub(kept, text)
    return (cleaned, removed) if removed else (text, 0)


def hidden_text(text: str) -> str:
    """Return what tag characters spell out, which a model reads and a person does not; flags of regions spell nothing."""
    if text.isascii():
        return ""
    without_flags = _INVISIBLE.sub(lambda match: "" if len(match["kept"] or "") > 1 else match[0], text)
    return " ".join("".join(chr(ord(char) - 0xE0000) for char in run) for run in _TAGS.findall(without_flags))
