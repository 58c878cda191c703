"""What will happen in a run? A seed in, all clients and all faults out; pure.

The same seed gives the same clients and the same schedule. What the machine does in between is not in it: a fault that
hit a stream in one run may miss it in the next by a millisecond.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from heapq import merge

from common.dialects import DIALECTS

APIS = ("api0", "api1")
WORKERS = ("worker0", "worker1", "worker2")
REDIS = "redis"
CLIENTS_LINK = "clients-nginx"
REDIS_LINKS = tuple(f"{name}-redis" for name in (*APIS, *WORKERS))
UPSTREAM_LINKS = tuple(f"{name}-upstream" for name in WORKERS)
LINKS = (CLIENTS_LINK, *REDIS_LINKS, *UPSTREAM_LINKS)
TARGETS = ("target0", "target1", "target2")  # The deployments of each route. One of them is always well.
RESTART_S = 3.0  # A process takes about this long to be of use again.
DRAIN_S = 5.0  # The grace of a process that is told to stop.
FAILOVER_S = 15.0  # Until a Redis that was its own replica's master is a replica with all data.
# A long run has one outage of Redis that no buffer of ours is made for.
LONG_RUN_S, LONG_OUTAGE_S = 300.0, 60.0
VIEWERS_PER_S = 60  # So fast they come: these are new requests, which an API may refuse when there are too many.
# Some clients send the same request, and may get one answer: so many in the hundred who come, and at most so many at a time.
TWINS_SHARE, TWINS_MAX, TWINS_WITHIN_S = 0.05, 6, 0.2
# In the others a request names its client in fields that the cache compares.
TWINS_DIALECTS = ("openai-chat", "anthropic-messages", "unified")
# Some clients use a route. Its targets have one script each, whose length the client limits: what is known of one target's
# health is known to all of these clients.
ROUTED_SHARE, ROUTED_NUMBERS_FROM = 0.2, 500_000
ROUTES = {f"trio-{strategy}-c0": strategy for strategy in ("priority", "weighted", "least_busy", "fastest")}
TARGET_MODEL, TARGET_TOKENS, TARGET_PACE_MS = "demo-n100-d20", 100, 20
ROUTED_DIALECTS = ("openai-chat", "anthropic-messages")  # The request names its client, and the length of its answer.
TARGET_EVERY_S = 3.0
VIEWERS_PACE_MS = 5000  # 5,000 viewers read a thousand tokens a second: clients and servers share two processors.


class Manner(StrEnum):
    """How a client behaves."""

    RETURNING = "returning"  # Has ids; comes back whenever its stream breaks, as a browser would.
    PLAIN = "plain"  # Reads one stream to wherever it ends.
    WHOLE = "whole"  # Asks for no stream.
    LEAVING = "leaving"  # Goes away amid the tokens, for good.
    STOPPING = "stopping"  # Says stop amid the tokens, and reads on.
    # An EventSource that reads for as long as the run takes. It comes back when its stream has told it to, and any error
    # status would close it for good.
    VIEWER = "viewer"


@dataclass(frozen=True, slots=True)
class Ask:
    """One client. ``breaks``: after how many events it cuts its own connection, leaves, or says stop."""

    number: int
    at_s: float
    manner: Manner
    dialect: str
    provider: str
    policy: str  # The x-disconnect header; empty: none.
    tokens: int
    pace_ms: int
    first_ms: int
    trouble: str  # What goes wrong upstream before the first token.
    breaks: tuple[int, ...] = ()
    route: str = ""  # Instead of a provider's model.
    twins: int = 0  # The number of the first of those who send this same request and may share its answer; 0: nobody else does.

    @property
    def model(self) -> str:
        """The demo provider's script; its number tells the upstream calls of this client, or its twins, from all others."""
        if self.route:
            return self.route
        trouble = f"-{self.trouble}" if self.trouble else ""
        return f"demo-n{self.tokens}-d{self.pace_ms}-f{self.first_ms}{trouble}-c{self.twins or self.number}"

    @property
    def full_model(self) -> str:
        return self.route or f"{self.provider}/{self.model}"

    @property
    def takes_s(self) -> float:
        return (self.first_ms + self.tokens * self.pace_ms) / 1000


