"""What do all administrative paths have in common?

The paths exist only if ``SLUICE_ADMIN_KEYS`` is set; otherwise they are unknown like any others. An admin key works on these
paths only, and a client's key never does.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from fastapi import APIRouter, Depends, Request, Response
from fastapi.security import HTTPBearer
from pydantic import BaseModel, ConfigDict, ValidationError

from api.server.body import read_json
from api.server.http_errors import PLAIN
from api.server.store_errors import redis_away
from api.services import ApiServices, answer_or_error
from common.canonical.errors import ErrorKind, GatewayError
from common.canonical.wording import try_again
from common.database.errors import Busy, DatabaseUnavailable, RowRefused

TIMEOUT_S = 10.0  # For the database and Redis together.
RETRY_AFTER_S = 5
NO_STORE = {"cache-control": "no-store"}

Work = Callable[[], Awaitable[Response]]
BodyModel = TypeVar("BodyModel", bound=BaseModel)


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


def admin_router() -> APIRouter:
    # The dependency only puts the security scheme into the OpenAPI schema. The check itself answers in our own error format.
    return APIRouter(tags=["admin"], prefix="/admin", dependencies=[Depends(HTTPBearer(auto_error=False))])


async def answer_from_database(request: Request, services: ApiServices, work: Work) -> Response:
    """Answer an administrator's request, for which ``work`` uses the database and Redis."""
    return await answer_or_error(PLAIN, request, services, _checked(request, services, work))


async def _checked(request: Request, services: ApiServices, work: Work) -> Response:
    services.authenticator.check_admin(request)
    if not services.pulse.is_up:
        raise redis_away(services.pulse)
    # Shielded: once a change has begun, it is made in both the database and Redis, even if the client has left.
    return await asyncio.shield(asyncio.ensure_future(_with_timeout(work)))


async def _with_timeout(work: Work) -> Response:
    try:
        async with asyncio.timeout(TIMEOUT_S):
            return await work()
    except RowRefused as error:
        raise GatewayError(ErrorKind.INVALID_REQUEST, "The database cannot store these values.", code="invalid") from error
    except (DatabaseUnavailable, TimeoutError, Busy) as error:
        message = f"The database does not answer. {try_again(RETRY_AFTER_S)}"
        raise GatewayError(ErrorKind.OVERLOADED, message, code="database_unavailable", retry_after_s=RETRY_AFTER_S) from error


async def read_model(model: type[BodyModel], request: Request, services: ApiServices) -> BodyModel:
    _, body = await read_json(request, services.settings, services.bodies)
    try:
        return model.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        param = ".".join(str(part) for part in first["loc"])
        raise GatewayError(
            ErrorKind.INVALID_REQUEST, f"{param or 'The body'}: {first['msg']}.", code="invalid_value", param=param[:200]
        ) from error
