"""How is a route served whose function takes the request, and returns the response?

FastAPI would look for parameters, dependencies and telemetry where there is nothing to find, for each request. The route's
description is FastAPI's all the same.
Source: https://fastapi.tiangolo.com/how-to/custom-request-and-route/
"""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute


class DirectRoute(APIRoute):
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        found: Callable[[Request], Coroutine[Any, Any, Response]] = self.endpoint
        return found
