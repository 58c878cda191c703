"""Does a block differ from the one before in nothing but its text?

A stream's blocks repeat all but the text, so what a decoded block had around its text tells that another one with the
same around it holds text alone. Comparing is several times cheaper than decoding, and knows nothing of any vendor.
"""

import re

# Some vendors pad each chunk, against whoever counts bytes: a last field of random length.
_PADDING = re.compile(rb',"(?:obfuscation|p)":"([^"\\]*)"\}\n\n$')

_BACKSLASH = ord("\\")


class PlainShape:
    """What the last decoded text block had around its text. ``markers`` are what may stand right before the text."""

    def __init__(self, *markers: bytes) -> None:
        self._markers = markers
        self._sample: bytes | None = None
        self._start = b""
        self._after = b""
        self._padding_at = 0

    def take(self, block: bytes) -> None:
        """Note a block that was decoded to one piece of text. It is studied only if anyone asks."""
        self._sample = block

    def _learn(self, block: bytes) -> None:
        for marker in self._markers:
            start_end = block.find(marker) + len(marker)
            text_end = block.find(b'"', start_end)
            # A text with escapes teaches nothing, an empty one that the text stands elsewhere.
            if start_end < len(marker) or text_end == start_end or b"\\" in block[start_end:text_end]:
                continue
            self._start = block[:start_end]
            self._after = block[text_end:].translate(None, b" ")
            padding = _PADDING.search(self._after)
            self._padding_at = padding.start(1) if padding else 0
            return

    def fits(self, block: bytes) -> bool:
        # Hot path: runs once per block. The first quote ends the text unless it is escaped.
        if self._sample is not None:
            self._learn(self._sample)
            self._sample = None
        start = self._start
        if not start or not block.startswith(start):
            return False
        text_end = block.find(b'"', len(start))
        if text_end == len(start) or block[text_end - 1] == _BACKSLASH:
            return False  # An empty piece is no output; with an escaped quote the text's end is not known.
        after = block[text_end:].translate(None, b" ")  # Anthropic pads with spaces.
        if after == self._after:
            return True
        padding_at = self._padding_at
        return (
            padding_at > 0
            and after[:padding_at] == self._after[:padding_at]
            and after.endswith(b'"}\n\n')
            and after.find(b'"', padding_at) == len(after) - 4
        )
