"""How does a text look to somebody who reads it, in plain letters and digits?

Full-width, mathematical and circled characters, digits of other scripts, spaces and hyphens of all kinds become the ASCII
ones that they stand for, one for one: so a place in the folded text is the same place in the text.
"""

import sys
import unicodedata
from functools import cache

_HYPHENS = "\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe58"
_LAST_FOLDED = 0x1FBF9  # The last digit with a compatible ASCII one.


def fold(text: str) -> str:
    """Return a text of the same length.

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
