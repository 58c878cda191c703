"""How are managed keys administered over HTTP?"""

from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, StrictBool

from api.auth.key_cache import KeyCache, KeyRings
from api.routes.administration import NO_STORE, Body, Work, admin_router, answer_from_database, read_model
from api.routes.openapi import administering, query
from api.routes.paging import after_in, after_parameter, limit_in, limit_parameter, page_of
from api.server.http_errors import json_response
from api.services import ApiServices
from common.access.cache_rule import check_number
from common.access.key_records import KeyRecord
from common.access.key_text import is_id
from common.access.principal import Access
from common.canonical.errors import ErrorKind, GatewayError
from common.dialects.shared.reading import invalid

_YEAR_9999_S = 253_402_300_799


def _printable(text: str) -> str:
    return "".join(char for char in text if char.isprintable())


Name = Annotated[str, Field(max_length=255), AfterValidator(_printable)]
Tenant = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9._@-]+$")]
Moment = Annotated[int, Field(ge=0, le=_YEAR_9999_S, description="Seconds since 1970, UTC."), BeforeValidator(check_number)]
Overlap = Annotated[
    int, Field(ge=0, le=30 * 86_400, description="For how long the old key still works, too."), BeforeValidator(check_number)
]


class NewKeyBody(Body):
    name: Name = ""
    tenant: Tenant | None = Field(
        None, description="Whose queue turns, budget and rules it shares; none: it is its own tenant."
    )
    access: Access = Access()
    expires_at: Moment | None = None


class ChangeBody(Body):
    """A field that is absent stays unchanged. ``access`` is replaced completely. ``expires_at`` null: it does not expire."""

    name: Name = ""
    tenant: Tenant = "-"
    access: Access = Access()
    disabled: StrictBool = False
    expires_at: Moment | None = None


class RotateBody(Body):
    overlap_s: Overlap = 0


class ShownKey(BaseModel):
    id: str
    object: str = "managed_key"
    name: str
    tenant: str
    access: Access
    disabled: bool
    expires_at: int | None
    previous_good_until: int | None = Field(description="After a rotation, until when the old key still works.")
    created_at: int
    updated_at: int


class CreatedKey(ShownKey):
    key: str = Field(description="The key itself. It is shown only this once.")
    served: bool = Field(description="False: the store did not answer. The key will work within seconds of the store's return.")


class KeyList(BaseModel):
    object: str = "list"
    data: list[ShownKey]
    first_id: str | None
    last_id: str | None
    has_more: bool


class DeletedKey(BaseModel):
    id: str
    object: str = "managed_key"
    deleted: bool


_LIST_QUERY = [
    query("tenant", "", minLength=1, maxLength=64),
    limit_parameter(""),
    after_parameter(pattern="^[0-9a-hjkmnp-tv-z]{12}$"),
]


def router(services: ApiServices, key_cache: KeyCache, rings: KeyRings) -> APIRouter:
    routes = admin_router()
    admin = _Admin(services, key_cache, rings)

    @routes.post("/keys", **administering("Make a key", CreatedKey, 201, body=NewKeyBody))
    async def create_key(request: Request) -> Response:
        return await admin.answer(request, lambda: admin.create(request))

    @routes.get("/keys", **administering("List keys", KeyList, parameters=_LIST_QUERY))
    async def list_keys(request: Request) -> Response:
        return await admin.answer(request, lambda: admin.list(request))

    @routes.get("/keys/{key_id}", **administering("Show a key", ShownKey))
    async def show_key(key_id: str, request: Request) -> Response:
        return await admin.answer(request, lambda: admin.show(key_id))

    @routes.patch("/keys/{key_id}", **administering("Change, disable or enable a key", ShownKey, body=ChangeBody))
    async def change_key(key_id: str, request: Request) -> Response:
        return await admin.answer(request, lambda: admin.change(key_id, request))

    @routes.delete("/keys/{key_id}", **administering("Delete a key", DeletedKey))
    async def delete_key(key_id: str, request: Request) -> Response:
        return await admin.answer(request, lambda: admin.delete(key_id))

    @routes.post(
        "/keys/{key_id}/rotate", **administering("Give a key a new secret", CreatedKey, body=RotateBody, is_body_needed=False)
    )
    async def rotate_key(key_id: str, request: Request) -> Response:
        return await admin.answer(request, lambda: admin.rotate(key_id, request))

    return routes


