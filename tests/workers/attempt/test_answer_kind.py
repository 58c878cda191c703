"""Is an answer taken for what it is?"""

import pytest

from workers.attempt.answer_kind import is_stream

SSE, JSON, TEXT, NONE = "text/event-stream; charset=utf-8", "application/json", "text/plain", ""


@pytest.mark.parametrize("content_type", [SSE, JSON, TEXT, NONE, "application/x-ndjson", "text/html"])
@pytest.mark.parametrize("beginning", [b"data: {}", b"data:{}", b"event: x", b"id: 1", b": comment", b"retry: 1"])
@pytest.mark.parametrize("is_asked", [True, False])
def test_what_begins_as_an_event_is_a_stream(content_type, beginning, is_asked):
    assert is_stream(content_type, beginning, is_asked=is_asked)


@pytest.mark.parametrize("content_type", [SSE, JSON, TEXT, NONE, "application/x-ndjson", "text/html"])
@pytest.mark.parametrize("beginning", [b'{"error"', b"{\n", b'[{"candidates"', b"<html>", b"<!DOCTYPE html>"])
@pytest.mark.parametrize("is_asked", [True, False])
def test_what_begins_as_json_or_a_page_is_whole(content_type, beginning, is_asked):
    assert not is_stream(content_type, beginning, is_asked=is_asked)


@pytest.mark.parametrize("beginning", [b"", b"Service unavailable", b"data", b"database down"])
def test_where_the_bytes_say_nothing_the_content_type_does_and_else_the_request(beginning):
    assert [is_stream(SSE, beginning, is_asked=asked) for asked in (True, False)] == [True, True]
    assert [is_stream(JSON, beginning, is_asked=asked) for asked in (True, False)] == [False, False]
    assert [is_stream(TEXT, beginning, is_asked=asked) for asked in (True, False)] == [True, False]
    assert [is_stream(NONE, beginning, is_asked=asked) for asked in (True, False)] == [True, False]
