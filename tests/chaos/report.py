"""What happened, in numbers and in words?"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from tests.chaos.checker import REFUSAL_S, REFUSED_S, is_plain_refusal
from tests.chaos.client import History, Outcome
from tests.chaos.faults import Happened
from tests.chaos.plan import APIS, CLIENTS_LINK, REDIS, WORKERS, Manner

WRONG_SHOWN = 25
QUIET_BEFORE_S = 1.0  # A fault that ended this long ago still shows in what is timed now.


@dataclass(slots=True)
class Report:
    """All that a run leaves. ``wrong`` is empty where all is well."""

    redis: str
    seed: int
    duration_s: float
    histories: list[History] = field(default_factory=list)
    happened: list[Happened] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    broken_texts: int = 0
    closings_s: list[tuple[float, float, str]] = field(default_factory=list)  # Client gone at, seconds, which worker.
    takeovers_s: list[tuple[float, float]] = field(default_factory=list)  # Killed at, seconds until claimed anew.
    audited: int = 0
    forgotten: int = 0  # Generations that Redis lost with a master.
    recorded: int = 0  # Rows of the ledger.
    loop_lag_ms: list[float] = field(default_factory=list)

    def text(self) -> str:
        return "\n".join([*self._streams(), *self._faults(), *self._times(), *self._verdict()])

    def _streams(self) -> Iterable[str]:
        tokens = sum(history.ask.tokens for history in self.histories if history.outcome == Outcome.COMPLETED)
        what = f"seed {self.seed}, {self.duration_s:.0f} s, Redis: {self.redis}"
        yield f"\n{what}: {len(self.histories)} streams, {tokens:,} tokens in complete ones"
        yield f"  logs compared byte by byte with what clients saw: {self.audited}; forgotten by Redis: {self.forgotten}"
        told = sum(1 for history in self.histories if history.generation_id)
        yield f"  generations that a client was told of: {told}; rows in the ledger: {self.recorded}"
        shared = Counter(history.cache for history in self.histories if history.ask.twins)
        served = ", ".join(f"{name or 'unanswered'} {count}" for name, count in shared.most_common())
        yield f"  clients that sent a request of others too: {shared.total()} ({served})"
        shed = sum(1 for history in self.histories if history.sheds)
        yield f"  clients that the gateway was too busy for at first, and served when they came back: {shed}"
        outcomes: dict[Manner, Counter[str]] = {manner: Counter() for manner in Manner}
        for history in self.histories:
            outcomes[history.ask.manner][history.outcome] += 1
        for manner, counts in outcomes.items():
            said = ", ".join(f"{name} {count}" for name, count in counts.most_common())
            yield f"  {manner:<10} {counts.total():>6}: {said}"

    def _faults(self) -> Iterable[str]:
        counts = Counter(f"{_part(h.fault.target)} {h.fault.kind}" for h in self.happened)
        yield f"  faults     {len(self.happened):>6}: " + ", ".join(f"{name} {count}" for name, count in counts.most_common())

    def _times(self) -> Iterable[str]:
        resumes = [resume for history in self.histories for resume in history.resumes]
        calm = [(at, s) for at, s in resumes if self._is_calm(at, at + s, ())]
        yield _line("resume, asked to answered", [s for _, s in resumes], "")
        yield _line("  with nothing broken on its way", [s for _, s in calm], "p99 <= 0.050 s")
        yield f"    left out, for a fault overlapped an API, nginx or Redis: {len(resumes) - len(calm)}"
        refusals = [refusal for history in self.histories for refusal in history.refusals]
        plain = [s for at, s in refusals if is_plain_refusal(at, s, self.happened)]
        yield _line(f"refused while Redis is away, {REFUSED_S:.0f} s and more", plain, f"p99 <= {REFUSAL_S} s")
        yield _line("client gone to upstream closed", [s for _, s, _ in self.closings_s], "")
        calm_closings = [s for at, s, worker in self.closings_s if self._is_calm(at, at + s, (worker,))]
        yield _line("  with nothing broken on its way", calm_closings, "p99 <= 2.5 s")
        yield _line("worker killed to job claimed", [s for _, s in self.takeovers_s], "")
        calm_takeovers = [s for at, s in self.takeovers_s if self._has_whole_worker(at, at + s)]
        yield _line("  with a worker left that nothing befell", calm_takeovers, "max <= 8 s")
        yield _line("this process' own lateness", [ms / 1000 for ms in self.loop_lag_ms], "")

    def _is_calm(self, begin: float, end: float, workers: Sequence[str]) -> bool:
        """Whether all that stands between a client and its log (and these workers) was whole."""
        parts = (CLIENTS_LINK, REDIS, *APIS, *workers)
        return not any(h.overlaps(begin - QUIET_BEFORE_S, end) and h.fault.target.startswith(parts) for h in self.happened)

    def _has_whole_worker(self, begin: float, end: float) -> bool:
        # A worker takes lapsed jobs only after it has seen Redis whole for one lease.
        befallen = [h.fault.target for h in self.happened if h.overlaps(begin - 7.0, end)]
        return REDIS not in befallen and any(not any(t.startswith(worker) for t in befallen) for worker in WORKERS)

    def _verdict(self) -> Iterable[str]:
        outcomes = Counter(history.outcome for history in self.histories)
        yield f"  texts with tokens lost, twice or in another order: {self.broken_texts}"
        yield f"  hangs: {outcomes[Outcome.HANG]}; streams that ended without a word: {outcomes[Outcome.SILENT]}"
        yield f"  wrong      {len(self.wrong):>6}"
        yield from (f"    {line}" for line in self.wrong[:WRONG_SHOWN])
        if len(self.wrong) > WRONG_SHOWN:
            yield f"    … and {len(self.wrong) - WRONG_SHOWN} more"


def _part(target: str) -> str:
    for group, name in ((APIS, "api"), (WORKERS, "worker")):
        for member in group:
            target = target.replace(member, name)
    return target


def _line(what: str, seconds: list[float], bound: str) -> str:
    if not seconds:
        return f"  {what}: none"
    ordered = sorted(seconds)

    def at(share: float) -> float:
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    wanted = f"   (wanted: {bound})" if bound else ""
    return f"  {what}: {len(ordered)}, p50 {at(0.5):.3f} s, p99 {at(0.99):.3f} s, max {ordered[-1]:.3f} s{wanted}"
