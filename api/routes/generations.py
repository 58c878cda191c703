"""How is a generation started for later, read again, asked about, listed and stopped?

Reading never starts work. It replays the log and continues live, on any replica, in the events of the generation's dialect.
"""

import asyncio
import re
from typing import Any

from fastapi import APIRouter, Request, Response

from api.auth.permissions import refuse_anonymous
from api.auth.read_tokens import read_token_owner, require_secret, sign_read_token
from api.generate import finish, finish_own, start
from api.intake.accepted import Amend, accept
from api.relay.response import Relay, headers_of_stream
from api.relay.viewer import Viewer
from api.routes.dialects import check_unified
from api.routes.direct_route import DirectRoute
from api.routes.generation_records import record, short_record, status_of, url_of
from api.routes.openapi import TEXT, empty_response, generating, header, list_of, object_of, query, serving
from api.routes.paging import PAGE_FIELDS, after_in, after_parameter, limit_in, limit_parameter, page_of
from api.routes.responses import start_response
from api.server.http_errors import PLAIN, json_response, request_id_of
from api.server.store_errors import redis_away
from api.services import ApiServices, answer_or_error
from common.access.principal import Principal
from common.canonical.errors import ErrorKind, Failed, GatewayError
from common.canonical.job import Policy
from common.channel.base import Cursor, Frame, FrameKind, State, Stop, WriteStatus, stop_failure, unknown_generation_error
from common.channel.transcript import pages, read_answer_text
from common.dialects import DIALECTS
from common.dialects.base import Dialect
from common.dialects.shared.reading import invalid
from common.records.end import unpack_failure
from common.sse import split_blocks

AHEAD_EXTRA_S = 2.0  # Added to the lease: by then its owner has appended the frames again, or another worker has fenced it.
INDEX_BATCH = 100  # Ids per read of the index. Ids whose logs have expired are skipped.
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
_STOPPED = stop_failure(Stop.CANCELLED)


def router(services: ApiServices) -> APIRouter:
    routes = APIRouter(tags=["generations"], route_class=DirectRoute)

    @routes.post("/v1/generations", status_code=202, **_start_docs())
    async def start_generation(request: Request) -> Response:
        """Start a generation and return at once. ``?dialect=`` names the dialect of the body; the default is ``openai-chat``.

        It always streams, and runs to its end even if nobody reads it. ``events_url`` is for a browser's EventSource.
        """
        dialect = DIALECTS.get(request.query_params.get("dialect", "openai-chat"))
        return await answer_or_error(dialect or PLAIN, request, services, _start(dialect, request, services))

    @routes.get("/v1/generations", **serving({"application/json": _LISTED}, 400, parameters=_PAGING))
    async def list_generations(request: Request) -> Response:
        """List your generations whose logs still exist, the newest first. ``?limit=`` and ``?after=ID`` select a page."""
        return await answer_or_error(PLAIN, request, services, _list(request, services))

    @routes.get("/v1/generations/{generation_id}", **_read_docs())
    async def read_generation(generation_id: str, request: Request) -> Response:
        """Replay a generation from ``Last-Event-ID`` (or ``?after=``) and continue live, in its own dialect.

        With ``Accept: application/json``: return its record. ``?include=text`` adds the text so far.
        """
        return await answer_or_error(PLAIN, request, services, _read(generation_id, request, services))

    @routes.delete("/v1/generations/{generation_id}", **serving({"application/json": _STOPPED_SCHEMA}, 404, 410))
    async def stop_generation(generation_id: str, request: Request) -> Response:
        """Stop a generation, wherever it runs or waits. To stop it again does no harm."""
        return await answer_or_error(PLAIN, request, services, _stop(generation_id, request, services))

    return routes


def _start_docs() -> dict[str, Any]:
    dialect = query("dialect", "The dialect of the body.", enum=list(DIALECTS), default="openai-chat")
    return generating("openai-chat", accepted=_STARTED, parameters=[dialect])


def _read_docs() -> dict[str, Any]:
    parameters = [
        header("last-event-id", "Read what follows this event.", pattern="^[1-9][0-9]{0,8}-[0-9]{1,3}\\.[0-9]{1,3}$"),
        query("after", "The same, for clients that cannot set headers.", pattern="^[1-9][0-9]{0,8}-[0-9]{1,3}\\.[0-9]{1,3}$"),
        query("include", "With a record: also return the text so far.", enum=["text"]),
        query("token", "A read token, instead of a key."),
    ]
    content: dict[str, dict[str, Any]] = {"application/json": {}, "text/event-stream": {}}
    docs = serving(content, 404, 410, parameters=parameters, relays=True)
    docs["responses"][204] = empty_response("Nothing follows the named event.")
    return docs


