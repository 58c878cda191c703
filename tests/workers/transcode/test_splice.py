"""Where a continuation's text begins, whatever way it is cut."""

import pytest

from workers.transcode.splice import ECHO_CHARS_MIN, Splice

SAID = "The quick brown fox jumps over the lazy "
REST = "dog, and sleeps."


def spliced(said: str, text: str, size: int, *, echoes: bool = False) -> str:
    splice = Splice(said, echoes=echoes)
    return "".join(splice.feed(text[i : i + size]) for i in range(0, len(text), size)) + splice.end()


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
@pytest.mark.parametrize(
    ("said", "text", "new"),
    [
        (SAID, REST, REST),
        (SAID, " " + REST, REST),  # The white space that was not in the prefill.
        ("a\n\n", "\n\nb", "b"),
        ("a\n\n", "\nb", "b"),
        ("a \n", " b", "b"),
        ("a ", "\n b", "\n b"),
        ("a", " b", " b"),
        (SAID, SAID + REST, REST),  # A server that echoes.
        (SAID, SAID.rstrip() + REST, REST),
        (SAID, SAID[:20] + "cat", SAID[:20] + "cat"),  # It only began alike.
        (SAID, SAID[:20], SAID[:20]),
        ("ha", "ha ha", "ha ha"),  # Too short to be taken for an echo.
        (SAID[: ECHO_CHARS_MIN - 1], SAID, SAID),
        (SAID[:ECHO_CHARS_MIN], SAID, SAID[ECHO_CHARS_MIN:]),  # Just long enough.
    ],
)
def test_only_what_is_new_goes_on(said, text, new, size):
    assert spliced(said, text, size) == new


@pytest.mark.parametrize("size", [1, 1000])
def test_a_known_echo_is_left_out_however_short(size):
    assert spliced("ha", "ha ha", size, echoes=True) == " ha"
    assert len("ha") < ECHO_CHARS_MIN


@pytest.mark.parametrize("size", [1, 1000])
def test_a_whole_answer_that_comes_once_more_must_be_the_same(size):
    splice = Splice(SAID, is_whole=True)
    text = SAID + REST

    assert "".join(splice.feed(text[i : i + size]) for i in range(0, len(text), size)) + splice.end() == REST
    with pytest.raises(ValueError, match="another answer"):
        Splice(SAID, is_whole=True).feed("The slow")
    with pytest.raises(ValueError, match="another answer"):
        short = Splice(SAID, is_whole=True)
        short.feed(SAID[:9])
        short.end()


def test_what_is_no_echo_waits_for_nothing():
    assert Splice(SAID).feed("d") == "d"
