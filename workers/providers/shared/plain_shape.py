"""Does a block differ from the previous one only in its text?

The blocks of a stream repeat everything except the text. If a block has the same bytes around its text as a decoded one, it
contains only text. Comparing is several times cheaper than decoding, and does not depend on the vendor.
``text_in`` returns that text as it stands, a JSON string with its quotes; None: the block must be decoded.
``head_in`` returns how many such blocks are at the start of a run of complete, uncut events (see ``SseCutter.gather``).
"""

import re

# Some vendors pad each chunk with a last field of random length, so that nobody can infer text from sizes.
_PADDING = re.compile(rb',"(?:obfuscation|p)":"([^"\\]*)"\}\n\n$')

_BACKSLASH = ord("\\")

# What ends a list of texts (one per line, with line ends before and after them): a quote, a broken escape, or an empty text
# (which is no output). The pattern has no repetition, so it is never slow, and works the same in every version of ``re``.
_NO_TEXT = re.compile(rb'"|\r|\\[^/bfnrtu]|\n\n')


class PlainShape:
    """The bytes around the text of the last decoded text block. ``markers``: what may stand right before the text."""

    def __init__(self, *markers: bytes) -> None:
        self._markers = markers
        self._sample: bytes | None = None
        self._start = b""
        self._after = b""
        self._end = self._between = b""  # The bytes after a text, unchanged; and the bytes between two texts.
        self._padding_at = 0

    def learn(self, block: bytes) -> None:
        """Remember a block that was decoded to one piece of text. It is analysed only when it is needed."""
        self._sample = block

    def _learn(self, block: bytes) -> None:
        for marker in self._markers:
            start_end = block.find(marker) + len(marker)
            text_end = block.find(b'"', start_end)
            # A text with escapes is not used. An empty text means that the real text is after another marker.
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
        """Return how many text-only events with the same padding are at the start of a run, and how many bytes they have."""
        # Hot path: once per upstream read. ``split`` removes the common bytes in C, and the rest must be texts.
        if self._sample is not None:
            self._learn(self._sample)
            self._sample = None
        start, end = self._start, self._end
        if not start or not run.startswith(start):
            return 0, 0
        texts = run[len(start) :].split(self._between)
        texts[-1] = texts[-1][
            : max(0, texts[-1].find(end))
        ]  # The last item also has what follows; it may not be a text at all.
        lines = b"\n".join([b"", *texts, b""])
        if lines.count(b"\n") != len(texts) + 1:
            return 0, 0
        if b"\\" in lines:  # Replace escaped backslashes first, then escaped quotes.
            lines = lines.replace(b"\\\\", b"__").replace(b'\\"', b"__")
        count, line_end = len(texts), len(lines) - 1
        if match := _NO_TEXT.search(lines):
            line_end = lines.rfind(b"\n", 0, match.start() + 1)
            count = lines.count(b"\n", 0, line_end)
        return count, count * (len(start) + len(end)) + line_end - count

    def _is_padded(self, after: bytes) -> bool:
        padding_at = self._padding_at
        return (
            padding_at > 0
            and after[:padding_at] == self._after[:padding_at]
            and after.endswith(b'"}\n\n')
            and after.find(b'"', padding_at) == len(after) - 4
        )


# What differs between two deltas of OpenAI's Responses API: the text, the padding, and the sequence number.
_VARYING = re.compile(rb'"(delta|obfuscation)": ?"((?:[^"\\]|\\.)+)"|"sequence_number": ?(\d+)')


class NumberedShape:
    """The same for numbered events: the bytes between the varying parts of the last decoded text block, in any order."""

    def __init__(self) -> None:
        self._sample: bytes | None = None
        self._lines = 0
        self._start = b""
        self._rest: list[
            tuple[bytes, bytes, bytes]
        ] = []  # For each varying part: its kind, the byte that ends it, the bytes after it.

    def learn(self, block: bytes) -> None:
        """Remember a block that was decoded to one piece of text. It is analysed only when it is needed."""
        self._sample = block

    def _learn(self, block: bytes) -> None:
        varying = list(_VARYING.finditer(block))
        if sum(match[1] == b"delta" for match in varying) != 1:
            return
        spans = [match.span(3) if match[1] is None else match.span(2) for match in varying]
        ends = [start for start, _ in spans[1:]] + [len(block)]
        self._start = block[: spans[0][0]]
        self._lines = block.count(b"\n")
        self._rest = [
            (match[1] or b"number", block[span[1] : span[1] + 1], block[span[1] : end])
            for match, span, end in zip(varying, spans, ends, strict=True)
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
        """Return 1 and its number of bytes if the run is one text-only event."""
        is_one = self.text_in(run) is not None and run.count(b"\n") == self._lines and b"\r" not in run
        return (1, len(run)) if is_one else (0, 0)
