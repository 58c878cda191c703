"""What is told of wrong settings: the name that their writer gave them, what they may be, and never a secret."""

import errno
import os
import pwd
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cli.main import main
from cli.settings import load_settings
from common.config import setting_sources
from common.config.settings import Settings

CANARY = "sk-canary-0123456789abcdef"
COMMANDS = [
    ["api"],
    ["worker"],
    ["dev", "--once"],
    ["demo-provider"],
    ["doctor"],
    ["keys", "list"],
    ["usage"],
    ["migrate"],
    ["audit", "show", "gen_1"],
]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.upper().startswith(("SLUICE_", "CCPROXY_", "OPENAI_")):
            monkeypatch.delenv(name)
    return tmp_path


def told(**environment: str) -> str:
    """What a command says of the settings; it ends with status 2 and without a traceback."""
    result = CliRunner().invoke(main, ["usage"], env=environment)
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    return result.output


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_ends_with_one_line_that_names_the_setting(command: list[str]):
    result: Result = CliRunner().invoke(main, command, env={"SLUICE_LIMITS": "nope"})

    assert result.exit_code == 2
    (line,) = result.output.splitlines()
    assert line.startswith("SLUICE_LIMITS: it must be JSON")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("SLUICE_PORT", "70000", ["a whole number from 1 to 65535", "'70000'"]),
        ("SLUICE_PORT", "0", ["from 1 to 65535"]),
        ("sluice_port", "eighty", ["sluice_port: ", "'eighty'"]),
        ("SLUICE_PORT", "tcp://10.0.0.1:80", ["enableServiceLinks"]),
        ("SLUICE_WORKER_SLOTS", "-5", ["from 1 to"]),
        ("SLUICE_TOTAL_TIMEOUT_S", "0", ["from 0.01 to"]),
        ("SLUICE_LEASE_S", "nan", ["a number from 1 to 3600"]),
        ("SLUICE_LEASE_S", "1", ["2 times SLUICE_RENEW_S", "answers break off"]),
        ("SLUICE_BACKGROUND_SHARE", "2", ["above 0 to 1"]),
        ("SLUICE_LOG_LEVEL", "loud", ["one of debug, info, warning, error"]),
        ("SLUICE_AUTH", "off", ["one of keys, none"]),
        ("SLUICE_REDIS_URL", "localhost:6379", ["redis://127.0.0.1:6379/0", "'localhost:6379'"]),
        ("SLUICE_DATABASE_URL", "sluice.db", ["sqlite:///FILE", "postgresql://USER@HOST/NAME"]),
        ("SLUICE_CORS_ORIGINS", "app.example", ["https://app.example", "'app.example'"]),
        ("OPENAI_BASE_URL", "127.0.0.1:9", ["OPENAI_BASE_URL: ", "http:// or https://"]),
        ("PORT", "99999", ["PORT: ", "from 1 to 65535"]),
        ("SLUICE_LIMITS", '{"key": {"rpm": 1}}', ["SLUICE_LIMITS.key.rpm", "requests, tokens, concurrent, window_s"]),
        ("SLUICE_LIMITS", '{"keyy": {}}', ["SLUICE_LIMITS.keyy", "Did you mean key?", "key, tenant, end_user, address"]),
        ("SLUICE_LIMITS", '{"key": {"requests": "5"}}', ["SLUICE_LIMITS.key.requests", "must be a number"]),
        ("SLUICE_TENANTS", "{'a': {}}", ["property name enclosed in double quotes", "character 2"]),
        ("SLUICE_PRICES", '{"openai/x": {"input": 1}}', ["openai/x.input_usd_per_mtok", "missing"]),
        ("SLUICE_ALIASES", '{"fast": "openai/x"}', ["SLUICE_ALIASES.fast", "a list", '{"fast": ["openai/gpt-5"]}']),
        ("SLUICE_ALIASES", '{"fast": []}', ["SLUICE_ALIASES.fast", "1 or more"]),
        ("SLUICE_GUARDRAILS", '{"pi": "block"}', ["SLUICE_GUARDRAILS.pi", "Did you mean pii?"]),
        ("SLUICE_CACHE_DIALECTS", '{"unifid": {"ttl_s": 60}}', ["there is no dialect 'unifid'", "openai-chat", "unified"]),
        ("SLUICE_CACHE_DIALECTS", '{"unified": {"ttl": 60}}', ["SLUICE_CACHE_DIALECTS.unified.ttl", "Did you mean ttl_s?"]),
        ("SLUICE_CACHE_MODELS", '{"gpt-*": {"ttl_s": "60"}}', ["SLUICE_CACHE_MODELS.gpt-*.ttl_s", "must be a number"]),
        ("SLUICE_CACHE_MODELS", '{"gpt-*": {"ttl_s": 1e9}}', ["SLUICE_CACHE_MODELS.gpt-*.ttl_s", "from 0 to 2592000"]),
        ("SLUICE_CACHE_MODELS", '{"gpt-*": {"policy": "some"}}', ["one of deterministic, all"]),
        ("SLUICE_PROVIDERS", '{"openai": {"base_ulr": "http://x"}}', ["openai.base_ulr", "Did you mean base_url?"]),
    ],
)
def test_a_wrong_value_is_named_with_what_it_may_be(name: str, value: str, words: list[str]):
    (line, *more) = told(**{name: value}).splitlines()

    said = " ".join([line, *more])
    assert all(each in said for each in [f"{name}", *words]), said


