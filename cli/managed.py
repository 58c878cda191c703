"""How does an operator manage providers and routes from a terminal, while Sluice runs?

The commands use the database and Redis directly, so they work even if no API runs. Both must be the same as those of the APIs.
A key is never an argument: other users of the machine can read the arguments of commands.
"""

import json
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cli.keys.options import JSON_OPTION, parse_overlap
from cli.table import aligned, printable

if TYPE_CHECKING:
    from pydantic import SecretStr

    from common.config.setting_sources import Inputs
    from common.live.catalog import Catalog, Changed
    from common.live.changes import Change
    from common.live.stored_records import Kind, Record

Answer = TypeVar("Answer")

_KEY_FILE = click.option(
    "--key-file",
    "key_files",
    multiple=True,
    type=click.Path(dir_okay=False, allow_dash=True),
    help="A file with the key; - for standard input. Without it, the key is asked for. Repeatable.",
)
_FIELDS = (
    click.option("--base-url", help="The provider's address, for one of your own, or instead of the vendor's."),
    click.option(
        "--wire", help="The format that it speaks: openai-chat, openai-responses, anthropic-messages, gemini, cohere."
    ),
    click.option("--continuation", help="How a broken answer is continued: docs/continuation.md."),
    click.option("--limits", help='The vendor\'s quota for each key, as JSON: {"requests": 500, "tokens": 200000}.'),
    click.option("--budget", help='The most that it may cost, as JSON: {"day_usd": 50}.'),
)


