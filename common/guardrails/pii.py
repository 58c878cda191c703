"""Which pieces of a text are personal data, or a secret?

Email addresses, telephone numbers, payment card numbers (with their check digit), and keys (``common.process.key_shapes``,
JSON web tokens, private key blocks). They are recognised only by their form. What has no fixed form is not found: names,
postal addresses, passwords, national telephone numbers. Every pattern is bounded: a match is never longer than what a stream
may hold back, and none can take more than linear time.

A match's boundaries depend only on the characters that it can consist of, never on what counts as a letter in general: in
scripts without spaces, other text directly adjoins it. The search runs on the folded text (``folding``).
"""

import regex

from common.guardrails.expressions import IMPOSSIBLE_CHAR
from common.guardrails.finding import Finder, Match, Redacted, replace_matches
from common.guardrails.folding import fold
from common.guardrails.search import Search
from common.guardrails.table import Side
from common.process.key_shapes import KEY_SHAPES, TOKEN

# Latin letters and marks only. Others are rare in a mailbox name, and a whole Chinese sentence would look like one.
_LATIN = "A-Za-z\u00c0-\u024f\u0300-\u036f\u1e00-\u1eff"
_MAILBOX = rf"{_LATIN}0-9._%+\-"
# JSON quoted in text has escapes; each level of quoting doubles the backslashes.
_ESCAPE = r"\\{1,8} u [0-9A-Fa-f]{4}"
_AT = r"(?: @ | \\{1,8} u (?: 0040 | [fF]{2}20 ) )"
_LABEL = rf"(?: [\p{{L}}\p{{M}}\p{{N}}-] | {_ESCAPE} ){{1,63}}"
_OTHER = rf"(?: (?! [{_LATIN}] ) [\p{{L}}\p{{M}}] )"

# The top-level domain is Latin or Punycode. If it is in another script, so is the label before it.
_EMAIL = rf"""
    (?<! [{_MAILBOX}] ) (?: [{_MAILBOX}] | {_ESCAPE} ) (?: [{_MAILBOX}'] | {_ESCAPE} ){{0,63}} {_AT}
    (?: (?: {_LABEL} \. ){{1,8}} (?: xn--[A-Za-z0-9-]{{2,59}} | [{_LATIN}]{{2,24}} )
      | (?: {_LABEL} \. ){{0,7}} {_OTHER}{{1,63}} \. {_OTHER}{{2,12}} )
"""

# E.164 with its plus: 8 to 15 digits with common separators. And North American numbers in three groups.
_GAP = r"(?: [ .\-/()] | \\{1,8} u (?: 00[aA]0 | 20[01][0-9A-Fa-f] | 202[fF] ) )"
_PHONE = rf"""
    (?<! [0-9+] ) \+ [1-9] (?: {_GAP}{{0,2}} [0-9] ){{7,14}} (?! [0-9] )
  | (?<! [A-Za-z0-9.+-] ) (?: \( [2-9][0-9]{{2}} \) [ ]? | [2-9][0-9]{{2}} [-. ] ) [0-9]{{3}} [-. ] [0-9]{{4}} (?! -?[0-9] )
"""

# 13 to 19 digits in the card networks' ranges, in one piece or in their usual groups.
_SEAM = r"[ \t.\-/_]{0,3}"
_CARD = rf"""
    (?<! [0-9] | [0-9]\. )
    (?: 3[47][0-9]{{2}} {_SEAM} [0-9]{{6}} {_SEAM} [0-9]{{5}}
      | [2-6][0-9]{{3}} {_SEAM} [0-9]{{4}} {_SEAM} [0-9]{{4}} {_SEAM} [0-9]{{1,4}} (?: {_SEAM} [0-9]{{1,3}} )? )
    (?! [0-9] )
"""

