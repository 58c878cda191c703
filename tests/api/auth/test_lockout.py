from api.auth.lockout import ADDRESSES_MAX, Lockout

ADDRESS = "192.0.2.1"


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def make_lockout(most: int = 2) -> tuple[Lockout, Clock]:
    clock = Clock()
    return Lockout(most, 30, clock), clock


def test_one_more_than_may_be_in_a_minute_blocks_for_a_while():
    lockout, clock = make_lockout()
    said = []
    for _ in range(3):
        lockout.record_refusal(ADDRESS)
        said.append(lockout.remaining_s(ADDRESS))

    assert said == [0, 0, 30]
    clock.now += 29
    assert lockout.remaining_s(ADDRESS) == 1
    clock.now += 1
    assert lockout.remaining_s(ADDRESS) == 0


def test_refusals_far_apart_block_nobody():
    lockout, clock = make_lockout()
    for _ in range(10):
        lockout.record_refusal(ADDRESS)
        clock.now += 31

    assert lockout.remaining_s(ADDRESS) == 0


def test_after_the_block_the_count_begins_anew():
    lockout, clock = make_lockout()
    for _ in range(3):
        lockout.record_refusal(ADDRESS)
    clock.now += 30
    lockout.record_refusal(ADDRESS)

    assert lockout.remaining_s(ADDRESS) == 0


def test_where_none_are_too_many_nobody_is_blocked():
    lockout, _ = make_lockout(0)
    for _ in range(1000):
        lockout.record_refusal(ADDRESS)

    assert lockout.remaining_s(ADDRESS) == 0


def test_memory_is_bounded_however_many_addresses_there_are():
    lockout, _ = make_lockout(1)
    for number in range(ADDRESSES_MAX + 100):
        lockout.record_refusal(str(number))
        lockout.record_refusal(str(number))
    for number in range(ADDRESSES_MAX + 100):
        lockout.record_refusal(f"other {number}")

    assert [len(each) for each in (lockout._counts, lockout._locked_until)] == [ADDRESSES_MAX] * 2
