"""What does a text look like in plain ASCII letters and digits?

Full-width, mathematical and circled characters, digits of other scripts, and all kinds of spaces and hyphens become their
ASCII equivalents, one for one. So a position in the folded text is the same position in the original.
"""

import sys
import unicodedata
from functools import cache

_HYPHENS = "\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe58"
_LAST_FOLDED = 0x1FBF9  # The last digit that has an ASCII equivalent.


def fold(text: str) -> str:
    """Return the folded text, which has the same length.

    >>> fold("\\uff14\\uff11\\u2212\\uff11 jane\\uff20example")
    '41-1 jane@example'
    """
    return text if text.isascii() else text.translate(_table())


@cache
def _table() -> dict[int, str]:
    table = dict.fromkeys(map(ord, _HYPHENS), "-")
    for code in range(0x80, min(_LAST_FOLDED, sys.maxunicode) + 1):
        char = chr(code)
        digit = unicodedata.decimal(char, None)
        plain = str(digit) if digit is not None else unicodedata.normalize("NFKC", char)
        if len(plain) == 1 and plain.isascii():
            table[code] = plain
    return table
