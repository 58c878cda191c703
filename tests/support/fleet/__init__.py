"""A Sluice of real processes, each as in production, and the functions with which tests use it. Tests import from here.

    with fleet(tmp_path, apis=2, workers=2, SLUICE_LEASE_S="2") as gateway:
        answer = gateway.post(CHAT, body_of(CHAT, "demo-n5-d0"))

The order in which everything starts:

1. ``fleet`` starts a Redis; ``fleet_on`` uses one that the test has started.
2. ``Fleet`` starts the demo provider, which is the upstream on every wire.
3. ``Fleet.start`` starts APIs and workers at the same time, and returns when all of them are ready.
4. The test runs. It may start more processes, and send signals to any of them.
5. At the end the APIs, the workers and the demo provider are stopped, then Redis.

``starting`` starts a process: by fork, unless the test gives ``start=execute``. ``process`` has one class for each kind, and
``fleet`` combines them. ``requests`` has the requests of the two
dialects that most tests use, ``raw_client`` a client on a bare socket, ``waiting`` the time limits.
"""

from tests.support.fleet.fleet import QUICK_LEASE, Fleet, fleet, fleet_on
from tests.support.fleet.process import Api, DemoProvider, Process, Worker
from tests.support.fleet.raw_client import RawClient
from tests.support.fleet.requests import (
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
from tests.support.fleet.starting import ROOT, Start, execute, fork
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
    "Start",
    "Worker",
    "body_of",
    "execute",
    "fleet",
    "fleet_on",
    "fork",
    "headers_of",
    "is_ok",
    "sse_events",
    "until",
]
