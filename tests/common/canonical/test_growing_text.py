"""Texts and answers that come in very many pieces: they cost their size, not its square, and not ten times as much room."""

import tracemalloc

from common.canonical.events import ReasoningDelta, RefusalDelta, TextDelta, ToolCallDelta, ToolCallStarted
from common.canonical.growing_text import GrowingText
from common.canonical.reply import ReplyBuilder, fold

PIECES = 400_000  # Copied anew with each piece, texts of this length would take minutes.


def test_a_text_is_its_pieces_in_order():
    text = GrowingText()
    for number in range(3_000):
        text.add(f"{number} ")

    assert str(text) == str(text) == "".join(f"{number} " for number in range(3_000))
    assert str(GrowingText()) == ""


def test_one_piece_is_not_copied():
    text, piece = GrowingText(), "x" * 1000
    text.add(piece)

    assert str(text) is piece


def test_an_answer_of_very_many_pieces_takes_the_time_of_its_size():
    pieces = [f"piece {number % 100:02} of twenty." for number in range(100)] * (PIECES // 100)
    whole = "".join(pieces)
    events = [ReasoningDelta(piece) for piece in pieces]
    events += [TextDelta(piece) for piece in pieces]
    events += [RefusalDelta(piece) for piece in pieces]
    events += [ToolCallStarted(0, "a", "f"), *(ToolCallDelta(0, piece) for piece in pieces)]

    choice = fold(events).choices[0]

    assert [block.text for block in choice.reasoning] == [whole]
    assert (choice.text, choice.refusal, choice.tool_calls[0].arguments) == (whole, whole, whole)


def test_an_answer_that_is_gathered_takes_little_more_room_than_its_text():
    tracemalloc.start()
    try:
        folded = ReplyBuilder()
        for number in range(PIECES):
            folded.add(TextDelta(f"{number:06}"))
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert held < 2 * PIECES * 6
