"""Which deployments, keys included, serve a model name?"""

from common.routes import Target, resolve
from common.settings import ProviderSettings, Settings
from common.vendors import VENDORS
from workers.providers.base import Deployment


def deployments(model: str, settings: Settings) -> list[Deployment]:
    """Return the deployments of a route in the order in which they are tried: its targets, each with all of its keys.

    Raises:
        GatewayError: MODEL_NOT_FOUND, this worker's settings differ from those of the API that took the request.
    """
    return [found for target in resolve(model, settings) for found in _with_keys(target, settings)]


def _with_keys(target: Target, settings: Settings) -> list[Deployment]:
    chosen, vendor = settings.providers.get(target.provider, ProviderSettings()), VENDORS[target.provider]
    base_url = chosen.base_url or vendor.base_url or ""
    keys = [key.get_secret_value() for key in chosen.api_keys] or [target.provider]  # A server that needs no key takes any.
    return [Deployment(target.provider, base_url, key, target.model) for key in keys]