class FaultKind(StrEnum):
    KILLED = "killed"  # SIGKILL; started again after a while.
    FROZEN = "frozen"  # SIGSTOP, then SIGCONT.
    DRAINED = "drained"  # SIGTERM; started again once it has gone.
    CUT = "cut"  # A share of a link's connections is reset.
    PAUSED = "paused"  # A link carries nothing, and takes everything.
    SLOWED = "slowed"  # Every piece of data on a link is late.
    FAILOVER = "failed over"  # Redis' replica is made the master, by request.
    # What a target of a route does instead of answering.
    REFUSING = "refuses"
    RESETTING = "resets"
    FAILING = "answers 500"
    LIMITING = "answers 429"
    STALLING = "stalls"


@dataclass(frozen=True, slots=True)
class Fault:
    """``for_s`` is how long it lasts, or how long until the process is started again."""

    at_s: float
    kind: FaultKind
    target: str
    for_s: float
    share: float = 1.0

    def __str__(self) -> str:
        share = f" {self.share:.0%}" if self.kind is FaultKind.CUT else ""
        return f"{self.at_s:7.2f} s  {self.target} {self.kind}{share} for {self.for_s:.1f} s"


# Weight, kinds, targets, shortest and longest duration in seconds.
_FAULTS: tuple[tuple[int, FaultKind, tuple[str, ...], float, float], ...] = (
    (16, FaultKind.KILLED, WORKERS, 0.5, 2),
    (8, FaultKind.FROZEN, WORKERS, 1, 12),
    (7, FaultKind.DRAINED, WORKERS, 0, 1),
    (7, FaultKind.KILLED, APIS, 0.5, 2),
    (4, FaultKind.FROZEN, APIS, 0.5, 4),
    (5, FaultKind.DRAINED, APIS, 0, 1),
    (2, FaultKind.KILLED, (REDIS,), 0.2, 2),
    (2, FaultKind.DRAINED, (REDIS,), 0.2, 2),
    (3, FaultKind.FROZEN, (REDIS,), 0.5, 8),
    (1, FaultKind.FROZEN, (REDIS,), 8, 20),
    (1, FaultKind.KILLED, (REDIS,), 8, 20),
    (8, FaultKind.CUT, (CLIENTS_LINK,), 0, 0),
    (2, FaultKind.PAUSED, (CLIENTS_LINK,), 0.2, 2),
    (2, FaultKind.SLOWED, (CLIENTS_LINK,), 0.5, 3),
    (10, FaultKind.CUT, REDIS_LINKS, 0, 0),
    (8, FaultKind.PAUSED, REDIS_LINKS, 0.5, 9),
    (5, FaultKind.SLOWED, REDIS_LINKS, 0.5, 4),
    (4, FaultKind.CUT, UPSTREAM_LINKS, 0, 0),
    (3, FaultKind.PAUSED, UPSTREAM_LINKS, 0.5, 4),
    (3, FaultKind.SLOWED, UPSTREAM_LINKS, 0.5, 4),
)
# In turn. A stall is longer than the time limit of a first token in these runs.
_TARGET_FAULTS = (
    (FaultKind.REFUSING, 1.0, 8.0),
    (FaultKind.RESETTING, 1.0, 8.0),
    (FaultKind.FAILING, 1.0, 8.0),
    (FaultKind.LIMITING, 1.0, 8.0),
    (FaultKind.STALLING, 14.0, 18.0),
)
_FAILOVERS = ((4, FaultKind.FAILOVER, (REDIS,), 0.0, 0.0),)


