import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import sse
from common.sse import SseCutter, encode_event, first_events, last_block, last_boundary, read_block, split_blocks

STREAM = b"data: one\n\nevent: ping\ndata: {}\n\ndata: three\n\n"
BLOCKS = [b"data: one\n\n", b"event: ping\ndata: {}\n\n", b"data: three\n\n"]


def cut(stream: bytes, size: int) -> list[bytes]:
    cutter = SseCutter(bytes_max=10_000)
    return [block for at in range(0, len(stream), size) for block in cutter.feed(stream[at : at + size])]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
def test_blocks_are_the_same_however_the_bytes_arrive_and_lines_end(size, line_end):
    stream = STREAM.replace(b"\n", line_end)
    if line_end == b"\r":
        stream += b"data: x"  # A closing CR may be half a CRLF: the next byte tells.

    assert cut(stream, size) == BLOCKS


@pytest.mark.parametrize("size", [1, 5, 1000])
def test_comments_ids_retries_and_blocks_without_data_are_dropped(size):
    stream = b": hello\n\nid: 7\nretry: 5\ndata: one\n\nevent: empty\n\n\n\nevent: ping\n: again\ndata: {}\n\n\ndata: three\n\n"

    assert cut(stream, size) == BLOCKS


@pytest.mark.parametrize("size", [1, 4, 1000])
def test_a_byte_order_mark_at_the_start_is_dropped(size):
    assert cut(b"\xef\xbb\xbf" + STREAM, size) == BLOCKS


@pytest.mark.parametrize("size", [1, 3, 4, 11, 1000])
@pytest.mark.parametrize("before", [b"", b"data: one\n\n"])
def test_a_byte_order_mark_anywhere_else_is_a_part_of_its_line(size, before):
    stream = before + b"\xef\xbb\xbf\xef\xbb\xbfdata: odd\n\ndata: three\n\n"

    assert cut(stream, size) == [*([before] if before else []), b"data: three\n\n"]


def test_an_unfinished_event_is_left_over():
    cutter = SseCutter(bytes_max=100)

    assert cutter.feed(b"data: one\n\ndata: tw") == [b"data: one\n\n"]
    assert cutter.end() == b"data: tw"
    assert cutter.end() == b""


