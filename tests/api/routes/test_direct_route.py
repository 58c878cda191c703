"""A direct route is served as FastAPI would serve it, only without its layers."""

from typing import Any

import pytest
from fastapi import APIRouter, FastAPI, Request, Response
from starlette.routing import Match

from api.main import ApiProcess, create_app
from api.routes.direct_route import DirectPaths, DirectRoute
from common.config.settings import Settings

APP = create_app(ApiProcess(Settings()))
DIRECT = [(method, route.path) for route in APP.routes if isinstance(route, DirectRoute) for method in route.methods or ()]
GENERATING = ["/v1/chat/completions", "/v1/messages", "/v1/responses", "/v1/chat", "/api/openai"]


async def serve(paths: DirectPaths, method: str, path: str) -> dict[str, Any]:
    """Return the scope of a request after it was served."""
    scope = {"type": "http", "method": method, "path": path, "root_path": "", "query_string": b"", "headers": [], "state": {}}

    async def nothing(*_: Any) -> dict[str, Any]:
        return {"type": "http.disconnect"}

    await paths(scope, nothing, nothing)
    return scope


async def leave(scope: dict[str, Any], *_: Any) -> None:
    scope["is_left"] = True


def echoing(route_path: str) -> DirectPaths:
    routes = APIRouter(route_class=DirectRoute)

    @routes.get(route_path)
    async def echo(request: Request, name: str = "") -> Response:
        request.scope["name"] = name
        return Response()

    return DirectPaths(routes.routes, leave)


@pytest.mark.parametrize(("method", "path"), DIRECT)
async def test_the_route_is_the_one_that_fastapi_chooses(method: str, path: str):
    scope = {"type": "http", "method": method, "path": path.replace("{", "a-").replace("}", ""), "root_path": ""}
    chosen = next(route for route in APP.routes if route.matches(scope)[0] is Match.FULL)

    route, _ = DirectPaths(APP.routes, leave).find(scope)

    assert route in (None, chosen)


@pytest.mark.parametrize(("method", "path"), [*(("POST", path) for path in GENERATING), ("GET", "/v1/generations/gen_1")])
async def test_what_generates_and_what_reads_is_served_directly(method: str, path: str):
    route, _ = DirectPaths(APP.routes, leave).find({"method": method, "path": path})

    assert route is not None


@pytest.mark.parametrize(
    ("path", "requested", "name"),
    [("/a", "/a", ""), ("/a/{name}", "/a/b", "b"), ("/a/{name}", "/a/b%2Fc", "b%2Fc")],
)
async def test_its_function_gets_the_parameter_at_the_end_of_the_path(path: str, requested: str, name: str):
    scope = await serve(echoing(path), "GET", requested)

    assert (scope["name"], scope["route"].path) == (name, path)


@pytest.mark.parametrize(
    ("path", "method", "requested"),
    [
        ("/a", "POST", "/a"),
        ("/a", "GET", "/a/"),
        ("/a/{name}", "GET", "/a/"),
        ("/a/{name}", "GET", "/a"),
        ("/a/{name}", "GET", "/a/b/c"),
        ("/a/{name:path}", "GET", "/a/b"),
        ("/{name}/a", "GET", "/b/a"),
        ("/{name}/{other}", "GET", "/a/b"),
    ],
)
async def test_every_other_request_is_left_to_fastapi(path: str, method: str, requested: str):
    scope = await serve(echoing(path), method, requested)

    assert scope.get("is_left")
    assert "route" not in scope


async def test_fastapi_serves_a_direct_route_that_is_left_to_it():
    app, routes = FastAPI(), APIRouter(route_class=DirectRoute)

    @routes.get("/{name}/{other}")
    async def both(request: Request, name: str, other: str) -> Response:
        request.scope["names"] = name, other
        return Response()

    app.router.routes.extend(routes.routes)
    scope = await serve(DirectPaths(app.routes, app), "GET", "/a/b")

    assert scope["names"] == ("a", "b")
