"""Which settings does this process have now, and how do they change while it runs?

``Settings`` never change. A reload builds new ones, checks them, and prepares everything that depends on them; then all of it
replaces the old in one step of the event loop. A request or a job takes the present settings once, at its start, and keeps
them to its end. If anything is wrong, nothing changes, and ``problems`` says what it is.

What is managed at run time (``stored``) is the weakest source. A change of it does not read the files again: somebody may be
editing them. An entry of it that does not fit the rest is left out and reported, and the others apply.
"""

import asyncio
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import structlog
from pydantic import ValidationError

from common.config.model_routes import find_mistake
from common.config.route_rules import Route
from common.config.setting_doubts import log_doubts
from common.config.setting_sources import ENV_FILE, Inputs, yaml_file
from common.config.settings import Settings
from common.live.reloadable import Difference, find_difference, revision_of, with_kept_settings
from common.process.redaction import Redactor

log = structlog.get_logger()

Commit = Callable[[], None]  # Puts what was prepared into use. It must not wait, and must not fail.
Prepare = Callable[[Settings], Commit]
Load = Callable[[Inputs], Settings]  # Reads all sources. Raises ``SettingsRefused``.


class SettingsRefused(Exception):
    """Settings that cannot be used. ``problems`` has one line for each reason, without secrets."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = tuple(problems)


class StoredEntry(NamedTuple):
    """Something that is managed at run time: ``name`` for reports, and ``values`` for ``Settings``."""

    name: str
    values: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a reload did. It changed nothing if there are ``problems``."""

    problems: tuple[str, ...] = ()
    difference: Difference = field(default_factory=Difference)


class LiveSettings:
    """``load`` reads the files again; None: this process has none to read, and ``inputs`` stay as they are."""

    def __init__(self, settings: Settings, redactor: Redactor, load: Load | None = None, inputs: Inputs | None = None) -> None:
        self.current = settings
        self.previous: Settings | None = None
        self.revision = revision_of(settings)
        self.changed_at_s = self.reloaded_at_s = time.time()
        self.needs_restart: tuple[str, ...] = ()
        self.stored_problems: tuple[str, ...] = ()
        self.prepare: Prepare = lambda settings: lambda: None
        self._file_problems: tuple[str, ...] = ()
        self._started_with = settings
        self._redactor = redactor
        self._load = load
        self.inputs = inputs or Inputs(read=_as_read(settings))
        self._files = _files()
        self._stored: tuple[StoredEntry, ...] = ()
        self._changing = asyncio.Lock()

    @property
    def files(self) -> tuple[str, ...]:
        """The paths of the files that were read: a reload is refused while one of them is missing."""
        return tuple(sorted(str(Path(name).absolute()) for name in self._files)) if self._load else ()

    @property
    def is_good(self) -> bool:
        """Whether the last reload succeeded."""
        return not self._file_problems

    def problems(self) -> list[str]:
        """Return what is wrong with the configuration, for operators."""
        refused = [f"The last reload of the settings was refused: {problem}" for problem in self._file_problems]
        return [*refused, *self.stored_problems]

    def public_problems(self) -> list[str]:
        """Return the same for everybody: without the names and values that the settings have."""
        problems = ["The last reload of the settings was refused: the log says why"] if self._file_problems else []
        return problems + (
            ["Something that is managed at run time cannot be used: the log says what"] if self.stored_problems else []
        )

    async def reload(self) -> Outcome:
        """Read the files again and use what they say. If anything is wrong with it, change nothing. It never raises."""
        async with self._changing:
            before = self.current
            try:
                inputs = await asyncio.to_thread(self._read_again)
                await self._change(inputs, self._stored)
            except SettingsRefused as error:
                self._file_problems = tuple(map(self._redactor, error.problems))
                log.error("settings_not_reloaded", problems=self._file_problems)  # noqa: TRY400 - No bug: no trace.
                return Outcome(self._file_problems)
            self._file_problems, self._files, self.reloaded_at_s = (), _files(), time.time()
            difference = Difference(find_difference(before, self.current).changed, self.needs_restart)
            log.info("settings_reloaded", revision=self.revision, **difference._asdict())
            log_doubts(self.current)
            return Outcome(difference=difference)

    async def use_stored(self, entries: Sequence[StoredEntry], problems: Sequence[str] = ()) -> None:
        """Use these entries, which are managed at run time. ``problems``: what is known to be wrong with others."""
        async with self._changing:
            before = self.current
            left_out: list[str] = []
            try:
                left_out = await self._change(self.inputs, tuple(entries))
            except SettingsRefused as error:  # They fit one by one, but the process cannot work with all of them.
                left_out = [f"What is managed at run time cannot be used: {problem}" for problem in error.problems]
            found = tuple(map(self._redactor, (*problems, *left_out)))
            if found and found != self.stored_problems:
                log.error("stored_settings_in_doubt", problems=found)
            self.stored_problems = found
            if changed := find_difference(before, self.current).changed:
                log.info("stored_settings_used", revision=self.revision, changed=changed)

    @property
    def stronger(self) -> dict[str, Any]:
        """What the environment and the files say, which wins over what is managed at run time."""
        return self.inputs.read or {}

    def _read_again(self) -> Inputs:
        if self._load is None:
            return self.inputs
        if missing := self._files - _files():
            raise SettingsRefused([f"{name} was here before, and is missing now" for name in sorted(missing)])
        inputs = Inputs()
        self._load(inputs)
        return inputs

    async def _change(self, inputs: Inputs, entries: tuple[StoredEntry, ...]) -> list[str]:
        """Build settings, prepare them and put them into use. Return what is wrong with entries, which are left out."""
        built, left_out = await asyncio.to_thread(build, inputs, entries)
        difference = find_difference(self._started_with, built)
        settings = with_kept_settings(built, self._started_with)
        if find_difference(self.current, settings).changed:
            # From now on no log line shows a new secret, nor an old one that a running request still uses.
            self._redactor.learn(settings, self.current)
            commit = await asyncio.to_thread(self.prepare, settings)
            commit()
            self.previous, self.current, self.changed_at_s = self.current, settings, time.time()
            self.revision = revision_of(settings)
        self.inputs, self._stored, self.needs_restart = inputs, entries, difference.needs_restart
        return left_out


