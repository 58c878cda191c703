"""Which models can a client name?"""

from fastapi import APIRouter, Request, Response

from api.describing import serving
from api.generate import Services, guarded
from api.http_errors import PLAIN, json_response
from api.permissions import listed_models
from common.dialects import DIALECTS

_LISTED = {
    "type": "object",
    "required": ["object", "data", "has_more", "first_id", "last_id"],
    "properties": {"data": {"type": "array", "items": {"type": "object", "required": ["id", "object", "owned_by"]}}},
}


def router(services: Services) -> APIRouter:
    routes = APIRouter(tags=["models"])

    @routes.get("/v1/models", **serving({"application/json": _LISTED}))
    async def list_models(request: Request) -> Response:
        """List what the key may use of this gateway's aliases, of the names that are known of the providers that are on, and
        of the patterns, one for each of these.

        The shape serves OpenAI's clients and Anthropic's: each entry has the fields of both.
        """
        # Anthropic's clients say so; both vendors have this path.
        dialect = DIALECTS["anthropic-messages"] if "anthropic-version" in request.headers else PLAIN
        return await guarded(dialect, request, services, _list(request, services))

    return routes


async def _list(request: Request, services: Services) -> Response:
    known = listed_models(await services.authenticator.authenticate(request), services.settings)
    data, names = [_entry(name, owner) for name, owner in known.items()], list(known)
    return json_response(
        {
            "object": "list",
            "data": data,
            "has_more": False,
            "first_id": names[0] if names else None,
            "last_id": names[-1] if names else None,
        }
    )


def _entry(name: str, owner: str) -> dict[str, object]:
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": owner,
        "type": "model",
        "display_name": name,
        "created_at": "1970-01-01T00:00:00Z",
    }
