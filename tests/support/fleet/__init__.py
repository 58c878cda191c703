"""A Sluice of real processes, each as in production, and what a test asks it with. Tests import from here.

    with fleet(tmp_path, apis=2, workers=2, SLUICE_LEASE_S="2") as found:
        answer = found.post(CHAT, body_of(CHAT, "demo-n5-d0"))

What starts what, in this order:

1. ``fleet`` starts a Redis; ``fleet_on`` takes one that the test has.
2. ``Fleet`` starts the demo provider: the upstream, on every wire.
3. ``Fleet.start`` starts APIs and workers. None waits for another; it returns when each says that it is ready.
4. The test; it may start more, and send signals to any.
5. At the end APIs, workers and the demo provider are told to stop and waited for, then Redis.

``process`` has one class for each kind of process, ``fleet`` what they are together, ``asking`` the requests of the two
dialects that most tests speak, ``raw_client`` a client down to its socket, ``waiting`` how long anything is waited for.
"""

from tests.support.fleet.asking import (
    CHAT,
    DIALECTS,
    FAMILY_OF,
    KEY,
    MESSAGES,
    OTHER_KEY,
    PATH_OF,
    SseEvent,
    body_of,
    headers_of,
    sse_events,
)
from tests.support.fleet.fleet import QUICK_LEASE, Fleet, fleet, fleet_on
from tests.support.fleet.process import ROOT, Api, DemoProvider, Process, Worker
from tests.support.fleet.raw_client import RawClient
from tests.support.fleet.waiting import WAIT_S, is_ok, until

__all__ = [
    "CHAT",
    "DIALECTS",
    "FAMILY_OF",
    "KEY",
    "MESSAGES",
    "OTHER_KEY",
    "PATH_OF",
    "QUICK_LEASE",
    "ROOT",
    "WAIT_S",
    "Api",
    "DemoProvider",
    "Fleet",
    "Process",
    "RawClient",
    "SseEvent",
    "Worker",
    "body_of",
    "fleet",
    "fleet_on",
    "headers_of",
    "is_ok",
    "sse_events",
    "until",
]
