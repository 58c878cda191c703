"""Does a block differ from the one before in nothing but its text?

A stream's blocks repeat all but the text, so what a decoded block had around its text tells that another one with the
same around it holds text alone. Comparing is several times cheaper than decoding, and knows nothing of any vendor.
``text_in`` returns that text as it stands, a JSON string with its quotes, or nothing where a block must be decoded.
``head_in`` says how many of whole events in a row, which nobody has cut yet (see ``SseCutter.gather``), are such blocks.
"""

import re

# Some vendors pad each chunk, against whoever counts bytes: a last field of random length.
_PADDING = re.compile(rb',"(?:obfuscation|p)":"([^"\\]*)"\}\n\n$')

_BACKSLASH = ord("\\")

# What ends a row of texts, one a line, with a line's end before and behind them: a quote, a broken escape, an empty text
# (such a piece is no output). Nothing here repeats, so no run is slow, and every version of ``re`` agrees on it.
_NO_TEXT = re.compile(rb'"|\r|\\[^/bfnrtu]|\n\n')


class PlainShape:
    """What the last decoded text block had around its text. ``markers`` are what may stand right before the text."""

    def __init__(self, *markers: bytes) -> None:
        self._markers = markers
        self._sample: bytes | None = None
        self._start = b""
        self._after = b""
        self._end = self._between = b""  # What stands behind a text, as it stood, and what stands between two.
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
            self._end = block[text_end:]
            self._between = self._end + self._start
            padding = _PADDING.search(self._after)
            self._padding_at = padding.start(1) if padding else 0
            return

    def text_in(self, block: bytes) -> bytes | None:
        # Hot path: runs once per block. The first quote ends the text unless it is escaped.
        if self._sample is not None:
            self._learn(self._sample)
            self._sample = None
        start = self._start
        if not start or not block.startswith(start):
            return None
        text_at = len(start)
        text_end = block.find(b'"', text_at)
        if text_end == text_at or block[text_end - 1] == _BACKSLASH:
            return None  # An empty piece is no output; with an escaped quote the text's end is not known.
        after = block[text_end:].translate(None, b" ")  # Anthropic pads with spaces.
        if after == self._after or self._is_padded(after):
            return block[text_at - 1 : text_end + 1]
        return None

    def head_in(self, run: bytes) -> tuple[int, int]:
        """Return with how many events a run begins that are text alone, with the same padding, and how many bytes these are."""
        # Hot path: once per upstream read. What all have in common is taken out in C, and what is left must be texts.
        if self._sample is not None:
            self._learn(self._sample)
            self._sample = None
        start, end = self._start, self._end
        if not start or not run.startswith(start):
            return 0, 0
        texts = run[len(start) :].split(self._between)
        texts[-1] = texts[-1][: max(0, texts[-1].find(end))]  # Behind it stands what follows them; it may be no text itself.
        lines = b"\n".join([b"", *texts, b""])
        if lines.count(b"\n") != len(texts) + 1:
            return 0, 0
        if b"\\" in lines:  # Escaped ones in their order, from the left; then a quote is escaped if one stands before it.
            lines = lines.replace(b"\\\\", b"__").replace(b'\\"', b"__")
        count, whole = len(texts), len(lines) - 1
        if found := _NO_TEXT.search(lines):
            whole = lines.rfind(b"\n", 0, found.start() + 1)
            count = lines.count(b"\n", 0, whole)
        return count, count * (len(start) + len(end)) + whole - count

    def _is_padded(self, after: bytes) -> bool:
        padding_at = self._padding_at
        return (
            padding_at > 0
            and after[:padding_at] == self._after[:padding_at]
            and after.endswith(b'"}\n\n')
            and after.find(b'"', padding_at) == len(after) - 4
        )


# What differs from one delta to the next in the events of OpenAI's responses: text and padding, and a number that counts.
_VARYING = re.compile(rb'"(delta|obfuscation)": ?"((?:[^"\\]|\\.)+)"|"sequence_number": ?(\d+)')


class NumberedShape:
    """The same for events that are numbered: what the last decoded text block had between what varies, wherever it stands."""

    def __init__(self) -> None:
        self._sample: bytes | None = None
        self._lines = 0
        self._start = b""
        self._rest: list[tuple[bytes, bytes, bytes]] = []  # What comes, the byte that ends it, what follows.

    def take(self, block: bytes) -> None:
        """Note a block that was decoded to one piece of text. It is studied only if anyone asks."""
        self._sample = block

    def _learn(self, block: bytes) -> None:
        found = list(_VARYING.finditer(block))
        if sum(match[1] == b"delta" for match in found) != 1:
            return
        spans = [match.span(3) if match[1] is None else match.span(2) for match in found]
        ends = [start for start, _ in spans[1:]] + [len(block)]
        self._start = block[: spans[0][0]]
        self._lines = block.count(b"\n")
        self._rest = [
            (match[1] or b"number", block[span[1] : span[1] + 1], block[span[1] : end])
            for match, span, end in zip(found, spans, ends, strict=True)
        ]

    def text_in(self, block: bytes) -> bytes | None:
        # Hot path: runs once per block. The first quote ends a text unless it is escaped.
        if self._sample is not None:
            self._learn(self._sample)
            self._sample = None
        if not self._start or not block.startswith(self._start):
            return None
        text, at = b"", len(self._start)
        for kind, ending, after in self._rest:
            end = block.find(ending, at)
            # An empty piece is no output; with an escaped quote the text's end is not known.
            if end <= at or block[end - 1] == _BACKSLASH or not block.startswith(after, end):
                return None
            if kind == b"delta":
                text = block[at - 1 : end + 1]
            elif kind == b"number" and not block[at:end].isdigit():
                return None
            at = end + len(after)
        return text if at == len(block) else None

    def head_in(self, run: bytes) -> tuple[int, int]:
        """Return 1 and its bytes where there is one event, and that text alone."""
        is_one = self.text_in(run) is not None and run.count(b"\n") == self._lines and b"\r" not in run
        return (1, len(run)) if is_one else (0, 0)
