"""How do ended generations get from Redis into the database, each exactly once?

The script that ends a log leaves a record that does not expire (``common/records/request_summary.py``). A batch is read,
written in one transaction that passes over ids which are there already, and only then deleted. Killed before the commit,
the records are still there; killed behind it, they are written once more, to no effect. An id in the list without a record
has been collected; a record without an id in the list, which a crash between two commands or a failover can leave, is found
by a slow scan.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import hiredis
import orjson
import structlog

from common.canonical.errors import GatewayError, StoreUnavailable
from common.canonical.job import Job
from common.channel.base import Channel, Frame
from common.channel.transcript import Transcript, pages
from common.config.settings import MIB, Settings
from common.ledger import set_aside
from common.ledger.audit import seal
from common.metering.attempt_cost import Attempt, merge_attempts, unpack
from common.process.loop_lag import lag_aware_timeout
from common.records.end import End
from common.records.request_summary import RequestSummary
from common.redis import keyspace
from common.redis.client import COMMAND_TIMEOUT_S, Client
from common.redis.errors import as_unavailable, redis_errors
from workers.ledger.answers import read_answer
from workers.ledger.rows import Row, build_row, is_unmeasured, with_attempts
from workers.metering.charging import fill_prompt_tokens
from workers.metering.partial_usage import read_partial
from workers.metrics import Metrics

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

log = structlog.get_logger()

BATCH = 100  # Five milliseconds of this process' time, in which no token moves.
SCAN_COUNT = 1_000  # Keys per step of the scan: about a millisecond of Redis' time.
LOG_BYTES_MAX = 8 * MIB  # Of one log that is read back for an estimate or the audit log.
MS_DIGITS_MAX = 18
_RECORDS = "{gen_*}:record"
_DAY_MS = 86_400_000
# What an entry of the audit log tells besides what was said.
_AUDITED = ("owner", "tenant", "end_user", "request_id", "dialect", "model", "provider", "created_ms", "ended_ms", "outcome")


@dataclass(slots=True)
class _Batch:
    """Rows to be written, and the ids whose records are to be deleted then."""

    rows: list[Row] = field(default_factory=list)
    audit: list[Row] = field(default_factory=list)
    collected: list[str] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)  # Why, by id.


class Collector:
    """Every method may raise ``StoreUnavailable`` and ``DatabaseUnavailable``; what was not written then is found again."""

    def __init__(self, redis: Client, channel: Channel, settings: Settings, metrics: Metrics) -> None:
        self._redis = redis
        self._channel = channel
        self._settings = settings
        self._metrics = metrics
        self._scan_at = 0
        self._has_logged_missing_secret = False

    async def collect(self, engine: "AsyncEngine") -> int:
        """Collect the first of the listed; returns how many these were, 0 once the list is empty."""
        (listed,) = await self._run_commands(("LRANGE", keyspace.ENDED, 0, BATCH - 1))
        # An id may be listed twice: whoever ends a log and whoever removes its job need not be the same.
        await self._collect_ids(engine, list(dict.fromkeys(entry.decode(errors="replace") for entry in listed)), listed)
        return len(listed)

    async def scan(self, engine: "AsyncEngine") -> bool:
        """Go on with the slow scan by a step, and collect what it finds; returns whether all has been looked through."""
        with redis_errors():
            async with lag_aware_timeout(COMMAND_TIMEOUT_S):
                self._scan_at, record_keys = await self._redis.scan(self._scan_at, match=_RECORDS, count=SCAN_COUNT)
        ids = await self._without_job([key.decode(errors="replace")[1:].partition("}")[0] for key in record_keys])
        for start in range(0, len(ids), BATCH):
            await self._collect_ids(engine, ids[start : start + BATCH], [])
        return self._scan_at == 0

    async def _without_job(self, ids: list[str]) -> list[str]:
        """Return those whose job is gone. Whoever removes a job lists it, and needs its record to settle what it took."""
        if not ids:
            return []
        has_job = await self._run_commands(*(("EXISTS", keyspace.JOB + generation_id) for generation_id in ids))
        return [generation_id for generation_id, exists in zip(ids, has_job, strict=True) if not exists]

    async def update_metrics(self, now_ms: int) -> None:
        """Tell the metrics how much waits, and since when."""
        count, first, aside = await self._run_commands(
            ("LLEN", keyspace.ENDED), ("LINDEX", keyspace.ENDED, 0), ("LLEN", keyspace.UNREADABLE)
        )
        record = keyspace.record(first.decode(errors="replace")) if first else ""
        (ended,) = await self._run_commands(("HGET", record, "ended_ms"), are_checked=False) if first else [None]
        ended_ms = _number(ended)
        self._metrics.uncollected.set(count)
        self._metrics.oldest_uncollected.set(max(0, now_ms - ended_ms) / 1000 if ended_ms else 0)
        self._metrics.set_aside.set(aside)

    async def _collect_ids(self, engine: "AsyncEngine", ids: Sequence[str], listed: Sequence[bytes]) -> None:
        """Write the records of some ids, then forget them; ``listed`` are the entries of the list that this settles."""
        from common.database.store import add

        batch = _Batch()
        records, batch.unreadable = await self._read(ids)
        for generation_id, record in records.items():
            if generation_id in batch.unreadable:
                continue
            try:
                await self._add(batch, generation_id, record)
            except (StoreUnavailable, asyncio.CancelledError):
                raise
            except Exception as error:  # Whatever is wrong with one record, it must not keep the others waiting.
                batch.unreadable[generation_id] = f"{type(error).__name__}: {error}"[:200]
        if batch.rows:
            batch.unreadable |= await add(engine, batch.rows, batch.audit)
        await self._set_aside(
            {generation_id: (reason, records[generation_id]) for generation_id, reason in batch.unreadable.items()}
        )
        kept_logs = [*(row["id"] for row in batch.audit), *batch.unreadable]  # Of the latter, some perhaps.
        await self._delete_records([*batch.collected, *batch.unreadable], listed, await self._retentions_ms(kept_logs))
        self._metrics.collected.inc(len(set(batch.collected) - set(batch.unreadable)))

    async def _read(self, ids: Sequence[str]) -> tuple[dict[str, dict[bytes, bytes]], dict[str, str]]:
        """Return the records that are there, and why nobody may look into some of them."""
        records: dict[str, dict[bytes, bytes]] = {}
        unreadable: dict[str, str] = {}
        if not ids:
            return records, unreadable
        answers = await self._run_commands(
            *(("HGETALL", keyspace.record(generation_id)) for generation_id in ids), are_checked=False
        )
        for generation_id, record in zip(ids, answers, strict=True):
            if isinstance(record, Exception):
                records[generation_id], unreadable[generation_id] = {}, str(record)  # It is none of ours.
            elif record:
                records[generation_id] = dict(zip(record[::2], record[1::2], strict=True))
                if reason := records[generation_id].get(b"set_aside"):  # It killed workers (see common/queue/drop.lua).
                    unreadable[generation_id] = reason.decode(errors="replace")
        return records, unreadable

    async def _add(self, batch: _Batch, generation_id: str, record: dict[bytes, bytes]) -> None:
        asked = RequestSummary.unpack(record[b"asked"])
        end = End.unpack(record[b"end"])
        row = build_row(generation_id, asked, end, int(record[b"ended_ms"]))
        if is_unmeasured(row, end):
            row = await self._add_measured_usage(row, unpack(record.get(b"note")))
        if asked.is_audited:
            sealed = await self._audit_entry(row, end)
            if sealed is None:
                batch.rows.append(row)
                return  # The record stays, and the scan finds it again when there is a secret.
            batch.audit.append(sealed)
        batch.rows.append(row)
        batch.collected.append(generation_id)

    async def _add_measured_usage(self, row: Row, stored_attempts: list[Attempt]) -> Row:
        """Fill in what an answer took that broke off, from its log, if that is still there, and what its worker
        ``stored_attempts``.
        """
        frames, request = await self._read_back(row["id"])
        try:
            partial = await asyncio.to_thread(read_partial, _transcript(frames, row), request)
            stored_attempts = await asyncio.to_thread(
                fill_prompt_tokens, stored_attempts, Job.unpack(request) if request else None
            )
        except Exception:  # A row without its usage is better than none: the bytes may be any provider's.
            log.exception("usage_not_estimated", generation_id=row["id"])
            return row
        attempts = merge_attempts(partial.attempts if partial else [], stored_attempts)
        if not attempts:
            return row
        for attempt in attempts:
            attempt.has_brought_key = attempt.has_brought_key or row["has_brought_key"]
            if attempt.cost is None:
                attempt.apply_prices(self._settings.prices)
        return with_attempts(row, partial.head if partial else None, attempts)

    async def _audit_entry(self, row: Row, end: End) -> Row | None:
        """Return the entry of the audit log; None while there is no secret to encrypt it with."""
        secret = self._settings.secret
        if secret is None:
            if not self._has_logged_missing_secret:
                log.error("audit_without_secret", generation_id=row["id"], mend="set SLUICE_SECRET for the workers too")
            self._has_logged_missing_secret = True
            return None
        frames, request = await self._read_back(row["id"])
        answer = await asyncio.to_thread(read_answer, _transcript(frames, row))
        entry = {name: row[name] for name in _AUDITED}
        entry |= {"request": _body(request), "answer": answer, "error": end.error}
        return {
            "id": row["id"],
            "owner": row["owner"],
            "created_ms": row["created_ms"],
            "expires_ms": row["ended_ms"] + int(self._settings.audit_retention_days * _DAY_MS),
            "sealed": await asyncio.to_thread(seal, entry, row["id"], secret),
        }

    async def _read_back(self, generation_id: str) -> tuple[list[Frame], bytes | None]:
        """Return a log and the packed request, as far as they are still there and can be read."""
        frames: list[Frame] = []
        size = 0
        try:
            async for page in pages(self._channel, generation_id):
                frames += page
                size += sum(len(frame.data) for frame in page)
                if size > LOG_BYTES_MAX:
                    break
        except StoreUnavailable:
            raise
        except Exception:  # A row without its answer is better than none.
            log.exception("log_unreadable", generation_id=generation_id)
        (request,) = await self._run_commands(("GET", keyspace.request(generation_id)), are_checked=False)
        return frames, request if isinstance(request, bytes) else None

    async def _set_aside(self, unreadable: dict[str, tuple[str, dict[bytes, bytes]]]) -> None:
        """Keep what the ledger could not take, for a person to look at; it holds no prompt and no answer."""
        if not unreadable:
            return
        packed, now_ms = [], time.time_ns() // 1_000_000
        for generation_id, (reason, record) in unreadable.items():
            log.error("ledger_record_unreadable", generation_id=generation_id, reason=reason, mend="sluice records list")
            packed.append(set_aside.pack(generation_id, reason, now_ms, record))
        await self._run_commands(
            ("LPUSH", keyspace.UNREADABLE, *packed),
            ("LTRIM", keyspace.UNREADABLE, 0, set_aside.ENTRIES_MAX - 1),
            ("EXPIRE", keyspace.UNREADABLE, set_aside.RETENTION_S),
        )
        self._metrics.unreadable.inc(len(unreadable))

    async def _delete_records(self, ids: Sequence[str], listed: Sequence[bytes], retentions_ms: Mapping[str, int]) -> None:
        """Delete records that are written, and take entries off the list: they are at its head, so each is found at once.

        ``retentions_ms``: logs that were kept for us, and how long they live from now on.
        """
        if not (ids or listed):
            return
        commands: list[tuple[Any, ...]] = []
        for generation_id, retention_ms in retentions_ms.items():
            commands.append(("PEXPIRE", keyspace.state(generation_id), retention_ms))
            commands.append(("PEXPIRE", keyspace.log(generation_id), retention_ms))
            commands.append(("UNLINK", keyspace.request(generation_id)))
        commands += [("UNLINK", keyspace.record(generation_id)) for generation_id in ids]
        commands += [("LREM", keyspace.ENDED, 1, generation_id) for generation_id in listed]
        await self._run_commands(*commands)

    async def _retentions_ms(self, ids: Sequence[str]) -> dict[str, int]:
        """Return the retention of those among some generations whose logs the end has left without an expiry."""
        if not ids:
            return {}
        commands = (("HMGET", keyspace.state(generation_id), "audited", "retention_ms") for generation_id in ids)
        answers = await self._run_commands(*commands, are_checked=False)
        return {
            generation_id: _number(answer[1])
            for generation_id, answer in zip(ids, answers, strict=True)
            if isinstance(answer, list) and answer[0] == b"1" and _number(answer[1])
        }

    async def _run_commands(self, *commands: tuple[Any, ...], are_checked: bool = True) -> list[Any]:
        """Return Redis' answers to so many commands at once; not ``are_checked``: what is wrong with a key too, in its place.

        On the connection that the scripts share: redis-py's own pipeline costs ten times as much per command.
        """
        with redis_errors():
            answers = await self._redis.exchanges.run([hiredis.pack_command(command) for command in commands])
            for answer in answers:
                if isinstance(answer, Exception) and (are_checked or as_unavailable(answer)):
                    raise answer
            return answers


def _number(stored: Any) -> int:
    """Return a stored number of milliseconds; 0 for what is none."""
    return int(stored) if isinstance(stored, bytes) and stored.isdigit() and len(stored) < MS_DIGITS_MAX else 0


def _transcript(frames: list[Frame], row: Row) -> Transcript:
    return Transcript.from_frames(frames, row["dialect"], is_stream=row["stream"])


def _body(request: bytes | None) -> Any:
    """The client's body, as JSON."""
    try:
        return orjson.loads(Job.unpack(request).body) if request else None
    except (ValueError, TypeError, GatewayError):
        return None
