"""How much has a key used?

The same report as ``sluice usage``, but only for the key that asks.
"""

from collections.abc import Mapping
from datetime import UTC, datetime

import structlog
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from api.auth.permissions import refuse_anonymous
from api.routes.openapi import NULLABLE_TEXT, TEXT, list_of, object_of, query, serving
from api.routes.paging import limit_in, limit_parameter
from api.server.http_errors import PLAIN, json_response
from api.services import ApiServices, answer_or_error
from common.canonical.errors import ErrorKind, GatewayError
from common.canonical.wording import try_again
from common.database.errors import DatabaseUnavailable
from common.database.lazy import LazyDatabase
from common.ledger.usage_report import SINCE_DEFAULT, UsageQuestion, moment_ms

log = structlog.get_logger()

OWN_GROUPS = ("day", "hour", "model", "provider", "end_user", "cache")  # Key and tenant are always those of the client.
LINES_MAX, LINES_DEFAULT = 1_000, 100
RETRY_AFTER_AWAY_S = 5
_CODE = "invalid_parameter"


class UsageLine(BaseModel):
    """One group. Of the first six fields, only those that the client groups by are there. Amounts are text, in US dollars."""

    day: str | None = None
    hour: str | None = None
    model: str | None = None
    provider: str | None = None
    end_user: str | None = None
    cache: str | None = Field(None, description="How the cache served the requests: off, bypass, miss, hit or join.")
    requests: int
    input_tokens: int = Field(description="Includes both cache figures.")
    output_tokens: int = Field(description="Includes reasoning.")
    cache_read_tokens: int
    cache_write_tokens: int
    reasoning_tokens: int
    total_tokens: int
    cost_usd: str
    saved_usd: str = Field(description="What answers from the cache, and shared ones, cost when they were made.")
    unpriced_requests: int = Field(description="Requests without a known price. They add nothing to the cost.")
    estimated_share: float = Field(description="The share of the requests whose tokens the gateway itself counted.")
    active_users: int
    tokens_per_request: float
    cost_per_user_usd: str


ANSWER = object_of(
    ["object", "by", "since", "until", "data", "has_more"],
    object={"const": "usage"},
    key={**TEXT, "description": "The id of the key that asks."},
    key_name={**NULLABLE_TEXT, "description": "The name of the key; null if it has none."},
    by=list_of({"enum": list(OWN_GROUPS)}),
    since={**TEXT, "format": "date-time"},
    until={**TEXT, "format": "date-time"},
    data=list_of(UsageLine.model_json_schema()),
    has_more={"type": "boolean"},
)
_GROUP = f"({'|'.join(OWN_GROUPS)})"
_MOMENT = "^([1-9][0-9]{0,3}[dh]|20[0-9]{2}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])(T([01][0-9]|2[0-3]):[0-5][0-9]Z?)?)$"
PARAMETERS = (
    query("by", "Groups, separated by commas. The default is by day.", pattern=f"^{_GROUP}(,{_GROUP})*$", default="day"),
    query("since", "2026-11-01, 2026-11-01T09:00 (UTC), 7d or 12h ago.", pattern=_MOMENT, default=SINCE_DEFAULT),
    query("until", "In the same form; excluded. The default is now.", pattern=_MOMENT),
    limit_parameter("How many lines.", LINES_MAX, default=LINES_DEFAULT),
)


def router(services: ApiServices, database: LazyDatabase) -> APIRouter:
    routes = APIRouter(tags=["usage"])

    @routes.get("/v1/usage", **serving({"application/json": ANSWER}, 400, parameters=PARAMETERS))
    async def get_usage(request: Request) -> Response:
        """Report what the key has used: requests, tokens by kind and cost, by day or by other groups."""
        return await answer_or_error(PLAIN, request, services, _usage(request, services, database))

    return routes


async def _usage(request: Request, services: ApiServices, database: LazyDatabase) -> Response:
    principal = await services.authenticator.authenticate(request, "usage")
    refuse_anonymous(principal, "Usage")
    question = parse_question(request.query_params, principal.id, datetime.now(UTC))
    return json_response(await report(question, database))


def parse_question(params: Mapping[str, str], owner: str, now: datetime) -> UsageQuestion:
    """Return the question that a query asks the ledger.

    Raises:
        GatewayError: INVALID_REQUEST, naming the parameter.
    """
    names = [parameter["name"] for parameter in PARAMETERS]
    if unknown := sorted(set(params) - set(names)):
        raise _invalid(unknown[0][:100], f"There is no such parameter. There are: {', '.join(names)}.")
    by = tuple(dict.fromkeys(name.strip() for name in params.get("by", "day").split(",")))
    if not set(by) <= set(OWN_GROUPS):
        raise _invalid("by", f"by must be one or more of {', '.join(OWN_GROUPS)}, separated by commas.")
    limit = limit_in(params, LINES_MAX, LINES_DEFAULT, _CODE)
    since_ms = _moment("since", params.get("since", SINCE_DEFAULT), now)
    return UsageQuestion(by, since_ms, _moment("until", params.get("until", "0h"), now), {"key": owner}, limit)


def _moment(name: str, text: str, now: datetime) -> int:
    try:
        return moment_ms(text, now)
    except ValueError as error:
        raise _invalid(name, f"{name}: {error}.") from error


def _invalid(param: str, message: str) -> GatewayError:
    return GatewayError(ErrorKind.INVALID_REQUEST, message, param=param, code=_CODE)


async def report(question: UsageQuestion, database: LazyDatabase) -> dict[str, object]:
    try:
        engine = await database.engine()
        from common.ledger import reports  # Here: it loads SQLAlchemy, which an API without this request never needs.

        return (await reports.usage(engine, question)).to_dict()
    except DatabaseUnavailable as error:
        log.warning("database_away", error=str(error))
        raise GatewayError(
            ErrorKind.OVERLOADED,
            f"The gateway cannot report usage now: its database does not answer. {try_again(RETRY_AFTER_AWAY_S)}",
            code="database_unavailable",
            retry_after_s=RETRY_AFTER_AWAY_S,
        ) from error
