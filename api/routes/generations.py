"""How does a client come back to a generation, or stop it?"""

import asyncio
from collections.abc import Awaitable

from fastapi import APIRouter, Request, Response

from api.generate import Services, finish, redis_away
from api.http_errors import PLAIN, error_response, json_response, request_id_of
from api.relay import Relay
from api.viewer import Viewer
from common.channel.base import ChannelUnavailable, Cursor, Frame, FrameKind, State, Verdict, unknown
from common.dialects import DIALECTS
from common.errors import ErrorKind, Failed, GatewayError
from common.redis_client import RedisUnavailable
from common.sse import split_blocks

AHEAD_EXTRA_S = 2.0  # Over the lease: by then a cut-off owner has appended again, or another has fenced.


def router(services: Services) -> APIRouter:
    routes = APIRouter(tags=["generations"])

    @routes.get("/v1/generations/{generation_id}")
    async def read_generation(generation_id: str, request: Request) -> Response:
        """Replay a generation from ``Last-Event-ID`` (or ``?after=``) and go on live, in its own dialect."""
        return await _guarded(request, services, _read(generation_id, request, services))

    @routes.delete("/v1/generations/{generation_id}")
    async def stop_generation(generation_id: str, request: Request) -> Response:
        """Stop a generation, wherever it runs or waits. Stopping it again does no harm."""
        return await _guarded(request, services, _stop(generation_id, request, services))

    return routes


async def _guarded(request: Request, services: Services, answer: Awaitable[Response]) -> Response:
    try:
        return await answer
    except GatewayError as error:
        failed = error.failed
    except (ChannelUnavailable, RedisUnavailable):
        failed = redis_away().failed
    services.metrics.refused(failed)
    return error_response(PLAIN, failed, request_id_of(request))


async def _read(generation_id: str, request: Request, services: Services) -> Response:
    principal = services.authenticator.authenticate(request.headers)
    text = request.headers.get("last-event-id") or request.query_params.get("after")
    cursor = Cursor.parse(text) if text else None
    if not services.pulse.is_up:
        raise redis_away()
    state = await services.channel.enter(generation_id, services.hub.replica, principal.id)
    viewer = await services.hub.join(generation_id, cursor)
    try:
        viewer.reread()
        is_over = cursor is not None and await _is_at_end(generation_id, cursor, state, services)
        if is_over:
            viewer.has_ended = True
    except BaseException:
        await services.hub.part(viewer)
        raise
    if is_over:
        await services.hub.part(viewer)
        return Response(status_code=204)
    if cursor and cursor.frame > state.last:
        _give_up_later(viewer, services)
    relay = Relay(
        viewer,
        DIALECTS[state.dialect],
        services.times(),
        lambda done: finish(done, services),
        request_id=request_id_of(request),
        is_stream=state.stream,
        has_ids=True,
        is_resumable=True,
    )
    services.relays.add(relay)
    return relay


async def _is_at_end(generation_id: str, cursor: Cursor, state: State, services: Services) -> bool:
    """Whether nothing follows a cursor in a log that has ended.

    Raises:
        GatewayError: INVALID_REQUEST, the cursor names an event that this log does not have.
    """
    if cursor.frame > state.last:
        if state.has_ended:
            raise _not_in_this_log()
        return False
    # The cursor's own frame, what follows it, and the end that may come after that.
    frames = await services.channel.read(generation_id, cursor.frame.before(), 3)
    own = frames[0] if frames and frames[0].id == cursor.frame else None
    if own is None or cursor.k > _events(own):
        raise _not_in_this_log()
    left = _events(own) - cursor.k + sum(_events(frame) for frame in frames[1:])
    return state.has_ended and frames[-1].kind is FrameKind.END and left == 0


def _events(frame: Frame) -> int:
    """How many events of its own a frame gives a client."""
    match frame.kind:
        case FrameKind.DATA:
            return len(split_blocks(frame.data))
        case FrameKind.END:
            return 0 if b'"error":null' in frame.data else 1
        case _:
            return 0


def _not_in_this_log() -> GatewayError:
    return GatewayError(
        ErrorKind.INVALID_REQUEST,
        "The cursor names an event that this generation does not have. Leave it out to read from the start.",
        code="invalid_cursor",
        param="last-event-id",
    )


def _give_up_later(viewer: Viewer, services: Services) -> None:
    """A cursor ahead of a running log waits for frames that Redis lost to be appended again, but not for ever."""
    waited_for = Failed(
        ErrorKind.INTERNAL, "The events before your cursor were lost in a failover. Send the request again.", code="frames_lost"
    )
    ahead = viewer.tail

    def check() -> None:
        if viewer.tail == ahead:
            viewer.fail(waited_for)

    asyncio.get_running_loop().call_later(services.settings.lease_s + AHEAD_EXTRA_S, check)


async def _stop(generation_id: str, request: Request, services: Services) -> Response:
    principal = services.authenticator.authenticate(request.headers)
    if not services.pulse.is_up:
        raise redis_away()
    await services.channel.enter(generation_id, services.hub.replica, principal.id)  # Checks the owner.
    verdict = await services.channel.stop(generation_id)
    if verdict is Verdict.GONE:
        raise unknown(generation_id)
    if verdict is Verdict.ENDED:
        return json_response({"id": generation_id, "object": "generation", "status": "ended", "stopped": False})
    was_waiting = await services.hub.end_if_waiting(
        generation_id, Failed(ErrorKind.CANCELLED, "The generation was stopped.", code="cancelled")
    )
    status = "cancelled" if was_waiting else "cancelling"
    return json_response({"id": generation_id, "object": "generation", "status": status, "stopped": True})
