import pytest

from common.canonical.errors import ErrorKind, GatewayError
from common.channel.base import Cursor, FrameId


@pytest.mark.parametrize("text", ["1-2.3", "999999999-0.1", "12-999999999999.999999999"])
def test_a_cursor_is_read_as_it_was_written(text: str) -> None:
    assert str(Cursor.parse(text)) == text


def test_a_cursor_is_a_frame_and_a_place_in_it() -> None:
    assert Cursor.parse("12-3.4") == Cursor(FrameId(12, 3), 4)


@pytest.mark.parametrize("text", ["", "1", "1-2", "0-2.3", "1-2.3 ", "-1-2.3", "1-2.x", "1-2.3.4", "1234567890-1.1"])
def test_another_text_is_refused_as_a_bad_header(text: str) -> None:
    with pytest.raises(GatewayError, match="Leave the header out") as caught:
        Cursor.parse(text)

    failed = caught.value.failed
    assert (failed.kind, failed.code, failed.param) == (ErrorKind.INVALID_REQUEST, "invalid_cursor", "last-event-id")
