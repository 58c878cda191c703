"""How does a text grow token by token, with time and memory in proportion to its size?

Appending to a string copies it each time: a million tokens, a million copies. A list of all pieces takes ten times the
memory, because each piece is a separate object. So pieces collect in a list, and are joined a few hundred at a time.
"""

JOINED_AT = 512  # Pieces. Joined they are some kilobytes of text; the overhead of one object is negligible then.


class GrowingText:
    def __init__(self) -> None:
        self._joined: list[str] = []
        self._pieces: list[str] = []

    def add(self, piece: str) -> None:
        # Hot path: runs once per token of an answer that is collected.
        self._pieces.append(piece)
        if len(self._pieces) >= JOINED_AT:
            self._joined.append("".join(self._pieces))
            self._pieces.clear()

    def __str__(self) -> str:
        return "".join([*self._joined, *self._pieces])  # A single piece is returned as it is, without a copy.
