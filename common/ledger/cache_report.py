"""What is in the cache, and what did it save in the last day? The answer for operators, in a terminal and over HTTP."""

from collections.abc import Mapping
from typing import Any

from common.cache.inventory import Group, Size
from common.ledger.usage_report import Report, UsageQuestion

GROUPS_MAX = 1_000
OUTCOMES = ("hit", "join", "miss", "bypass")  # As in the response header ``x-sluice-cache``.
_DAY_MS = 86_400_000


def last_day(now_ms: int) -> UsageQuestion:
    """Return the question to the ledger whose answer ``cache_report`` takes."""
    return UsageQuestion(("cache",), now_ms - _DAY_MS, now_ms)


def cache_report(sizes: Mapping[Group, Size], bytes_max: int, usage: Report | None) -> dict[str, Any]:
    """Return the report as a JSON object.

    Args:
        sizes: by group, in the order in which they are shown.
        bytes_max: of all entries together.
        usage: of the last day; None: the ledger cannot be read.
    """
    shown = list(sizes.items())[:GROUPS_MAX]
    return {
        "object": "cache",
        "entries": sum(size.entries for size in sizes.values()),
        "bytes": sum(size.bytes for size in sizes.values()),
        "bytes_max": bytes_max,
        "data": [group._asdict() | size._asdict() for group, size in shown],
        "has_more": len(sizes) > len(shown),
        "last_day": _outcomes(usage) if usage else None,
    }


def _outcomes(usage: Report) -> dict[str, Any]:
    lines = {line.group["cache"]: line.to_dict() for line in usage.lines}
    counted = {name: lines.get(name, {"requests": 0, "saved_usd": "0.00"}) for name in OUTCOMES}
    return {name: {"requests": line["requests"], "saved_usd": line["saved_usd"]} for name, line in counted.items()}
