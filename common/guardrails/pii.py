"""Which pieces of a text are personal data, or a secret?

Mail addresses, telephone numbers, payment card numbers (with their check digit), and keys: the shapes that common vendors
give theirs, JSON web tokens, private key blocks. Found by shape alone, so what has none is not found: names, postal
addresses, passwords, numbers as they are dialled inside a country. Every pattern is bounded: a match is never longer than
what a stream may hold back, and none can take more than linear time.
"""

from collections import Counter
from dataclasses import dataclass, field

import regex

from common.guardrails.finding import UNSAYABLE, Found

_LETTER = "A-Za-z\u00c0-\u024f"  # Latin ones: in scripts without spaces a whole sentence would look like a mailbox.

_EMAIL = rf"""
    (?<! [\w.+%-] ) [{_LETTER}0-9._%+'-]{{1,64}} @ (?: [{_LETTER}0-9-]{{1,63}} \. ){{1,8}} [{_LETTER}]{{2,24}} (?! [\w-] )
"""

# E.164 with its plus, 8 to 15 digits written as people do; and North America's three groups.
_PHONE = r"""
    (?<! [\w+.] ) \+ [1-9] (?: [ .\-/()\u00a0]{0,2} \d ){7,14} (?! \d )
  | (?<! [\w.+-] ) (?: \( [2-9] \d\d \) [ ]? | [2-9] \d\d [-. ] ) \d{3} [-. ] \d{4} (?! [\d-] )
"""

# 13 to 19 digits in the card networks' ranges, in one piece or in their usual groups.
_CARD = r"""
    (?<! \d | \d\. )
    (?: 3[47]\d\d [ -]? \d{6} [ -]? \d{5} | [2-6]\d{3} [ -]? \d{4} [ -]? \d{4} [ -]? \d{1,4} (?: [ -]? \d{1,3} )? )
    (?! \d )
"""

# Base64 in lines, as in a file or as in a JSON string; prose behind the first line is none of it.
_LINE = r"(?: [ \t\r]{0,2} \n [ \t]{0,8} | (?: \\r )? \\n ){1,2}"
_KEY_NAME = r"[ ] (?: [A-Z0-9]{1,20} [ ] ){0,4} PRIVATE [ ] KEY (?: [ ] BLOCK )? -----"
_KEY = rf"""
    -----BEGIN {_KEY_NAME}
        (?: {_LINE} (?: [A-Za-z0-9+/=]{{1,70}} (?! [^\s\\-] )
            | (?: Proc-Type | DEK-Info | Version | Comment ): [^\n\\]{{0,70}} ) ){{0,105}}
        (?: {_LINE} -----END {_KEY_NAME} )?
  | (?<! [A-Za-z0-9_-] ) (?:
        eyJ [\w-]{{8,2000}} \. eyJ [\w-]{{8,4000}} \. [\w-]{{8,1500}}
      | sk- [A-Za-z0-9_-]{{20,250}}
      | sk_sluice_ [a-z0-9]{{12}} _ [A-Za-z0-9]{{38}}
      | (?: sk | rk )_ (?: live | test )_ [A-Za-z0-9]{{16,250}}
      | whsec_ [A-Za-z0-9+/=]{{20,100}}
      | (?: AKIA | ASIA ) [A-Z0-9]{{16}} (?! [A-Za-z0-9] )
      | AIza [\w-]{{35}}
      | ya29\. [\w-]{{20,500}}
      | gh[opsur]_ [A-Za-z0-9]{{36,255}}
      | github_pat_ [A-Za-z0-9_]{{22,255}}
      | glpat- [\w-]{{20,100}}
      | xox[abeoprs]- [A-Za-z0-9-]{{10,250}}
      | xapp- [A-Za-z0-9-]{{10,250}}
      | hf_ [A-Za-z0-9]{{30,100}}
      | gsk_ [A-Za-z0-9]{{40,100}}
      | xai- [A-Za-z0-9]{{40,120}}
      | pplx- [A-Za-z0-9]{{40,100}}
      | csk- [A-Za-z0-9]{{40,100}}
      | npm_ [A-Za-z0-9]{{36}}
      | pypi- [\w-]{{50,250}}
      | SG\. [\w-]{{16,64}} \. [\w-]{{16,64}}
      | do[opr]_v1_ [a-f0-9]{{64}}
    )
"""

_MARKS = {"key": "[KEY]", "email": "[EMAIL]", "phone": "[PHONE]", "card": "[CARD]"}
# Where two begin at the same place the first wins. Cards come last: only their check digit tells, so they may be refused.
_ALL = f"(?P<key> {_KEY} ) | (?P<email> {_EMAIL} ) | (?P<phone> {_PHONE} ) | (?P<card> {_CARD} )"
_WHOLE = regex.compile(_ALL, regex.VERBOSE)
_BEGUN = regex.compile(f"(?: {_ALL} ) {UNSAYABLE}", regex.VERBOSE)
_CARD_DIGITS = range(13, 20)


class PiiFinder:
    """See ``Finder``; ``name`` of what is found is email, phone, card or key."""

    def find(self, text: str, start: int) -> Found | None:
        # The interpreter's lock is given back meanwhile: a long text is looked through beside the loop.
        while match := _WHOLE.search(text, start, concurrent=True):
            name = match.lastgroup or ""
            size = _card_chars(match[0]) if name == "card" else len(match[0])
            if size:
                return Found(match.start(), match.start() + size, name, _MARKS[name])
            start = match.start() + 1
        return None

    def viable(self, text: str, start: int) -> int | None:
        match = _BEGUN.search(text, start, partial=True, concurrent=True)
        return match.start() if match and match.start() < len(text) else None


@dataclass(slots=True)
class Redacted:
    """A text without what was found in it, and how many of each there were."""

    text: str
    counts: Counter[str] = field(default_factory=Counter)


def redact(text: str) -> Redacted:
    """Return a text with everything found in it replaced by ``[EMAIL]``, ``[PHONE]``, ``[CARD]`` or ``[KEY]``."""
    finder, done, pieces, counts = PiiFinder(), 0, [], Counter[str]()
    while found := finder.find(text, done):
        pieces += [text[done : found.start], found.mark or ""]
        counts[found.name] += 1
        done = found.end
    return Redacted("".join([*pieces, text[done:]]) if counts else text, counts)


def _card_chars(text: str) -> int:
    """Return how much of digits in groups is a card's number, 0: nothing. Behind it may come what else a form asks for."""
    while text:
        digits = [int(char) for char in text if char not in " -"]
        if len(digits) in _CARD_DIGITS and len(set(digits)) > 1 and _luhn(digits) == 0:
            return len(text)
        text = text[: max(text.rfind(" "), text.rfind("-"), 0)]
    return 0


def _luhn(digits: list[int]) -> int:
    """Return 0 where the last digit is the right check digit. Source: ISO/IEC 7812-1, annex B."""
    doubled = (sum(divmod(2 * digit, 10)) for digit in digits[-2::-2])
    return (sum(doubled) + sum(digits[-1::-2])) % 10
