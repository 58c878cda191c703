"""Which settings are there, and what are their values?

The values come from the environment and from files, see ``setting_sources.py``. The defaults are design decisions; units are
part of the names. Each number has a range in which the gateway works. With a value outside of it, no process starts.
"""

from typing import Any

from pydantic import ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from common.config.groups.access import AccessSettings
from common.config.groups.cache import CacheSettings
from common.config.groups.channel import ChannelSettings
from common.config.groups.guardrails import GuardrailSettings
from common.config.groups.ledger import LedgerSettings
from common.config.groups.limits import LimitSettings
from common.config.groups.models import ModelSettings
from common.config.groups.queue import QueueSettings
from common.config.groups.server import ServerSettings
from common.config.groups.upstream import UpstreamSettings
from common.config.setting_sources import environment as environment
from common.config.setting_sources import sources
from common.config.setting_values import GIB as GIB
from common.config.setting_values import KIB as KIB
from common.config.setting_values import MIB as MIB

# The larger setting, the smaller one, the minimum ratio, and what goes wrong below it.
_RELATIONS = (
    ("lease_s", "renew_s", 2, "or workers claim each other's running jobs, and answers break off"),
    ("vanished_viewers_s", "heartbeat_s", 2, "or answers are stopped while their clients still read them"),
)


class Settings(
    ServerSettings,
    AccessSettings,
    LimitSettings,
    GuardrailSettings,
    LedgerSettings,
    ModelSettings,
    UpstreamSettings,
    QueueSettings,
    ChannelSettings,
    CacheSettings,
    BaseSettings,
):
    model_config = SettingsConfigDict(
        env_prefix="SLUICE_",
        env_file=".env",
        extra="ignore",
        frozen=True,
        env_ignore_empty=True,
        hide_input_in_errors=True,  # It may be a secret.
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        assert isinstance(init_settings, InitSettingsSource)
        return sources(settings_cls, init_settings, dotenv_settings)

    def __copy__(self) -> "Settings":
        """Return a copy without what was worked out from the values: the caller changes some of these (``model_copy``)."""
        copied = super().__copy__()
        for name in copied.__dict__.keys() - type(self).model_fields.keys():
            del copied.__dict__[name]
        return copied

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_switches(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse true and false for settings that are not switches. YAML reads `yes` as true, which as a number would be 1."""
        if isinstance(value, bool) and cls.model_fields[info.field_name or ""].annotation is not bool:
            raise ValueError("it must not be true or false: put a text that YAML reads as true or false in quotes")
        return value

    @model_validator(mode="after")
    def _check_relations(self) -> "Settings":
        for larger, smaller, times, reason in _RELATIONS:
            if getattr(self, larger) < times * getattr(self, smaller):
                least = f"at least {times} times SLUICE_{smaller.upper()}, which is {getattr(self, smaller):g}"
                message = f"it is {getattr(self, larger):g} and must be {least}, {reason}"
                raise PydanticCustomError("relation", message, {"setting": larger})
        return self


# In the order of docs/settings.md. A function that needs one group takes that group, not all settings.
GROUPS = (
    ServerSettings,
    QueueSettings,
    ChannelSettings,
    AccessSettings,
    LimitSettings,
    GuardrailSettings,
    LedgerSettings,
    ModelSettings,
    UpstreamSettings,
    CacheSettings,
)
