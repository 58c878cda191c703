"""Which paths speak which dialect?"""

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import APIRouter, Request, Response

from api.generate import open_generation
from api.routes.direct_route import DirectRoute
from api.routes.openapi import generating, object_of, query
from api.services import ApiServices
from common.access.principal import Principal
from common.dialects import DIALECTS
from common.dialects.unified import request as unified_request

_PATHS = {
    "/v1/chat/completions": "openai-chat",
    "/v1/messages": "anthropic-messages",
}
_STREAM = query("stream", "The same as `stream` in the body.", enum=["true", "false", "1", "0"])
_COUNTED = object_of(["input_tokens"], input_tokens={"type": "integer"})


def router(services: ApiServices) -> APIRouter:
    routes = APIRouter(tags=["generations"], route_class=DirectRoute)
    for path, name in _PATHS.items():
        summary = f"Generate ({name})"
        endpoint, described = _endpoint(name, services), generating(name)
        routes.add_api_route(path, endpoint, methods=["POST"], summary=summary, **described)

    @routes.post(
        "/v1/messages/count_tokens",
        summary="Count a prompt's tokens (anthropic-messages)",
        **generating("anthropic-messages", body_schema=_COUNTED),
    )
    async def count_tokens(request: Request) -> Response:
        async def amend(_: Principal, body: dict[str, Any]) -> dict[str, Any]:
            return {"max_tokens": 1, **body}  # Nothing is generated, so clients name no limit.

        return await open_generation(DIALECTS["anthropic-messages"], request, services, amend, "count_tokens")

    @routes.post("/api/{provider}", summary="Generate (agentary)", **generating("agentary"))
    async def generate_agentary(provider: str, request: Request) -> Response:
        async def amend(_: Principal, body: dict[str, Any]) -> dict[str, Any]:
            return {**body, "provider": provider}

        return await open_generation(DIALECTS["agentary"], request, services, amend)

    @routes.post("/v1/chat", summary="Generate (unified)", **generating("unified", parameters=[_STREAM]))
    async def generate_unified(request: Request) -> Response:
        is_stream = request.query_params.get("stream", "").lower() in ("true", "1")

        async def amend(_: Principal, body: dict[str, Any]) -> dict[str, Any]:
            check_unified(body, services)
            return {**body, "stream": True} if is_stream else body

        return await open_generation(DIALECTS["unified"], request, services, amend)

    return routes


def check_unified(body: dict[str, Any], services: ApiServices) -> None:
    """Check what parsing cannot check: that this gateway knows the provider."""
    unified_request.check(body, services.settings.vendor_ids)


def _endpoint(name: str, services: ApiServices) -> Callable[[Request], Awaitable[Response]]:
    dialect = DIALECTS[name]

    async def generate(request: Request) -> Response:
        return await open_generation(dialect, request, services)

    generate.__name__ = f"generate_{name.replace('-', '_')}"
    return generate
