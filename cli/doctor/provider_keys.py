"""Does each provider take the keys that are set for it? It is asked for its list of models, which costs no tokens."""

import asyncio
from typing import NamedTuple

from common.canonical.errors import ErrorKind
from common.canonical.job import Job, Policy
from common.config.model_routes import available
from common.config.settings import Settings
from workers.providers import WIRES
from workers.providers.base import Deployment, UpstreamRequest
from workers.upstream.connecting import Connections
from workers.upstream.deployments import deployments
from workers.upstream.errors import UpstreamFailure

TIMEOUT_S = 10.0
BODY_BYTES_MAX = 64 * 1024
SHOWN_CHARS, SHOWN_FROM_CHARS = 4, 20  # Of a key, its last ones, as vendors' consoles show them; of a short one, none.
_ANTHROPIC_VERSION = "2023-06-01"


class Checked(NamedTuple):
    """What became of one key. ``is_good`` None: the provider did not tell."""

    key: str
    is_good: bool | None
    reason: str


async def check_keys(settings: Settings) -> list[Checked]:
    """Ask all providers at once, one request for each key."""
    found = [(name, each) for provider in available(settings) for name, each in _named(provider, settings)]
    upstream = Connections(settings)
    try:
        return list(await asyncio.gather(*(_check(name, deployment, upstream) for name, deployment in found)))
    finally:
        await upstream.close()


def _named(provider: str, settings: Settings) -> list[tuple[str, Deployment]]:
    """Return a provider's keys, each by what tells it apart from the others."""
    keys = settings.provider(provider).api_keys
    # As for a request that any model would do for. Where there is a choice of wires, this one's paths end in the version.
    job = Job("", "", "openai-responses", f"{provider}/model", False, Policy.STOP, 0, 0, body=b"{}")
    ends = [_end(key.get_secret_value()) for key in keys]
    names = [f"{provider}, key {n} of {len(keys)}{end}" for n, end in enumerate(ends, 1)]
    return list(zip(names, deployments(job, settings), strict=False))  # Without keys of its own it has one deployment.


def _end(key: str) -> str:
    return f" (…{key[-SHOWN_CHARS:]})" if len(key) >= SHOWN_FROM_CHARS else ""


async def _check(name: str, deployment: Deployment, upstream: Connections) -> Checked:
    url, headers = _request(deployment)
    try:
        async with asyncio.timeout(TIMEOUT_S):
            answer = await upstream.send(UpstreamRequest(url, headers, b"", method="GET"), deployment.provider)
            status, answered = answer.status, answer.headers
            body = await answer.content.read(BODY_BYTES_MAX)
            answer.close()
    except UpstreamFailure as error:
        return Checked(name, None, f"no answer ({error.cause.replace('_', ' ')})")
    except (OSError, TimeoutError) as error:
        return Checked(name, None, f"no answer ({type(error).__name__})")
    if status < 300:
        return Checked(name, True, "")
    if status == 429:
        return Checked(name, True, "it is at its limit now (429)")
    if status == 404:
        return Checked(name, None, "status 404: check its base URL, unless it has no list of models")
    failed = WIRES[deployment.wire].read_error(status, {each.lower(): value for each, value in answered.items()}, body)
    is_refused = failed.kind is ErrorKind.UPSTREAM_CREDENTIALS
    return Checked(name, False if is_refused else None, f"status {status}")


def _request(deployment: Deployment) -> tuple[str, dict[str, str]]:
    """Return the address of a provider's list of models, and the headers to ask with."""
    base_url = deployment.base_url
    if deployment.wire == "anthropic-messages":
        headers = {"anthropic-version": _ANTHROPIC_VERSION, **deployment.request_headers("x-api-key", "")}
        return deployment.url("/v1/models"), headers
    if deployment.wire == "gemini":
        version = "" if base_url.rpartition("/")[2].startswith("v1") else "/v1beta"
        return deployment.url(f"{version}/models"), deployment.request_headers("x-goog-api-key", "")
    return deployment.url("/v1/models" if deployment.wire == "cohere" else "/models"), deployment.request_headers()