# Starting


async def _start(dialect: Dialect | None, request: Request, services: ApiServices) -> Response:
    if dialect is None:
        raise invalid("dialect", f"must be one of {', '.join(DIALECTS)}")
    require_secret(services.settings)
    if request.headers.get("x-disconnect", "").strip().lower() == Policy.STOP:
        raise GatewayError(
            ErrorKind.INVALID_REQUEST,
            "x-disconnect must not be 'stop' here, since no client reads the answer yet: use 'grace=SECONDS' or 'detach'.",
            param="x-disconnect",
            code="invalid_header",
        )
    if dialect.name == "openai-responses":
        created = await start_response(request, services, is_detached=True)
        accepted, relay = created.accepted, created.relay
    else:
        accepted = await accept(dialect, request, services, _amend(dialect, services), default_policy=Policy.DETACH)
        relay = await start(accepted, services)
    relay.outcome = "detached"
    await finish_own(relay, accepted, services)
    generation_id, owner = relay.viewer.reader_id, accepted.principal
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
        return {**body, "stream": True}  # So that a client that comes later can read its events.

    return amend


# Records


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
    """Return short records of up to ``count`` generations. The index is bounded, and so are its reads here."""
    records: list[dict[str, Any]] = []
    position = after
    while len(records) < count:
        ids = await services.queue.recent(owner, position, INDEX_BATCH)
        if ids is None and position == after:
            raise invalid("after", "must be the id of one of your recent generations")
        if not ids:
            break
        states = await services.channel.describe(ids, owner)
        records += [short_record(id_, state) for id_, state in zip(ids, states, strict=True) if isinstance(state, State)]
        position = ids[-1]
    return records[:count]


async def _load_state(generation_id: str, owner: Principal, services: ApiServices) -> State:
    """Return the state of a generation.

    Raises:
        GatewayError: NOT_FOUND, EXPIRED; OVERLOADED if the store is away.
    """
    if not _ID.fullmatch(generation_id):
        raise unknown_generation_error(generation_id)
    if not services.pulse.is_up:
        raise redis_away(services.pulse)
    (state,) = await services.channel.describe([generation_id], owner.id)
    if isinstance(state, GatewayError):
        raise state
    return state


async def _show_record(generation_id: str, reader: Principal, include: str | None, services: ApiServices) -> Response:
    if include not in (None, "text"):
        raise invalid("include", "must be 'text'")
    state = await _load_state(generation_id, reader, services)
    log_id = state.source or generation_id
    if not state.has_ended and await services.hub.end_if_lost(log_id):  # A client that polls must see an end, too.
        state = await _load_state(generation_id, reader, services)
    content = record(generation_id, state)
    if include:
        content["text"] = await read_answer_text(services.channel, log_id, state.dialect, is_stream=state.stream)
    return json_response(content, headers={"cache-control": "no-store"})


# Reading


async def _read(generation_id: str, request: Request, services: ApiServices) -> Response:
    # Never refused for load: an EventSource that gets an error status does not come back. See ``Hub.join_existing``.
    reader, query = await _reader(generation_id, request, services), request.query_params
    media_types = request.headers.get("accept", "")
    if "application/json" in media_types and "text/event-stream" not in media_types:
        return await _show_record(generation_id, reader, query.get("include"), services)
    text = request.headers.get("last-event-id") or query.get("after")
    cursor = Cursor.parse(text) if text else None
    if not _ID.fullmatch(generation_id):
        raise unknown_generation_error(generation_id)
    if not services.pulse.is_up:
        raise redis_away(services.pulse)
    if request.method == "HEAD" and (answer := await _head(generation_id, reader, cursor, services)):
        return answer
    viewer, state = await services.hub.join_existing(generation_id, reader.id, cursor)
    try:
        is_over = cursor is not None and await _is_at_end(state.source or generation_id, cursor, state, services)
    except BaseException:  # Also where the request is cancelled: the viewer must not stay behind.
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
        lambda relay: finish(relay, services),
        request_id=request_id_of(request),
        model=state.model,
        created_s=state.created_s,
        is_stream=state.stream,
        has_ids=True,
        is_resumable=True,
        # To read a failed generation is a success. An error status would suggest that reading it again may help.
        has_begun=state.has_ended or _has_begun(state, cursor),
    )
    return services.add_relay(relay)


