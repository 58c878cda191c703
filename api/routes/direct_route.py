"""How is a route served whose function takes the request and returns the response?

Directly. FastAPI would search for parameters, dependencies and telemetry in each request, although there are none, and its
layers cost as much as reading and checking a request. So ``DirectPaths`` stands before them, and FastAPI serves everything
else. It still describes all routes. See docs/decisions/direct-send.md.
"""

from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send


class DirectRoute(APIRoute):
    """A route whose function gets the request and, by name, the parameter in the path, if there is one."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        async def handle(request: Request) -> Response:
            response: Response = await self.endpoint(request=request, **request.path_params)
            return response

        return handle


class DirectPaths:
    """Serves the direct routes whose path is fixed, or ends with its only parameter. ``otherwise`` gets all other requests."""

    def __init__(self, routes: Iterable[BaseRoute], otherwise: ASGIApp) -> None:
        self._otherwise = otherwise
        self._fixed: dict[tuple[str, str], DirectRoute] = {}
        self._open: dict[tuple[str, str], tuple[DirectRoute, str]] = {}  # By the path before the parameter, with its name.
        for route in routes:
            if isinstance(route, DirectRoute):
                for method in route.methods or ():
                    self._add(method, route)

    def _add(self, method: str, route: DirectRoute) -> None:
        before, _, last = route.path.rpartition("/")
        if not route.param_convertors:
            self._fixed[method, route.path] = route
        elif [f"{{{name}}}" for name in route.param_convertors] == [last]:
            self._open[method, before] = route, last.strip("{}")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route, parameters = self.find(scope) if scope["type"] == "http" else (None, {})
        if route is None:
            await self._otherwise(scope, receive, send)
            return
        scope["route"], scope["path_params"] = route, parameters
        answer: Awaitable[Response] = route.endpoint(request=Request(scope, receive), **parameters)
        await (await answer)(scope, receive, send)

    def find(self, scope: Scope) -> tuple[DirectRoute | None, dict[str, str]]:
        """Return the route that serves a request directly, and the parameter in its path; None: FastAPI serves it."""
        method, path = scope["method"], scope["path"]
        if route := self._fixed.get((method, path)):
            return route, {}
        before, _, last = path.rpartition("/")
        route, name = self._open.get((method, before), (None, ""))
        return (route, {name: last}) if last else (None, {})
