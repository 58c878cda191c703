"""Where does the text of a continuation begin that the client does not have yet?

White space at the end of what was said was not in the prefill (Claude refuses it), so the model may say it again; and some
servers begin with the whole prefill. Both are left out, piece by piece: what is held back is only what may still turn out to
be an echo.
"""

# An answer that begins with all that was said before is taken for an echo if that is longer than a model would by chance
# repeat, or if the server is known for it.
ECHO_CHARS_MIN = 32


class Splice:
    """``known_text`` is what the client has. ``echoes``: the server is known for it. ``is_whole``: what comes is the whole
    answer once more, so that it must begin with all that was said.
    """

    def __init__(self, known_text: str, *, echoes: bool = False, is_whole: bool = False) -> None:
        self._is_whole = is_whole
        self._prefill = known_text if is_whole else known_text.rstrip()
        self._space = known_text[len(self._prefill) :]
        self._seen = 0  # Characters of the prefill that were repeated so far.
        self._may_echo = bool(self._prefill) and (echoes or is_whole or len(self._prefill) >= ECHO_CHARS_MIN)

    def feed(self, text: str) -> str:
        """Return what is new in the next piece of text.

        Raises:
            ValueError: it should be the whole answer, and is another one.
        """
        if self._may_echo:
            expected = self._prefill[self._seen : self._seen + len(text)]
            if text.startswith(expected):
                self._seen += len(expected)
                if self._seen < len(self._prefill):
                    return ""
                self._may_echo = False
                text = text[len(expected) :]
            else:
                text = self._release_held() + text
        return self._without_space(text) if self._space else text

    def end(self) -> str:
        """Return what was held back, once the answer is over: it was no echo. Raises as ``feed`` does."""
        return self._release_held() if self._may_echo else ""

    def _release_held(self) -> str:
        if self._is_whole:
            raise ValueError("another answer than before")
        self._may_echo = False
        return self._prefill[: self._seen]

    def _without_space(self, text: str) -> str:
        shared = 0
        while shared < min(len(text), len(self._space)) and text[shared] == self._space[shared]:
            shared += 1
        self._space = self._space[shared:] if shared == len(text) else ""
        return text[shared:]
