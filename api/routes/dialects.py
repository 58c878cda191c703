"""Which paths speak which dialect?"""

from collections.abc import Awaitable, Callable

from fastapi import APIRouter, Request, Response

from api.generate import Services, open_generation
from common.dialects import DIALECTS

_PATHS = {
    "/v1/chat/completions": "openai-chat",
    "/v1/messages": "anthropic-messages",
}


def router(services: Services) -> APIRouter:
    routes = APIRouter(tags=["generations"])
    for path, name in _PATHS.items():
        routes.add_api_route(path, _endpoint(name, services), methods=["POST"], summary=f"Generate ({name})")
    return routes


def _endpoint(name: str, services: Services) -> Callable[[Request], Awaitable[Response]]:
    dialect = DIALECTS[name]

    async def generate(request: Request) -> Response:
        return await open_generation(dialect, request, services)

    generate.__name__ = f"generate_{name.replace('-', '_')}"
    return generate
