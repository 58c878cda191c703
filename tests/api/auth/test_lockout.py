from api.auth.lockout import ADDRESSES_MAX, Refusals

ADDRESS = "192.0.2.1"


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def refusals(most: int = 2) -> tuple[Refusals, Clock]:
    clock = Clock()
    return Refusals(most, 30, clock), clock


def test_one_more_than_may_be_in_a_minute_blocks_for_a_while():
    found, clock = refusals()
    said = []
    for _ in range(3):
        found.note(ADDRESS)
        said.append(found.blocked_s(ADDRESS))

    assert said == [0, 0, 30]
    clock.now += 29
    assert found.blocked_s(ADDRESS) == 1
    clock.now += 1
    assert found.blocked_s(ADDRESS) == 0


def test_refusals_far_apart_block_nobody():
    found, clock = refusals()
    for _ in range(10):
        found.note(ADDRESS)
        clock.now += 31

    assert found.blocked_s(ADDRESS) == 0


def test_after_the_block_the_count_begins_anew():
    found, clock = refusals()
    for _ in range(3):
        found.note(ADDRESS)
    clock.now += 30
    found.note(ADDRESS)

    assert found.blocked_s(ADDRESS) == 0


def test_where_none_are_too_many_nobody_is_blocked():
    found, _ = refusals(0)
    for _ in range(1000):
        found.note(ADDRESS)

    assert found.blocked_s(ADDRESS) == 0


def test_memory_is_bounded_however_many_addresses_there_are():
    found, _ = refusals(1)
    for number in range(ADDRESSES_MAX + 100):
        found.note(str(number))
        found.note(str(number))
    for number in range(ADDRESSES_MAX + 100):
        found.note(f"other {number}")

    assert [len(each) for each in (found._counts, found._blocked)] == [ADDRESSES_MAX] * 2
