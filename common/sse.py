"""How are server-sent events cut out of a byte stream, and how are they written?

Reading is two stages: ``SseCutter`` cuts bytes at event boundaries and normalises them, ``read_block`` reads one event.
A *block* is one event's lines with its closing blank line, line ends LF, holding only ``event:`` and ``data:`` lines:
what a same-family client gets as it came.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

import re

_LINE_END = re.compile(rb"\r\n|\r|\n")


class SseCutter:
    """Cuts a byte stream into blocks. Bytes after the last boundary wait for the next read, at most ``bytes_max`` of them."""

    def __init__(self, bytes_max: int) -> None:
        self._rest = b""
        self._bytes_max = bytes_max

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the blocks that ``chunk`` completes.

        Raises:
            ValueError: one event is larger than ``bytes_max``.
        """
        # Hot path: runs once per upstream read. Nearly every read is whole events of one data line, with LF line ends.
        text = self._rest + chunk if self._rest else chunk
        end = text.rfind(b"\n\n")
        if end == -1 and b"\n" not in chunk and b"\r" not in text:
            self._keep(text)
            return []
        if b"\r" in text or end == -1:
            return self._feed_unusual(text)
        blocks = text[:end].split(b"\n\n")
        for block in blocks:
            if not _is_usual(block):
                return self._feed_unusual(text)
        self._keep(text[end + 2 :])
        return [block + b"\n\n" for block in blocks]

    def end(self) -> bytes:
        """Return what is left at the end of the stream: the lines of an event that never got its blank line, or nothing."""
        rest, self._rest = self._rest, b""
        return rest

    def _keep(self, rest: bytes) -> None:
        if len(rest) > self._bytes_max:
            raise ValueError(f"an event of more than {self._bytes_max} bytes")
        self._rest = rest

    def _feed_unusual(self, text: bytes) -> list[bytes]:
        """The same by the letter of the specification, line by line."""
        blocks, kept, done, start = [], [], 0, 0
        text = text.removeprefix(b"\xef\xbb\xbf")
        for match in _LINE_END.finditer(text):
            if match.group() == b"\r" and match.end() == len(text):
                break  # Half of a CRLF, perhaps: the next read tells.
            line, start = text[start : match.start()], match.end()
            if line:
                if line.startswith((b"data:", b"event:")) or line in (b"data", b"event"):
                    kept.append(line)
                continue
            done = start
            # A block without data says nothing: the specification drops it too.
            if any(kept_line.startswith(b"data") for kept_line in kept):
                blocks.append(b"\n".join(kept) + b"\n\n")
            kept = []
        self._keep(text[done:])
        return blocks


def _is_usual(block: bytes) -> bool:
    """Whether an event is one data line, with or without an event line before it, and nothing else."""
    if block.startswith(b"event:"):
        block = block[block.find(b"\n") + 1 :]
    return block.startswith(b"data:") and b"\n" not in block


def read_block(block: bytes) -> tuple[str, bytes]:
    """Return the event name (empty where none was given) and the data of one block.

    >>> read_block(b"event: ping\\ndata: {}\\n\\n")
    ('ping', b'{}')
    """
    # Hot path: nearly every block is one data line.
    if block.startswith(b"data:") and block.find(b"\n") == len(block) - 2:
        return "", block[6:-2] if block[5:6] == b" " else block[5:-2]
    name, data = "", []
    for line in block.split(b"\n"):
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            data.append(value)
        elif field == b"event":
            name = value.decode("utf-8", "replace")
    return name, b"\n".join(data)


def encode_event(data: bytes, event: str | None = None) -> bytes:
    """Return one SSE event, closing blank line included.

    ``data`` must be one line: JSON without line breaks, as every dialect here sends it.
    """
    if event is None:
        return b"data: " + data + b"\n\n"
    return b"event: " + event.encode() + b"\ndata: " + data + b"\n\n"


def split_blocks(data: bytes) -> list[bytes]:
    """Return the blocks of bytes that hold whole blocks only."""
    return [block + b"\n\n" for block in data.split(b"\n\n") if block]


# A comment with a single newline. A blank line after it would make openai-python dispatch an empty event.
KEEP_ALIVE = b": keep-alive\n"