def test_a_file_that_a_variable_names_is_told_by_the_variable_s_name(elsewhere: Path):
    short = elsewhere / "secret"
    short.write_text("short")

    assert told(OPENAI_API_KEY_FILE="/nowhere").startswith("OPENAI_API_KEY_FILE names a file that cannot be read: No such")
    assert told(SLUICE_SECRET_FILE=str(short)) == (
        "SLUICE_SECRET_FILE: it must have 32 bytes or more, or it could be found by trial. "
        "Make one with `openssl rand -hex 32`.\n"
    )
    both = told(SLUICE_SECRET="x" * 32, SLUICE_SECRET_FILE=str(short))
    assert both == "SLUICE_SECRET and SLUICE_SECRET_FILE are both set: leave one of them out.\n"


@pytest.mark.parametrize(("name", "read"), [(".env", setting_sources.env_file), ("sluice.yaml", setting_sources.yaml_values)])
def test_a_file_that_this_user_may_not_read_is_told_with_the_user_and_what_to_do(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, name: str, read: Callable[[], object]
):
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(setting_sources, "dotenv_values", refuse)  # It opens the file itself.
    path, user = elsewhere / name, pwd.getpwuid(os.geteuid()).pw_name

    with pytest.raises(setting_sources.UnreadableSettings) as told:
        read()

    mend = f"Run the command as a user who may read it (ls -l {path})."
    assert str(told.value) == f"{path} cannot be read: Permission denied for the user {user}. {mend}"


@pytest.mark.parametrize(
    ("name", "value"),
    [("SLUICE_PORT", "70000"), ("SLUICE_SECRET", "short"), ("SLUICE_CORS_ORIGINS", "app.example"), ("SLUICE_AUTH", "off")],
)
def test_a_wrong_value_is_told_in_two_sentences_at_most(name: str, value: str):
    (line,) = told(**{name: value}).splitlines()

    assert len(re.findall(r"\.(?: |$)", line)) <= 2
    assert Settings.model_fields[name.removeprefix("SLUICE_").lower()].description not in line  # type: ignore[operator]


def test_a_placeholder_of_the_documentation_is_told_with_the_place(elsewhere: Path):
    (elsewhere / ".env").write_text("OPENAI_API_KEY=sk-…\n")

    placeholder = "this looks like the placeholder of a documentation (it has U+2026, HORIZONTAL ELLIPSIS)"
    assert told() == f"OPENAI_API_KEY in {elsewhere}/.env: {placeholder}: put your own in its place.\n"


