"""How do ended generations get from Redis into the database, each exactly once?

The script that ends a log leaves a record without an expiry (``common/records/request_summary.py``). We read a batch of
records, write it in one transaction that skips existing ids, and delete the records only then. If the worker is killed before
the commit, the records are still there. If it is killed after the commit, they are written again without effect. An id in the
list without a record has been collected already. A record whose id is not in the list (after a crash between two commands, or a
failover) is found by a slow scan.
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
from workers.ledger.rows import LEFT, Row, build_row, is_unmeasured, sharing_rows, with_attempts
from workers.metering.charging import fill_prompt_tokens
from workers.metering.partial_usage import read_partial
from workers.metrics import Metrics

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

log = structlog.get_logger()

BATCH = 100  # Five milliseconds of this process' time. No stream runs meanwhile.
SCAN_COUNT = 1_000  # Keys per step of the scan: about one millisecond of Redis' time.
LOG_BYTES_MAX = 8 * MIB  # Of one log that is read back for an estimate or the audit log.
MS_DIGITS_MAX = 18
_RECORDS = "{gen_*}:record"
_DAY_MS = 86_400_000
# The columns of an entry of the audit log, besides request and answer.
_AUDITED = ("owner", "tenant", "end_user", "request_id", "dialect", "model", "provider", "created_ms", "ended_ms", "outcome")


@dataclass(slots=True)
class _RowBatch:
    """Rows to write, and the ids whose records are deleted afterwards."""

    rows: list[Row] = field(default_factory=list)
    audit: list[Row] = field(default_factory=list)
    collected: list[str] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)  # The reason, by id.
    logs: dict[str, str] = field(default_factory=dict)  # The log of a row, if several rows share it.


class Collector:
    """Every method may raise ``StoreUnavailable`` and ``DatabaseUnavailable``. Unwritten records are found again."""

    def __init__(self, redis: Client, channel: Channel, settings: Settings, metrics: Metrics) -> None:
        self._redis = redis
        self._channel = channel
        self.settings = settings  # A reload replaces them.
        self._metrics = metrics
        self._scan_at = 0
        self._has_logged_missing_secret = False

    async def collect(self, engine: "AsyncEngine") -> int:
        """Collect the first batch of the list. Return its size, 0 if the list is empty."""
        (listed,) = await self._run_commands(("LRANGE", keyspace.ENDED, 0, BATCH - 1))
        # An id may be listed twice: one process may end a log, and another one may remove its job.
        await self._collect_ids(engine, list(dict.fromkeys(entry.decode(errors="replace") for entry in listed)), listed)
        return len(listed)

    async def scan(self, engine: "AsyncEngine") -> bool:
        """Do one step of the slow scan, and collect what it finds. Return whether the scan is complete."""
        with redis_errors():
            async with lag_aware_timeout(COMMAND_TIMEOUT_S):
                self._scan_at, record_keys = await self._redis.scan(self._scan_at, match=_RECORDS, count=SCAN_COUNT)
        ids = await self._without_job([key.decode(errors="replace")[1:].partition("}")[0] for key in record_keys])
        for start in range(0, len(ids), BATCH):
            await self._collect_ids(engine, ids[start : start + BATCH], [])
        return self._scan_at == 0

    async def _without_job(self, ids: list[str]) -> list[str]:
        """Return the ids whose job is gone. The process that removes a job lists its id, and needs the record to settle it."""
        if not ids:
            return []
        has_job = await self._run_commands(*(("EXISTS", keyspace.JOB + generation_id) for generation_id in ids))
        return [generation_id for generation_id, exists in zip(ids, has_job, strict=True) if not exists]

    async def update_metrics(self, now_ms: int) -> None:
        """Set the metrics: how many records wait, and since when."""
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
        """Write the records of some ids to the database, then delete them, and also the entries ``listed`` of the list."""
        from common.database.store import add

        batch = _RowBatch()
        records, batch.unreadable = await self._read(ids)
        for generation_id, record in records.items():
            if generation_id in batch.unreadable:
                continue
            try:
                await self._add(batch, generation_id, record)
            except (StoreUnavailable, asyncio.CancelledError):
                raise
            except Exception as error:  # Whatever is wrong with one record, the others must not wait for it.
                batch.unreadable[generation_id] = f"{type(error).__name__}: {error}"[:200]
        if batch.rows:
            refused = await add(engine, batch.rows, batch.audit)
            batch.unreadable |= {batch.logs.get(id_, id_): reason for id_, reason in refused.items()}
        await self._set_aside(
            {generation_id: (reason, records[generation_id]) for generation_id, reason in batch.unreadable.items()}
        )
        kept_logs = [*(row["id"] for row in batch.audit), *batch.unreadable]  # Unreadable ones may have a kept log.
        await self._delete_records([*batch.collected, *batch.unreadable], listed, await self._retentions_ms(kept_logs))
        self._metrics.collected.inc(len(set(batch.collected) - set(batch.unreadable)))

    async def _read(self, ids: Sequence[str]) -> tuple[dict[str, dict[bytes, bytes]], dict[str, str]]:
        """Return the records that exist, and for some of them the reason why they must not be parsed."""
        records: dict[str, dict[bytes, bytes]] = {}
        unreadable: dict[str, str] = {}
        if not ids:
            return records, unreadable
        answers = await self._run_commands(
            *(("HGETALL", keyspace.record(generation_id)) for generation_id in ids), are_checked=False
        )
        for generation_id, record in zip(ids, answers, strict=True):
            if isinstance(record, Exception):
                records[generation_id], unreadable[generation_id] = {}, str(record)  # It is not one of our records.
            elif record:
                records[generation_id] = dict(zip(record[::2], record[1::2], strict=True))
                if reason := records[generation_id].get(b"set_aside"):  # It killed workers (see common/queue/drop.lua).
                    unreadable[generation_id] = reason.decode(errors="replace")
        return records, unreadable

    async def _add(self, batch: _RowBatch, generation_id: str, record: dict[bytes, bytes]) -> None:
        summary = RequestSummary.unpack(record[b"asked"])
        end = End.unpack(record[b"end"])
        row, *sharing = await self._rows(generation_id, summary, end, int(record[b"ended_ms"]))
        if is_unmeasured(row, end):
            row = await self._add_measured_usage(generation_id, row, unpack(record.get(b"note")))
        batch.rows += sharing
        batch.logs |= {shared["id"]: generation_id for shared in (row, *sharing)}
        if summary.is_audited:
            sealed = await self._audit_entry(row, end)
            if sealed is None:
                batch.rows.append(row)
                return  # The record stays. The scan finds it again when there is a secret.
            batch.audit.append(sealed)
        batch.rows.append(row)
        batch.collected.append(generation_id)

    async def _rows(self, generation_id: str, summary: RequestSummary, end: End, ended_ms: int) -> list[Row]:
        """Return the row of a generation; or those of all that shared its log, first the one that pays."""
        if summary.row_id is None:
            return [build_row(generation_id, summary, end, ended_ms)]
        (flat,) = await self._run_commands(("HGETALL", keyspace.followers(generation_id)))
        followers = dict(zip(flat[::2], flat[1::2], strict=True))
        return sharing_rows(summary.row_id, summary, end, ended_ms, followers)

    async def _add_measured_usage(self, generation_id: str, row: Row, stored_attempts: list[Attempt]) -> Row:
        """Add the usage of an answer that broke off, from its log (if it still exists) and its worker's stored attempts."""
        frames, request = await self._read_back(generation_id)
        try:
            partial = await asyncio.to_thread(read_partial, _transcript(frames, row), request)
            stored_attempts = await asyncio.to_thread(
                fill_prompt_tokens, stored_attempts, Job.unpack(request) if request else None
            )
        except Exception:  # The bytes may come from any provider. A row without usage is better than no row.
            log.exception("usage_not_estimated", generation_id=generation_id)
            return row
        attempts = merge_attempts(partial.attempts if partial else [], stored_attempts)
        if not attempts:
            return row
        for attempt in attempts:
            attempt.has_brought_key = attempt.has_brought_key or row["has_brought_key"]
            if attempt.cost is None:
                attempt.apply_prices(self.settings.prices)
        return with_attempts(row, partial.head if partial else None, attempts)

    async def _audit_entry(self, row: Row, end: End) -> Row | None:
        """Return the encrypted entry of the audit log; None: there is no secret to encrypt it."""
        secret = self.settings.secret
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
            "expires_ms": row["ended_ms"] + int(self.settings.audit_retention_days * _DAY_MS),
            "sealed": await asyncio.to_thread(seal, entry, row["id"], secret),
        }

    async def _read_back(self, generation_id: str) -> tuple[list[Frame], bytes | None]:
        """Return a log and the packed request, as far as they still exist and can be read."""
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
        except Exception:  # A row without its answer is better than no row.
            log.exception("log_unreadable", generation_id=generation_id)
        (request,) = await self._run_commands(("GET", keyspace.request(generation_id)), are_checked=False)
        return frames, request if isinstance(request, bytes) else None

    async def _set_aside(self, unreadable: dict[str, tuple[str, dict[bytes, bytes]]]) -> None:
        """Keep the records that the ledger could not store, for a person to check. They contain no prompt and no answer."""
        if not unreadable:
            return
        packed, now_ms = [], time.time_ns() // 1_000_000
        for generation_id, (reason, record) in unreadable.items():
            log.error("ledger_record_unreadable", generation_id=generation_id, reason=reason, mend="sluice records list")
            sharers = await self._sharers(generation_id)
            packed.append(set_aside.pack(generation_id, reason, now_ms, record, sharers))
        await self._run_commands(
            ("LPUSH", keyspace.UNREADABLE, *packed),
            ("LTRIM", keyspace.UNREADABLE, 0, set_aside.ENTRIES_MAX - 1),
            ("EXPIRE", keyspace.UNREADABLE, set_aside.RETENTION_S),
        )
        self._metrics.unreadable.inc(len(unreadable))

    async def _sharers(self, generation_id: str) -> list[str]:
        """Return the generations that shared a log: their rows are missing too."""
        (names,) = await self._run_commands(("HKEYS", keyspace.followers(generation_id)), are_checked=False)
        return [name.decode(errors="replace") for name in names if not name.startswith(LEFT)] if isinstance(names, list) else []

    async def _delete_records(self, ids: Sequence[str], listed: Sequence[bytes], retentions_ms: Mapping[str, int]) -> None:
        """Delete written records, and remove their entries from the list. These are at its head, so the search is short.

        ``retentions_ms``: how long the logs that were kept for us may live from now on, by id.
        """
        if not (ids or listed):
            return
        commands: list[tuple[Any, ...]] = []
        for generation_id, retention_ms in retentions_ms.items():
            commands.append(("PEXPIRE", keyspace.state(generation_id), retention_ms))
            commands.append(("PEXPIRE", keyspace.log(generation_id), retention_ms))
            commands.append(("UNLINK", keyspace.request(generation_id)))
        commands += [("UNLINK", keyspace.record(generation_id), keyspace.followers(generation_id)) for generation_id in ids]
        commands += [("LREM", keyspace.ENDED, 1, generation_id) for generation_id in listed]
        await self._run_commands(*commands)

    async def _retentions_ms(self, ids: Sequence[str]) -> dict[str, int]:
        """Return the retention of the generations whose logs have no expiry yet, because they are audited."""
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
        """Run several commands at once, and return Redis' answers. Without ``are_checked``, errors of a key are answers too.

        It uses the connection of the scripts: redis-py's own pipeline costs ten times as much per command.
        """
        with redis_errors():
            answers = await self._redis.exchanges.run([hiredis.pack_command(command) for command in commands])
            for answer in answers:
                if isinstance(answer, Exception) and (are_checked or as_unavailable(answer)):
                    raise answer
            return answers


def _number(stored: Any) -> int:
    """Return a stored number of milliseconds; 0 if it is not a number."""
    return int(stored) if isinstance(stored, bytes) and stored.isdigit() and len(stored) < MS_DIGITS_MAX else 0


def _transcript(frames: list[Frame], row: Row) -> Transcript:
    return Transcript.from_frames(frames, row["dialect"], is_stream=row["stream"])


def _body(request: bytes | None) -> Any:
    """Return the client's body, as JSON."""
    try:
        return orjson.loads(Job.unpack(request).body) if request else None
    except (ValueError, TypeError, GatewayError):
        return None
