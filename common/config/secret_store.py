"""Which variables does a cloud's secret store have? ``SLUICE_SECRET_STORE`` names the store; pydantic-settings reads it.

A variable has the same name there as in the environment. ``aws:ID``: one secret whose text is a JSON object of variables.
``google:PROJECT`` and ``azure:URL``: a secret for each variable; Azure's names have dashes for underscores. Only our own
variables and those of provider keys are read. Each needs an extra of the package, and logs in as its cloud's libraries do.
Sources: https://docs.pydantic.dev/latest/concepts/pydantic_settings/ (AWS Secrets Manager, Google Cloud Secret Manager, Azure
Key Vault).
"""

import importlib
import json
from collections.abc import Callable, Collection, Mapping
from typing import Any

from pydantic_settings import (
    AWSSecretsManagerSettingsSource,
    AzureKeyVaultSettingsSource,
    BaseSettings,
    EnvSettingsSource,
    GoogleSecretManagerSettingsSource,
)

VARIABLE, PREFIX = "SLUICE_SECRET_STORE", "SLUICE_"
FORMS = "aws:ID, google:PROJECT or azure:https://NAME.vault.azure.net"


class UnreadableStore(ValueError):
    """The store cannot be read. The message says why, and quotes no value."""


class _NoFields(BaseSettings):
    """The sources want a class. We take all of their variables instead of its fields."""


def _azure(url: str) -> EnvSettingsSource:
    login = importlib.import_module("azure.identity").DefaultAzureCredential()
    return AzureKeyVaultSettingsSource(_NoFields, url, login, case_sensitive=True)


_STORES: Mapping[str, Callable[[str], EnvSettingsSource]] = {
    "aws": lambda name: AWSSecretsManagerSettingsSource(_NoFields, name),
    "google": lambda name: GoogleSecretManagerSettingsSource(_NoFields, project_id=name),
    "azure": _azure,
}


def read_store(text: str, others: Collection[str]) -> dict[str, str]:
    """Return the variables of a store.

    Args:
        text: The value of ``SLUICE_SECRET_STORE``.
        others: Names of variables without our prefix that are read too.
    Raises:
        UnreadableStore
    """
    kind, _, name = text.partition(":")
    if kind not in _STORES or not name:
        raise UnreadableStore(f"{VARIABLE} must be {FORMS}.")
    try:
        source = _STORES[kind](name)
        source()
        names = {stored: stored.upper().replace("-", "_") for stored in source.env_vars}
        return {
            variable: _as_text(source.env_vars[stored]).strip()
            for stored, variable in names.items()
            if variable != VARIABLE and (variable.startswith(PREFIX) or variable in others)
        }
    except ImportError as error:
        raise UnreadableStore(
            f"{VARIABLE} needs libraries that are not installed: pip install 'sluice-gateway[{kind}]'."
        ) from error
    except Exception as error:  # Each cloud has its own errors.
        raise UnreadableStore(
            f"The store that {VARIABLE} names cannot be read: {type(error).__name__}. {_hint(kind)}"
        ) from error


def _as_text(value: Any) -> str:
    """Return the text of a value. In AWS's JSON it may be a number, a list or an object."""
    return value if isinstance(value, str) else "" if value is None else json.dumps(value)


def _hint(kind: str) -> str:
    permission = {"aws": "secretsmanager:GetSecretValue", "google": "Secret Manager Secret Accessor and Viewer"}
    return f"The process needs a login and the permission {permission.get(kind, 'Key Vault Secrets User')}."