def faults(
    seed: int, duration_s: float, every_s: float, *, has_replica: bool = False, only: str = "", after_s: float = 0.0
) -> list[Fault]:
    """Return the schedule: a fault every ``every_s`` on average. One API and one worker are always left alone.

    ``has_replica``: a server of Redis that is gone is replaced, so there are failovers, and no long outage. ``only``: the parts
    that anything befalls, by what their names begin with; "" is all. ``after_s``: until then all is well.
    """
    of_targets = target_faults(seed, duration_s) if only in ("", "target") else []
    if only == "target":
        return of_targets
    chance = random.Random(f"faults {seed}")
    rows = _FAULTS + _FAILOVERS if has_replica else _FAULTS
    rows = (
        tuple(row for row in rows if all(target.startswith(only) and "-" not in target for target in row[2])) if only else rows
    )
    busy_until = dict.fromkeys((*APIS, *WORKERS, REDIS, *LINKS), 0.0)
    schedule: list[Fault] = []
    long_outage = None if has_replica or only or duration_s < LONG_RUN_S else _long_outage(chance, duration_s)
    at_s = after_s + every_s
    while at_s < duration_s:
        if long_outage and at_s >= long_outage.at_s and busy_until[REDIS] <= at_s:
            schedule.append(replace(long_outage, at_s=round(at_s, 2)))
            busy_until[REDIS] = at_s + LONG_OUTAGE_S + RESTART_S
            long_outage = None
        _, kind, targets, least_s, most_s = chance.choices(rows, [row[0] for row in rows])[0]
        target, for_s = chance.choice(targets), round(chance.uniform(least_s, most_s), 2)
        share = chance.choice((0.3, 1.0))
        fellows = next((group for group in (APIS, WORKERS) if target in group), ())
        down = sum(busy_until[name] > at_s for name in fellows)
        if busy_until[target] <= at_s and (not fellows or down < len(fellows) - 1):
            schedule.append(Fault(round(at_s, 2), kind, target, for_s, share))
            mending_s = {FaultKind.KILLED: RESTART_S, FaultKind.DRAINED: DRAIN_S + RESTART_S}.get(kind, 0.5)
            if target == REDIS and has_replica:
                mending_s = FAILOVER_S
            busy_until[target] = at_s + for_s + mending_s
            at_s += every_s * chance.uniform(0.5, 1.5)
        elif only:
            at_s += 0.1  # All that may be hit may be down.
        # Else another draw for the same moment: what is down cannot be hit.
    return sorted([*schedule, *of_targets], key=lambda fault: fault.at_s)


def target_faults(seed: int, duration_s: float) -> list[Fault]:
    """Return when each target of the routes fails, and how: each in its turn, and never all at the same time."""
    chance = random.Random(f"targets {seed}")
    schedule: list[Fault] = []
    at_s, number = TARGET_EVERY_S / 2, 0
    while at_s < duration_s:
        kind, least_s, most_s = chance.choice(_TARGET_FAULTS)
        failing = {fault.target for fault in schedule if fault.at_s + fault.for_s + 0.5 > at_s}
        target = TARGETS[number % len(TARGETS)]
        if target not in failing and len(failing) < len(TARGETS) - 1:
            schedule.append(Fault(round(at_s, 2), kind, target, round(chance.uniform(least_s, most_s), 2)))
            number += 1
        at_s += TARGET_EVERY_S * chance.uniform(0.5, 1.5)
    return schedule


def _long_outage(chance: random.Random, duration_s: float) -> Fault:
    """At about half time, so that there is calm before and behind it."""
    kind = chance.choice((FaultKind.FROZEN, FaultKind.KILLED))
    return Fault(round(duration_s * chance.uniform(0.4, 0.6), 2), kind, REDIS, LONG_OUTAGE_S)


def asks(seed: int, duration_s: float, per_s: float, viewers: int = 0) -> Iterator[Ask]:
    """Yield the clients, in the order in which they come; the viewers are the first, besides the others."""
    come = (_viewer(seed, number, duration_s) for number in range(1, viewers + 1))
    others = _others(seed, duration_s, per_s, viewers)
    return merge(come, others, _routed(seed, duration_s, per_s * ROUTED_SHARE), key=lambda ask: ask.at_s)


