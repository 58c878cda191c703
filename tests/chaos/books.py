"""Is each generation in the ledger once, as it was, and do the limits' counters hold what was used?

The judge over the database at the end of a run, when everything has been collected.
"""

import sqlite3
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.checker import CANCELLED, EXPLICIT, LOST_WRITES, POISON, End, lost_writes
from tests.chaos.client import History, Outcome
from tests.chaos.faults import Happened
from tests.chaos.plan import APIS, REDIS, TARGETS, Ask
from tests.chaos.readers import MESSAGES, RESPONSES

# The most that a request reserves of its limit on tokens: the largest max_tokens that a client asks for, and its prompt.
RESERVED_MAX = 10_100
GONE = (Outcome.LEFT, Outcome.CUT, Outcome.CUT_BEFORE)  # What came of clients whose connection ended before their answer.
NO_CODE = {"e429": "upstream_rate_limited", "e503": "upstream_unavailable"}  # Errors that the demo provider gives no code.
TWINS_LAST_S = 1.0  # By then all twins have come.
CALM_S = 3.0  # A fault of the queue that ended this long ago explains no second job.


@dataclass(frozen=True, slots=True)
class Row:
    """One generation in the ledger."""

    id: str
    model: str
    outcome: str
    error_code: str | None
    input_tokens: int | None
    output_tokens: int | None
    is_estimated: bool
    duration_ms: int | None
    error_kind: str | None = None
    end_user: str | None = None
    cache: str = "off"

    @property
    def client(self) -> int:
        """The number of the client who asked. Its request names it; without a name, its model's name ends with the number."""
        return int((self.end_user or self.model).rpartition("c")[2])

    @property
    def twins(self) -> int:
        """The number of the first client that sent this request."""
        return int(self.model.rpartition("-c")[2])

    @property
    def is_of_another(self) -> bool:
        """Whether it got an answer that another one's call made."""
        return self.cache in ("hit", "join")

    @property
    def tokens(self) -> int:
        return (self.input_tokens or 0) + (self.output_tokens or 0)


def input_tokens(ask: Ask) -> int:
    """Return what the demo provider counts: each word that it gets, its own dialect's role and type of a block included."""
    if (ask.provider, ask.dialect) == ("openai", RESPONSES):
        return 1  # Its input is a string, and goes on as it came.
    return 3 if ask.provider == "anthropic" and ask.dialect != MESSAGES else 2


def read_rows(database: Path) -> list[Row]:
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
        names = ", ".join(Row.__slots__)
        return [Row(*values) for values in connection.execute(f"SELECT {names} FROM ledger")]


def check_rows(
    rows: Sequence[Row],
    histories: Sequence[History],
    ends: Mapping[str, End],
    happened: Sequence[Happened],
    poison: Collection[str] = (),
) -> list[str]:
    """Return which generations the ledger has not, has twice, or has otherwise than they were.

    ``poison`` are those that three workers died on: their records are set aside unread.
    """
    wrong: list[str] = []
    by_id = {row.id: row for row in rows}
    by_client: dict[int, list[Row]] = defaultdict(list)
    for row in rows:
        by_client[row.client].append(row)
    for history in histories:
        number, id_ = history.ask.number, history.generation_id
        own = by_client.pop(number, [])
        own = without_unknown(own, history)
        if len(own) > 1:
            ends_told = [f"{row.id} {row.outcome} {row.error_kind} {row.cache}" for row in own]
            wrong.append(f"client {number} asked {1 + history.sheds} times and is {len(own)} times in the ledger: {ends_told}")
        may_have_lost = lost_writes(history.began_at, float("inf"), happened)
        if id_ and id_ not in by_id and id_ not in poison and not may_have_lost:
            wrong.append(f"client {number}: {id_} is not in the ledger")
        if id_ in by_id:
            end = None if ended_alone(history, happened) else ends.get(id_)
            differences = _check_row(by_id[id_], history, end, may_have_lost)
            wrong += [f"client {number}: {id_} {what}" for what in differences]
        wrong += [f"client {number} was told {id_}, the ledger has {row.id}" for row in own if id_ and row.id != id_]
        had_well_target = has_well_target(history, happened)
        wrong += _check_failures(own, history.ask, may_have_lost, may_lack_code=bool(history.ask.route) and not had_well_target)
        if had_well_target:
            wrong += [f"client {number}: {row.id} {what}" for row in own for what in _check_route(row)]
    wrong += check_twins(rows, histories, happened)
    for number, own in by_client.items():
        wrong.append(f"the ledger has {[row.id for row in own]} of a client {number} who never was")
    return wrong


def without_unknown(own: Sequence[Row], history: History) -> Sequence[Row]:
    """Return a client's rows without those of generations that it never learned of, and for which it asked again: those that
    ended because we had too much to do, and those of which an API read too late that they were enqueued."""
    others = [row for row in own if history.generation_id and row.id != history.generation_id]
    refused = [row for row in others if row.error_kind == "overloaded"][: history.sheds]
    unknown = [row for row in others if row not in refused][: history.late]
    return [row for row in own if row not in refused and row not in unknown]