@pytest.mark.parametrize("chunk", [b"x" * 60, b"data: x\n" * 8])
def test_an_endless_event_is_refused(chunk):
    cutter = SseCutter(bytes_max=100)
    cutter.feed(chunk)

    with pytest.raises(ValueError, match="more than 100 bytes"):
        cutter.feed(chunk)


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("line", [b"data: " + b"x" * 20_000, b"data: x", b": comment"])
def test_a_large_event_in_tiny_reads_is_gone_through_a_few_times_at_most(monkeypatch, line, line_end):
    gone_through = []
    cut = sse.cut
    monkeypatch.setattr(sse, "cut", lambda run: (gone_through.append(len(run)), cut(run))[1])
    find = sse.last_boundary
    monkeypatch.setattr(sse, "last_boundary", lambda text: (gone_through.append(len(text)), find(text))[1])
    stream = (line + line_end) * (20_000 // len(line)) + b"data: end" + line_end * 2 + b"data: one\n\n"
    cutter = SseCutter(bytes_max=100_000)

    blocks = [block for at in range(0, len(stream), 3) for block in cutter.feed(stream[at : at + 3])]

    assert (len(blocks), blocks[-1]) == (2, b"data: one\n\n")
    assert sum(gone_through) <= 4 * len(stream)  # Once to find the end, once to cut; twice where a read ended in a line end.


@given(
    st.binary(max_size=300) | st.lists(st.sampled_from([b"\r", b"\n", b"data:x", b"event", b":"])).map(b"".join),
    st.lists(st.integers(1, 50), max_size=20),
)
def test_any_bytes_cut_anywhere_give_the_blocks_of_the_whole(stream, sizes):
    whole = SseCutter(10_000)
    expected = whole.feed(stream)
    pieces, cutter, at = [], SseCutter(10_000), 0
    for size in [*sizes, len(stream)]:
        pieces += cutter.feed(stream[at : at + size])
        at += size

    assert pieces == expected
    assert all(block.endswith(b"\n\n") and b"\r" not in block for block in pieces)


@given(st.text().map(lambda text: text.replace("\n", " ").replace("\r", " ").encode()))
def test_what_is_encoded_reads_back(data):
    for event in (None, "delta"):
        (block,) = SseCutter(100_000).feed(encode_event(data, event))
        assert read_block(block) == (event or "", data)


def test_several_data_lines_are_one_text():
    assert read_block(b"event: a\ndata: one\ndata:two\n\n") == ("a", b"one\ntwo")


def test_splitting_gives_the_blocks_back():
    assert split_blocks(STREAM) == BLOCKS


@pytest.mark.parametrize(
    ("run", "count", "reach"),
    [
        (b"data: 1\n\ndata: 2\n\ndata: 3\n\n", 2, 18),
        (b"data: 1\n\ndata: 2\n\n", 2, 18),
        (b"data: 1\n\n", 2, 9),
        (b"", 2, 0),
        (b"data: 1\r\n\r\ndata: 2\r\n\r\n", 1, 22),  # Cut by the letter, so all at once.
    ],
)
def test_the_first_events_reach_to_a_boundary(run: bytes, count: int, reach: int):
    assert first_events(run, count) == reach


@pytest.mark.parametrize(
    ("text", "reach"),
    [
        (b"", 0),
        (b"data: 1", 0),
        (b"data: 1\n", 0),
        (b"data: 1\n\n", 9),
        (b"data: 1\n\ndata: 2\n", 9),
        (b"data: 1\r\n\r\nd", 11),
        (b"data: 1\r\r", 0),  # The last one may be half a CRLF, and the blank line with it.
        (b"data: 1\r\rd", 9),
        (b"data: 1\n\r\nd", 10),
        (b"\r\nd", 2),
    ],
)
def test_whole_events_end_at_the_last_blank_line(text: bytes, reach: int):
    assert last_boundary(text) == reach


@pytest.mark.parametrize(
    ("run", "blocks"),
    [
        (b"data\n\n", [b"data\n\n"]),
        (b"event\ndata: 1\n\n", [b"event\ndata: 1\n\n"]),
        (b"data: 1\nid: 2\n\n", [b"data: 1\n\n"]),
        (b"dataset: 1\n\n", []),
        (b"id: 1\n\ndata: 2\n\n", [b"data: 2\n\n"]),
        (b"data: 1\n\nid: 1\n\n", [b"data: 1\n\n"]),
        (b"event: a\nid: 1\ndata: 2\n\n", [b"event: a\ndata: 2\n\n"]),
        (b"event: a\ndata: 2\n\nevent: b\n\n", [b"event: a\ndata: 2\n\n"]),
        (b"event: a\n\nevent: b\ndata: 1\n\n", [b"event: b\ndata: 1\n\n"]),
        (b"event: a\ndata: 1\ndata: 2\n\n", [b"event: a\ndata: 1\ndata: 2\n\n"]),
        (b"event: a\ndata: 1\n\ndata: 2\n\n", [b"event: a\ndata: 1\n\n", b"data: 2\n\n"]),
        (b"\n\ndata: 1\n\n", [b"data: 1\n\n"]),
        (b'{"error": {}}\n\n', [b'{"error": {}}\n\n']),
        (b'{\n"error": 1,\n"id: 2": 3}\n\n', [b'{\n"error": 1,\n"id: 2": 3}\n\n']),
        (b'{"id": 1}\n\ndata: 2\n\n', [b"data: 2\n\n"]),
        (b'data: 1\n{"error": 2}\n\n', [b"data: 1\n\n"]),
    ],
)
def test_of_a_block_its_names_and_data_stay_and_all_of_bare_errors(run: bytes, blocks: list[bytes]):
    assert sse.cut(run) == blocks


@pytest.mark.parametrize(
    ("block", "name", "data"),
    [
        (b"data: 1\n\n", "", b"1"),
        (b"data:1\n\n", "", b"1"),
        (b"data:  1\n\n", "", b" 1"),
        (b"data:\n\n", "", b""),
        (b"data\n\n", "", b""),
        (b"event: a\ndata:1\n\n", "a", b"1"),
        (b"event:a\ndata: 1\ndata\n\n", "a", b"1\n"),
        (b"event: \xff\ndata: 1\n\n", "\ufffd", b"1"),
        (b"data: event: a\n\n", "", b"event: a"),
    ],
)
def test_a_block_is_a_name_and_data(block: bytes, name: str, data: bytes):
    assert read_block(block) == (name, data)


@pytest.mark.parametrize(
    ("data", "last"),
    [(b"", b""), (b"data: 1\n\n", b"data: 1\n\n"), (b"data: 1\n\ndata: 2\n\n", b"data: 2\n\n")],
)
def test_the_last_block_is_that_of_however_many(data: bytes, last: bytes):
    assert last_block(data) == last


@pytest.mark.parametrize("size", [1, 4, 1000])
def test_an_event_may_be_as_large_as_the_bound_and_no_larger(size: int):
    event = b"data: 12345\n"
    cutter = SseCutter(bytes_max=len(event))
    for at in range(0, len(event), size):
        assert cutter.feed(event[at : at + size]) == []

    assert cutter.feed(b"\n" + event) == [event + b"\n"]
    with pytest.raises(ValueError, match="more than 12 bytes"):
        cutter.feed(b"d")


def test_what_is_left_at_the_end_is_left_once():
    cutter = SseCutter(bytes_max=100)
    cutter.feed(b"data: 1\n\ndata: 2")

    assert (cutter.end(), cutter.end()) == (b"data: 2", b"")


def test_a_byte_order_mark_in_pieces_is_dropped_and_a_second_one_is_not():
    cutter = SseCutter(bytes_max=100)
    for piece in (b"\xef", b"\xbb", b"\xbf"):
        assert cutter.gather(piece) == b""

    assert cutter.gather(b"data: 1\n\n") == b"data: 1\n\n"
    assert cutter.gather(b"\xef\xbb\xbfdata: 2\n\n") == b"\xef\xbb\xbfdata: 2\n\n"
