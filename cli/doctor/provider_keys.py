"""Does each provider accept the keys that are set for it? Each key asks for the list of models, which costs no tokens."""

import asyncio
from typing import NamedTuple

from common.canonical.errors import ErrorKind
from common.canonical.job import Job, Policy
from common.config.model_routes import available
from common.config.settings import Settings
from workers.providers import WIRES
from workers.providers.base import Deployment
from workers.upstream.connecting import Connections
from workers.upstream.deployments import deployments
from workers.upstream.errors import UpstreamFailure
from workers.upstream.model_list import model_list_request

TIMEOUT_S = 10.0
BODY_BYTES_MAX = 64 * 1024
SHOWN_CHARS, SHOWN_FROM_CHARS = 4, 20  # The last characters of a key are shown, as in vendors' consoles. Of a short key, none.


class KeyCheck(NamedTuple):
    """The result for one key. ``is_good`` None: the provider did not say."""

    key: str
    is_good: bool | None
    reason: str


async def check_keys(settings: Settings) -> list[KeyCheck]:
    """Ask all providers at the same time, with one request for each key."""
    named = [pair for provider in available(settings) for pair in _named_deployments(provider, settings)]
    upstream = Connections(settings)
    try:
        return list(await asyncio.gather(*(_check(name, deployment, upstream) for name, deployment in named)))
    finally:
        await upstream.close()


def _named_deployments(provider: str, settings: Settings) -> list[tuple[str, Deployment]]:
    """Return a deployment for each of a provider's keys, with a name that tells the keys apart."""
    keys = settings.provider(provider).api_keys
    # As for a request for any model. Of a provider with several wires, this dialect selects the one whose URLs end in the
    # version.
    job = Job("", "", "openai-responses", f"{provider}/model", False, Policy.STOP, 0, 0, body=b"{}")
    ends = [_end(key.get_secret_value()) for key in keys]
    names = [f"{provider}, key {n} of {len(keys)}{end}" for n, end in enumerate(ends, 1)]
    return list(zip(names, deployments(job, settings), strict=False))  # A provider without keys of its own has one deployment.


def _end(key: str) -> str:
    return f" (…{key[-SHOWN_CHARS:]})" if len(key) >= SHOWN_FROM_CHARS else ""


async def _check(name: str, deployment: Deployment, upstream: Connections) -> KeyCheck:
    try:
        async with asyncio.timeout(TIMEOUT_S):
            response = await upstream.send(model_list_request(deployment), deployment.provider)
            status, response_headers = response.status, response.headers
            body = await response.content.read(BODY_BYTES_MAX)
            response.close()
    except UpstreamFailure as error:
        return KeyCheck(name, None, f"no answer ({error.cause.replace('_', ' ')})")
    except (OSError, TimeoutError) as error:
        return KeyCheck(name, None, f"no answer ({type(error).__name__})")
    if status < 300:
        return KeyCheck(name, True, "")
    if status == 429:
        return KeyCheck(name, True, "it is at its limit now (429)")
    if status == 404:
        return KeyCheck(name, None, "status 404: check its base URL, unless the provider has no list of models")
    lower_headers = {header.lower(): value for header, value in response_headers.items()}
    failed = WIRES[deployment.wire].read_error(status, lower_headers, body)
    is_refused = failed.kind is ErrorKind.UPSTREAM_CREDENTIALS
    return KeyCheck(name, False if is_refused else None, f"status {status}")
