"""How does an operator check changed settings, and make the running processes use them?"""

import json
import socket
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.stored import with_redis, with_stored
from cli.table import aligned, printable

if TYPE_CHECKING:
    from common.config.settings import Settings
    from common.live.reports import Report

WAIT_S, CHECK_INTERVAL_S = 20.0, 0.2  # For the answers to a request to reload.
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")
# Options of a command set them for one process.
_OF_ONE_PROCESS = ("host", "port", "worker_port")


@click.group()
def config() -> None:
    """Check settings before they are used, and reload them in running processes.

    \b
    sluice config check new.yaml
    sluice config reload

    docs/configuration.md says which settings can change while a process runs.
    """


@config.command()
@click.argument("file", required=False, type=click.Path(dir_okay=False))
@_JSON
def check(file: str | None, as_json: bool) -> None:
    """Say what is wrong with the settings, and what they would change. The exit status is 1 if anything is wrong.

    FILE is read instead of sluice.yaml, together with the environment and .env of this folder. It is compared with the present
    sluice.yaml, and with what the running processes use. Nothing changes.

    \b
    sluice config check             # after an edit, before a reload
    sluice config check new.yaml    # before it replaces sluice.yaml
    """
    from api.auth.startup_checks import refuse_to_start
    from cli.settings import read_settings
    from common.config.setting_doubts import find_doubts
    from common.config.setting_sources import Inputs, reading, yaml_file
    from common.live.live_settings import SettingsRefused

    name = file or yaml_file()
    try:
        with reading(name):
            if file:
                click.open_file(file).close()
            inputs = Inputs()
            settings = read_settings(inputs)
            found = find_doubts(settings)
        doubts = [f"{doubt.problem} {doubt.mend}" for doubt in found]
        faults = [text for doubt, text in zip(found, doubts, strict=True) if doubt.is_fault]
        problems = list(filter(None, [refuse_to_start(settings)]))
    except OSError as error:
        raise click.ClickException(f"{name} cannot be read: {error.strerror}.") from error
    except SettingsRefused as error:
        settings, problems, doubts, faults = None, list(error.problems), [], []
    answer: dict[str, Any] = {"file": name, "problems": problems, "doubts": doubts}
    if settings and not problems:
        if file:
            answer["changes"] = _changes(settings)
        answer["overridden"], settings = with_stored(settings, inputs)
        answer["processes"] = _compared(settings, will_exist=yaml_file() if file else None)
        problems += [
            f"{path} is missing now, and {row['name']} has read it: it would refuse to reload."
            for row in answer["processes"] or ()
            for path in row["missing"]
        ]
    click.echo(json.dumps(answer, indent=2) if as_json else "\n".join(_as_text(answer, faults)))
    sys.exit(1 if problems else 0)


def _changes(settings: "Settings") -> dict[str, Any] | None:
    """Return how the settings differ from those of the present files; None: those cannot be used."""
    from cli.settings import read_settings
    from common.config.setting_sources import Inputs
    from common.live.live_settings import SettingsRefused
    from common.live.reloadable import find_difference

    try:
        present = read_settings(Inputs())
    except SettingsRefused:
        return None
    changed, needs_restart = find_difference(present, settings)
    return {
        "changed": {name: _parts(getattr(present, name), getattr(settings, name)) for name in changed},
        "needs_restart": list(needs_restart),
    }


def _parts(old: object, new: object) -> dict[str, list[str]]:
    """Return the names that were added to a setting with names, removed from it and changed in it. No values: see secrets."""
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
        return {}
    parts = {
        "added": sorted(new.keys() - old.keys()),
        "removed": sorted(old.keys() - new.keys()),
        "changed": sorted(name for name in old.keys() & new.keys() if old[name] != new[name]),
    }
    return {kind: names for kind, names in parts.items() if names}


def _compared(settings: "Settings", will_exist: str | None) -> list[dict[str, Any]] | None:
    """Return for each running process what a reload would change; None: Redis does not answer.

    ``will_exist`` is the name of a file that a checked one will replace.
    """
    from common.live.reloadable import RELOADABLE, digests_of

    reports = _run(settings, lambda reports: _read_all(reports))
    if reports is None:
        return None
    digests = digests_of(settings)
    compared = []
    for report in reports:
        differing = {name for name, digest in digests.items() if report.digests.get(name, digest) != digest}
        differing -= {*_OF_ONE_PROCESS}
        has_another_secret = "secret" in differing  # It is the key of all digests, so they say nothing then.
        compared.append(
            {
                **_about(report),
                "has_another_secret": has_another_secret,
                "would_change": [] if has_another_secret else sorted(differing & RELOADABLE),
                "needs_restart": ["secret"] if has_another_secret else sorted(differing - RELOADABLE),
                "problems": list(report.problems),
                "missing": [path for path in _missing(report) if Path(path).name != will_exist],
            }
        )
    return compared


def _missing(report: "Report") -> Iterator[str]:
    """Yield the files that a process has read and that are missing now. Those of other machines cannot be looked at."""
    if report.host == socket.gethostname():
        for path in report.files:
            with suppress(PermissionError):
                try:
                    Path(path).stat()
                except FileNotFoundError:
                    yield path


