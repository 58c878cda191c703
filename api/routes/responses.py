"""How is OpenAI's responses API served: created, fetched, continued, cancelled and deleted?

A response is a generation with a record that outlives its log. A background response is a detached generation. Its client may
read its events at any time, and from any event on.
Source: https://platform.openai.com/docs/api-reference/responses
"""

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import structlog
from fastapi import APIRouter, Request, Response

from api.auth.authenticator import Scope
from api.auth.permissions import refuse_anonymous
from api.generate import finish, start
from api.intake.accepted import AcceptedRequest, accept
from api.intake.job_class import class_of
from api.relay.response import SSE_HEADERS, Relay, headers_of_stream
from api.routes.direct_route import DirectRoute
from api.routes.openapi import RESPONSE, generating, query, serving
from api.routes.paging import after_parameter, limit_in, limit_parameter, page_of
from api.routes.stored_conversation import continued, items_of
from api.server.http_errors import json_response, request_id_of
from api.server.numbers import query_number
from api.server.store_errors import redis_away
from api.services import ApiServices, answer_or_error
from common.access.principal import Principal
from common.canonical.errors import ErrorKind, Failed, GatewayError, StoreUnavailable
from common.canonical.job import Policy
from common.channel.base import START, Cursor, FrameKind, State, WriteStatus
from common.channel.transcript import pages
from common.dialects.openai_responses.dialect import OPENAI_RESPONSES, sequence_number
from common.dialects.openai_responses.ids import parse_response_id, response_id
from common.dialects.openai_responses.response_object import ResponseInfo, failed_response, unfinished_response
from common.dialects.shared.reading import invalid
from common.queue.jobs import JobClass
from common.records.end import unpack_failure
from common.responses import StoredResponse
from common.sse import split_blocks

log = structlog.get_logger()

SEQUENCE_MAX = 999_999_999
_STORED = {"application/json": RESPONSE, "text/event-stream": {}}
_DELETED = {"application/json": {"type": "object", "required": ["id", "object", "deleted"]}}
_ITEMS = {"application/json": {"type": "object", "required": ["object", "data", "first_id", "last_id", "has_more"]}}
_REPLAYING = [
    query("stream", "Return the events of a background response.", enum=["true", "false"]),
    query("starting_after", "Only events after this sequence number.", type="integer", minimum=0, maximum=SEQUENCE_MAX),
]
_PAGING = [
    limit_parameter(),
    query("order", "The default is the newest first.", enum=["asc", "desc"]),
    after_parameter(),
]
_CANCELLED = Failed(ErrorKind.CANCELLED, "The response was cancelled.", code="cancelled")


def router(services: ApiServices) -> APIRouter:
    routes = APIRouter(tags=["responses"], route_class=DirectRoute)

    @routes.post("/v1/responses", summary="Generate (openai-responses)", **generating("openai-responses"))
    async def create_response(request: Request) -> Response:
        return await answer_or_error(OPENAI_RESPONSES, request, services, _create(request, services))

    @routes.get(
        "/v1/responses/{id_}",
        summary="A stored response",
        **serving(_STORED, 404, 410, parameters=_REPLAYING, relays=True),
    )
    async def retrieve_response(id_: str, request: Request) -> Response:
        """``?stream=true&starting_after=N`` returns the events of a background response, and continues live."""
        return await answer_or_error(OPENAI_RESPONSES, request, services, _retrieve(id_, request, services))

    @routes.delete("/v1/responses/{id_}", summary="Delete a stored response", **serving(_DELETED, 404))
    async def delete_response(id_: str, request: Request) -> Response:
        return await answer_or_error(OPENAI_RESPONSES, request, services, _delete(id_, request, services))

    @routes.post(
        "/v1/responses/{id_}/cancel",
        summary="Cancel a background response",
        **serving({"application/json": RESPONSE}, 400, 404, 410),
    )
    async def cancel_response(id_: str, request: Request) -> Response:
        """To cancel it again does no harm."""
        return await answer_or_error(OPENAI_RESPONSES, request, services, _cancel(id_, request, services))

    @routes.get(
        "/v1/responses/{id_}/input_items",
        summary="What a stored response answers",
        **serving(_ITEMS, 400, 404, parameters=_PAGING),
    )
    async def list_input_items(id_: str, request: Request) -> Response:
        return await answer_or_error(OPENAI_RESPONSES, request, services, _input_items(id_, request, services))

    return routes