def test_all_that_is_wrong_is_told_at_once():
    lines = told(SLUICE_PORT="0", SLUICE_LIMITS="nope", SLUICE_REDIS_URL="x").splitlines()

    assert {line.partition(":")[0] for line in lines} == {"SLUICE_PORT", "SLUICE_LIMITS", "SLUICE_REDIS_URL"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SLUICE_REDIS_URL", f":{CANARY}@localhost:6379"),
        ("SLUICE_REDIS_URL", f"redis://u:{CANARY}@host:x/0"),
        ("SLUICE_REDIS_URL", f"redis://host/x?password={CANARY}"),
        ("SLUICE_DATABASE_URL", f"mysql://u:{CANARY}@host/name"),
        ("SLUICE_DATABASE_URL", f"postgresql://u:{CANARY}@host/name?sslmode=require"),
        ("OPENAI_BASE_URL", f"ftp://u:{CANARY}@host"),
        ("OPENAI_BASE_URL", f"http://u:{CANARY}@host"),
        ("SLUICE_PROVIDERS", f'{{"lab": {{"base_url": "http://u:{CANARY}@host"}}}}'),
        ("SLUICE_AI_GATEWAY_BASE_URL", f"http://u:{CANARY}@host"),
        ("SLUICE_PROVIDERS", f'{{"lab": {{"api_keys": "{CANARY}"}}}}'),
        ("SLUICE_PROVIDERS", f'{{"lab": {{"api_keys": "{CANARY}"'),
        ("SLUICE_PROVIDERS", f'{{"openai": {{"api_keys": {{"a": "{CANARY}"}}}}}}'),
        ("SLUICE_PROVIDERS", f'{{"openai": {{"api_key": "{CANARY}"}}}}'),
        ("SLUICE_PROVIDERS", f'{{"openai": {{"{CANARY}": 1}}}}'),
        ("SLUICE_CACHE_DIALECTS", f'{{"{CANARY}": {{}}}}'),
        ("SLUICE_PORT", CANARY),
    ],
)
def test_no_secret_is_told_with_what_is_wrong(name: str, value: str):
    said = told(**{name: value})

    assert name in said
    assert CANARY not in said


def test_a_value_is_named_by_the_file_that_it_stands_in(elsewhere: Path):
    (elsewhere / "sluice.yaml").write_text(f"port: 0\nlimits: {{key: {{rpm: 1}}}}\nsecret: [{CANARY}]\n")
    (elsewhere / ".env").write_text("SLUICE_WORKER_SLOTS=0\nOPENAI_BASE_URL=nowhere\n")

    said = told()

    for words in (f"{name} in {elsewhere}/sluice.yaml: " for name in ("port", "limits.key.rpm", "secret")):
        assert words in said
    assert f"SLUICE_WORKER_SLOTS in {elsewhere}/.env: " in said
    assert f"OPENAI_BASE_URL in {elsewhere}/.env: " in said
    assert CANARY not in said


def test_a_stronger_source_is_the_one_that_is_named(elsewhere: Path):
    (elsewhere / "sluice.yaml").write_text("port: 0\n")

    assert told(SLUICE_PORT="0").startswith("SLUICE_PORT: ")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("port: [1\n", "line 2, column 1"),
        ("port: 1\nhost: a: b\n", "line 2, column 8"),
        ("- a\n- b\n", "one setting per line"),
        ("just words\n", "one setting per line"),
        ("port: yes\n", "port in FOLDER/sluice.yaml: it must not be true or false"),
        ("tenants: {1: {}}\n", "tenants.1 in FOLDER/sluice.yaml"),
        ("a: \x00\n", "characters that YAML does not allow"),
        ("limits:\n", "limits in FOLDER/sluice.yaml"),
    ],
)
def test_a_broken_yaml_file_is_told_with_the_place(elsewhere: Path, text: str, words: str):
    (elsewhere / "sluice.yaml").write_text(text)

    (line,) = told().splitlines()

    assert "sluice.yaml" in line
    assert words.replace("FOLDER", str(elsewhere)) in line


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("guardrail: {pii: block}", "Did you mean guardrails?"),
        ("gaurdrails: {pii: block}", "Did you mean guardrails?"),
        ("tenant: {acme: {}}", "Did you mean tenants?"),
        ("SLUICE_PORT: 9000", "Did you mean port?"),
        ("api-keys: [k]", "Did you mean api_keys?"),
        ("Port: 1", "Did you mean port?"),
        ("OPENAI_API_KEY: k", "Did you mean providers: {openai: …}?"),
        ("boathouse: red", "Every setting is in .env.example."),
    ],
)
def test_an_unknown_key_of_the_yaml_file_stops_the_start(elsewhere: Path, line: str, hint: str):
    (elsewhere / "sluice.yaml").write_text(line + "\n")

    assert told() == f"{line.partition(':')[0]} in {elsewhere}/sluice.yaml: there is no such setting. {hint}\n"


