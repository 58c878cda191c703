"""Who is sent away with many others comes back at a moment of its own; who goes on reading elsewhere leaves in waves."""

import math

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from api.server.draining import SHARE_OF_GRACE, WAVE_MIN, WAVE_S, waves
from api.server.http_errors import restarting
from api.server.retry_after import retry_after_s, retry_ms
from api.server.store_errors import LATE_S, redis_failed
from common.canonical.errors import StoreRefused, StoreUnavailable
from common.redis.errors import NoConnectionFree, as_unavailable


def test_moments_are_spread_over_seconds():
    waits = [retry_ms() for _ in range(2000)]

    assert min(waits) >= 1000
    assert max(waits) <= 5000
    fullest = max(sum(1 for wait in waits if at <= wait < at + 250) for at in range(1000, 5000, 250))
    assert fullest < 3 * len(waits) / 16
    assert {math.ceil(retry_after_s()) for _ in range(200)} == {1, 2, 3, 4, 5}
    assert len({restarting().retry_after_s for _ in range(200)}) > 1


@pytest.mark.parametrize("within_s", [0.0, 1e-9, 0.3, 30.0])
def test_nobody_is_told_to_come_back_at_once(within_s):
    assert {math.ceil(retry_after_s(within_s)) for _ in range(200)} <= set(range(1, 31))


@pytest.mark.parametrize("count", [0, 1, WAVE_MIN, WAVE_MIN + 1, 3_000, 100_000])
@pytest.mark.parametrize("within_s", [0, 0.3, 1, 29, 600])
def test_all_are_ended_once_well_within_the_grace(count, within_s):
    found = waves(range(count), within_s)

    assert [each for wave in found for each in wave] == list(range(count))
    assert (len(found) - 1) * WAVE_S <= within_s * SHARE_OF_GRACE


def test_few_are_ended_at_once_and_many_no_faster_than_others_can_take_them_on():
    assert len(waves(range(WAVE_MIN), 29)) == 1
    assert {len(wave) for wave in waves(range(3_000), 29)} == {WAVE_MIN}


class Well:
    is_up = True


@pytest.fixture
def late(monkeypatch):
    class Lag:
        worst_s = 2 * LATE_S

    monkeypatch.setattr("api.server.store_errors.loop_lag", Lag)


def test_a_late_process_with_a_redis_that_is_well_blames_itself(late):
    failed = redis_failed(StoreUnavailable("no confirmation of a subscription"), Well()).failed

    assert (failed.kind, failed.code) == ("overloaded", "overloaded")
    assert 1 <= failed.retry_after_s <= 5
    assert f"{failed.retry_after_s} second" in failed.message


def test_a_redis_that_refuses_or_is_away_is_named_however_late_the_process_is(late):
    away = Well()
    away.is_up = False

    assert redis_failed(StoreRefused("OOM"), Well()).failed.code == "store_unavailable"
    assert redis_failed(StoreUnavailable(), away).failed.code == "store_unavailable"


def test_a_process_that_is_out_of_connections_blames_itself():
    full = as_unavailable(RedisConnectionError("Too many connections"))

    assert isinstance(full, NoConnectionFree)
    assert redis_failed(full, Well()).failed.code == "overloaded"