# Creating


@dataclass(slots=True)
class CreatedResponse:
    """A new response, or the one that a retry with the same idempotency-key belongs to. ``body`` is the client's own."""

    accepted: AcceptedRequest
    relay: Relay
    body: dict[str, Any]

    @property
    def is_background(self) -> bool:
        return self.body.get("background") is True

    @property
    def is_retry(self) -> bool:
        return self.relay.viewer.reader_id != self.accepted.job.generation_id


async def start_response(request: Request, services: ApiServices, *, is_detached: bool = False) -> CreatedResponse:
    """Create a response. ``is_detached``: it runs like a background response, whatever the body says.

    Raises:
        GatewayError, StoreUnavailable: it was not created.
    """
    client_body: dict[str, Any] = {}

    async def amend(principal: Principal, body: dict[str, Any]) -> dict[str, Any]:
        client_body.update(body)
        if body.get("background") is True and body.get("store") is False:
            raise invalid("store", "must not be false where background is true: there would be nothing to fetch later")
        # A background response always streams, so that a client that comes later can read its events.
        changed = {**body, "stream": True} if is_detached or body.get("background") is True else body
        return await continued(principal, changed, services)

    default_policy = Policy.DETACH if is_detached else Policy.STOP
    accepted = await accept(OPENAI_RESPONSES, request, services, amend, default_policy=default_policy)
    is_background = client_body.get("background") is True
    if is_background:
        accepted.job_class = class_of(request.headers, accepted.principal, JobClass.BACKGROUND)
        if "x-disconnect" not in request.headers or not (is_detached or client_body.get("stream") is True):
            accepted.job.policy, accepted.job.grace_s = Policy.DETACH, 0.0
    if client_body.get("store") is not False:
        await _store(accepted, services, is_needed=is_background)
    try:
        relay = await start(accepted, services)
    except GatewayError:
        await _discard(accepted, services)
        raise
    created = CreatedResponse(accepted, relay, client_body)
    if created.is_retry:
        await _discard(accepted, services)
    return created


async def _discard(accepted: AcceptedRequest, services: ApiServices) -> None:
    with suppress(StoreUnavailable):  # Then the stored request expires by itself.
        await services.responses.delete(accepted.job.generation_id)


async def _create(request: Request, services: ApiServices) -> Response:
    created = await start_response(request, services)
    relay = created.relay
    if not created.is_background:
        return relay
    relay.is_resumable = True
    if created.body.get("stream") is True:
        return relay
    relay.outcome = "detached"
    await finish(relay, services)
    generation_id, job, owner = relay.viewer.reader_id, created.accepted.job, created.accepted.principal.id
    stored = await services.responses.load(generation_id, owner) if created.is_retry else None
    response_info = ResponseInfo(generation_id, job.model, job.created_s, created.body)
    response = await _current_response(stored, services) if stored else unfinished_response(response_info, "queued")
    return json_response(response, headers={"x-generation-id": generation_id})


async def _store(accepted: AcceptedRequest, services: ApiServices, *, is_needed: bool) -> None:
    """Store the request, unless it is too large.

    Raises:
        GatewayError: REQUEST_TOO_LARGE, it is too large, and must be stored because it ``is_needed``.
    """
    job = accepted.job
    if not services.pulse.is_up:
        raise redis_away(services.pulse)
    if services.responses.has_room(len(job.body)):
        await services.responses.open(job.generation_id, accepted.principal.id, job.created_s, bytes(job.body))
        return
    log.info("response_not_stored", generation_id=job.generation_id, reason="too large", bytes=len(job.body))
    if is_needed:
        raise GatewayError(
            ErrorKind.REQUEST_TOO_LARGE,
            "The request is too large to be stored, which a background response needs. Send it without background.",
            code="request_too_large",
        )


