"""How does a text grow token by token, at the cost of its size?

A string that is added to is copied each time: a million tokens, a million copies. A list of all its pieces takes ten times
the room, for each is an object of its own. So pieces gather in a list, and are joined a few hundred at a time.
"""

JOINED_AT = 512  # Pieces: some kilobytes of text, beside which an object's own size is nothing.


class GrowingText:
    def __init__(self) -> None:
        self._joined: list[str] = []
        self._pieces: list[str] = []

    def add(self, piece: str) -> None:
        # Hot path: once per token of an answer that is gathered.
        self._pieces.append(piece)
        if len(self._pieces) >= JOINED_AT:
            self._joined.append("".join(self._pieces))
            self._pieces.clear()

    def __str__(self) -> str:
        return "".join([*self._joined, *self._pieces])  # One piece alone is returned as it is, not copied.
