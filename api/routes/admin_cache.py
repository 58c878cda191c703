"""How do admins see what is in the cache, and remove it, over HTTP? The same as ``sluice cache``."""

import asyncio
import time

import structlog
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from api.routes.administration import NO_STORE, Work, admin_router
from api.routes.openapi import administering, query
from api.server.http_errors import PLAIN, json_response
from api.services import ApiServices, answer_or_error
from common.cache.inventory import Inventory
from common.canonical.errors import ErrorKind, GatewayError, StoreUnavailable
from common.canonical.wording import try_again
from common.database.errors import DatabaseUnavailable
from common.database.lazy import LazyDatabase
from common.dialects.shared.reading import invalid
from common.ledger.cache_report import cache_report, last_day
from common.ledger.usage_report import Report

log = structlog.get_logger()

TIMEOUT_S = 30.0  # A million entries take some seconds.
LEDGER_TIMEOUT_S = 10.0
RETRY_AFTER_S = 5
NAME_MAX = 255


class ShownGroup(BaseModel):
    tenant: str
    model: str = Field(description="The name that clients use.")
    target: str = Field(description="What answered: provider/model.")
    entries: int
    bytes: int


class ShownOutcome(BaseModel):
    requests: int
    saved_usd: str = Field(description="What the answers cost when they were made.")


class ShownDay(BaseModel):
    hit: ShownOutcome
    join: ShownOutcome
    miss: ShownOutcome
    bypass: ShownOutcome


class ShownCache(BaseModel):
    object: str = "cache"
    entries: int
    bytes: int
    bytes_max: int
    data: list[ShownGroup] = Field(description="By tenant and model, the largest first.")
    has_more: bool
    last_day: ShownDay | None = Field(description="The last 24 hours. Null: the ledger cannot be read.")


class ClearedCache(BaseModel):
    object: str = "cache"
    deleted: int = Field(description="How many answers were removed.")


_CLEAR_QUERY = [
    query("tenant", "Only answers for this tenant.", minLength=1, maxLength=NAME_MAX),
    query("model", "Only answers of this model, under any name; * and ? are wildcards.", minLength=1, maxLength=NAME_MAX),
]


def router(services: ApiServices, inventory: Inventory, database: LazyDatabase) -> APIRouter:
    routes = admin_router()

    @routes.get("/cache", **administering("Show what is in the cache", ShownCache))
    async def show_cache(request: Request) -> Response:
        async def show() -> Response:
            usage = await _last_day(database)
            report = cache_report(await inventory.count(), services.settings.cache_bytes_max, usage)
            return json_response(report, headers=NO_STORE)

        return await answer_or_error(PLAIN, request, services, _answer(request, services, show))

    @routes.delete("/cache", **administering("Remove answers from the cache", ClearedCache, parameters=_CLEAR_QUERY))
    async def clear_cache(request: Request) -> Response:
        async def clear() -> Response:
            deleted = await inventory.clear(**_chosen(request))
            return json_response(ClearedCache(deleted=deleted).model_dump(), headers=NO_STORE)

        return await answer_or_error(PLAIN, request, services, _answer(request, services, clear))

    return routes


async def _answer(request: Request, services: ApiServices, work: Work) -> Response:
    services.authenticator.check_admin(request)
    try:
        async with asyncio.timeout(TIMEOUT_S):
            return await work()
    except (StoreUnavailable, TimeoutError) as error:
        log.warning("cache_away", error=str(error) or type(error).__name__)
        message = f"The cache does not answer, or only in part. {try_again(RETRY_AFTER_S)}"
        raise GatewayError(ErrorKind.OVERLOADED, message, code="cache_unavailable", retry_after_s=RETRY_AFTER_S) from error


def _chosen(request: Request) -> dict[str, str]:
    """Return what a query chooses. A name that is misspelt must not choose everything."""
    names = [parameter["name"] for parameter in _CLEAR_QUERY]
    for name, value in request.query_params.multi_items():
        if name not in names:
            raise invalid(name[:100], f"is not a parameter: there are {' and '.join(names)}")
        if not 0 < len(value) <= NAME_MAX:
            raise invalid(name, f"must be 1 to {NAME_MAX} characters")
        if len(request.query_params.getlist(name)) > 1:
            raise invalid(name, "must be there only once")
    return dict(request.query_params)


async def _last_day(database: LazyDatabase) -> Report | None:
    """Return the usage of the last day; None if the ledger cannot be read."""
    try:
        async with asyncio.timeout(LEDGER_TIMEOUT_S):
            engine = await database.engine()
            from common.ledger import reports  # Here: it loads SQLAlchemy, which an API without this request never needs.

            return await reports.usage(engine, last_day(time.time_ns() // 1_000_000))
    except (DatabaseUnavailable, TimeoutError) as error:
        log.warning("database_away", error=str(error) or type(error).__name__)
        return None