def _fields(function: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(_FIELDS):
        function = option(function)
    return function


@click.group()
def providers() -> None:
    """Manage providers and their keys while Sluice runs.

    They are stored in the database, encrypted with SLUICE_SECRET, and every process uses a change within two seconds. A key is
    never shown again. The environment and the files win over them. docs/configuration.md explains it.

    \b
    sluice providers add openai                      # asks for the key
    sluice providers add lab --base-url http://lab.example/v1 --key-file /run/secrets/lab
    sluice providers rotate openai --overlap 1h
    """


@providers.command("add")
@click.argument("name")
@_KEY_FILE
@_fields
@JSON_OPTION
def add_provider(name: str, key_files: tuple[str, ...], as_json: bool, **fields: str | None) -> None:
    """Add a provider, a known vendor's or your own.

    \b
    sluice providers add openai --key-file - < key.txt
    sluice providers add lab --base-url http://lab.example/v1 --limits '{"concurrent": 8}'
    """
    from common.live import changes

    keys = [_read_key(file) for file in key_files] or _ask_for_key("Its key (empty for none)", may_be_none=True)
    provider = changes.provider_id(name)
    with _invalid():
        change = changes.add_provider(provider, _given(fields), keys)
    _change("provider", provider, change, as_json, "The provider {} was added.", must_exist=False)


@providers.command("update")
@click.argument("name")
@_fields
@JSON_OPTION
def update_provider(name: str, as_json: bool, **fields: str | None) -> None:
    """Change a provider's settings. Those that are not named stay; an empty text removes one.

    \b
    sluice providers update lab --base-url http://lab2.example/v1
    sluice providers update lab --limits ''
    """
    from common.live import changes

    given = _given(fields)
    if not given:
        raise click.UsageError("Name at least one setting.")
    with _invalid():
        change = changes.update_provider(given)
    _change("provider", changes.provider_id(name), change, as_json, "The provider {} was changed.")


@providers.command()
@click.argument("name")
@click.option("--key", "key_id", help="The id of the key to replace, if there are several: `sluice providers list`.")
@click.option(
    "--overlap",
    "overlap_s",
    callback=parse_overlap,
    default="10m",
    show_default=True,
    help="For how long the old key is still called where the new one fails: 90s, 10m, 24h; 0s: not at all.",
)
@_KEY_FILE
@JSON_OPTION
def rotate(name: str, key_id: str | None, overlap_s: int, key_files: tuple[str, ...], as_json: bool) -> None:
    """Replace a provider's key. Under load no request is refused, even if the vendor refuses the old key at once.

    \b
    sluice providers rotate openai                    # asks for the new key
    sluice providers rotate openai --key 1f0a22c9 --key-file /run/secrets/openai --overlap 1h
    """
    from common.live import changes

    if overlap_s > changes.OVERLAP_S_MAX:
        raise click.UsageError(f"--overlap must be at most {changes.OVERLAP_S_MAX // 86_400}d")
    if len(key_files) > 1:
        raise click.UsageError("Give one --key-file: one key replaces one.")
    (text,) = [_read_key(file) for file in key_files] or _ask_for_key("The new key", may_be_none=False)
    change = changes.rotate_key(changes.Rotation(text, key_id, overlap_s))
    _change("provider", changes.provider_id(name), change, as_json, "The key of the provider {} was rotated.")


@providers.command("list")
@JSON_OPTION
def list_providers(as_json: bool) -> None:
    """List the providers that are managed at run time, with the last characters of their keys.

    \b
    sluice providers list
    """
    _list("provider", as_json)


@click.group()
def routes() -> None:
    """Manage routes while Sluice runs: model names of your own with several targets (docs/routing.md). See also `sluice route`.

    They are stored like providers (`sluice providers --help`). A route or an alias of the settings wins over one with its name.

    \b
    sluice routes set fast --target openai/gpt-5 --target groq/llama-4
    sluice routes set fast --json-file route.json
    """


@routes.command("set")
@click.argument("name")
@click.option("--target", "targets", multiple=True, help="A model: PROVIDER/MODEL. Repeatable; the order counts.")
@click.option("--strategy", help="How targets are chosen: priority, weighted, least_busy, fastest, cheapest.")
@click.option("--affinity", is_flag=True, help="Requests of one conversation go to the same target.")
@click.option(
    "--json-file",
    type=click.File(),
    help="The whole route as JSON, as in SLUICE_ROUTES: with weights, priorities and tags. - for standard input.",
)
@JSON_OPTION
def set_route(name: str, targets: tuple[str, ...], strategy: str | None, affinity: bool, json_file: Any, as_json: bool) -> None:
    """Add a route, or replace it as a whole.

    \b
    sluice routes set fast --target openai/gpt-5 --target groq/llama-4 --strategy fastest
    """
    from common.live import changes

    if bool(targets) == bool(json_file):
        raise click.UsageError("Give either --target or --json-file.")
    fields: Any = {
        "targets": list(targets),
        **({"strategy": strategy} if strategy else {}),
        **({"affinity": True} if affinity else {}),
    }
    if json_file:
        try:
            fields = json.load(json_file)
        except ValueError as error:
            raise click.ClickException(f"The file is not JSON: {error}") from error
    with _invalid():
        change = changes.put_route(name, fields, may_replace=True)
    _change("route", name, change, as_json, "The route {} was set.", must_exist=False)


@routes.command("list")
@JSON_OPTION
def list_routes(as_json: bool) -> None:
    """List the routes that are managed at run time.

    \b
    sluice routes list
    """
    _list("route", as_json)


def _add_common_commands(group: click.Group, kind: "Kind", example: str) -> None:
    """Add the commands that providers and routes both have."""

    def help_of(text: str, command: str) -> str:
        return f"{text}\n\n\b\nsluice {kind}s {command} {example}"

    @group.command(
        help=help_of(f"Disable a {kind}: no process uses it any more, within two seconds. Running answers continue.", "disable")
    )
    @click.argument("name")
    @JSON_OPTION
    def disable(name: str, as_json: bool) -> None:
        from common.live import changes

        _change(kind, _id(kind, name), changes.disable(True), as_json, f"The {kind} {{}} is disabled.")

    @group.command(help=help_of(f"Enable a disabled {kind} again.", "enable"))
    @click.argument("name")
    @JSON_OPTION
    def enable(name: str, as_json: bool) -> None:
        from common.live import changes

        _change(kind, _id(kind, name), changes.disable(False), as_json, f"The {kind} {{}} is enabled.")

    @group.command(help=help_of(f"Remove a {kind} for good{', with its keys' if kind == 'provider' else ''}.", "remove --yes"))
    @click.argument("name")
    @click.confirmation_option("--yes", prompt="Remove it for good?")
    @JSON_OPTION
    def remove(name: str, as_json: bool) -> None:
        _remove(kind, _id(kind, name), as_json)


_add_common_commands(providers, "provider", "lab")
_add_common_commands(routes, "route", "fast")


def _id(kind: "Kind", name: str) -> str:
    from common.live.changes import provider_id

    return provider_id(name) if kind == "provider" else name


# Options


def _given(fields: dict[str, str | None]) -> dict[str, Any]:
    """Return the settings that are given. An empty text is None: it removes one."""
    given: dict[str, Any] = {}
    for name, text in fields.items():
        if text is None:
            continue
        given[name] = text or None
        if text and name in ("limits", "budget"):
            try:
                given[name] = json.loads(text)
            except ValueError as error:
                raise click.UsageError(f"--{name} is not JSON: {error}") from error
    return given


def _read_key(file: str) -> "SecretStr":
    from pydantic import SecretStr

    try:
        with click.open_file(file) as source:
            text = source.read().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise click.ClickException(f"The key cannot be read from {file}.") from error
    if not text:
        raise click.ClickException(f"There is no key in {file}.")
    return SecretStr(text)


def _ask_for_key(prompt: str, *, may_be_none: bool) -> "list[SecretStr]":
    from pydantic import SecretStr

    if not sys.stdin.isatty():
        if may_be_none:
            return []
        raise click.UsageError("Give the key with --key-file.")
    text = click.prompt(prompt, default="" if may_be_none else None, hide_input=True, show_default=False).strip()
    return [SecretStr(text)] if text else []


# Running


def _change(kind: "Kind", name: str, change: "Change", as_json: bool, done: str, *, must_exist: bool = True) -> None:
    from cli.settings import load_settings
    from common.config.setting_sources import Inputs
    from common.live.changes import shown

    inputs = Inputs()
    settings = load_settings(inputs)
    with _refused(kind, name, inputs):
        changed: Changed = _run(settings, lambda catalog: catalog.change(kind, name, change, inputs), must_exist=must_exist)
    answer = shown(changed.record, inputs.read)
    click.echo(json.dumps({**answer, "served": changed.is_served}, indent=2) if as_json else done.format(printable(name)))
    if overridden := answer["overridden_by_settings"]:
        click.echo(f"! The settings here win over it: {', '.join(overridden)}.", err=True)
    _warn_unserved(is_served=changed.is_served)


def _remove(kind: "Kind", name: str, as_json: bool) -> None:
    from cli.settings import load_settings
    from common.config.setting_sources import Inputs

    inputs = Inputs()
    settings = load_settings(inputs)
    with _refused(kind, name, inputs):
        is_served = _run(settings, lambda catalog: catalog.remove(kind, name), must_exist=True)
    answer = {"name": name, "object": kind, "removed": True, "served": is_served}
    click.echo(json.dumps(answer) if as_json else f"The {kind} {printable(name)} is removed.")
    _warn_unserved(is_served=is_served)


def _warn_unserved(*, is_served: bool) -> None:
    if not is_served:
        click.echo("! Redis did not answer. A worker copies the change to it within seconds of its return.", err=True)


@contextmanager
def _refused(kind: "Kind", name: str, inputs: "Inputs") -> Iterator[None]:
    from common.live.changes import NoSuchRecord, NotPossible, why_not_managed

    try:
        yield
    except NoSuchRecord as error:
        text = printable(why_not_managed(kind, name, inputs.read or {}))
        raise click.ClickException(f"{text} `sluice {kind}s list` shows all that are managed.") from error
    except NotPossible as error:
        raise click.ClickException(str(error)) from error


def _list(kind: "Kind", as_json: bool) -> None:
    from cli.settings import load_settings
    from common.config.setting_sources import Inputs
    from common.live.changes import shown

    inputs = Inputs()
    settings = load_settings(inputs)
    document = _run(settings, lambda catalog: catalog.document(), must_exist=True)
    sealed = [record for record in document.records if record.kind == kind]
    opened = [record.open(settings.secrets) for record in sealed]
    rows = [shown(record, inputs.read) for record in opened if record]
    problems = [record.why_unreadable(settings.secrets) for record, clear in zip(sealed, opened, strict=True) if clear is None]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
    else:
        without_key = _without_key(inputs, [record for record in opened if record]) if kind == "provider" else set()
        table = [("name", "state", "keys" if kind == "provider" else "targets", "overridden by settings")]
        table += [
            (
                printable(row["name"]),
                "disabled" if row["disabled"] else "no key" if row["name"] in without_key else "on",
                _keys_of(row) if kind == "provider" else _targets_of(row),
                ", ".join(row["overridden_by_settings"]),
            )
            for row in rows
        ]
        click.echo("\n".join(aligned(table, len(table[0]))))
    for problem in problems:
        click.echo(f"! {problem}", err=True)


def _without_key(inputs: "Inputs", records: "list[Record]") -> set[str]:
    """Return the providers that need a key, and have none here either."""
    import time

    from common.live.live_settings import build

    entries = [entry for record in records if (entry := record.entry(time.time_ns() // 1_000_000))]
    settings, _ = build(inputs, entries)
    return {name for name, vendor in settings.vendors.items() if vendor.key_is_needed and not settings.has_key(name)}


def _keys_of(row: dict[str, Any]) -> str:
    return ", ".join(f"{key['id']} {printable(key['label'])}{' (old)' if key['until'] else ''}" for key in row["keys"])


def _targets_of(row: dict[str, Any]) -> str:
    targets = row["settings"].get("targets", [])
    return ", ".join(printable(target["model"] if isinstance(target, dict) else str(target)) for target in targets)


def _run(settings: Any, work: "Callable[[Catalog], Awaitable[Answer]]", *, must_exist: bool) -> Answer:
    """Run ``work`` with the catalog. ``must_exist``: the database must exist already."""
    import asyncio  # Imported here, like everything that a help page does not need.

    from common.database.lazy import LazyDatabase
    from common.live.catalog import Catalog
    from common.redis.client import connect

    async def run() -> Answer:
        database, redis = LazyDatabase(settings.database_url, must_exist=must_exist), connect(settings.redis_url)
        try:
            return await work(Catalog(await database.engine(), redis, settings.secrets))
        finally:
            await redis.aclose()
            await database.close()

    with _failures():
        return asyncio.run(run())


@contextmanager
def _failures() -> Iterator[None]:
    from cli.settings import where_settings_are
    from common.database.errors import Busy, DatabaseUnavailable, RowRefused

    try:
        yield
    except (DatabaseUnavailable, RowRefused) as error:
        raise click.ClickException(
            f"{where_settings_are()}The database: {error}. Is SLUICE_DATABASE_URL right? `sluice doctor` tells more."
        ) from error
    except Busy as error:
        raise click.ClickException("Others are making changes at the moment. Try again.") from error


@contextmanager
def _invalid() -> Iterator[None]:
    from pydantic import ValidationError

    from common.live.changes import NotPossible
    from common.live.live_settings import reason_of

    try:
        yield
    except ValidationError as error:
        raise click.UsageError(f"{reason_of(error)}.") from error
    except NotPossible as error:
        raise click.UsageError(str(error)) from error