# Base64 in lines, as in a file or in a JSON string. Prose after the first line is not part of it.
_LINE = r"(?: [ \t\r]{0,2} \n [ \t]{0,8} | (?: \\r )? \\n ){1,2}"
_KEY_NAME = r"[ ] (?: [A-Z0-9]{1,20} [ ] ){0,4} PRIVATE [ ] KEY (?: [ ] BLOCK )? -----"
_KEY = rf"""
    -----BEGIN {_KEY_NAME}
        (?: {_LINE} (?: [A-Za-z0-9+/=]{{1,70}} (?! [^\s\\-] )
            | (?: Proc-Type | DEK-Info | Version | Comment ): [^\n\\]{{0,70}} ) ){{0,105}}
        (?: {_LINE} -----END {_KEY_NAME} )?
  | (?<! [A-Za-z0-9_-] ) (?: {TOKEN} | {" | ".join(shape.exact for shape in KEY_SHAPES)} )
"""

_MARKS = {"key": "[KEY]", "email": "[EMAIL]", "phone": "[PHONE]", "card": "[CARD]"}
# If two begin at the same position, the first wins. Cards come last, because a wrong check digit can reject them.
_ALL = f"(?P<key> {_KEY} ) | (?P<email> {_EMAIL} ) | (?P<phone> {_PHONE} ) | (?P<card> {_CARD} )"
FULL_MATCH = regex.compile(_ALL, regex.VERBOSE)
_BEGINNING = regex.compile(f"(?: {_ALL} ) {IMPOSSIBLE_CHAR}", regex.VERBOSE)
_CARD_DIGITS = range(13, 20)
# After a quoted name and a colon, a number is a JSON value; its replacement must be JSON too.
_MEMBER = regex.compile(r'" [ \t\n]{0,8} : [ \t\n]{0,8} \Z', regex.VERBOSE)
_MEMBER_CHARS = 18


class PiiFinder(Finder):
    """See ``Finder``; one per text or stream. A match's ``name`` is email, phone, card or key."""

    def __init__(self) -> None:
        self._text = self._folded = ""

    def find(self, text: str, start: int) -> Match | None:
        folded = self._fold(text)
        # ``concurrent`` releases the GIL: a thread can search a long text while the event loop runs.
        while match := FULL_MATCH.search(folded, start, concurrent=True):
            name = match.lastgroup or ""
            size = _card_chars(match[0]) if name == "card" else len(match[0])
            if size:
                mark, begin = _MARKS[name], match.start()
                if name == "card" and _MEMBER.search(folded, max(0, begin - _MEMBER_CHARS), begin):
                    mark = f'"{mark}"'
                return Match(begin, begin + size, name, mark)
            start = match.start() + 1
        return None

    def find_possible_start(self, text: str, start: int) -> int | None:
        match = _BEGINNING.search(self._fold(text), start, partial=True, concurrent=True)
        return match.start() if match and match.start() < len(text) else None

    def _fold(self, text: str) -> str:
        """Fold a text once for repeated searches."""
        if text is not self._text:
            self._text, self._folded = text, fold(text)
        return self._folded


class PiiSearch(Search):
    def finder(self, *, blocks: bool) -> PiiFinder:
        return PiiFinder()


def prepare(settings: object, side: Side) -> Search:
    return PiiSearch()


def redact(text: str) -> Redacted:
    """Return a text with every match replaced by ``[EMAIL]``, ``[PHONE]``, ``[CARD]`` or ``[KEY]``."""
    return replace_matches(PiiFinder(), text)


def _card_chars(text: str) -> int:
    """Return the length of the card number at the start of grouped digits, 0 if there is none. Other numbers may follow it."""
    while text:
        digits = [int(char) for char in text if char.isdigit()]
        if len(digits) in _CARD_DIGITS and len(set(digits)) > 1 and _luhn(digits) == 0:
            return len(text)
        text = text.rstrip("0123456789").rstrip(" \t.-/_")
    return 0


def _luhn(digits: list[int]) -> int:
    """Return 0 if the last digit is the correct check digit. Source: ISO/IEC 7812-1, annex B."""
    doubled = (sum(divmod(2 * digit, 10)) for digit in digits[-2::-2])
    return (sum(doubled) + sum(digits[-1::-2])) % 10
