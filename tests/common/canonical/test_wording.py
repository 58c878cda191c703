import pytest

from common.canonical.wording import counted, try_again


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 seconds"), (1, "1 second"), (1.0, "1 second"), (1.5, "1.5 seconds"), (10**6, "1000000 seconds")]
)
def test_one_thing_is_named_in_the_singular(number: float, text: str):
    assert counted(number, "seconds") == text


@pytest.mark.parametrize(("wait_s", "text"), [(0.2, "1 second"), (1, "1 second"), (1.1, "2 seconds"), (60, "60 seconds")])
def test_a_wait_is_in_the_whole_seconds_of_the_header(wait_s: float, text: str):
    assert try_again(wait_s) == f"Try again in {text}."
