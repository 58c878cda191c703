"""JSON is looked through for what it says, however it is written, and stays JSON: in one piece, and as it streams."""

import json
from itertools import pairwise
from typing import Any

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from common.guardrails.json_filter import JsonFilter
from common.guardrails.json_values import JsonTexts, number_text
from common.guardrails.pii import PiiFinder, redact

MAIL, CARD, PHONE = "jane@example.com", "4111111111111111", "+1 415 555 2671"


def redacted(value: Any) -> Any:
    found = JsonTexts(value)
    found.read()
    found.replace([redact(text).text for text in found.texts])
    return found.value


def streamed(text: str, *cuts: int) -> str:
    filtered = JsonFilter(lambda: [PiiFinder()])
    ends = pairwise([0, *sorted(cuts), len(text)])
    said = "".join([filtered.feed(text[start:end]) for start, end in ends])
    return said + filtered.flush()


def in_json(levels: int, text: str) -> str:
    for _ in range(levels):
        text = json.dumps({"in": text})
    return text


@pytest.mark.parametrize(
    ("value", "left"),
    [
        ({"card": int(CARD)}, {"card": "[CARD]"}),
        ({"card": float(CARD)}, {"card": "[CARD]"}),
        ({"card": -int(CARD)}, {"card": "-[CARD]"}),
        ([int(CARD), 5500005555555559, 7], ["[CARD]", "[CARD]", 7]),
        ({MAIL: {"n": 1}}, {"[EMAIL]": {"n": 1}}),
        ({"a": 1, MAIL: 2, "john@example.com": 3, "z": 4}, {"a": 1, "[EMAIL]": 2, "[EMAIL] 2": 3, "z": 4}),
        ({"deep": [[{"x": {"y": [MAIL]}}]]}, {"deep": [[{"x": {"y": ["[EMAIL]"]}}]]}),
        ({"n": [True, None, 1.5, 12, 10**30]}, {"n": [True, None, 1.5, 12, 10**30]}),
    ],
)
def test_strings_numbers_and_names_are_all_read(value: Any, left: Any):
    assert redacted(json.loads(json.dumps(value))) == left


@pytest.mark.parametrize("levels", [1, 2, 3])
@pytest.mark.parametrize(
    ("value", "left"),
    [
        ({"phone": "+1\u00a0415\u00a0555\u00a02671"}, {"phone": "[PHONE]"}),
        ({"mail": "ｊａｎｅ＠ｅｘａｍｐｌｅ．ｃｏｍ"}, {"mail": "[EMAIL]"}),
        ({"card": int(CARD), "id": 2**70}, {"card": "[CARD]", "id": 2**70}),
        ({MAIL: 1}, {"[EMAIL]": 1}),
        ([int(CARD)], ["[CARD]"]),
    ],
)
def test_json_in_a_string_is_read_at_any_level(levels: int, value: Any, left: Any):
    text = in_json(levels, json.dumps(value))

    found = redacted({"text": text})["text"]

    for said in (found, streamed(text)):
        inner = said
        for _ in range(levels):
            inner = json.loads(inner)["in"]
        assert json.loads(inner) == left


@pytest.mark.parametrize(
    "text",
    ["[x] mail jane@example.com", "{jane@example.com}", '{"a": "\\x", "b": "jane@example.com"}', '{"cut": "jane@example.com',
     "[415 555 2671", "[4111 1111 1111 1111]", '{"a": 1} and jane@example.com', '{"a": 1 "jane@example.com"}'],
)  # fmt: skip
def test_what_is_no_json_is_text(text: str):
    for cut in range(len(text)):
        said = streamed(text, cut)

        assert said == redact(text).text
        assert "jane" not in said


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=6)
    | st.sampled_from([MAIL, PHONE, CARD, int(CARD), float(CARD), "电话" + PHONE, "\U00010000 é", '{"a":' + CARD + "}"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4) | st.just(MAIL), inner, max_size=3),
    max_leaves=8,
).filter(lambda value: isinstance(value, dict | list))


@settings(max_examples=300)
@given(JSON, st.booleans(), st.lists(st.integers(0, 400), max_size=6))
@example({"a": "\U00010000" + MAIL}, True, [7, 11])
def test_a_stream_of_json_is_redacted_as_the_whole_is(value: Any, is_ascii: bool, cuts: list[int]):
    text = json.dumps(value, ensure_ascii=is_ascii, indent=1 if is_ascii else None)
    whole = redacted(orjson.loads(text))

    said = json.loads(streamed(text, *(cut % (len(text) + 1) for cut in cuts)))

    # Two members of one name are told apart where the whole is there, and not in a stream.
    if json.dumps(value).count(MAIL) < 2:
        assert said == whole
    assert not [secret for secret in (MAIL, CARD, PHONE) if secret in json.dumps(said, ensure_ascii=False)]


@pytest.mark.parametrize("number", [CARD, CARD + ".0", "4.111111111111111e15", "-" + CARD])
@pytest.mark.parametrize("around", ['{"card": %s}', '{"cards":[1, %s ,2]}', "[%s]", '{"x":{"y":%s }}'])
def test_a_number_that_is_replaced_leaves_json_wherever_it_is_cut(number: str, around: str):
    text = around % number
    for cut in range(len(text)):
        assert json.loads(streamed(text, cut)) == redacted(json.loads(text))


def test_what_holds_nothing_passes_as_it_was_said():
    text = '{"city": "Zürich", "n": [1, 2.50, -3e2, true, null], "q": "a \\"b\\"\\n"}'

    assert streamed(text, 3, 20, 33) == text


def test_what_is_said_already_is_passed_on_before_the_end():
    filtered = JsonFilter(lambda: [PiiFinder()])

    assert filtered.feed('{"path": "a.txt", "text": "the water ') == '{"path": "a.txt", "text": "the water '
    assert filtered.feed("ja") == ""
    assert filtered.feed('ne@example.com", "n": 12') == '[EMAIL]", "n": '
    assert filtered.feed("}") == "12}"


def test_a_text_of_json_takes_time_as_it_is_long():
    text = json.dumps({"rows": [{"n": n, "s": "x y"} for n in range(30_000)]})

    assert streamed(text) == text


@pytest.mark.parametrize(("number", "text"), [(4.111111111111111e15, CARD), (1.5, "1.5"), (7, "7"), (2**70, str(2**70))])
def test_a_number_is_written_as_a_person_would(number: float, text: str):
    assert number_text(number) == text
