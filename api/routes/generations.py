"""How is a generation started for later, read again, asked about, listed and stopped?

Reading never starts work: it replays the log and goes on live, on any replica, in the dialect's own events.
"""

import asyncio
import re
from typing import Any

from fastapi import APIRouter, Request, Response

from api.auth.permissions import refuse_anonymous
from api.auth.read_tokens import read_token_owner, require_secret, sign_read_token
from api.generate import finish, start
from api.intake.accepted import Amend, accept
from api.relay.response import Relay, headers_of_stream
from api.relay.viewer import Viewer
from api.routes.dialects import check_unified
from api.routes.generation_records import record, short_record, status_of, url_of
from api.routes.openapi import TEXT, generating, header, list_of, nothing_more, object_of, query, serving
from api.routes.paging import PAGE_FIELDS, after_in, after_parameter, limit_in, limit_parameter, page_of
from api.routes.responses import begin
from api.server.http_errors import PLAIN, json_response, request_id_of
from api.server.store_errors import redis_away
from api.services import ApiServices, answer_or_error
from common.access.principal import Principal
from common.canonical.errors import ErrorKind, Failed, GatewayError
from common.canonical.job import Policy
from common.channel.base import Cursor, Frame, FrameKind, State, WriteStatus, unknown
from common.channel.transcript import pages, read_answer_text
from common.dialects import DIALECTS
from common.dialects.base import Dialect
from common.dialects.shared.reading import invalid
from common.records.end import unpack_failure
from common.sse import split_blocks

AHEAD_EXTRA_S = 2.0  # Over the lease: by then a cut-off owner has appended again, or another has fenced.
INDEX_BATCH = 100  # Ids per read of the index; those whose logs have expired are passed over.
_ID = re.compile(r"gen_[0-9a-f]{32}")
_RECORD = object_of(
    ["id", "object", "status", "dialect", "model", "created_at", "url"],
    id=TEXT,
    object={"const": "generation"},
    status={"enum": ["queued", "running", "completed", "failed", "cancelled"]},
    dialect={"enum": list(DIALECTS)},
    model=TEXT,
    created_at={"type": "integer"},
    url=TEXT,
)
_STARTED = {**_RECORD, "required": [*_RECORD["required"], "events_url", "read_token"]}
_LISTED = object_of(PAGE_FIELDS, data=list_of(_RECORD), has_more={"type": "boolean"})
_STOPPED_SCHEMA = object_of(["id", "object", "status", "stopped"], id=TEXT, status=TEXT, stopped={"type": "boolean"})
_PAGING = [limit_parameter(), after_parameter(pattern="^gen_[0-9a-f]{32}$")]
_STOPPED = Failed(ErrorKind.CANCELLED, "The generation was stopped.", code="cancelled")


def router(services: ApiServices) -> APIRouter:
    routes = APIRouter(tags=["generations"])

    @routes.post("/v1/generations", status_code=202, **_told_of_starting())
    async def start_generation(request: Request) -> Response:
        """Start a generation and return at once. ``?dialect=`` says whose body it is: ``openai-chat`` if nothing else is said.

        It always streams, and runs to its end though nobody reads it. ``events_url`` is for a browser's EventSource.
        """
        dialect = DIALECTS.get(request.query_params.get("dialect", "openai-chat"))
        return await answer_or_error(dialect or PLAIN, request, services, _start(dialect, request, services))

    @routes.get("/v1/generations", **serving({"application/json": _LISTED}, 400, parameters=_PAGING))
    async def list_generations(request: Request) -> Response:
        """List your generations whose logs are still there, the newest first; ``?limit=`` and ``?after=ID`` page."""
        return await answer_or_error(PLAIN, request, services, _list(request, services))

    @routes.get("/v1/generations/{generation_id}", **_told_of_reading())
    async def read_generation(generation_id: str, request: Request) -> Response:
        """Replay a generation from ``Last-Event-ID`` (or ``?after=``) and go on live, in its own dialect.

        With ``Accept: application/json``: its record; ``?include=text`` adds what was said so far.
        """
        return await answer_or_error(PLAIN, request, services, _read(generation_id, request, services))

    @routes.delete("/v1/generations/{generation_id}", **serving({"application/json": _STOPPED_SCHEMA}, 404, 410))
    async def stop_generation(generation_id: str, request: Request) -> Response:
        """Stop a generation, wherever it runs or waits. Stopping it again does no harm."""
        return await answer_or_error(PLAIN, request, services, _stop(generation_id, request, services))

    return routes


