"""How are server-sent events read from a byte stream, and how are they written?

Reading has two stages: ``SseCutter`` cuts bytes at event boundaries and normalises them, ``read_block`` parses one event.
A *block* is the lines of one event with its closing blank line. Its line ends are LF, and it has only ``event:`` and ``data:``
lines. A client of the upstream's own format gets blocks unchanged.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

import re

_LINE_END = re.compile(rb"\r\n|\r|\n")
_BLANK_LINE = re.compile(rb"\n\n|\n\r|\r\r")  # Two line ends in a row, of whichever kind.
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class SseCutter:
    """Cuts a byte stream into blocks. It keeps the bytes after the last boundary, at most ``bytes_max``, for the next read."""

    def __init__(self, bytes_max: int) -> None:
        self._rest = bytearray()
        self._bytes_max = bytes_max
        self._is_start = True

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the blocks that ``chunk`` completes.

        Raises:
            ValueError: one event is larger than ``bytes_max``.
        """
        return cut(self.gather(chunk))

    def gather(self, chunk: bytes) -> bytes:
        """Return the events that ``chunk`` completes, in one piece and unchanged. ``cut`` makes blocks of them.

        Raises:
            ValueError: one event is larger than ``bytes_max``.
        """
        # Hot path: once per upstream read.
        rest = self._rest
        if rest:
            # An event that takes many reads is parsed only once it may have ended. Parsing at each read would be quadratic.
            if _BLANK_LINE.search(rest[-2:] + chunk) is None:
                self._keep(chunk)
                return b""
            self._rest = bytearray()
            chunk = bytes(rest) + chunk
        if self._is_start:
            chunk = self._begin(chunk)
        if chunk.endswith(b"\n\n"):
            return chunk
        end = last_boundary(chunk)
        self._keep(chunk[end:])
        return chunk[:end]

    def end(self) -> bytes:
        """Return the rest at the end of the stream: the lines of an event without its closing blank line, or nothing."""
        rest, self._rest = self._rest, bytearray()
        return bytes(rest)

    def _begin(self, text: bytes) -> bytes:
        """Return the stream's first bytes without the byte order mark, which is allowed only there."""
        self._is_start = text != BYTE_ORDER_MARK and BYTE_ORDER_MARK.startswith(text)
        return text.removeprefix(BYTE_ORDER_MARK)

    def _keep(self, more: bytes) -> None:
        self._rest += more
        if len(self._rest) > self._bytes_max:
            raise ValueError(f"an event of more than {self._bytes_max} bytes")


def cut(run: bytes) -> list[bytes]:
    """Return the blocks of consecutive whole events."""
    if b"\r" in run or not _is_usual(run):
        return _cut_unusual(run)
    return [block + b"\n\n" for block in run[:-2].split(b"\n\n")]


def first_events(run: bytes, count: int) -> int:
    """Return the length of the first ``count`` whole events, or of all of them where the line ends are unusual."""
    if b"\r" in run:
        return len(run)
    end = 0
    for _ in range(count):
        end = run.find(b"\n\n", end) + 2
        if end in (1, len(run)):
            return len(run)
    return end


def last_boundary(text: bytes) -> int:
    """Return the length of the whole events in a text."""
    if b"\r" not in text:
        return text.rfind(b"\n\n") + 2 if b"\n\n" in text else 0
    done = start = 0
    for match in _LINE_END.finditer(text):
        if match.group() == b"\r" and match.end() == len(text):
            break  # Perhaps half of a CRLF: the next read will show.
        if match.start() == start:
            done = match.end()
        start = match.end()
    return done


def _cut_unusual(run: bytes) -> list[bytes]:
    """Return the same as ``cut``, line by line as the specification says."""
    blocks: list[bytes] = []
    lines: list[bytes] = []
    start = 0
    is_bare = False  # Whether the block is JSON without a field name.
    for match in _LINE_END.finditer(run):
        line, start = run[start : match.start()], match.end()
        if line:
            is_bare = is_bare or (not lines and line.startswith(b"{"))
            if is_bare or line.startswith((b"data:", b"event:")) or line in (b"data", b"event"):
                lines.append(line)
            continue
        # A block without data is dropped, as the specification says. But some servers write errors as bare JSON: keep these.
        if any(line.startswith(b"data") for line in lines) or (is_bare and b'"error"' in b"".join(lines)):
            blocks.append(b"\n".join(lines) + b"\n\n")
        lines, is_bare = [], False
    return blocks


def _is_usual(text: bytes) -> bool:
    """Whether all events are one data line each, or one event line and one data line each. Counting in C is fast."""
    count = text.count(b"\n\n")
    if text.startswith(b"data:"):
        return text.count(b"\n") == 2 * count and text.count(b"\n\ndata:") == count - 1
    return (
        text.startswith(b"event:")
        and text.count(b"\n") == 3 * count
        and text.count(b"\n\nevent:") == count - 1
        and text.count(b"\ndata:") == count
    )


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


def last_block(data: bytes) -> bytes:
    """Return the last block of bytes that hold whole blocks only; empty if there is none."""
    return data[data.rfind(b"\n\n", 0, -2) + 2 :] if b"\n\n" in data[:-2] else data


# A comment with a single newline. A blank line after it would make openai-python dispatch an empty event.
KEEP_ALIVE = b": keep-alive\n"
