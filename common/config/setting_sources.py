"""Where do settings come from?

Sources, strongest first: ``SLUICE_*`` environment variables, the same in ``.env``, the same in a secret store
(``secret_store.py``), the providers' usual variables (``OPENAI_API_KEY``…, see ``common/vendors/table.py``), ``sluice.yaml``,
other gateways' variables (``foreign_variables.py``), what is managed at run time (``common/live``).
Blanks around a variable's value are removed. Instead of NAME there may be NAME_FILE, the path of a file with the value.
A source that cannot be read raises ``UnreadableSettings``. A single value that is not JSON is reported together with all
other invalid values.
"""

import functools
import os
import pwd
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from dotenv import dotenv_values
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    EnvSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
)

from common.config.foreign_variables import foreign_values
from common.config.secret_store import VARIABLE, UnreadableStore, read_store
from common.vendors.table import VENDORS

ENV_FILE, YAML_FILE, PREFIX = ".env", "sluice.yaml", "SLUICE_"
FILE_SUFFIX = "_FILE"


class UnreadableSettings(ValueError):
    """A source of settings cannot be read. The message says where the error is and quotes no value."""


@dataclass(slots=True)
class Inputs:
    """What settings are built from, beside the options of a command: ``Settings(inputs=…)``.

    ``read`` is what the environment and the files said when they were read; None: they are read now, and kept here. So
    settings can be built again with other ``stored`` values, although somebody may be editing a file at that moment.
    """

    stored: Mapping[str, Any] = field(default_factory=dict)
    read: dict[str, Any] | None = None


class NotJson(str):
    """The text of a variable that should be JSON but is not. ``problem`` says what is wrong with it, and where."""

    problem: str

    def __new__(cls, text: str, problem: str) -> "NotJson":
        not_json = super().__new__(cls, text)
        not_json.problem = problem
        return not_json


def environment() -> Mapping[str, str | None]:
    """Return the variables of the environment, of ``.env``, and of the secret store that they name. The first are stronger."""
    variables = {**_resolve_variables(env_file()), **_resolve_variables(os.environ)}
    return {**_store_variables(variables.get(VARIABLE, "")), **variables}


@functools.lru_cache(maxsize=1)
def _store_variables(store: str) -> Mapping[str, str]:
    """Return the variables of a secret store. They are read once each time when settings are built.

    Raises:
        UnreadableSettings
    """
    try:
        return read_store(store, PROVIDER_VARIABLES) if store else {}
    except UnreadableStore as error:
        raise UnreadableSettings(str(error)) from error


def _resolve_variables(variables: Mapping[str, str | None]) -> dict[str, str]:
    """Return the variables with trimmed values (secrets often end with a line break) and with the values from files.

    Raises:
        UnreadableSettings
    """
    values = {name: (value or "").strip() for name, value in variables.items()}
    for name, path in list(values.items()):
        if path and _names_file(name):
            target = name[: -len(FILE_SUFFIX)]
            if values.get(target):
                raise UnreadableSettings(f"{target.upper()} and {name.upper()} are both set: leave one of them out.")
            values[target] = _file_text(name, path)
    return values


def _names_file(name: str) -> bool:
    name = name.upper()
    return name in _PROVIDER_KEY_FILES or (name.startswith(PREFIX) and name.endswith(FILE_SUFFIX))


