"""Does each provider answer, and take its keys? Asked by the way that a worker in this very place would take."""

import asyncio

from cli.doctor.finding import Finding
from common.config.groups.models import ModelSettings
from common.config.model_routes import available
from common.config.proxies import missing_certificates
from common.config.settings import Settings
from common.process.redaction import shown_url
from workers.providers.base import UpstreamRequest
from workers.upstream.connecting import Connections
from workers.upstream.errors import UpstreamFailure

ANSWER_TIMEOUT_S = 10.0


def certificates() -> list[Finding]:
    """Return a finding for each file of trusted certificates that is named and not there."""
    return [
        Finding("wrong", f"{name}={path} is not there: no certificate would be trusted.", "Correct it, or unset it.")
        for name, path in missing_certificates().items()
    ]


async def providers_reached(settings: Settings) -> list[Finding]:
    """Return for each provider's address whether anything answers there."""
    addresses = {
        f"Provider {provider}": (settings.base_url(provider) or "", _base_url_variable(provider, settings))
        for provider in available(settings)
        if not settings.is_behind_gateway(provider)
    }
    if settings.ai_gateway_url:
        addresses["The AI Gateway"] = settings.ai_gateway_base_url, "SLUICE_AI_GATEWAY_BASE_URL"
    connections = Connections(settings)
    try:
        return await asyncio.gather(*(_reach(who, *where, connections) for who, where in addresses.items()))
    finally:
        await connections.close()


def _base_url_variable(provider: str, settings: ModelSettings) -> str:
    env = settings.vendors[provider].env
    return f"{env}_BASE_URL" if env else "its base_url"


async def _reach(who: str, address: str, variable: str, connections: Connections) -> Finding:
    """Which status it answers with does not matter, and no key is sent."""
    shown = shown_url(address)
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            response = await connections.send(UpstreamRequest(address, {}, b"", method="GET"), who)
        response.close()
        proxy = connections.proxy(address)
    except (UpstreamFailure, TimeoutError) as error:
        cause, detail = (error.cause, error.detail) if isinstance(error, UpstreamFailure) else ("timeout", "no answer in time")
        what = f"{who} does not answer at {shown}: {cause.replace('_', ' ')} ({detail})."
        mend = f"Check {variable} and the way out from here; a worker elsewhere may have another. See docs/operating.md."
        return Finding("wrong", what, mend)
    return Finding("ok", f"{who} answers at {shown}{f', through the proxy {proxy.host}' if proxy else ''}.")


async def keys_checked(settings: Settings) -> list[Finding]:
    """Return whether each key is good, told without showing it."""
    from cli.doctor.provider_keys import check_keys  # Here: it needs the workers' side of it all.

    found = []
    for name, is_good, reason in await check_keys(settings):
        told = f" ({reason})" if reason else ""
        if is_good:
            found.append(Finding("ok", f"The provider takes {name}{told}."))
        elif is_good is None:
            found.append(Finding("note", f"Whether {name} is good, the provider did not tell: {reason}."))
        else:
            mend = "Set another, or allow it to list models if it is meant for some calls alone."
            found.append(Finding("wrong", f"The provider refuses {name}{told}.", mend))
    return found
