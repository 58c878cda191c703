"""How are providers, their keys and routes managed over HTTP, while Sluice runs?

No answer contains a provider's key.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Literal

import structlog
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, BeforeValidator, Field, SecretStr, StrictBool, ValidationError

from api.routes.administration import NO_STORE, Body, Work, admin_router, answer_from_database, read_model
from api.routes.openapi import administering
from api.server.http_errors import json_response
from api.services import ApiServices
from common.access.cache_rule import check_number
from common.access.principal import Budget, Limits
from common.canonical.errors import ErrorKind, GatewayError
from common.config.route_rules import Route
from common.database.lazy import LazyDatabase
from common.live import changes
from common.live.changes import Change, NoSuchRecord, NotPossible
from common.live.live_settings import LiveSettings, reason_of
from common.live.stored_records import KEYS_MAX, Kind, SealedRecord
from common.redis.client import Client
from common.vendors.prefill import ContinuationMethod
from common.vendors.table import WireName

if TYPE_CHECKING:
    from common.live.catalog import Catalog

log = structlog.get_logger()

_KEY_CHARS_MAX = 4_096

ProviderKey = Annotated[SecretStr, Field(min_length=1, max_length=_KEY_CHARS_MAX)]
Overlap = Annotated[
    int,
    Field(ge=0, le=changes.OVERLAP_S_MAX, description="For how long the old key is called where the new one fails."),
    BeforeValidator(check_number),
]


class _ProviderFields(Body):
    base_url: str | None = Field(None, max_length=2_000)
    wire: WireName | None = None
    continuation: ContinuationMethod | None = None
    limits: Limits | None = None
    budget: Budget | None = None


class NewProviderBody(_ProviderFields):
    name: str = Field(min_length=1, max_length=64)
    api_keys: list[ProviderKey] = Field(default_factory=list, max_length=KEYS_MAX)


class ChangeProviderBody(_ProviderFields):
    """A field that is absent stays unchanged. Null removes it."""

    disabled: StrictBool = False


class RotateKeyBody(Body):
    api_key: ProviderKey
    key_id: str | None = Field(None, max_length=64, description="The key to replace, if there are several.")
    overlap_s: Overlap = changes.OVERLAP_S


class ChangeRouteBody(Body):
    disabled: StrictBool


class ShownProviderKey(BaseModel):
    id: str
    label: str = Field(description="The last characters of the key.")
    added_at: int
    until: int | None = Field(description="It was replaced, and serves until then.")


class _ShownRecord(BaseModel):
    name: str
    settings: dict[str, Any]
    disabled: bool
    overridden_by_settings: list[str] = Field(description="What this process's environment and files set instead.")
    created_at: int
    updated_at: int
    served: bool = Field(True, description="False: Redis did not answer. The change is used within seconds of its return.")


class ShownProvider(_ShownRecord):
    object: Literal["provider"] = "provider"
    keys: list[ShownProviderKey]


class ShownRoute(_ShownRecord):
    object: Literal["route"] = "route"


class ProviderList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ShownProvider]
    problems: list[str] = Field(description="What cannot be read, and why.")


class RouteList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ShownRoute]
    problems: list[str]


class RemovedRecord(BaseModel):
    name: str
    object: Kind
    removed: bool
    served: bool


def router(services: ApiServices, live: LiveSettings, database: LazyDatabase, redis: Client) -> APIRouter:
    routes = admin_router()
    managed = _Managed(services, live, database, redis)
    _add_providers(routes, managed)
    _add_routes(routes, managed)
    _add_common(routes, managed, "provider", ShownProvider, ProviderList)
    _add_common(routes, managed, "route", ShownRoute, RouteList)
    return routes


def _add_providers(routes: APIRouter, managed: "_Managed") -> None:
    @routes.post("/providers", **administering("Add a provider", ShownProvider, 201, body=NewProviderBody))
    async def add_provider(request: Request) -> Response:
        async def add() -> Response:
            body = await read_model(NewProviderBody, request, managed.services)
            name = changes.provider_id(body.name)
            fields = body.model_dump(exclude_unset=True, exclude={"name", "api_keys"})
            return await managed.change("provider", name, changes.add_provider(name, fields, body.api_keys), 201)

        return await managed.answer(request, add)

    @routes.patch(
        "/providers/{name}", **administering("Change, disable or enable a provider", ShownProvider, body=ChangeProviderBody)
    )
    async def change_provider(name: str, request: Request) -> Response:
        async def change() -> Response:
            body = await read_model(ChangeProviderBody, request, managed.services)
            fields = body.model_dump(exclude_unset=True, exclude={"disabled"})
            steps = [changes.update_provider(fields)]
            if "disabled" in body.model_fields_set:
                steps.append(changes.disable(body.disabled))
            return await managed.change("provider", changes.provider_id(name), changes.in_order(*steps))

        return await managed.answer(request, change)

    @routes.post("/providers/{name}/rotate", **administering("Replace a provider's key", ShownProvider, body=RotateKeyBody))
    async def rotate_key(name: str, request: Request) -> Response:
        async def rotate() -> Response:
            body = await read_model(RotateKeyBody, request, managed.services)
            rotation = changes.Rotation(body.api_key, body.key_id, body.overlap_s)
            return await managed.change("provider", changes.provider_id(name), changes.rotate_key(rotation))

        return await managed.answer(request, rotate)


def _add_routes(routes: APIRouter, managed: "_Managed") -> None:
    @routes.put("/routes/{name:model_name}", **administering("Add or replace a route", ShownRoute, body=Route))
    async def put_route(name: str, request: Request) -> Response:
        async def put() -> Response:
            body = await read_model(Route, request, managed.services)
            fields = body.model_dump(mode="json", exclude_unset=True)
            return await managed.change("route", name, changes.put_route(name, fields, may_replace=True))

        return await managed.answer(request, put)

    @routes.patch("/routes/{name:model_name}", **administering("Disable or enable a route", ShownRoute, body=ChangeRouteBody))
    async def change_route(name: str, request: Request) -> Response:
        async def change() -> Response:
            body = await read_model(ChangeRouteBody, request, managed.services)
            return await managed.change("route", name, changes.disable(body.disabled))

        return await managed.answer(request, change)


def _add_common(
    routes: APIRouter, managed: "_Managed", kind: Kind, shown: type[BaseModel], shown_list: type[BaseModel]
) -> None:
    """Add what providers and routes both have."""
    path = "/providers/{name}" if kind == "provider" else "/routes/{name:model_name}"  # Only names of models may have a slash.

    @routes.get(f"/{kind}s", name=f"list_{kind}s", **administering(f"List the managed {kind}s", shown_list))
    async def list_all(request: Request) -> Response:
        return await managed.answer(request, lambda: managed.list(kind))

    @routes.get(path, name=f"show_{kind}", **administering(f"Show a managed {kind}", shown))
    async def show(name: str, request: Request) -> Response:
        return await managed.answer(request, lambda: managed.show(kind, managed.id_of(kind, name)))

    @routes.delete(path, name=f"remove_{kind}", **administering(f"Remove a managed {kind}", RemovedRecord))
    async def remove(name: str, request: Request) -> Response:
        return await managed.answer(request, lambda: managed.remove(kind, managed.id_of(kind, name)))


class _Managed:
    def __init__(self, services: ApiServices, live: LiveSettings, database: LazyDatabase, redis: Client) -> None:
        self.services = services
        self._live = live
        self._database = database
        self._redis = redis

    @staticmethod
    def id_of(kind: Kind, name: str) -> str:
        return changes.provider_id(name) if kind == "provider" else name

    async def answer(self, request: Request, work: Work) -> Response:
        return await answer_from_database(request, self.services, lambda: self._refusing(work))

    async def _refusing(self, work: Work) -> Response:
        try:
            return await work()
        except ValidationError as error:
            raise GatewayError(ErrorKind.INVALID_REQUEST, f"{reason_of(error)}.", code="invalid_value") from error
        except NotPossible as error:
            raise GatewayError(ErrorKind.INVALID_REQUEST, str(error), code="not_possible") from error

    async def _catalog(self) -> "Catalog":
        engine = await self._database.engine()
        from common.live.catalog import Catalog  # Here: it loads SQLAlchemy, which most API processes never need.

        return Catalog(engine, self._redis, self._live.current.secrets)

    @contextmanager
    def _managed_only(self, kind: Kind, name: str) -> Iterator[None]:
        try:
            yield
        except NoSuchRecord as error:
            message = changes.why_not_managed(kind, name, self._live.stronger)
            raise GatewayError(ErrorKind.NOT_FOUND, message, code="not_managed") from error

    async def change(self, kind: Kind, name: str, change: Change, status: int = 200) -> Response:
        with self._managed_only(kind, name):
            changed = await (await self._catalog()).change(kind, name, change, self._live.inputs)
        log.info("configuration_managed", kind=kind, name=name, is_removed=False)
        shown = {**changes.shown(changed.record, self._live.stronger), "served": changed.is_served}
        return json_response(shown, status, NO_STORE)

    async def remove(self, kind: Kind, name: str) -> Response:
        with self._managed_only(kind, name):
            is_served = await (await self._catalog()).remove(kind, name)
        log.info("configuration_managed", kind=kind, name=name, is_removed=True)
        removed = RemovedRecord(name=name, object=kind, removed=True, served=is_served)
        return json_response(removed.model_dump(), headers=NO_STORE)

    async def list(self, kind: Kind) -> Response:
        secrets = self._live.current.secrets
        opened = [(sealed, sealed.open(secrets)) for sealed in await self._records() if sealed.kind == kind]
        data = [changes.shown(record, self._live.stronger) for _, record in opened if record]
        problems = [sealed.why_unreadable(secrets) for sealed, record in opened if record is None]
        return json_response({"object": "list", "data": data, "problems": problems}, headers=NO_STORE)

    async def show(self, kind: Kind, name: str) -> Response:
        sealed = next((record for record in await self._records() if (record.kind, record.name) == (kind, name)), None)
        with self._managed_only(kind, name):
            if sealed is None:
                raise NoSuchRecord
        secrets = self._live.current.secrets
        record = sealed.open(secrets)
        if record is None:
            raise NotPossible(sealed.why_unreadable(secrets))
        return json_response(changes.shown(record, self._live.stronger), headers=NO_STORE)

    async def _records(self) -> tuple[SealedRecord, ...]:
        return (await (await self._catalog()).document()).records