def _routed(seed: int, duration_s: float, per_s: float) -> Iterator[Ask]:
    """Yield the clients that use a route, besides the others."""
    chance = random.Random(f"routed {seed}")
    at_s, number = 0.0, ROUTED_NUMBERS_FROM
    while (at_s := at_s + chance.expovariate(per_s)) < duration_s:
        number += 1
        ask = _ask(chance, number, at_s)
        dialect, route, tokens = chance.choice(ROUTED_DIALECTS), chance.choice(list(ROUTES)), min(ask.tokens, TARGET_TOKENS - 1)
        yield replace(
            ask, dialect=dialect, route=route, tokens=tokens, provider="demo", pace_ms=TARGET_PACE_MS, first_ms=0, trouble=""
        )


def _others(seed: int, duration_s: float, per_s: float, number: int) -> Iterator[Ask]:
    """Yield all but the viewers. Their numbers follow ``number``."""
    chance = random.Random(f"clients {seed}")
    at_s = 0.0
    while (at_s := at_s + chance.expovariate(per_s)) < duration_s:
        ask = _ask(chance, number + 1, at_s)
        has_twins = ask.dialect in TWINS_DIALECTS and chance.random() < TWINS_SHARE
        for each in _twins(chance, ask) if has_twins else (ask,):
            yield each
            at_s, number = each.at_s, each.number


def _twins(chance: random.Random, first: Ask) -> Iterator[Ask]:
    """Yield clients that send the same request as the first, which is one of them, but behave in their own ways."""
    at_s = first.at_s
    for number in range(first.number, first.number + chance.randint(2, TWINS_MAX)):
        other = _ask(chance, number, at_s)
        if Manner.WHOLE in (other.manner, first.manner):  # Streams and bodies are two requests.
            other = first
        behaviour = {"manner": other.manner, "policy": other.policy, "breaks": other.breaks}
        yield replace(first, number=number, at_s=at_s, twins=first.number, **behaviour)
        at_s += chance.uniform(0, TWINS_WITHIN_S / TWINS_MAX)


def viewers_come_s(viewers: int) -> float:
    """How long it takes until all viewers have come."""
    return viewers / VIEWERS_PER_S


def _viewer(seed: int, number: int, duration_s: float) -> Ask:
    chance = random.Random(f"viewer {seed} {number}")
    at_s = number / VIEWERS_PER_S
    # They end one by one, in the last fifth of the time.
    tokens = max(5, int((duration_s - at_s) * chance.uniform(0.8, 1.0) * 1000 / VIEWERS_PACE_MS))
    return Ask(
        number=number,
        at_s=at_s,
        manner=Manner.VIEWER,
        dialect=chance.choice(list(DIALECTS)),
        provider=chance.choice(("demo", "openai", "anthropic")),
        policy=chance.choice(("grace=60", "detach")),
        tokens=tokens,
        pace_ms=VIEWERS_PACE_MS,
        first_ms=0,
        trouble="",
    )


_OTHERS = (Manner.RETURNING, Manner.PLAIN, Manner.WHOLE, Manner.LEAVING, Manner.STOPPING)


def _ask(chance: random.Random, number: int, at_s: float) -> Ask:
    manner = chance.choices(_OTHERS, (55, 20, 8, 12, 5))[0]
    policy = {Manner.RETURNING: chance.choice(("grace=60", "grace=60", "detach")), Manner.STOPPING: "grace=60"}.get(manner, "")
    tokens = chance.randint(5, 100)
    breaks: tuple[int, ...] = ()
    if manner is Manner.RETURNING and chance.random() < 0.3:
        breaks = tuple(chance.randint(1, 30) for _ in range(chance.randint(1, 3)))
    elif manner in (Manner.LEAVING, Manner.STOPPING):
        breaks = (chance.randint(1, max(1, tokens // 2)),)
    return Ask(
        number=number,
        at_s=at_s,
        manner=manner,
        dialect=chance.choice(list(DIALECTS)),
        provider=chance.choice(("demo", "openai", "anthropic")),
        policy=policy,
        tokens=tokens,
        pace_ms=chance.choice((0, 20, 40, 80)),
        first_ms=chance.choice((0, 0, 100, 1000, 3000)),
        trouble=chance.choices(("", "e503x1", "dropx1", "e429x1-ra0.5"), (91, 3, 3, 3))[0],
        breaks=breaks,
    )
