"""Where in a continuation does the text begin that the client does not have yet?

The prefill has no white space at its end (Claude refuses it), so the model may repeat that white space. Some servers repeat the
whole prefill. Both are removed, piece by piece. Text is held back only while it may still be such an echo.
"""

# An answer that begins with all of the earlier text is treated as an echo if that text is longer than a model would repeat by
# chance, or if the server is known to echo.
ECHO_CHARS_MIN = 32


class Splice:
    """Removes the text that the client already has.

    Args:
        known_text: The text that the client has.
        echoes: The server is known to repeat the prefill.
        is_whole: The whole answer comes again, so it must begin with ``known_text``.
    """

    def __init__(self, known_text: str, *, echoes: bool = False, is_whole: bool = False) -> None:
        self._is_whole = is_whole
        self._prefill = known_text if is_whole else known_text.rstrip()
        self._space = known_text[len(self._prefill) :]
        self._seen = 0  # Characters of the prefill that were repeated until now.
        self._may_echo = bool(self._prefill) and (echoes or is_whole or len(self._prefill) >= ECHO_CHARS_MIN)

    @property
    def is_over(self) -> bool:
        """Whether all further text is new."""
        return not (self._may_echo or self._space)

    def feed(self, text: str) -> str:
        """Return the new part of the next piece of text.

        Raises:
            ValueError: it should be the same answer again, but it is another one.
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
        """Return the held text at the end of the answer: it was no echo. Raises like ``feed``."""
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
