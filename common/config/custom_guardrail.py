"""Which guardrails of the operator's own do the settings name? Both tiers load them once, when they start."""

from collections.abc import Callable

from common.config.proxies import Proxy, proxy_for
from common.config.settings import Settings
from common.guardrails.custom import CustomGuardrails, PostWebhook, load


def load_custom_guardrails(
    settings: Settings, poster: Callable[[str, float, Proxy | None], PostWebhook]
) -> CustomGuardrails | None:
    """Return the operator's own guardrails, None where there are none. ``poster`` is called only if there is a webhook.

    Raises:
        PluginError: the plugin could not be loaded.
        ProxyUnusable: the webhook cannot be reached through the proxy that the environment names.
    """
    plugin, url, timeout_s = settings.guardrail_plugin, settings.guardrail_webhook_url, settings.guardrail_timeout_s
    if not (plugin or url):
        return None
    post = poster(url, timeout_s, proxy_for(url, settings)) if url else None
    return CustomGuardrails(load(plugin) if plugin else None, post, timeout_s)
