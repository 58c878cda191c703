"""Which targets of a route may serve this request, and which conversation is it a part of?

Only for models that are routes of the settings; see docs/routing.md.
"""

import hashlib
import re

import orjson
from starlette.datastructures import Headers

from common.access.principal import Principal
from common.canonical.errors import ErrorKind, GatewayError
from common.canonical.generation import GenerationRequest, Role
from common.config.model_routes import Target, has_target, named_targets
from common.config.settings import Settings

_TAGS = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}(?: ?, ?[a-z0-9][a-z0-9._-]{0,63}){0,15}")
_SESSION_CHARS_MAX = 256


def tagged_targets(model: str, targets: list[Target], headers: Headers, settings: Settings) -> list[Target]:
    """Return those of the targets, fallbacks included, that have all tags in ``x-sluice-tags``.

    Raises:
        GatewayError: INVALID_REQUEST, the header is not valid, or no target has all of its tags.
    """
    text = headers.get("x-sluice-tags")
    if text is None:
        return targets
    if not _TAGS.fullmatch(text.strip().lower()):
        raise _invalid("x-sluice-tags must be names of tags with commas between them, such as: eu, fast.")
    wanted = {tag.strip() for tag in text.lower().split(",")}
    route = settings.routes.get(model)
    if route is None:
        raise _invalid(f"x-sluice-tags chooses among the targets of a route, and {model[:100]!r} is no route.")
    rules = zip(named_targets([rule.model for rule in route.rules], settings), route.rules, strict=True)
    names = {target.name for target, rule in rules if target and wanted <= set(rule.tags)}
    chosen = [target for target in targets if target.name in names]
    if not has_target(model, chosen, settings):
        known = ", ".join(sorted({tag for rule in route.targets for tag in rule.tags})) or "none"
        raise _invalid(f"No target of {model[:100]!r} that you may use has all tags in x-sluice-tags. Its tags: {known}.")
    return chosen


def conversation_of(headers: Headers, principal: Principal, request: GenerationRequest, settings: Settings) -> str:
    """Return a name for the conversation; empty if the route has no affinity.

    What names it, the strongest first: ``x-session-id``, ``prompt_cache_key``, the end user, what the conversation begins with.
    """
    route = settings.routes.get(request.model)
    if route is None or not route.affinity:
        return ""
    named = headers.get("x-session-id") or request.prompt_cache_key or principal.end_user or request.end_user
    begin = named[:_SESSION_CHARS_MAX].encode() if named else _beginning(request)
    return hashlib.blake2b(b"%b %b" % (principal.tenant.encode(), begin), digest_size=16).hexdigest()


def _beginning(request: GenerationRequest) -> bytes:
    """Return the messages up to the first one of the user, which stay the same from turn to turn."""
    users = [number for number, message in enumerate(request.messages) if message.role is Role.USER]
    return orjson.dumps(request.messages[: users[0] + 1 if users else 1])


def _invalid(message: str) -> GatewayError:
    return GatewayError(ErrorKind.INVALID_REQUEST, message, param="x-sluice-tags", code="invalid_header")
