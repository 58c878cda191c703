"""What has the demo provider done so far?

Counters for ``GET /stats``, the last requests for ``GET /requests``, and how often each scripted failure has happened.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import orjson
from aiohttp import web

from demo_provider.script import Fault

REQUESTS_KEPT = 100
_BODY_BYTES_MAX = 1 << 20  # A hundred larger bodies would need much memory, and nobody reads them.
_SPECS_MAX = 10_000
_SECRET_HEADERS = {"authorization", "x-api-key", "api-key", "x-goog-api-key", "cookie", "proxy-authorization"}


class Ledger:
    def __init__(self) -> None:
        self._open = 0
        self.reset()

    def reset(self) -> None:
        """Reset everything except the number of open generations."""
        self._counts: Counter[str] = Counter()
        self._by_wire: Counter[str] = Counter()
        self._requests: deque[dict[str, Any]] = deque(maxlen=REQUESTS_KEPT)
        self._turns: dict[tuple[str, str], Counter[Fault]] = {}

    def stats(self) -> dict[str, Any]:
        names = ("requests", "completed", "aborted", "cut", "errors", "tokens")
        counts = {name: self._counts[name] for name in names}
        return {**counts, "open": self._open, "by_wire": dict(self._by_wire)}

    def last_requests(self, count: int) -> list[dict[str, Any]]:
        """Return the last requests, newest last."""
        return list(self._requests)[-count:] if count > 0 else []

    def record_request(self, wire: str, request: web.Request, raw: bytes) -> None:
        self._counts["requests"] += 1
        self._by_wire[wire] += 1
        headers = {name.lower(): value for name, value in request.headers.items()}
        for name in _SECRET_HEADERS & headers.keys():
            headers[name] = "(hidden)"
        self._requests.append({"path": request.path_qs, "headers": headers, "body": _kept_body(raw)})

    def count(self, name: str, amount: int = 1) -> None:
        self._counts[name] += amount

    def take_turn(self, spec: tuple[str, str], faults: tuple[Fault, ...]) -> Fault | None:
        """Return the next failure for this model name and header, and count it."""
        for fault in faults:
            if fault.times is None:
                return fault
            turns = self._turns.setdefault(spec, Counter())
            if turns[fault] < fault.times:
                turns[fault] += 1
                while len(self._turns) > _SPECS_MAX:
                    del self._turns[next(iter(self._turns))]
                return fault
        return None

    @contextmanager
    def generation(self) -> Iterator[None]:
        """Count one generation as open, and as aborted if its client leaves."""
        self._open += 1
        try:
            yield
        except (asyncio.CancelledError, ConnectionError):
            # aiohttp cancels a handler when its client leaves; a write may fail before that.
            self.count("aborted")
            raise
        finally:
            self._open -= 1


def _kept_body(raw: bytes) -> Any:
    if len(raw) > _BODY_BYTES_MAX:
        return {"bytes": len(raw)}
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        return raw.decode("utf-8", "replace")