def _file_text(name: str, path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UnreadableSettings(f"{name.upper()} names a file that cannot be read: {_reason(error, path)}.") from error


def env_file() -> Mapping[str, str | None]:
    try:
        return dotenv_values(Path(ENV_FILE))
    except (OSError, UnicodeDecodeError) as error:
        raise UnreadableSettings(f"{full_path(ENV_FILE)} cannot be read: {_reason(error, ENV_FILE)}.") from error


_yaml_file: ContextVar[str] = ContextVar("yaml_file", default=YAML_FILE)


@contextmanager
def reading(path: str) -> Iterator[None]:
    """Read another file instead of ``sluice.yaml``, to check it before it is used."""
    token = _yaml_file.set(path)
    try:
        yield
    finally:
        _yaml_file.reset(token)


def yaml_file() -> str:
    """Return the name of the file that is read: ``sluice.yaml``, except within ``reading``."""
    return _yaml_file.get()


class _RepeatedKey(yaml.MarkedYAMLError):
    """Two entries of one mapping have the same key."""


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a key that is written twice, of which YAML's usual reader silently drops the first.

    It looks at what is written, before ``<<`` merges other mappings into it: an entry may replace a merged one.
    """

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            line = key.start_mark.line + 1
            if key.value in lines:  # No message quotes it: a secret may stand where a name should be.
                raise _RepeatedKey(problem=f"has the same key twice, in line {lines[key.value]} and in line {line}")
            lines[key.value] = line
        return node


def yaml_values() -> dict[str, Any]:
    """Return the settings in ``sluice.yaml``. Empty where there is no such file."""
    name = yaml_file()
    path = full_path(name)
    try:
        with Path(name).open(encoding="utf-8") as file:
            values = yaml.load(file, _UniqueKeys)  # noqa: S506 - It is a SafeLoader.
    except FileNotFoundError:
        return {}
    except _RepeatedKey as error:
        raise UnreadableSettings(f"{path} {error.problem}: leave one of them out, or write both as one.") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}" if mark else "its end"
        raise UnreadableSettings(f"{path} is not YAML at {where}: {error.problem}.") from error
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        raise UnreadableSettings(f"{path} cannot be read: {_reason(error, name)}.") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UnreadableSettings(f"{path} must have one setting per line, such as `port: 8080`.")
    return {str(name): value for name, value in values.items()}


def full_path(name: str) -> str:
    """Return where a file of settings is. Of several folders with such a file, a message must say which one it means."""
    return str(Path(name).absolute())


def is_nothing_given() -> bool:
    """Whether there are no settings at all: no file in this folder, and no variable of ours."""
    return not (Path(ENV_FILE).exists() or Path(YAML_FILE).exists() or any(name.startswith(PREFIX) for name in os.environ))


def _reason(error: Exception, path: str) -> str:
    if isinstance(error, PermissionError):
        return f"{error.strerror} for the user {_user()}. Run the command as a user who may read it (ls -l {full_path(path)})"
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    if isinstance(error, UnicodeDecodeError):
        return f"it is not UTF-8 at byte {error.start + 1}"
    return "it has characters that YAML does not allow"


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:  # A container may run as a user without a name.
        return str(os.geteuid())


class _Variables(EnvSettingsSource):
    """Passes values that are not JSON to the validation, which reports all errors at once."""

    def _load_env_vars(self) -> Mapping[str, str | None]:
        return {name: value for name, value in _resolve_variables(super()._load_env_vars()).items() if value}

    def decode_complex_value(self, field_name: str, field: Any, value: Any) -> Any:
        try:
            return super().decode_complex_value(field_name, field, value)
        except ValueError as error:
            where = f" at character {error.pos + 1}" if hasattr(error, "pos") else ""
            return NotJson(value, f"{getattr(error, 'msg', 'not JSON')}{where}")


class _EnvFile(_Variables, DotEnvSettingsSource):
    pass


class _SecretStore(_Variables):
    def _load_env_vars(self) -> Mapping[str, str | None]:
        store = {**_resolve_variables(env_file()), **_resolve_variables(os.environ)}.get(VARIABLE, "")
        return {name.lower(): value for name, value in _store_variables(store).items() if value}


class _CompleteSource(PydanticBaseSettingsSource):
    """A source that returns all its values at once, instead of field by field."""

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        raise LookupError("this source returns all its values at once")


class _Yaml(_CompleteSource):
    def __call__(self) -> dict[str, Any]:
        return yaml_values()


class _ProviderVariables(_CompleteSource):
    """``OPENAI_API_KEY``, ``OPENAI_BASE_URL`` and the like, from the environment, then from ``.env``."""

    def __call__(self) -> dict[str, Any]:
        providers = provider_values(environment())
        return {"providers": providers} if providers else {}


class _ForeignVariables(_CompleteSource):
    """Other gateways' variables, from the same sources."""

    def __call__(self) -> dict[str, Any]:
        values = foreign_values(environment())
        if yaml_values().keys() & {"redis_url", "cache_ttl_s"}:
            values.pop("cache_dialects", None)  # As with the variables of ours that mean the same.
        return values


def provider_values(variables: Mapping[str, str | None]) -> dict[str, dict[str, str]]:
    """Return the values of the providers' usual variables, in the form of the setting ``providers``."""
    values: dict[str, dict[str, str]] = {}
    for vendor in VENDORS.values():
        for name in ("api_keys", "base_url"):
            if value := variables.get(provider_variable(vendor.env, name)):
                values.setdefault(vendor.id, {})[name] = value
    return values


def provider_variable(env: str, field: str) -> str:
    return f"{env}_{'API_KEY' if field == 'api_keys' else 'BASE_URL'}"


PROVIDER_VARIABLES = {provider_variable(vendor.env, name) for vendor in VENDORS.values() for name in ("api_keys", "base_url")}
_PROVIDER_KEY_FILES = {f"{provider_variable(vendor.env, 'api_keys')}{FILE_SUFFIX}" for vendor in VENDORS.values()}


class _Stored(_CompleteSource):
    """What is managed at run time. It is the weakest source: it sees what all others say, and keeps that for the next time."""

    def __init__(self, settings_cls: type[BaseSettings], inputs: Inputs) -> None:
        super().__init__(settings_cls)
        self._inputs = inputs

    def __call__(self) -> dict[str, Any]:
        if self._inputs.read is None:
            self._inputs.read = dict(self.current_state)
        return without_overridden_routes(self._inputs.stored, self.current_state)


class _Read(_CompleteSource):
    """What the other sources said before."""

    def __init__(self, settings_cls: type[BaseSettings], values: dict[str, Any]) -> None:
        super().__init__(settings_cls)
        self._values = values

    def __call__(self) -> dict[str, Any]:
        return self._values


def without_overridden_routes(stored: Mapping[str, Any], stronger: Mapping[str, Any]) -> dict[str, Any]:
    """Return stored values without the routes that stronger sources have too: half a route of each would be a third one."""
    if "routes" not in stored:
        return dict(stored)
    names = {name for setting in ("routes", "aliases") if isinstance(stronger.get(setting), dict) for name in stronger[setting]}
    return {**stored, "routes": {name: route for name, route in stored["routes"].items() if name not in names}}


def sources(
    settings_cls: type[BaseSettings], init: InitSettingsSource, env_file: PydanticBaseSettingsSource
) -> tuple[PydanticBaseSettingsSource, ...]:
    """Return all sources, the strongest first. ``init`` holds the options of a command, and perhaps ``inputs``."""
    inputs = init.init_kwargs.pop("inputs", None) or Inputs()
    stored = _Stored(settings_cls, inputs)
    if inputs.read is not None:
        return _Read(settings_cls, inputs.read), stored
    _store_variables.cache_clear()
    variables, file = _Variables(settings_cls), _EnvFile(settings_cls, getattr(env_file, "env_file", None))
    store = _SecretStore(settings_cls)
    return (
        init,
        variables,
        file,
        store,
        *(kind(settings_cls) for kind in (_ProviderVariables, _Yaml, _ForeignVariables)),
        stored,
    )