def _has_begun(state: State, cursor: Cursor | None) -> bool:
    return bool(cursor and cursor.frame <= state.last and state.head)


async def _head(generation_id: str, reader: Principal, cursor: Cursor | None, services: ApiServices) -> Response | None:
    """Return the headers that reading a running generation gets; None if it has ended, so that reading it ends too.

    No viewer joins here: one that comes and leaves would change the moment at which the generation is stopped.
    """
    state = await _load_state(generation_id, reader, services)
    if state.has_ended:
        return None
    if cursor:
        await _is_at_end(state.source or generation_id, cursor, state, services)  # The event of the cursor may not exist.
    return headers_of_stream(generation_id, state, has_begun=_has_begun(state, cursor))


async def _reader(generation_id: str, request: Request, services: ApiServices) -> Principal:
    """Return the principal of a request that reads: that of its key, or the owner of its read token."""
    token = request.query_params.get("token")
    if token is not None:
        owner = read_token_owner(token, generation_id, services.settings)
        await services.authenticator.check_read_token_owner(owner)
        return owner
    return await services.authenticator.authenticate(request, "read")


async def _is_at_end(generation_id: str, cursor: Cursor, state: State, services: ApiServices) -> bool:
    """Whether a cursor is at the end of a log: no event for its reader follows.

    Only the log is asked. During a failover, the state may come from one server, and the log from another that has less of it.

    Raises:
        GatewayError: INVALID_REQUEST, the cursor names an event that this log does not have.
    """
    if cursor.frame > state.last:
        if state.has_ended:
            raise _not_in_this_log()
        return False
    frames = await services.channel.read(generation_id, cursor.frame.before(), 1)
    frame = frames[0] if frames and frames[0].id == cursor.frame else None
    if frame is None or cursor.k > _event_count(frame):
        raise _not_in_this_log()
    return state.has_ended and cursor.k == _event_count(frame) and await _is_last(frame, generation_id, services)


async def _is_last(frame: Frame, generation_id: str, services: ApiServices) -> bool:
    """Whether the log ends with this frame, or only frames without events for the client follow, up to its end."""
    async for page in pages(services.channel, generation_id, frame.id):
        if any(_event_count(later_frame) for later_frame in page):
            return False
        frame = page[-1]
    return frame.kind is FrameKind.END


def _event_count(frame: Frame) -> int:
    """Return how many events of its own a frame gives a client."""
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
    """End the wait of a cursor that is ahead of a running log. The frames that Redis lost did not come again in time."""
    events_lost = Failed(
        ErrorKind.INTERNAL, "The events before your cursor were lost in a failover. Send the request again.", code="frames_lost"
    )
    ahead = viewer.tail

    def check() -> None:
        if viewer.tail == ahead:
            viewer.fail(events_lost)

    asyncio.get_running_loop().call_later(services.settings.lease_s + AHEAD_EXTRA_S, check)


# Stopping


async def _stop(generation_id: str, request: Request, services: ApiServices) -> Response:
    owner = await services.authenticator.authenticate(request, "generate")
    state = await _load_state(generation_id, owner, services)
    if state.source:
        return await _stop_sharing(generation_id, state.source, owner, services)
    status = await services.channel.stop(generation_id)
    if status is WriteStatus.GONE:
        raise unknown_generation_error(generation_id)
    if status is WriteStatus.ENDED:
        state = await _load_state(generation_id, owner, services)  # It may have ended only just now.
        return json_response(_stopped(generation_id, status_of(state), is_our_doing=False))
    was_waiting = await services.hub.end_if_waiting(generation_id, _STOPPED)
    if was_waiting and state.dialect == "openai-responses":
        await services.responses.finish(generation_id, b"", _STOPPED)  # No worker will do it.
    return json_response(_stopped(generation_id, "cancelled" if was_waiting else "cancelling", is_our_doing=True))


async def _stop_sharing(generation_id: str, source: str, owner: Principal, services: ApiServices) -> Response:
    """Stop a generation that shares its log with others. These go on; without others, the upstream call stops too."""
    status, must_stop = await services.channel.part(generation_id, source, _STOPPED, is_readable=True)
    if must_stop:
        await services.hub.end_if_waiting(source, _STOPPED)
    state = await _load_state(generation_id, owner, services)
    return json_response(_stopped(generation_id, status_of(state), is_our_doing=status is WriteStatus.OK))


def _stopped(generation_id: str, status: str, *, is_our_doing: bool) -> dict[str, Any]:
    return {"id": generation_id, "object": "generation", "status": status, "stopped": is_our_doing}
