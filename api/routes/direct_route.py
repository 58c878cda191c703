"""How is a route served whose function takes the request and returns the response?

Directly. FastAPI would search for parameters, dependencies and telemetry in each request, although there are none. FastAPI
still describes the route. Source: https://fastapi.tiangolo.com/how-to/custom-request-and-route/
"""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute


class DirectRoute(APIRoute):
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        endpoint: Callable[[Request], Coroutine[Any, Any, Response]] = self.endpoint
        return endpoint
