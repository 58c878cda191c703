"""A change of the settings: all of it or nothing, and nothing of it in a log."""

import asyncio
from functools import partial
from pathlib import Path

import pytest
from pydantic import SecretStr

from cli.settings import read_settings
from common.config.setting_sources import Inputs
from common.config.settings import Settings
from common.live.live_settings import LiveSettings, SettingsRefused, StoredEntry
from common.live.reloadable import RELOADABLE, digests_of, find_difference, revision_of
from common.process.redaction import REDACTED, Redactor

LAB = {"providers": {"lab": {"base_url": "http://lab.example/v1", "api_keys": ["sk-lab-secret"]}}}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the process runs in, with no setting at all."""
    monkeypatch.chdir(tmp_path)
    for name in ("SLUICE_PORT", "SLUICE_ALIASES", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def live_in(folder: Path, text: str = "", **options: int) -> LiveSettings:
    (folder / "sluice.yaml").write_text(text)
    load, inputs = partial(read_settings, **options), Inputs()
    settings = load(inputs)
    return LiveSettings(settings, Redactor.from_settings(settings), load, inputs)


async def test_a_reload_uses_what_the_file_says_now(folder):
    live = live_in(folder, "aliases: {fast: [openai/gpt-5]}")
    before = live.revision
    (folder / "sluice.yaml").write_text("aliases: {fast: [openai/gpt-6]}")

    outcome = await live.reload()

    assert live.current.aliases == {"fast": ["openai/gpt-6"]}
    assert (outcome.problems, outcome.difference.changed, live.is_good) == ((), ("aliases",), True)
    assert live.revision != before


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("aliases: {fast: []}", "aliases.fast"),
        ("aliases: {fast: [openai/gpt-6]", "not YAML"),
        ("alias: {fast: [openai/gpt-6]}", "no such setting"),
        ("aliases: {fast: [openai/gpt-6]}\nport: x", "port"),
    ],
)
async def test_a_wrong_file_changes_nothing_and_is_told(folder, text, words):
    live = live_in(folder, "aliases: {fast: [openai/gpt-5]}")
    before, revision = live.current, live.revision
    (folder / "sluice.yaml").write_text(text)

    outcome = await live.reload()

    assert (live.current, live.revision, live.is_good) == (before, revision, False)
    assert any(words in problem for problem in outcome.problems)
    assert any(words in problem for problem in live.problems())


async def test_a_file_that_is_right_again_ends_the_problem(folder):
    live = live_in(folder)
    (folder / "sluice.yaml").write_text("port: x")
    await live.reload()
    (folder / "sluice.yaml").write_text("default_provider: openai")

    await live.reload()

    assert (live.problems(), live.current.default_provider) == ([], "openai")


async def test_a_file_that_is_gone_is_a_fault_and_not_an_empty_one(folder):
    live = live_in(folder, "aliases: {fast: [openai/gpt-5]}")
    assert live.files == (str(folder / "sluice.yaml"),)
    (folder / "sluice.yaml").unlink()

    outcome = await live.reload()

    assert outcome.problems == ("sluice.yaml was here before, and is missing now",)
    assert live.current.aliases


async def test_what_needs_a_restart_is_named_and_stays(folder):
    live = live_in(folder, "worker_slots: 5\n", port=9000)
    (folder / "sluice.yaml").write_text("worker_slots: 7\ndefault_provider: openai\n")

    outcome = await live.reload()

    assert (live.current.worker_slots, live.current.port) == (5, 9000)
    assert (live.current.default_provider, outcome.difference.needs_restart) == ("openai", ("worker_slots",))


async def test_what_cannot_be_prepared_changes_nothing(folder):
    live = live_in(folder)
    committed = []

    def refuse(settings: Settings):
        if settings.default_provider:
            raise SettingsRefused(["not with this one"])
        return lambda: committed.append(settings)

    live.prepare = refuse
    (folder / "sluice.yaml").write_text("default_provider: openai")

    outcome = await live.reload()

    assert (outcome.problems, live.current.default_provider, committed) == (("not with this one",), None, [])


async def test_a_new_secret_is_redacted_before_anything_uses_it_and_an_old_one_still_is(folder):
    live = live_in(folder, "providers: {openai: {api_keys: [an-old-secret-key]}}")
    seen = []
    live.prepare = lambda settings: lambda: seen.append(live._redactor("an-old-secret-key a-new-secret-key"))
    (folder / "sluice.yaml").write_text("providers: {openai: {api_keys: [a-new-secret-key]}}")

    await live.reload()

    assert seen == [f"{REDACTED} {REDACTED}"]


async def test_stored_values_are_weaker_than_the_files_field_by_field(folder):
    live = live_in(folder, "providers: {lab: {base_url: http://file.example/v1}}")

    await live.use_stored([StoredEntry("provider lab", LAB)])

    lab = live.current.provider("lab")
    assert (lab.base_url, [key.get_secret_value() for key in lab.api_keys]) == ("http://file.example/v1", ["sk-lab-secret"])


@pytest.mark.parametrize("setting", ["routes: {fast: {targets: [openai/gpt-5]}}", "aliases: {fast: [openai/gpt-5]}"])
async def test_a_stored_route_is_used_whole_or_not_at_all(folder, setting):
    live = live_in(folder, setting)
    stored = {"fast": {"strategy": "cheapest", "targets": ["groq/x"]}, "slow": {"targets": ["openai/gpt-5"]}}

    await live.use_stored([StoredEntry(f"route {name}", {"routes": {name: route}}) for name, route in stored.items()])

    assert live.current.aliases == {"fast": ["openai/gpt-5"], "slow": ["openai/gpt-5"]}
    assert "fast" not in live.current.routes or live.current.routes["fast"].strategy == "priority"


async def test_stored_values_do_not_bring_in_a_file_that_nobody_has_reloaded(folder):
    live = live_in(folder, "default_provider: openai")
    (folder / "sluice.yaml").write_text("default_provider: half-writ")

    await live.use_stored([StoredEntry("provider lab", LAB)])

    assert (live.current.default_provider, "lab" in live.current.providers) == ("openai", True)


async def test_a_stored_entry_that_does_not_fit_is_left_out_alone(folder):
    live = live_in(folder)
    bad = {"providers": {"new": {"base_url": "http://new.example", "wire": "of a later version"}}}

    await live.use_stored([StoredEntry("provider new", bad), StoredEntry("provider lab", LAB)])

    assert list(live.current.providers) == ["lab"]
    assert [problem for problem in live.problems() if "provider new" in problem]


async def test_changes_at_the_same_time_are_made_one_after_the_other(folder):
    live = live_in(folder, "default_provider: openai")
    (folder / "sluice.yaml").write_text("default_provider: anthropic")

    await asyncio.gather(live.reload(), live.use_stored([StoredEntry("provider lab", LAB)]), live.reload())

    assert (live.current.default_provider, "lab" in live.current.providers) == ("anthropic", True)


def test_a_revision_names_values_and_shows_no_secret():
    secret = SecretStr("x" * 32)
    one = Settings(_env_file=None, secret=secret, api_keys="a-key-of-a-client")
    same = Settings(_env_file=None, secret=secret, api_keys="a-key-of-a-client", port=1234)
    other = Settings(_env_file=None, secret=secret, api_keys="b-key-of-a-client")

    assert revision_of(one) == revision_of(same) != revision_of(other)
    assert revision_of(one) != revision_of(one.model_copy(update={"secret": SecretStr("y" * 32)}))  # It is keyed.
    assert digests_of(one)["api_keys"] != digests_of(other)["api_keys"]
    assert "api_keys" not in digests_of(Settings(_env_file=None, api_keys="a-key-of-a-client"))


def test_every_setting_that_may_change_exists():
    assert set(Settings.model_fields) > RELOADABLE
    assert find_difference(Settings(), Settings(port=1, default_provider="openai")) == (("default_provider",), ("port",))
