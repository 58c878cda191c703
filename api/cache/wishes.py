"""What does a client ask of the cache, with the headers of its request?

``x-sluice-cache`` is ours, and the stronger one. Of ``cache-control`` we obey the directives for requests in RFC 9111, section
5.2.1, that make sense for answers that are never checked for freshness: no-cache, no-store, max-age, only-if-cached.
"""

from dataclasses import dataclass

from starlette.datastructures import Headers

from api.server.numbers import parse_integer
from common.canonical.errors import ErrorKind, GatewayError

AGE_S_MAX = 366 * 86_400
MODES = ("use", "refresh", "off")


@dataclass(frozen=True, slots=True)
class Wishes:
    """``is_asked``: the client wants the cache to be used, also where nobody set it up. ``max_age_s``: the oldest answer that
    the client takes. ``only_if_cached``: it wants an answer from the cache or none.
    """

    is_asked: bool = False
    is_off: bool = False
    may_use: bool = True
    may_store: bool = True
    max_age_s: int | None = None
    only_if_cached: bool = False


NO_WISHES = Wishes()


def parse_wishes(headers: Headers) -> Wishes:
    """Return what the headers ask for.

    Raises:
        GatewayError: INVALID_REQUEST, ``x-sluice-cache`` is none of use, refresh and off.
    """
    mode, control = headers.get("x-sluice-cache"), headers.get("cache-control")
    if mode is None and control is None:
        return NO_WISHES
    directives = _directives(control or "")
    may_use, may_store = "no-cache" not in directives, "no-store" not in directives
    if mode is not None:
        mode = mode.strip().lower()
        if mode not in MODES:
            raise GatewayError(
                ErrorKind.INVALID_REQUEST,
                "x-sluice-cache must be 'use', 'refresh' or 'off'.",
                param="x-sluice-cache",
                code="invalid_header",
            )
        may_use, may_store = mode == "use", True
    max_age_s = parse_integer(directives.get("max-age", ""), 0, AGE_S_MAX)
    return Wishes(
        is_asked=mode in ("use", "refresh"),
        is_off=mode == "off",
        may_use=may_use and max_age_s != 0,
        may_store=may_store,
        max_age_s=max_age_s,
        only_if_cached="only-if-cached" in directives,
    )


def _directives(control: str) -> dict[str, str]:
    parts = (part.strip().lower().partition("=") for part in control.split(","))
    return {name.strip(): value.strip().strip('"') for name, _, value in parts}