def _as_text(answer: Mapping[str, Any], faults: Collection[str]) -> Iterator[str]:
    """Yield the lines. The marks are those of `sluice doctor`. A fault is a doubt that is certainly a mistake."""
    for doubt in answer["doubts"]:
        yield f"{'✗' if doubt in faults else '!'} {doubt}"
    if answer["problems"]:
        yield from (f"✗ {problem}" for problem in answer["problems"])
        return
    if Path(answer["file"]).exists():
        yield f"{answer['file']}: no errors."
    else:
        yield f"There is no {answer['file']} here. The other settings have no errors."
    if "changes" in answer:
        yield from _changes_as_text(answer["changes"])
    for name, fields in answer["overridden"].items():
        yield f"  {printable(name)} is managed at run time; overridden by settings: {', '.join(fields)}"
    processes = answer["processes"]
    if processes is None:
        yield "Redis does not answer, so there is nothing to say about running processes."
    elif not processes:
        yield "No process runs."
    else:
        rows = [("process", "revision", "a reload would change", "needs a restart")]
        rows += [(row["name"], row["revision"], _would_change(row), _listed(row["needs_restart"])) for row in processes]
        yield from aligned(rows, len(rows[0]))
        yield from _problems_as_text(processes)


def _changes_as_text(changes: Mapping[str, Any] | None) -> Iterator[str]:
    if changes is None:
        yield "The present settings cannot be used, so there is nothing to compare with."
        return
    for name, parts in changes["changed"].items():
        details = "; ".join(f"{kind}: {', '.join(map(printable, names))}" for kind, names in parts.items())
        yield f"  changes {name}" + (f" ({details})" if details else "")
    for name in changes["needs_restart"]:
        yield f"  needs a restart: {name}"
    if not any(changes.values()):
        yield "  It is the same as the present settings."


def _problems_as_text(processes: list[dict[str, Any]]) -> Iterator[str]:
    for row in processes:
        for problem in row["problems"]:
            yield f"! {row['name']}: {printable(problem)}"


def _would_change(row: Mapping[str, Any]) -> str:
    return "not known: SLUICE_SECRET differs here" if row["has_another_secret"] else _listed(row["would_change"])


def _listed(names: list[str]) -> str:
    return ", ".join(names) or "nothing"


@config.command()
@_JSON
def reload(as_json: bool) -> None:
    """Make every running API and worker read its settings again, and say what each of them did.

    Each process reads its own environment, .env and sluice.yaml, and uses them only if all of it is right. The exit status is 1
    if a process refused its settings or did not answer. SIGHUP does the same for one process.

    \b
    sluice config reload
    sluice config reload --json
    """
    from cli.settings import load_settings

    try:
        settings = load_settings()
    except SystemExit:  # The errors are printed. This command needs the settings to find Redis.
        click.echo("Nothing was reloaded.", err=True)
        raise
    found = _run(settings, lambda reports: _reload_all(reports))
    if found is None:
        from common.process.redaction import shown_url

        raise click.ClickException(f"Redis does not answer at {shown_url(settings.redis_url)}. Is SLUICE_REDIS_URL right?")
    rows = [
        {
            **(_about(report) if report else {"name": name, "revision": ""}),
            "result": "no answer" if report is None else "refused" if report.problems else "reloaded",
            "changed": list(report.changed) if report else [],
            "needs_restart": list(report.needs_restart) if report else [],
            "problems": list(report.problems) if report else [],
        }
        for name, report in found.items()
    ]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
    elif rows:
        table = [("process", "result", "revision", "changed", "needs a restart")]
        table += [
            (row["name"], row["result"], row["revision"], _listed(row["changed"]), _listed(row["needs_restart"]))
            for row in rows
        ]
        click.echo("\n".join([*aligned(table, len(table[0])), *_problems_as_text(rows)]))
    else:
        click.echo("No process runs.")
    sys.exit(0 if rows and all(row["result"] == "reloaded" for row in rows) else 1)


async def _reload_all(reports: Any) -> "dict[str, Report | None]":
    """Ask all processes to reload, and return their reports; None for those that do not answer in time."""
    import asyncio
    import time

    names, ends_at = await reports.names(), time.monotonic() + WAIT_S
    request = await reports.request_reload()
    while True:
        found = await reports.read(names)
        answered = {name: report for name, report in found.items() if report.asked == request}
        gone = [name for name in names if name not in found]  # It has stopped meanwhile.
        if len(answered) + len(gone) == len(names) or time.monotonic() > ends_at:
            return {name: answered.get(name) for name in names if name not in gone}
        await asyncio.sleep(CHECK_INTERVAL_S)


async def _read_all(reports: Any) -> "list[Report]":
    return list((await reports.read(await reports.names())).values())


def _about(report: "Report") -> dict[str, Any]:
    return {"name": report.name, "host": report.host, "pid": report.pid, "revision": report.revision}


def _run(settings: "Settings", work: Any) -> Any:
    """Run ``work`` with the reports. None: Redis does not answer."""
    from common.live.reports import Reports

    return with_redis(settings, lambda redis: work(Reports(redis)))
