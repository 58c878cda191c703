"""Does a soak tell what grows from what is as it should be?"""

from dataclasses import replace

import pytest

from tests.soak.watch import Part, Sample, grown

API = Part(80, 20, 7, 205, 100_000)
WORKER = Part(124, 24, 15, 113, 200_000)
START = Sample(300, API, WORKER, 2.6, 7, ())
HALF = Sample(4_490, replace(API, rss_mb=89.8, files=87, tasks=28, series=237), replace(WORKER, rss_mb=139.8), 9.3, 2_577, ())
END = Sample(
    10_788,
    replace(API, rss_mb=90.2, files=45, tasks=37, series=237, log_bytes=3_600_000),
    replace(WORKER, rss_mb=142.7, files=52, tasks=32, log_bytes=6_600_000),
    8.6,
    2_467,
    (),
)
AFTER = Sample(10_800, replace(END.api, files=21, tasks=7), replace(END.worker, files=25, tasks=15), 2.9, 8, ())


def test_a_run_in_which_all_is_well_has_grown_nothing():
    assert grown(START, HALF, END, AFTER) == []


@pytest.mark.parametrize(
    ("what", "end", "after"),
    [
        ("worker: resident MB more in the second half", replace(END, worker=replace(END.worker, rss_mb=152.0)), AFTER),
        ("api: resident MB more than at the start", END, replace(AFTER, api=replace(AFTER.api, rss_mb=120.0))),
        ("api: tasks", END, replace(AFTER, api=replace(AFTER.api, tasks=30))),
        ("worker: files", END, replace(AFTER, worker=replace(AFTER.worker, files=180))),
        ("api: series of metrics", replace(END, api=replace(END.api, series=300)), AFTER),
        ("worker: bytes of log", replace(END, worker=replace(END.worker, log_bytes=60_000_000)), AFTER),
        ("redis: keys", END, replace(AFTER, keys=2_000)),
        ("redis: MB", END, replace(AFTER, redis_mb=40.0)),
        ("redis: keys without an expiry", END, replace(AFTER, lasting=("sluice:q:job:gen_1",))),
    ],
)
def test_what_has_grown_is_named(what, end, after):
    (found,) = grown(START, HALF, end, after)

    assert found.startswith(what)