def _told_of_starting() -> dict[str, Any]:
    dialect = query("dialect", "Whose body it is.", enum=list(DIALECTS), default="openai-chat")
    return generating("openai-chat", accepted=_STARTED, parameters=[dialect])


def _told_of_reading() -> dict[str, Any]:
    parameters = [
        header("last-event-id", "Read what follows this event.", pattern="^[1-9][0-9]{0,8}-[0-9]{1,3}\\.[0-9]{1,3}$"),
        query("after", "The same, for clients that cannot set headers.", pattern="^[1-9][0-9]{0,8}-[0-9]{1,3}\\.[0-9]{1,3}$"),
        query("include", "With a record: what was said so far.", enum=["text"]),
        query("token", "A read token, instead of a key."),
    ]
    content: dict[str, dict[str, Any]] = {"application/json": {}, "text/event-stream": {}}
    told = serving(content, 404, 410, parameters=parameters, relays=True)
    told["responses"][204] = nothing_more("Nothing follows the event that was named.")
    return told


# Starting


async def _start(dialect: Dialect | None, request: Request, services: ApiServices) -> Response:
    if dialect is None:
        raise invalid("dialect", f"must be one of {', '.join(DIALECTS)}")
    require_secret(services.settings)
    if request.headers.get("x-disconnect", "").strip().lower() == Policy.STOP:
        raise GatewayError(
            ErrorKind.INVALID_REQUEST,
            "x-disconnect must not be 'stop' here, where nobody listens yet: use 'grace=SECONDS' or 'detach'.",
            param="x-disconnect",
            code="invalid_header",
        )
    if dialect.name == "openai-responses":
        created = await begin(request, services, is_detached=True)
        asked, relay = created.asked, created.relay
    else:
        asked = await accept(dialect, request, services, _amend(dialect, services), default_policy=Policy.DETACH)
        relay = await start(asked, services)
    relay.outcome = "detached"
    await finish(relay, services)
    generation_id, owner = relay.viewer.generation_id, asked.principal
    (state,) = await services.channel.describe([generation_id], owner.id)
    if isinstance(state, GatewayError):
        raise state
    token = sign_read_token(owner, generation_id, services.settings)
    events_url = f"{url_of(generation_id)}?token={token}"
    content = {**short_record(generation_id, state), "events_url": events_url, "read_token": token}
    return json_response(content, 202, {"location": url_of(generation_id), "x-generation-id": generation_id})


def _amend(dialect: Dialect, services: ApiServices) -> Amend:
    async def amend(_: Principal, body: dict[str, Any]) -> dict[str, Any]:
        if dialect.name == "unified":
            check_unified(body, services)
        return {**body, "stream": True}  # Its events are there for who comes later.

    return amend


# Asking


async def _list(request: Request, services: ApiServices) -> Response:
    principal = await services.authenticator.authenticate(request, "read")
    refuse_anonymous(principal, "Generations")
    owner, query = principal.id, request.query_params
    limit = limit_in(query)
    after = after_in(query, lambda id_: not id_ or _ID.fullmatch(id_), "one of your generations") or ""
    if not services.pulse.is_up:
        raise redis_away(services.pulse)
    return json_response(page_of(await _newest(owner, after, limit + 1, services), limit))