def _as_read(settings: Settings) -> dict[str, Any]:
    """Return settings as their sources would give them: a route is not an alias yet."""
    values = settings.model_dump(exclude_unset=True)
    return {**values, "aliases": {name: targets for name, targets in settings.aliases.items() if name not in settings.routes}}


def find_problem(inputs: Inputs, entry: StoredEntry, stored_providers: Collection[str]) -> str | None:
    """Return why an entry cannot be used with what the environment and the files say; None: it can.

    ``stored_providers``: the names of all providers that are managed at run time, which a route may name too.
    """
    try:
        settings = _settings(inputs, [entry])
        routes = [Route.model_validate(route) for route in entry.values.get("routes", {}).values()]
    except ValidationError as error:
        return f"{reason_of(error)}."
    mistakes = (find_mistake(rule.model, settings, stored_providers) for route in routes for rule in route.rules)
    return next(filter(None, mistakes), None)


def build(inputs: Inputs, entries: Sequence[StoredEntry]) -> tuple[Settings, list[str]]:
    """Return the settings of all sources, and what is wrong with entries, which are left out."""
    try:
        return _settings(inputs, entries), []
    except ValidationError:
        good: list[StoredEntry] = []
        problems = []
        for entry in entries:
            try:
                _settings(inputs, [*good, entry])
                good.append(entry)
            except ValidationError as error:
                problems.append(f"The {entry.name} that is managed at run time is left out: {reason_of(error)}")
        return _settings(inputs, good), problems


def _settings(inputs: Inputs, entries: Sequence[StoredEntry]) -> Settings:
    stored: dict[str, dict[str, Any]] = {}
    for entry in entries:
        for setting, values in entry.values.items():
            stored.setdefault(setting, {}).update(values)
    return Settings(inputs=Inputs(stored, inputs.read))


def reason_of(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


def _files() -> frozenset[str]:
    return frozenset(name for name in (ENV_FILE, yaml_file()) if Path(name).is_file())
