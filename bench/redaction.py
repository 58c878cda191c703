"""What does it cost to search a log line for secrets? ``python bench/redaction.py``; see common/process/redaction.py."""

import json
import timeit

from common.process.redaction import Redactor

LINE = json.dumps(
    {
        "tier": "api",
        "request_id": "req_0123456789abcdef0123456789abcdef",
        "generation_id": "gen_0123456789abcdef0123456789abcdef",
        "outcome": "completed",
        "method": "POST",
        "route": "/v1/chat/completions",
        "status": 200,
        "duration_ms": 1234,
        "event": "request",
        "level": "info",
        "timestamp": "2026-11-21T12:00:00.000000Z",
    }
)
TIMES = 20_000

for secrets in (0, 10, 50, 200):
    redact = Redactor(tuple(f"sk-live-{n:04d}-0123456789abcdef" for n in range(secrets)))
    best_s = min(timeit.repeat(lambda redact=redact: redact(LINE), number=TIMES, repeat=5)) / TIMES
    print(f"{secrets:4d} secrets: {best_s * 1e6:5.1f} µs for a line of {len(LINE)} characters")