async def _newest(owner: str, after: str, count: int, services: ApiServices) -> list[dict[str, Any]]:
    """Return short records of up to ``count`` generations; the index is bounded, and so is this."""
    found: list[dict[str, Any]] = []
    position = after
    while len(found) < count:
        ids = await services.queue.recent(owner, position, INDEX_BATCH)
        if ids is None and position == after:
            raise invalid("after", "must be the id of one of your recent generations")
        if not ids:
            break
        states = await services.channel.describe(ids, owner)
        found += [short_record(id_, state) for id_, state in zip(ids, states, strict=True) if isinstance(state, State)]
        position = ids[-1]
    return found[:count]


async def _describe(generation_id: str, owner: Principal, services: ApiServices) -> State:
    """Return how a generation stands.

    Raises:
        GatewayError: NOT_FOUND, EXPIRED; OVERLOADED where the store is away.
    """
    if not _ID.fullmatch(generation_id):
        raise unknown(generation_id)
    if not services.pulse.is_up:
        raise redis_away(services.pulse)
    (state,) = await services.channel.describe([generation_id], owner.id)
    if isinstance(state, GatewayError):
        raise state
    return state


async def _tell(generation_id: str, reader: Principal, include: str | None, services: ApiServices) -> Response:
    if include not in (None, "text"):
        raise invalid("include", "must be 'text'")
    state = await _describe(generation_id, reader, services)
    if not state.has_ended and await services.hub.end_if_lost(generation_id):  # Whoever polls must come to an end, too.
        state = await _describe(generation_id, reader, services)
    told = record(generation_id, state)
    if include:
        told["text"] = await read_answer_text(services.channel, generation_id, state.dialect, is_stream=state.stream)
    return json_response(told, headers={"cache-control": "no-store"})


# Reading


async def _read(generation_id: str, request: Request, services: ApiServices) -> Response:
    # Never refused for load: an EventSource that gets an error status does not come back. See ``Hub.join_existing``.
    reader, query = await _reader(generation_id, request, services), request.query_params
    accepted = request.headers.get("accept", "")
    if "application/json" in accepted and "text/event-stream" not in accepted:
        return await _tell(generation_id, reader, query.get("include"), services)
    text = request.headers.get("last-event-id") or query.get("after")
    cursor = Cursor.parse(text) if text else None
    if not _ID.fullmatch(generation_id):
        raise unknown(generation_id)
    if not services.pulse.is_up:
        raise redis_away(services.pulse)
    if request.method == "HEAD" and (answer := await _head(generation_id, reader, cursor, services)):
        return answer
    viewer, state = await services.hub.join_existing(generation_id, reader.id, cursor)
    try:
        is_over = cursor is not None and await _is_at_end(generation_id, cursor, state, services)
    except BaseException:
        await services.hub.leave(viewer)
        raise
    if is_over:
        viewer.has_ended = True
        await services.hub.leave(viewer)
        return Response(status_code=204)
    if cursor and cursor.frame > state.last:
        _give_up_later(viewer, services)
    relay = Relay(
        viewer,
        DIALECTS[state.dialect],
        services.relay_timeouts(),
        lambda done: finish(done, services),
        request_id=request_id_of(request),
        model=state.model,
        created_s=state.created_s,
        is_stream=state.stream,
        has_ids=True,
        is_resumable=True,
        # Of one that has failed the reading succeeds: its status would say that coming again helps.
        has_begun=state.has_ended or _has_begun(state, cursor),
    )
    return services.add_relay(relay)


def _has_begun(state: State, cursor: Cursor | None) -> bool:
    return bool(cursor and cursor.frame <= state.last and state.head)


async def _head(generation_id: str, reader: Principal, cursor: Cursor | None, services: ApiServices) -> Response | None:
    """Return the headers of reading a generation that runs; None where it has ended, and reading it ends, too.

    Nobody enters here: a viewer that comes and goes would move the moment at which a generation is stopped.
    """
    state = await _describe(generation_id, reader, services)
    if state.has_ended:
        return None
    if cursor:
        await _is_at_end(generation_id, cursor, state, services)  # It may not exist.
    return headers_of_stream(generation_id, state, has_begun=_has_begun(state, cursor))


