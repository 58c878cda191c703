"""Which models can a client name?"""

import re
from datetime import UTC, datetime

from fastapi import APIRouter, Request, Response
from starlette.convertors import Convertor, register_url_convertor

from api.auth.permissions import RequestedModel, listed_models, permitted_models
from api.routes.openapi import list_of, object_of, serving
from api.server.http_errors import PLAIN, json_response
from api.services import ApiServices, answer_or_error
from common.config.model_routes import model_names, resolve
from common.dialects import DIALECTS
from common.dialects.base import Dialect
from common.vendors.model_names import MODEL_NAMES

_MODEL = {"type": "object", "required": ["id", "object", "owned_by"]}
_LISTED = object_of(["object", "data", "has_more", "first_id", "last_id"], data=list_of(_MODEL))

_DATED = re.compile(r"-(20\d\d)-?([01]\d)-?([0-3]\d)$")
_CREATED_UNKNOWN = datetime(2025, 1, 1, tzinfo=UTC)  # Clients need a date, also for a model whose date is not known.


class _ModelName(Convertor[str]):
    """A model's name in a path. It may have slashes, as in ``provider/model``."""

    regex = "[^/.](?:.*[^/])?"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("model_name", _ModelName())


def router(services: ApiServices) -> APIRouter:
    routes = APIRouter(tags=["models"])

    @routes.get("/v1/models", **serving({"application/json": _LISTED}))
    async def list_models(request: Request) -> Response:
        """List this gateway's aliases and the known models of the configured providers, as far as the key may use them.

        Each entry has the fields of both OpenAI's and Anthropic's lists, so the clients of both can read it.
        """
        return await answer_or_error(_dialect_of(request), request, services, _list(request, services))

    @routes.get("/v1/models/{name:model_name}", **serving({"application/json": _MODEL}, 404))
    async def get_model(name: str, request: Request) -> Response:
        """Return one model by any name that the key may use, listed or not."""
        return await answer_or_error(_dialect_of(request), request, services, _get(name, request, services))

    return routes


def _dialect_of(request: Request) -> Dialect:
    """Return Anthropic's dialect for Anthropic's clients, which send a header of their own. Both vendors have these paths."""
    return DIALECTS["anthropic-messages"] if "anthropic-version" in request.headers else PLAIN


async def _get(name: str, request: Request, services: ApiServices) -> Response:
    settings = services.settings
    principal = await services.authenticator.authenticate(request)
    targets = permitted_models(principal, RequestedModel(name), resolve(name, settings), settings)
    return json_response(entry_of(name, model_names(settings).get(name, targets[0].provider)))


async def _list(request: Request, services: ApiServices) -> Response:
    settings = services.settings
    models = listed_models(await services.authenticator.authenticate(request), settings)
    data, names = [entry_of(name, owner) for name, owner in models.items()], list(models)
    return json_response(
        {
            "object": "list",
            "data": data,
            "has_more": False,
            "first_id": names[0] if names else None,
            "last_id": names[-1] if names else None,
        }
    )


def entry_of(name: str, owner: str) -> dict[str, object]:
    created = _created(MODEL_NAMES.get(owner, {}).get(name, name))
    return {
        "id": name,
        "object": "model",
        "created": int(created.timestamp()),
        "owned_by": owner,
        "type": "model",
        "display_name": name,
        "created_at": created.strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def _created(name: str) -> datetime:
    """Return the date that a vendor puts at the end of a model's name; ``_CREATED_UNKNOWN`` if there is none."""
    if match := _DATED.search(name):
        try:
            return datetime(*map(int, match.groups()), tzinfo=UTC)  # type: ignore[misc,arg-type]  # Three numbers.
        except ValueError:  # The digits are not a date.
            pass
    return _CREATED_UNKNOWN