class _Admin:
    def __init__(self, services: ApiServices, key_cache: KeyCache, rings: KeyRings) -> None:
        self._services = services
        self._key_cache = key_cache
        self._rings = rings

    async def answer(self, request: Request, work: Work) -> Response:
        return await answer_from_database(request, self._services, lambda: self._with_cache(work))

    async def _with_cache(self, work: Work) -> Response:
        await self._rings.load()
        from common.access.key_ring import UnknownKey

        try:
            return await work()
        except UnknownKey as error:
            raise GatewayError(ErrorKind.NOT_FOUND, f"There is no key with the id '{error}'.", code="key_not_found") from error
        finally:
            self._key_cache.forget_all()  # Here at once; in other processes with the next beat of the pulse.

    async def create(self, request: Request) -> Response:
        from common.access.key_ring import NewKey

        body = await read_model(NewKeyBody, request, self._services)
        expires_ms = body.expires_at * 1000 if body.expires_at is not None else None
        ring = await self._rings.open()
        made = await ring.create(NewKey(body.name, body.tenant or "", body.access, expires_ms))
        return _new_key_response(made.record, made.text.get_secret_value(), is_served=made.is_served, status=201)

    async def list(self, request: Request) -> Response:
        params = request.query_params
        limit, after, tenant = limit_in(params), after_in(params, is_id, "a key"), params.get("tenant")
        if tenant is not None and ("\0" in tenant or not 0 < len(tenant) <= 64):
            raise invalid("tenant", "must be 1 to 64 characters")
        records = await (await self._rings.open()).list(tenant, after or "", limit + 1)
        page = page_of([_shown(record).model_dump(mode="json") for record in records], limit)
        return json_response(page, headers=NO_STORE)

    async def show(self, id_: str) -> Response:
        return _key_response(await (await self._rings.open()).find(_checked_id(id_)))

    async def change(self, id_: str, request: Request) -> Response:
        body = await read_model(ChangeBody, request, self._services)
        changes: dict[str, Any] = {name: getattr(body, name) for name in body.model_fields_set}
        if "disabled" in changes:
            changes["is_disabled"] = changes.pop("disabled")
        if "expires_at" in changes:
            moment = changes.pop("expires_at")
            changes["expires_ms"] = moment * 1000 if moment is not None else None
        changed = await (await self._rings.open()).update(_checked_id(id_), lambda _: changes)
        if not changed.is_served:
            raise _not_served_yet()
        return _key_response(changed.record)

    async def rotate(self, id_: str, request: Request) -> Response:
        has_body = request.headers.get("content-length", "0") != "0" or "transfer-encoding" in request.headers
        body = await read_model(RotateBody, request, self._services) if has_body else RotateBody()
        made = await (await self._rings.open()).rotate(_checked_id(id_), body.overlap_s)
        return _new_key_response(made.record, made.text.get_secret_value(), is_served=made.is_served, status=200)

    async def delete(self, id_: str) -> Response:
        if not await (await self._rings.open()).delete(_checked_id(id_)):
            raise _not_served_yet()
        return json_response(DeletedKey(id=id_, deleted=True).model_dump(), headers=NO_STORE)


def _checked_id(id_: str) -> str:
    from common.access.key_ring import UnknownKey

    if not is_id(id_):
        raise UnknownKey(id_[:100])
    return id_


def _shown(record: KeyRecord) -> ShownKey:
    return ShownKey(
        id=record.id,
        name=record.name,
        tenant=record.tenant,
        access=record.access,
        disabled=record.is_disabled,
        expires_at=_seconds(record.expires_ms),
        previous_good_until=_seconds(record.previous_until_ms),
        created_at=record.created_ms // 1000,
        updated_at=record.updated_ms // 1000,
    )


def _seconds(moment_ms: int | None) -> int | None:
    return moment_ms // 1000 if moment_ms is not None else None


def _key_response(record: KeyRecord) -> Response:
    return json_response(_shown(record).model_dump(mode="json"), headers=NO_STORE)


def _new_key_response(record: KeyRecord, text: str, *, is_served: bool, status: int) -> Response:
    key = CreatedKey(**dict(_shown(record)), key=text, served=is_served)
    return json_response(key.model_dump(mode="json"), status, NO_STORE)


def _not_served_yet() -> GatewayError:
    return GatewayError(
        ErrorKind.OVERLOADED,
        "The change is in the database, but the store that serves keys did not get it: the key still works as before. "
        "Send the request again.",
        code="change_not_served",
        retry_after_s=1,
    )
