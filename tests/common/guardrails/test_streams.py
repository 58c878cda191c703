"""A filtered stream says what the filtered whole says, wherever it is cut, and holds back no more than it must."""

import re

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from common.guardrails import pii
from common.guardrails.expressions import compile_patterns
from common.guardrails.finding import MATCH_CHARS_MAX
from common.guardrails.folding import fold
from common.guardrails.holding import TextFilter
from common.guardrails.patterns import PatternFinder
from common.guardrails.pii import PiiFinder, redact

SECRETS = [
    "我的邮箱是jane@example.com，谢谢",
    "메일은 jane@example.com으로",
    "ｊａｎｅ＠ｅｘａｍｐｌｅ．ｃｏｍ",
    "电话＋８６１３９１２３４５６７８",
    "jane@例子.公司",
    r"jane\u0040example.com",
    '"card": 4111111111111111',
    "john.smith@example.com",
    "+1 (415) 555-2671",
    "415-555-2671",
    "4111 1111 1111 1111",
    "378282246310005",
    "sk-ant-api03-abcdefghijklmnopqrstuvwxyz",
    "AKIAIOSFODNN7EXAMPLE",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N",
    "-----BEGIN RSA PRIVATE KEY-----\nMIIEowIBAAKCAQEAx\nabcd+/==\n-----END RSA PRIVATE KEY-----",
]
PROSE = [
    "the ",
    "water",
    " ",
    ". ",
    "\n",
    "-",
    "--",
    "@",
    "+",
    "(",
    "4",
    "41",
    "1111",
    " 12",
    "a.b",
    "sk-",
    "ey",
    "Jö",
    "🌊",
    "水",
]
PATTERNS = [
    r"\bfoo\b",
    r"a.*?z",
    r"(ab|a)\1c",
    r"-\bfoo",
    r"foo\B",
    r"foo(?!bar)",
    r"foo(?=bar)",
    r"(?<=x )\d+",
    r"key\s*=\s*\w+",
    r"\Aab",
    r"(?m)^zz$",
    r"a(b*c)?",
    r"[ab]{3,5}z",
    r"(?i)secret",
    r"ab+c|x",
    r"(?x) ba r  # in two pieces",
    r"bar\Z",
]
PIECES = [
    "foo",
    "bar",
    "a",
    "b",
    "ab",
    "c",
    "z",
    "zz",
    "x ",
    "12",
    "key",
    "=",
    " ",
    "-",
    "\n",
    "secret",
    "SEC",
    "RET",
    "fo",
    "o",
]


def cut(text: str, sizes: list[int]) -> list[str]:
    """The text in pieces of these sizes, over and over."""
    pieces, start, turn = [], 0, 0
    while start < len(text):
        pieces.append(text[start : start + sizes[turn % len(sizes)]])
        start, turn = start + len(pieces[-1]), turn + 1
    return pieces


def streamed(finder, pieces: list[str], *, ends: bool = False) -> str:
    text = TextFilter([finder], ends=ends)
    return "".join([text.feed(piece) for piece in pieces]) + text.flush()


SIZES = st.lists(st.integers(1, 12), min_size=1, max_size=6)


@settings(max_examples=400)
@given(st.lists(st.sampled_from(SECRETS + PROSE * 2), max_size=25).map("".join), SIZES)
def test_a_stream_is_redacted_as_the_whole_is(text, sizes):
    assert streamed(PiiFinder(), cut(text, sizes)) == redact(text).text


@settings(max_examples=200)
@given(st.lists(st.sampled_from(SECRETS + PROSE * 2), max_size=15).map("".join), SIZES)
def test_what_is_held_could_be_the_beginning_of_a_match(text, sizes):
    """By the engine's own word for the whole of what is held, which is another question than the filter asks."""
    watched, come, said = TextFilter([PiiFinder()]), "", 0
    for piece in cut(text, sizes):
        come += piece
        said += len(watched.feed(piece))
        held = watched.held_chars
        if held:
            assert pii.FULL_MATCH.fullmatch(fold(come), len(come) - held, partial=True), (come, held)


@pytest.mark.parametrize("secret", SECRETS)
def test_a_secret_cut_at_any_place_never_leaks(secret):
    text = f"so {secret}, then"
    for first in range(1, len(text)):
        watched = TextFilter([PiiFinder()])
        said = watched.feed(text[:first])
        assert redact(text).text.startswith(said)
        assert (said + watched.feed(text[first:]) + watched.flush()) == redact(text).text


def test_text_that_cannot_be_part_of_a_match_is_passed_on_at_once():
    watched = TextFilter([PatternFinder(compile_patterns(["secret"]), is_closed=True)], ends=True)

    assert [watched.feed(piece) for piece in ["All ", "is ", "se", "t. A s", "ecre", "cy"]] == [
        "All ",
        "is ",
        "",
        "set. A ",
        "",
        "secrecy",
    ]