def test_an_unknown_key_is_told_together_with_wrong_values_and_is_no_secret(elsewhere: Path):
    (elsewhere / "sluice.yaml").write_text(f"{CANARY}: 1\nport: 0\n")

    said = told()

    assert len(said.splitlines()) == 2
    assert CANARY not in said


@pytest.mark.parametrize("name", ["sluice.yaml", ".env"])
def test_a_file_that_is_no_text_is_told_with_its_path(elsewhere: Path, name: str):
    (elsewhere / name).write_bytes(b"\xff\xfe\x00")

    (line,) = told().splitlines()

    assert line.startswith(f"{elsewhere / name} cannot be read: it is not UTF-8")


def test_an_option_wins_over_the_settings(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SLUICE_PORT", "1")
    monkeypatch.setenv("SLUICE_HOST", "127.0.0.9")

    chosen = load_settings(port=2, host=None)

    assert (chosen.port, chosen.host) == (2, "127.0.0.9")


@pytest.mark.parametrize("command", [["api"], ["worker"], ["dev"], ["demo-provider"]], ids=" ".join)
@pytest.mark.parametrize("port", ["70000", "-1", "x"])
def test_an_option_that_cannot_be_is_told_in_one_line(command: list[str], port: str):
    result = CliRunner().invoke(main, [*command, "--port", port])

    assert result.exit_code == 2
    assert "Invalid value for '--port'" in result.output


def test_what_is_right_is_taken_whatever_its_case(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SLUICE_LOG_LEVEL", "INFO")

    assert load_settings() == Settings()


@pytest.mark.parametrize("command", [["keys", "list"], ["usage"], ["doctor"]], ids=" ".join)
def test_a_command_in_a_folder_without_settings_says_so_first(elsewhere: Path, command: list[str]):
    said = (
        f"There is no .env and no sluice.yaml in {elsewhere}, and no SLUICE_ variable is set: start the command in the folder"
    )

    assert said in CliRunner().invoke(main, command).output
    (elsewhere / ".env").write_text("")
    assert said not in CliRunner().invoke(main, command).output


def test_the_doctor_asks_the_api_where_it_is_told_and_says_what_to_do_if_it_listens_elsewhere(elsewhere: Path):
    asked = CliRunner().invoke(main, ["doctor", "--url", "http://127.0.0.1:1/"]).output
    unasked = CliRunner().invoke(main, ["doctor"], env={"SLUICE_PORT": "1"}).output

    assert "✗ The API does not answer at http://127.0.0.1:1/readyz" in asked
    assert "· The API does not answer at http://127.0.0.1:1/readyz" in unasked
    assert "If it listens elsewhere, say where: `sluice doctor --url" in unasked


def test_the_doctor_and_the_check_mark_a_typo_alike(elsewhere: Path):
    (elsewhere / ".env").write_text("SLUICE_PROT=1\n")
    env = {"SLUICE_BOATHOUSE": "1"}

    for command in (["doctor"], ["config", "check"]):
        output = CliRunner().invoke(main, command, env=env).output

        assert f"✗ SLUICE_PROT in {elsewhere}/.env" in output
        assert "! SLUICE_BOATHOUSE in the environment" in output
        assert "All is well" not in output
