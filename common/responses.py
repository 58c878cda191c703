"""Where are the responses of OpenAI's responses API stored?

Each response has two keys in Redis: the request (written by the API before the job exists), and the result (empty until the
worker that ends the generation fills it in). A response is deleted by deleting both keys: a worker only fills in a result
whose key still exists. They are kept for ``responses_ttl_s`` after the answer, which is long enough to continue a conversation
(``previous_response_id``) and to fetch a background response. A log expires much sooner.
"""

import contextlib
from dataclasses import dataclass, field
from typing import Any

import orjson
from redis.asyncio import Redis

from common.canonical.errors import Failed
from common.config.settings import Settings
from common.process.loop_lag import lag_aware_timeout
from common.redis import keyspace
from common.redis.client import COMMAND_TIMEOUT_S, ms
from common.redis.errors import redis_errors
from common.sse import read_block, split_blocks


@dataclass(slots=True)
class StoredResponse:
    """``body`` is the client's request, with the whole conversation as its ``input``. ``response`` and ``failed`` are None
    while the generation runs. Afterwards at most one of them is set."""

    generation_id: str
    owner: str
    created_s: int
    body: dict[str, Any] = field(repr=False)
    response: dict[str, Any] | None = field(default=None, repr=False)
    failed: Failed | None = None

    @property
    def is_background(self) -> bool:
        return self.body.get("background") is True


class ResponseStore:
    """Every method may raise ``StoreUnavailable``."""

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self._redis = redis
        self._settings = settings

    def has_room(self, size: int) -> bool:
        """Whether a request body of this size is stored."""
        return size <= self._settings.responses_bytes_max

    async def open(self, generation_id: str, owner: str, created_s: int, body: bytes) -> None:
        """Store the request for longer than the longest wait and answer take, so that the answer finds it."""
        s = self._settings
        request: dict[str, Any] = {"owner": owner, "created_s": created_s, "body": body}
        wait_s = max(s.queue_wait_s, s.queue_wait_background_s) + s.total_timeout_s
        ttl_ms = ms(s.responses_ttl_s + wait_s)
        async with self._pipeline() as pipe:
            pipe.hset(keyspace.response_request(generation_id), mapping=request)
            pipe.pexpire(keyspace.response_request(generation_id), ttl_ms)
            pipe.set(keyspace.response(generation_id), b"", px=ttl_ms)
            await self._run(pipe)

    async def finish(self, generation_id: str, last_data: bytes, failed: Failed | None) -> None:
        """Store the result: the response in the answer's last bytes, or the failure."""
        outcome = orjson.dumps({"failed": failed.to_dict()}) if failed else _response_in(last_data)
        if outcome is None or len(outcome) > self._settings.responses_bytes_max:
            too_large = {"kind": "internal", "message": "The response was too large to be stored.", "code": "not_stored"}
            outcome = orjson.dumps({"failed": too_large})
        ttl_ms = ms(self._settings.responses_ttl_s)
        async with self._pipeline() as pipe:
            pipe.set(keyspace.response(generation_id), outcome, px=ttl_ms, xx=True)
            pipe.pexpire(keyspace.response_request(generation_id), ttl_ms)
            await self._run(pipe)

    async def load(self, generation_id: str, owner: str) -> StoredResponse | None:
        """Return a response. None where this owner has none with this id."""
        async with self._pipeline() as pipe:
            pipe.hgetall(keyspace.response_request(generation_id))
            pipe.get(keyspace.response(generation_id))
            request, outcome = await self._run(pipe)
        if not request or outcome is None or request[b"owner"] != owner.encode():
            return None
        stored = StoredResponse(generation_id, owner, int(request[b"created_s"]), orjson.loads(request[b"body"]))
        if outcome:
            response = orjson.loads(outcome)
            if "failed" in response:
                stored.failed = Failed.from_dict(response["failed"])
            else:
                stored.response = response
        return stored

    async def outputs(self, generation_ids: list[str], owner: str) -> dict[str, list[Any] | None]:
        """Return the output items of this owner's responses, by id. None for a response that still runs."""
        async with self._pipeline() as pipe:
            for generation_id in generation_ids:
                pipe.hget(keyspace.response_request(generation_id), "owner")
                pipe.get(keyspace.response(generation_id))
            answers = await self._run(pipe)
        outputs: dict[str, list[Any] | None] = {}
        for generation_id, stored_owner, outcome in zip(generation_ids, answers[::2], answers[1::2], strict=True):
            if stored_owner == owner.encode() and outcome is not None:
                output = orjson.loads(outcome).get("output") if outcome else None
                outputs[generation_id] = output if isinstance(output, list) else [] if outcome else None
        return outputs

    async def delete(self, generation_id: str) -> None:
        async with self._pipeline() as pipe:
            pipe.delete(keyspace.response_request(generation_id), keyspace.response(generation_id))
            await self._run(pipe)

    def _pipeline(self) -> Any:
        return self._redis.pipeline(transaction=True)

    async def _run(self, pipe: Any) -> list[Any]:
        with redis_errors():
            async with lag_aware_timeout(COMMAND_TIMEOUT_S):
                answers: list[Any] = await pipe.execute()
                return answers


def _response_in(last_data: bytes) -> bytes | None:
    """Return the response object in an answer's last bytes: a whole body, or a stream's last event."""
    if last_data.lstrip()[:1] == b"{":
        return last_data
    for block in reversed(split_blocks(last_data)):
        with contextlib.suppress(orjson.JSONDecodeError):
            event = orjson.loads(read_block(block)[1])
            if isinstance(event, dict) and isinstance(event.get("response"), dict):
                return orjson.dumps(event["response"])
    return None