# Fetching


async def _stored(
    id_: str, request: Request, services: ApiServices, scope: Scope = "read", *, has_prompt: bool = False
) -> StoredResponse:
    """Return a stored response of the client. ``has_prompt``: the client asks for the prompt that it answers.

    Raises:
        GatewayError: NOT_FOUND; PERMISSION_DENIED, clients without a key cannot see prompts.
    """
    principal = await services.authenticator.authenticate(request, scope)
    if has_prompt:
        refuse_anonymous(principal, "Stored prompts")
    if not services.pulse.is_up:
        raise redis_away(services.pulse)
    stored = await services.responses.load(parse_response_id(id_), principal.id) if id_.startswith("resp_") else None
    if stored is None:
        raise GatewayError(ErrorKind.NOT_FOUND, f"Response with id '{id_[:100]}' not found.", code="response_not_found")
    return stored


async def _retrieve(id_: str, request: Request, services: ApiServices) -> Response:
    stored = await _stored(id_, request, services)
    if request.query_params.get("stream", "").lower() in ("true", "1"):
        return await _replay(stored, request, services)
    return json_response(await _current_response(stored, services))


async def _current_response(stored: StoredResponse, services: ApiServices) -> dict[str, Any]:
    """Return the response object: as it was stored, or made from the state of its log."""
    if stored.response:
        return stored.response
    response_info = ResponseInfo(stored.generation_id, stored.body["model"], stored.created_s, stored.body)
    outcome = stored.failed or await _status_in_log(stored.generation_id, services)
    if isinstance(outcome, str):
        return unfinished_response(response_info, outcome)
    if outcome.kind is ErrorKind.CANCELLED:
        return unfinished_response(response_info, "cancelled")
    return failed_response(response_info, outcome)


async def _status_in_log(generation_id: str, services: ApiServices) -> str | Failed:
    """Return the status of a response without a stored outcome, or the failure that ended it."""
    (last,) = await services.channel.last_ids([generation_id])
    if last is None:
        return Failed(ErrorKind.INTERNAL, "The answer was lost. Send the request again.", code="response_lost")
    frames = await services.channel.read(generation_id, last.before(), 1) if last != START else []
    if not frames or frames[0].kind is not FrameKind.END:
        if await services.hub.end_if_lost(generation_id):  # A client that polls must see an end, too.
            return await _status_in_log(generation_id, services)
        return "in_progress" if last != START else "queued"
    return unpack_failure(frames[0].data) or "in_progress"  # It has completed, and will be stored in a moment.


async def _replay(stored: StoredResponse, request: Request, services: ApiServices) -> Response:
    """Return the events that follow ``starting_after``, and continue live."""
    if not stored.is_background:
        raise invalid("stream", "must not be true: only a response that was created with background=true can be streamed again")
    sequence = query_number(request.query_params, "starting_after", 0, SEQUENCE_MAX, None)
    generation_id = stored.generation_id
    cursor = None
    if sequence is not None:
        cursor = await _cursor_after(generation_id, sequence, services)
        if cursor is None:
            return Response(status_code=200, headers=SSE_HEADERS)  # The client has seen all events.
    if request.method == "HEAD":
        (state,) = await services.channel.describe([generation_id], stored.owner)
        if isinstance(state, State) and not state.has_ended:  # No viewer joins for HEAD; see generations.py.
            return headers_of_stream(generation_id, state, has_begun=cursor is not None)
    viewer, _ = await services.hub.join_existing(generation_id, stored.owner, cursor)
    relay = Relay(
        viewer,
        OPENAI_RESPONSES,
        services.relay_timeouts(),
        lambda relay: finish(relay, services),
        request_id=request_id_of(request),
        model=stored.body["model"],
        created_s=stored.created_s,
        is_stream=True,
        is_resumable=True,
        has_begun=cursor is not None,
    )
    return services.add_relay(relay)