async def _reader(generation_id: str, request: Request, services: ApiServices) -> Principal:
    """Return as whom a request reads: a key's principal, or the one that gave away a read token."""
    token = request.query_params.get("token")
    if token is not None:
        owner = read_token_owner(token, generation_id, services.settings)
        await services.authenticator.check_read_token_owner(owner)
        return owner
    return await services.authenticator.authenticate(request, "read")


async def _is_at_end(generation_id: str, cursor: Cursor, state: State, services: ApiServices) -> bool:
    """Whether a log ends behind a cursor, with nothing between for its reader.

    The log alone tells: in a failover the state may come from one server, and the log from another that has less of it.

    Raises:
        GatewayError: INVALID_REQUEST, the cursor names an event that this log does not have.
    """
    if cursor.frame > state.last:
        if state.has_ended:
            raise _not_in_this_log()
        return False
    frames = await services.channel.read(generation_id, cursor.frame.before(), 1)
    own = frames[0] if frames and frames[0].id == cursor.frame else None
    if own is None or cursor.k > _events(own):
        raise _not_in_this_log()
    return state.has_ended and cursor.k == _events(own) and await _is_last(own, generation_id, services)


async def _is_last(frame: Frame, generation_id: str, services: ApiServices) -> bool:
    """Whether a log ends with a frame, or has nothing but its end behind it that a client gets to see."""
    async for page in pages(services.channel, generation_id, frame.id):
        if any(_events(each) for each in page):
            return False
        frame = page[-1]
    return frame.kind is FrameKind.END


def _events(frame: Frame) -> int:
    """How many events of its own a frame gives a client."""
    match frame.kind:
        case FrameKind.DATA:
            return len(split_blocks(frame.data))
        case FrameKind.END:
            return 1 if unpack_failure(frame.data) else 0
        case _:
            return 0


def _not_in_this_log() -> GatewayError:
    return GatewayError(
        ErrorKind.INVALID_REQUEST,
        "The cursor names an event that this generation does not have. Leave it out to read from the start.",
        code="invalid_cursor",
        param="last-event-id",
    )


def _give_up_later(viewer: Viewer, services: ApiServices) -> None:
    """A cursor ahead of a running log waits for frames that Redis lost to be appended again, but not for ever."""
    waited_for = Failed(
        ErrorKind.INTERNAL, "The events before your cursor were lost in a failover. Send the request again.", code="frames_lost"
    )
    ahead = viewer.tail

    def check() -> None:
        if viewer.tail == ahead:
            viewer.fail(waited_for)

    asyncio.get_running_loop().call_later(services.settings.lease_s + AHEAD_EXTRA_S, check)


# Stopping


async def _stop(generation_id: str, request: Request, services: ApiServices) -> Response:
    owner = await services.authenticator.authenticate(request, "generate")
    state = await _describe(generation_id, owner, services)
    status = await services.channel.stop(generation_id)
    if status is WriteStatus.GONE:
        raise unknown(generation_id)
    if status is WriteStatus.ENDED:
        state = await _describe(generation_id, owner, services)  # It may have ended only just now.
        return json_response(_stopped(generation_id, status_of(state), is_our_doing=False))
    was_waiting = await services.hub.end_if_waiting(generation_id, _STOPPED)
    if was_waiting and state.dialect == "openai-responses":
        await services.responses.finish(generation_id, b"", _STOPPED)  # No worker will.
    return json_response(_stopped(generation_id, "cancelled" if was_waiting else "cancelling", is_our_doing=True))


def _stopped(generation_id: str, status: str, *, is_our_doing: bool) -> dict[str, Any]:
    return {"id": generation_id, "object": "generation", "status": status, "stopped": is_our_doing}
