"""Which questions about usage are there, and what does a report contain?

Separate from the queries (``common/ledger/reports.py``), so that parsing a question does not import SQLAlchemy. Money is
written as text, never as a float.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Any

from common.canonical.events import COUNTS
from common.canonical.money import NANO_USD

GROUPS = ("key", "tenant", "model", "provider", "end_user", "cache", "day", "hour")
TIMES = ("day", "hour")
TOKENS = COUNTS
LINES_MAX = 10_000
SINCE_DEFAULT = "30d"
_AGO = re.compile(r"([0-9]{1,5})([dh])")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SHOWN_MAX = 2**63 - 1  # The largest whole number that JSON parsers with 64-bit integers accept.
_USD_DIGITS = 9  # A nano-dollar.


@dataclass(frozen=True, slots=True)
class UsageQuestion:
    """A question to the ledger. Times are in ms since 1970, ``until_ms`` is excluded. ``only`` filters: group to value."""

    by: Sequence[str]
    since_ms: int
    until_ms: int
    only: Mapping[str, str] = field(default_factory=dict)
    lines_max: int = 1_000


@dataclass(frozen=True, slots=True)
class Line:
    """The sums of one group. ``group`` has the value of each requested grouping, None where the value is not known.

    ``saved_nano_usd`` is what answers that came from the cache, or were shared, cost the generations that made them.
    ``estimated`` counts the generations with partly estimated usage, ``unpriced`` those with a usage but no price. ``users``
    counts end users, and keys whose requests name none.
    """

    group: dict[str, str | None]
    requests: int
    tokens: dict[str, int]
    cost_nano_usd: int
    saved_nano_usd: int
    estimated: int
    unpriced: int
    users: int

    def to_dict(self) -> dict[str, Any]:
        """Return the line as in reports. ``input_tokens`` include both cache counts, ``output_tokens`` include reasoning."""
        total = self.tokens["input_tokens"] + self.tokens["output_tokens"]
        return {
            **self.group,
            "requests": self.requests,
            **{name: min(tokens, _SHOWN_MAX) for name, tokens in self.tokens.items()},
            "total_tokens": min(total, _SHOWN_MAX),
            "cost_usd": usd(self.cost_nano_usd),
            "saved_usd": usd(self.saved_nano_usd),
            "unpriced_requests": self.unpriced,
            "estimated_share": round(self.estimated / self.requests, 4),
            "active_users": self.users,
            "tokens_per_request": round(total / self.requests, 1),
            "cost_per_user_usd": usd(round(Fraction(self.cost_nano_usd, self.users))),
        }


@dataclass(frozen=True, slots=True)
class Report:
    """``has_more``: there are more groups than requested. The lines are the most expensive ones; by day or hour, the first.

    ``key_names`` are the names of the report's managed keys, by their ids in reports.
    """

    question: UsageQuestion
    lines: list[Line]
    has_more: bool
    key_names: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as a JSON object."""
        question = self.question
        return {
            "object": "usage",
            **({"key": key, "key_name": self.key_names.get(key)} if (key := question.only.get("key")) else {}),
            "by": list(question.by),
            "since": _shown_moment(question.since_ms),
            "until": _shown_moment(question.until_ms),
            "data": [self._line_to_dict(line) for line in self.lines],
            "has_more": self.has_more,
        }

    def _line_to_dict(self, line: Line) -> dict[str, Any]:
        """Return a line with the key's name after its id."""
        fields = line.to_dict()
        if "key" not in line.group:
            return fields
        return {name: fields.get(name, self.key_names.get(fields["key"])) for name in self.columns(fields)}

    def columns(self, names: Iterable[str]) -> list[str]:
        """Return the column names, with ``key_name`` after ``key``."""
        return [column for name in names for column in ((name, "key_name") if name == "key" else (name,))]


def usd(nano: int) -> str:
    """Return US dollars as exact text, with at least two digits after the point.

    >>> usd(1_500_000_000), usd(1_234_567)
    ('1.50', '0.001234567')
    """

    dollars, remainder = divmod(nano, NANO_USD)
    return f"{dollars}.{f'{remainder:0{_USD_DIGITS}}'.rstrip('0'):0<2}"


def moment_ms(text: str, now: datetime) -> int:
    """Parse a time: ``2026-11-21``, ``2026-11-21T09:00`` (UTC if it has no offset), or ``7d`` or ``12h`` ago. Returns ms.

    Raises:
        ValueError: it is none of these.
    """
    text = text.strip()
    if ago := _AGO.fullmatch(text):
        length = int(ago[1])
        return _ms(now - (timedelta(days=length) if ago[2] == "d" else timedelta(hours=length)))
    try:
        moment = datetime.fromisoformat(text)
        return _ms(moment if moment.tzinfo else moment.replace(tzinfo=UTC))
    except (ValueError, OverflowError) as error:
        raise ValueError("a time is a date such as 2026-11-21 or 2026-11-21T09:00, or how long ago: 7d, 12h") from error


def _shown_moment(ms: int) -> str:
    return (_EPOCH + timedelta(milliseconds=ms)).strftime("%Y-%m-%dT%H:%M:%SZ")


def _ms(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)