async def _cursor_after(generation_id: str, sequence: int, services: ApiServices) -> Cursor | None:
    """Return the position of the event with this number; None if it is the event that reports how the log ended.

    Raises:
        GatewayError: INVALID_REQUEST, there is no such event.
    """
    last = -1
    async for page in pages(services.channel, generation_id):
        for frame in page:
            if frame.kind is FrameKind.DATA:
                sequences = [sequence_number(block) for block in split_blocks(frame.data)]
                last = sequences[-1] if sequences and sequences[-1] is not None else last
                if last >= sequence:
                    return Cursor(frame.id, sum(number is None or number <= sequence for number in sequences))
            elif frame.kind is FrameKind.END and sequence == last + 1 and unpack_failure(frame.data):
                return None
    raise invalid("starting_after", "must be the sequence number of an event of this response")


# Ending


async def _cancel(id_: str, request: Request, services: ApiServices) -> Response:
    stored = await _stored(id_, request, services, "generate")
    if not stored.is_background:
        raise GatewayError(
            ErrorKind.INVALID_REQUEST,
            "Cannot cancel a synchronous response: close its connection instead.",
            param="response_id",
        )
    if not stored.response and not stored.failed and await _stop(stored, services):
        await _until_ended(stored, services)
        stored = await _stored(id_, request, services, "generate")
    response = await _current_response(stored, services)
    if response["status"] in ("queued", "in_progress"):  # Its worker has not seen the stop flag yet, but will.
        response["status"] = "cancelled"
    return json_response(response)


async def _stop(stored: StoredResponse, services: ApiServices) -> bool:
    """Stop a generation, wherever it runs or waits. Return whether it had not ended."""
    if await services.channel.stop(stored.generation_id) is not WriteStatus.OK:
        return False
    if await services.hub.end_if_waiting(stored.generation_id, _CANCELLED):
        await services.responses.finish(stored.generation_id, b"", _CANCELLED)  # No worker will do it.
    return True


async def _until_ended(stored: StoredResponse, services: ApiServices) -> None:
    """Return once a stopped generation has ended. Its worker sees the stop flag with its next heartbeat."""
    viewer = await services.hub.join(stored.generation_id)
    viewer.reread()
    try:
        with suppress(TimeoutError):
            async with asyncio.timeout(services.settings.heartbeat_s + 1):
                while not viewer.has_ended and not viewer.failed:
                    await viewer.next_frames()
    finally:
        await services.hub.leave(viewer)


async def _delete(id_: str, request: Request, services: ApiServices) -> Response:
    stored = await _stored(id_, request, services, "generate")
    if stored.is_background and not stored.response and not stored.failed:
        await _stop(stored, services)  # Nobody could read its answer any more.
    await services.responses.delete(stored.generation_id)
    return json_response({"id": response_id(stored.generation_id), "object": "response", "deleted": True})


async def _input_items(id_: str, request: Request, services: ApiServices) -> Response:
    stored = await _stored(id_, request, services, has_prompt=True)
    query = request.query_params
    limit, order = limit_in(query), query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise invalid("order", "must be 'asc' or 'desc'")
    items = [_listed(item, stored.generation_id, index) for index, item in enumerate(items_of(stored.body.get("input")))]
    items = items if order == "asc" else items[::-1]
    if after := query.get("after"):
        place = next((index for index, item in enumerate(items) if item["id"] == after), None)
        if place is None:
            raise invalid("after", "must be the id of an item of this response")
        items = items[place + 1 :]
    return json_response(page_of(items, limit))


def _listed(item: dict[str, Any], generation_id: str, index: int) -> dict[str, Any]:
    """Return an input item as OpenAI lists it: with a type and an id, and a message's content as a list of parts."""
    made_up_id = f"item_{generation_id.removeprefix('gen_')}{index:04x}"
    listed = {"type": "message", **item, "id": item.get("id") or made_up_id}
    if isinstance(text := item.get("content"), str):
        type_ = "output_text" if item.get("role") == "assistant" else "input_text"
        listed["content"] = [{"type": type_, "text": text}]
    return listed