def ended_alone(history: History, happened: Sequence[Happened]) -> bool:
    """Whether a request may have ended while the log that it shared went on for others: its client went away or said stop, or
    its API ended."""
    if not history.ask.twins or history.outcome == Outcome.COMPLETED:
        return False
    its_time = history.began_at, history.ended_at
    return history.outcome in (*GONE, CANCELLED) or any(h.fault.target in APIS and h.overlaps(*its_time) for h in happened)


def _check_row(row: Row, history: History, end: End | None, may_have_lost: bool) -> Iterable[str]:
    if may_have_lost:
        return  # The end that the client and the ledger know may be one that Redis forgot, and another was written then.
    if history.outcome == Outcome.COMPLETED and row.outcome != "completed" and row.error_code != POISON:
        yield f"was completed for its client, and is {row.outcome} in the ledger"
    if row.is_of_another:
        if row.tokens:
            yield f"has {row.tokens} tokens in the ledger, and another one's call made its answer"
        return
    if row.outcome == "completed" and not row.is_estimated:
        told, used = (row.input_tokens, row.output_tokens), (input_tokens(history.ask), history.ask.tokens)
        if told != used:
            yield f"has {told} tokens in the ledger, the provider said {used}"
    if end is None:
        return
    if (end.error is None) != (row.outcome == "completed"):
        yield f"is {row.outcome} in the ledger, and its log ends with {end}"
    if end.usage and not row.is_estimated and _tokens(end) != row.tokens:
        yield f"has {row.tokens} tokens in the ledger, its log says {_tokens(end)}"


def has_well_target(history: History, happened: Sequence[Happened]) -> bool:
    """Whether a request uses a route, of which one target was well from its begin to its end.

    At each moment one is. A request that outlasts a few faults may meet each target while that one fails.
    """
    ended_at = float("inf") if history.outcome in GONE else history.ended_at  # It may go on without its client.
    failing = {h.fault.target for h in happened if h.overlaps(history.began_at - CALM_S, ended_at)}
    return bool(history.ask.route) and not failing.issuperset(TARGETS)


def _check_route(row: Row) -> Iterable[str]:
    """No failure of a target is an answer while another one is well. What has begun may break off."""
    if (row.error_kind or "").startswith("upstream") and not row.output_tokens:
        yield f"ended by {row.error_kind} before its first token, and its route had a well target"


def check_twins(rows: Sequence[Row], histories: Sequence[History], happened: Sequence[Happened]) -> list[str]:
    """Return which identical requests made more than one job though all stayed, and nothing was between them and the queue.

    Only answers that last for a while count: while one runs, requests with the same policy share it.
    """
    twins: dict[int, list[History]] = defaultdict(list)
    for history in histories:
        if history.ask.twins and history.ask.takes_s >= TWINS_LAST_S:
            twins[history.ask.twins].append(history)
    jobs = Counter(row.twins for row in rows if row.cache == "miss")
    wrong = []
    for number, group in twins.items():
        began_at, ended_at = min(h.began_at for h in group) - CALM_S, max(h.ended_at for h in group)
        befell = [h.fault.target for h in happened if h.overlaps(began_at, ended_at)]
        stayed = all(h.outcome == Outcome.COMPLETED and not h.ask.breaks for h in group)
        policies = len({h.ask.policy for h in group})
        if stayed and not any(target.startswith(APIS) or REDIS in target for target in befell) and jobs[number] > policies:
            wrong.append(f"the {len(group)} clients of {number} made {jobs[number]} jobs with {policies} policies")
    return wrong


def _check_failures(rows: Sequence[Row], ask: Ask, may_have_lost: bool, *, may_lack_code: bool = False) -> Iterable[str]:
    """Some dialects have no codes, so clients cannot tell which error it was; the ledger can.

    ``may_lack_code``: the upstream's own error may be the answer, which has none.
    """
    # It may be the end of a request whose next attempt would come too late for its status.
    no_codes = set(NO_CODE.values()) if may_lack_code else {NO_CODE.get(ask.trouble[:4])} - {None}
    for row in rows:
        code = row.error_code or ""
        is_explicit = code in EXPLICIT or code == CANCELLED or (may_have_lost and code in LOST_WRITES)
        if row.outcome != "completed" and not is_explicit and row.error_kind not in no_codes:
            yield f"client {row.client}: {row.id} ended by {code!r}"


def _tokens(end: End) -> int:
    return end.usage["input_tokens"] + end.usage["output_tokens"] if end.usage else 0


def check_tokens(counted: int, rows: Sequence[Row], ends: Mapping[str, End], poisoned: int = 0) -> list[str]:
    """Return whether what the limit on tokens counts is what was used.

    A generation that an API ended keeps all that it reserved, if a worker ever had it; of one whose client was told no id it
    is not known who ended it. There are few of either: they make the least and the most.
    """
    least, most = 0, poisoned * RESERVED_MAX  # Nothing is settled of these.
    for row in rows:
        if row.is_of_another:
            continue
        end = ends.get(row.id)
        if end and end.by_worker:
            least, most = least + _tokens(end), most + _tokens(end)
        elif end:
            most += RESERVED_MAX if end.was_claimed else 0
        elif row.duration_ms is not None:  # A worker ended it, and may or may not have known what it took.
            least, most = least + (0 if row.is_estimated else row.tokens), most + row.tokens
        else:
            most += RESERVED_MAX
    if least <= counted <= most:
        return []
    return [f"the limit on tokens counts {counted}, used were {least if least == most else f'{least} to {most}'}"]