@pytest.mark.parametrize("source", PATTERNS)
@settings(max_examples=150)
@given(text=st.lists(st.sampled_from(PIECES), max_size=14).map("".join), sizes=SIZES)
def test_a_stream_ends_where_the_whole_has_its_first_match(source, text, sizes):
    """Judged by the standard library's engine, which has no part in the filter."""
    match = re.search(source, text)

    assert (
        streamed(PatternFinder(compile_patterns([source]), is_closed=True), cut(text, sizes), ends=True)
        == text[: match.start() if match else None]
    )


@settings(max_examples=200)
@given(
    st.lists(st.sampled_from(PATTERNS), min_size=2, max_size=5),
    st.lists(st.sampled_from(PIECES), max_size=14).map("".join),
    SIZES,
)
def test_several_patterns_end_it_at_the_first_match_of_any(sources, text, sizes):
    starts = [match.start() for source in sources if (match := re.search(source, text))]

    said = streamed(PatternFinder(compile_patterns(sources), is_closed=True), cut(text, sizes), ends=True)

    assert said == text[: min(starts, default=None)]


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_a_match_without_end_is_found_at_the_bound(size):
    text = "say key=" + "x" * (3 * MATCH_CHARS_MAX)
    watched = TextFilter([PatternFinder(compile_patterns(["key=.*"]), is_closed=True)], ends=True)
    held = 0
    for piece in cut(text, [size]):
        assert "key" not in watched.feed(piece)
        held = max(held, watched.held_chars)

    assert watched.blocking_match
    assert held <= MATCH_CHARS_MAX + size


def test_a_beginning_that_grows_past_the_bound_is_given_up():
    text = "<" + "x" * (2 * MATCH_CHARS_MAX) + ">"
    watched = TextFilter([PatternFinder(compile_patterns(["<[^>]*>"]), is_closed=True)], ends=True)

    said = "".join([watched.feed(piece) for piece in cut(text, [100])]) + watched.flush()

    assert said == text
    assert not watched.blocking_match


@settings(max_examples=200)
@given(
    st.lists(st.sampled_from(PIECES), max_size=10).map("".join),
    st.lists(st.sampled_from(PIECES), max_size=6).map("".join),
    SIZES,
)
def test_a_match_across_a_takeover_is_found(said, rest, sizes):
    """Nothing of it that was not out yet gets out."""
    source = "foo[ab]*z|key *="
    ended = re.search(source, said)
    if ended:
        said = said[: ended.start()]
    match = re.search(source, said + rest)
    watched = TextFilter([PatternFinder(compile_patterns([source]), is_closed=True)], ends=True)
    watched.resume(said)

    more = "".join([watched.feed(piece) for piece in cut(rest, sizes)]) + watched.flush()

    assert more == (rest if match is None else rest[: max(0, match.start() - len(said))])
    assert bool(watched.blocking_match) == bool(match)


def test_the_rest_of_a_secret_that_began_before_a_takeover_is_replaced():
    watched = TextFilter([PiiFinder()])
    watched.resume("My card is 4111 1111 1")

    assert watched.feed("111 1111, and my mail a@b") + watched.feed(".com.") + watched.flush() == "[CARD], and my mail [EMAIL]."


def test_what_was_found_before_a_takeover_is_not_found_again():
    watched = TextFilter([PatternFinder(compile_patterns(["secret"]), is_closed=False)])
    watched.resume("a secret, and ")

    watched.feed("no more")

    assert not watched.counts


def test_a_long_text_before_a_takeover_does_not_begin_anew():
    watched = TextFilter([PatternFinder(compile_patterns([r"\Aab"]), is_closed=True)], ends=True)
    watched.resume("ab" * MATCH_CHARS_MAX)

    assert watched.feed("ab") + watched.flush() == "ab"


def test_a_search_that_runs_away_ends_a_closed_stream_and_leaves_an_open_one_alone():
    evil, text = compile_patterns(["(a|aa)+$"]), "a" * 60 + "b"

    closed, open_ = PatternFinder(evil, is_closed=True), PatternFinder(evil, is_closed=False)

    assert streamed(closed, [text], ends=True) == ""
    assert streamed(open_, [text, text]) == text * 2
    assert closed.slow == open_.slow == [1]


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("(", "missing"),
        ("a*", "empty"),
        ("(?:foo){e<=1}", "brace"),
        (r"\p{L}", "escape"),
        ("x" * 1001, "characters"),
        ("[a--b]", "set difference"),
        ("(?R)", "extension"),
    ],
)
def test_what_is_no_usable_pattern_is_refused_by_its_number(source, reason):
    with pytest.raises(ValueError, match=f"pattern 2.*{reason}"):
        compile_patterns(["fine", source])


def test_too_many_patterns_are_refused():
    with pytest.raises(ValueError, match="at most 50"):
        compile_patterns(["a"] * 51)


def test_the_engine_says_what_could_grow_even_where_a_later_match_is_whole():
    """The filter relies on it: with what can never come behind the pattern, only the beginning of a match is left to find."""
    begun = regex.compile("(?:a.*z|b)\ud800")

    assert begun.search("a b", partial=True).start() == 0
