"""Does each provider answer, and accept its keys? The requests take the same way as those of a worker on this machine."""

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


def certificate_findings() -> list[Finding]:
    """Return a finding for each file of trusted certificates that is configured but does not exist."""
    return [
        Finding("wrong", f"{name}={path} does not exist: no certificate would be trusted.", "Correct it, or unset it.")
        for name, path in missing_certificates().items()
    ]


async def provider_findings(settings: Settings) -> list[Finding]:
    """Return for each provider's URL whether anything answers there."""
    addresses = {
        f"Provider {provider}": (settings.base_url(provider) or "", _base_url_variable(provider, settings))
        for provider in available(settings)
        if not settings.is_behind_gateway(provider)
    }
    if settings.ai_gateway_url:
        addresses["The AI Gateway"] = settings.ai_gateway_base_url, "SLUICE_AI_GATEWAY_BASE_URL"
    own = {f"Provider {vendor.id}" for vendor in settings.vendors.values() if not vendor.key_is_needed and not vendor.paths}
    connections = Connections(settings)
    try:
        return await asyncio.gather(
            *(_reach(label, *target, connections, lists_models=label in own) for label, target in addresses.items())
        )
    finally:
        await connections.close()


def _base_url_variable(provider: str, settings: ModelSettings) -> str:
    env = settings.vendors[provider].env
    return f"{env}_BASE_URL" if env else "its base_url"


async def _reach(label: str, address: str, variable: str, connections: Connections, *, lists_models: bool) -> Finding:
    """Return whether anything answers at an address. Any status counts as an answer, and no key is sent.

    ``lists_models``: it lists its models without a key, directly below the address if that is the right one.
    """
    shown = shown_url(address)
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            target = f"{address}/models" if lists_models else address
            response = await connections.send(UpstreamRequest(target, {}, b"", method="GET"), label)
        response.close()
        proxy = connections.proxy(address)
    except (UpstreamFailure, TimeoutError) as error:
        cause, detail = (error.cause, error.detail) if isinstance(error, UpstreamFailure) else ("timeout", "no answer in time")
        summary = f"{label} does not answer at {shown}: {cause.replace('_', ' ')} ({detail})."
        fix = (
            f"Check {variable}, and the network from this machine to it; a worker elsewhere may differ. See docs/operating.md."
        )
        return Finding("wrong", summary, fix)
    if lists_models and response.status == 404:
        fix = f"Check the path of {variable}: it usually ends in /v1."
        return Finding("wrong", f"{label} answers at {shown}, but there is no list of models below it.", fix)
    return Finding("ok", f"{label} answers at {shown}{f', through the proxy {proxy.host}' if proxy else ''}.")


async def key_findings(settings: Settings) -> list[Finding]:
    """Return for each key whether its provider accepts it, without showing the key."""
    from cli.doctor.provider_keys import check_keys  # Imported here: it needs most of the workers' modules.

    findings = []
    for name, is_good, reason in await check_keys(settings):
        detail = f" ({reason})" if reason else ""
        if is_good:
            findings.append(Finding("ok", f"The provider accepts {name}{detail}."))
        elif is_good is None:
            findings.append(Finding("note", f"The provider did not say whether {name} is valid: {reason}."))
        else:
            fix = "Set another key. If this key may only make some kinds of calls, allow it to list models too."
            findings.append(Finding("wrong", f"The provider refuses {name}{detail}.", fix))
    return findings
