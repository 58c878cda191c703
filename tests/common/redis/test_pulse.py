from pathlib import Path

from structlog.testing import capture_logs

from common.redis.client import connect
from common.redis.pulse import Pulse


async def test_a_redis_that_is_away_at_the_start_is_logged_once_with_what_to_do(tmp_path: Path):
    redis = connect(f"unix://{tmp_path}/nobody.sock")
    pulse = Pulse(redis, interval_s=3600)

    with capture_logs() as logs:
        await pulse.start()
        await pulse.beat()
        await pulse.stop()
    await redis.aclose()

    (line,) = logs
    assert line["event"] == "redis_away"
    assert "SLUICE_REDIS_URL" in line["mend"]
