import pytest
from pydantic import ValidationError

from common.config.setting_sources import UnreadableSettings
from common.config.settings import Settings


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "SLUICE_PORT", "SLUICE_API_KEYS"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_the_defaults_are_safe():
    settings = Settings()

    assert settings.host == "127.0.0.1"
    assert settings.auth == "keys"
    assert settings.providers == {}


def test_the_environment_wins_over_env_file_wins_over_yaml(elsewhere, monkeypatch):
    (elsewhere / "sluice.yaml").write_text("port: 1\nlog_level: debug\nqueue_wait_s: 7\n")
    (elsewhere / ".env").write_text("SLUICE_PORT=2\nSLUICE_LOG_LEVEL=warning\n")
    monkeypatch.setenv("SLUICE_PORT", "3")

    settings = Settings()

    assert (settings.port, settings.log_level, settings.queue_wait_s) == (3, "warning", 7)


def test_a_provider_is_on_when_its_usual_variable_is_set(elsewhere, monkeypatch):
    assert not Settings().provider_is_on("openai")

    monkeypatch.setenv("OPENAI_API_KEY", "sk-1, sk-2")
    settings = Settings()

    assert settings.provider_is_on("openai")
    assert [key.get_secret_value() for key in settings.providers["openai"].api_keys] == ["sk-1", "sk-2"]


def test_provider_variables_are_read_from_the_env_file_too(elsewhere):
    (elsewhere / ".env").write_text("OPENAI_API_KEY=sk-file\nOPENAI_BASE_URL=http://localhost:1/v1/\n")

    chosen = Settings().providers["openai"]

    assert (chosen.api_keys[0].get_secret_value(), chosen.base_url) == ("sk-file", "http://localhost:1/v1")


def test_a_provider_s_key_and_its_address_may_come_from_different_places(elsewhere, monkeypatch):
    (elsewhere / "sluice.yaml").write_text("providers: {openai: {base_url: 'http://yaml/v1'}}\n")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-env")

    chosen = Settings().providers["openai"]

    assert (chosen.api_keys[0].get_secret_value(), chosen.base_url) == ("sk-env", "http://yaml/v1")


SECRET = "0123456789abcdef" * 2


@pytest.mark.parametrize("around", [" ", "\n", "\r\n", "\r", "\t", " \n\n"])
def test_blanks_around_a_variable_s_value_are_no_part_of_it(elsewhere, monkeypatch, around):
    given = {"SLUICE_PORT": "9001", "SLUICE_API_KEYS": "sk-1", "SLUICE_SECRET": SECRET, "SLUICE_LOG_LEVEL": "info"}
    given |= {"OPENAI_API_KEY": "sk-2", "OPENAI_BASE_URL": "http://h/v1", "SLUICE_AI_GATEWAY_TOKEN": "t"}
    for name, value in given.items():
        monkeypatch.setenv(name, value + around)

    settings = Settings()

    openai = settings.providers["openai"]
    secrets = [*settings.api_keys, settings.secret, settings.ai_gateway_token, *openai.api_keys]
    assert [each.get_secret_value() for each in secrets] == ["sk-1", SECRET, "t", "sk-2"]
    assert (settings.port, settings.log_level, openai.base_url) == (9001, "info", "http://h/v1")


@pytest.mark.parametrize("value", ["", " ", "\n"])
def test_a_variable_that_says_nothing_is_as_one_that_is_not_there(monkeypatch, value):
    for name in ("SLUICE_PORT", "SLUICE_SECRET", "SLUICE_LIMITS", "SLUICE_SECRET_FILE", "OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.setenv(name, value)

    assert Settings() == Settings.model_construct()


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["plain", "byte order mark"])
def test_an_env_file_may_come_from_any_editor(elsewhere, line_end, mark):
    lines = ["SLUICE_PORT=9001", 'OPENAI_API_KEY="sk-1" # ours', "export SLUICE_API_KEYS='sk-2'", f"SLUICE_SECRET={SECRET}", ""]
    (elsewhere / ".env").write_text(mark + line_end.join(lines), newline="")

    settings = Settings()

    secrets = [*settings.api_keys, settings.secret, *settings.providers["openai"].api_keys]
    assert [each.get_secret_value() for each in secrets] == ["sk-2", SECRET, "sk-1"]
    assert settings.port == 9001


@pytest.mark.parametrize("is_in_env_file", [False, True])
def test_a_value_may_stand_in_a_file_of_its_own(elsewhere, monkeypatch, is_in_env_file):
    given = {"SLUICE_SECRET": SECRET, "SLUICE_API_KEYS": "sk-1,sk-2", "OPENAI_API_KEY": "sk-3"}
    for name, value in given.items():
        (elsewhere / name).write_text(f"{value}\r\n")
        if not is_in_env_file:
            monkeypatch.setenv(f"{name}_FILE", str(elsewhere / name))
    if is_in_env_file:
        (elsewhere / ".env").write_text("".join(f"{name}_FILE={elsewhere / name}\n" for name in given))

    settings = Settings()

    secrets = [settings.secret, *settings.api_keys, *settings.providers["openai"].api_keys]
    assert [each.get_secret_value() for each in secrets] == [SECRET, "sk-1", "sk-2", "sk-3"]


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ('"sk-1"', "quotes"),
        ("'sk-1'", "quotes"),
        ("sk-1\nsk-2", "character 5 is U+000A, LINE FEED"),
        ("sk-1\x00", "character 5 is U+0000"),
        ("sk-\u201c1\u201d", "character 4 is U+201C, LEFT DOUBLE QUOTATION MARK"),
        ("sk-1\u200b", "character 5 is U+200B, ZERO WIDTH SPACE"),
        ("sk-\x7f", "character 4 is U+007F"),
        ("sk-…", "placeholder of a documentation (it has U+2026, HORIZONTAL ELLIPSIS)"),
    ],
)
def test_a_key_that_cannot_be_one_is_refused_without_being_quoted(key, words):
    for chosen in (
        {"api_keys": key},
        {"admin_keys": key},
        {"ai_gateway_token": key},
        {"providers": {"openai": {"api_keys": key}}},
    ):
        with pytest.raises(ValidationError) as refused:
            Settings(**chosen)

        assert words in str(refused.value)
        assert "sk-1" not in str(refused.value)


@pytest.mark.parametrize(
    "key", ["sk-...", "sk-proj-xxxxxxxxxx", "YOUR_KEY", "sk-your-key-here", "<key>", "${OPENAI_API_KEY}", "changeme"]
)
def test_a_key_of_ours_that_everybody_knows_is_refused(key):
    for chosen in ({"api_keys": key}, {"admin_keys": key}):
        with pytest.raises(ValidationError, match="placeholder"):
            Settings(**chosen)

    # A file of examples has more providers than one uses.
    assert Settings(providers={"openai": {"api_keys": key}}).providers["openai"].api_keys


@pytest.mark.parametrize("secret", [f"<{'x' * 40}>", "your-secret-that-is-long-enough-for-us"])
def test_a_secret_that_is_a_placeholder_is_refused(secret):
    with pytest.raises(ValidationError, match="placeholder"):
        Settings(secret=secret)


@pytest.mark.parametrize("key", ["sk-my-app-1", "sk-yourself", "a..b", "abc<def>", "sk-here"])
def test_a_key_that_may_be_meant_is_taken(key):
    assert [each.get_secret_value() for each in Settings(api_keys=key).api_keys] == [key]


def test_secrets_do_not_show(monkeypatch):
    monkeypatch.setenv("SLUICE_API_KEYS", "sk-canary-1,sk-canary-2")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary-3")

    assert "canary" not in repr(Settings())


def test_what_cannot_be_is_refused(monkeypatch):
    monkeypatch.setenv("SLUICE_PORT", "many")

    with pytest.raises(ValidationError):
        Settings()


def test_providers_of_one_s_own_come_from_yaml_or_json(elsewhere, monkeypatch):
    (elsewhere / "sluice.yaml").write_text("providers: {lab: {base_url: 'http://lab/v1/', api_keys: [k]}}\n")
    monkeypatch.setenv("SLUICE_PROVIDERS", '{"shop": {"base_url": "http://shop", "wire": "anthropic-messages"}}')

    settings = Settings()

    assert settings.base_url("lab") == "http://lab/v1"
    assert settings.vendors["lab"].wires == ("openai-chat",)
    assert settings.vendors["shop"].wires == ("anthropic-messages",)
    assert settings.provider_is_on("lab")
    assert settings.provider_is_on("shop")


def test_a_known_provider_may_be_set_by_any_of_its_names(elsewhere, monkeypatch):
    (elsewhere / "sluice.yaml").write_text("providers: {gemini: {base_url: 'http://x', wire: openai-chat}}\n")
    monkeypatch.setenv("GEMINI_API_KEY", "sk-g")

    settings = Settings()

    assert settings.providers.keys() == {"google-ai-studio"}
    assert settings.provider("google-ai-studio").api_keys[0].get_secret_value() == "sk-g"
    assert settings.vendors["google-ai-studio"].wires == ("openai-chat",)
    assert settings.vendor_ids["gemini"] == "google-ai-studio"


@pytest.mark.parametrize(
    "own", [{"lab": {}}, {"la/b": {"base_url": "http://x"}}, {"lab": {"base_url": "http://x", "wire": "?"}}]
)
def test_a_provider_of_one_s_own_that_cannot_work_is_refused(own):
    with pytest.raises(ValidationError):
        Settings(providers=own)


def test_an_address_with_words_to_fill_in_needs_them():
    keys = {"azure-openai": {"api_keys": "k"}, "workers-ai": {"api_keys": "k"}}

    assert Settings(providers=keys).base_url("azure-openai") is None
    assert not Settings(providers=keys).provider_is_on("workers-ai")
    filled = Settings(providers=keys, azure_resource="res", ai_gateway_account_id="acct")
    assert filled.base_url("azure-openai") == "https://res.openai.azure.com"
    assert filled.base_url("workers-ai") == "https://api.cloudflare.com/client/v4/accounts/acct/ai/v1"
    assert filled.provider_is_on("workers-ai")


def test_a_server_of_one_s_own_is_on_by_its_address(monkeypatch):
    assert not Settings().provider_is_on("ollama")

    monkeypatch.setenv("OLLAMA_BASE_URL", "http://localhost:11434")

    assert Settings().provider_is_on("ollama")


NUMBERS = {
    name: node
    for name, field in Settings.model_json_schema()["properties"].items()
    for node in field.get("anyOf", [field])
    if node.get("type") in ("integer", "number")
}


@pytest.mark.parametrize("name", NUMBERS)
def test_every_number_has_a_range_and_nothing_outside_it_is_taken(name):
    node = NUMBERS[name]
    least = node.get("minimum", node.get("exclusiveMinimum"))
    most = node.get("maximum", node.get("exclusiveMaximum"))

    assert least is not None
    assert most is not None
    for value in (least - 1, most + 1, float("nan"), float("inf"), float("-inf"), True, "1e999", "x"):
        with pytest.raises(ValidationError):
            Settings(**{name: value})


@pytest.mark.parametrize(
    ("settings", "is_good"),
    [
        ({"lease_s": 6, "renew_s": 3}, True),
        ({"lease_s": 6, "renew_s": 3.5}, False),
        ({"lease_s": 1, "renew_s": 5}, False),
        ({"heartbeat_s": 20}, False),
        ({"heartbeat_s": 20, "vanished_viewers_s": 40}, True),
        ({"vanished_viewers_s": 1}, False),
    ],
)
def test_what_must_be_longer_than_what(settings, is_good):
    if is_good:
        assert Settings(**settings)
        return
    with pytest.raises(ValidationError, match="at least 2 times SLUICE_"):
        Settings(**settings)


def test_an_error_s_text_quotes_no_value():
    with pytest.raises(ValidationError) as caught:
        Settings(api_keys={"sk-canary": 1}, port="sk-canary")

    assert "canary" not in str(caught.value)


def test_a_field_that_a_provider_does_not_have_is_refused():
    with pytest.raises(ValidationError):
        Settings(providers={"openai": {"base_ulr": "http://x"}})


@pytest.mark.parametrize("name", ["secret", "secret_previous", "jwt_secret"])
@pytest.mark.parametrize(("value", "is_good"), [("abc", False), ("s" * 31, False), ("s" * 32, True), ("ü" * 16, True)])
def test_a_short_secret_is_refused_in_a_sentence_that_tells_how_to_make_one(name: str, value: str, is_good: bool):
    fields = {"secret": "s" * 32, name: value}
    if is_good:
        assert Settings(**fields)
        return
    with pytest.raises(ValidationError) as caught:
        Settings(**fields)

    (error,) = caught.value.errors()
    assert error["loc"] == (name,)
    assert error["msg"].startswith("it must have 32 bytes or more")
    assert "openssl rand -hex 32" in error["msg"]
    assert value not in str(caught.value)


def test_the_secret_before_is_for_what_is_old_and_needs_one_for_what_is_new():
    both = Settings(secret="n" * 32, secret_previous="o" * 32)

    assert [secret.get_secret_value() for secret in both.secrets] == ["n" * 32, "o" * 32]
    assert Settings().secrets == ()
    with pytest.raises(ValidationError, match="needs SLUICE_SECRET"):
        Settings(secret_previous="o" * 32)


def test_prices_are_found_by_any_name_of_the_provider_and_the_public_one_of_the_model():
    price = {"input_usd_per_mtok": 1, "output_usd_per_mtok": 1}
    names = ["anthropic/claude-sonnet-4", "Google/gemini-2.5-pro", "lab/x", "agg/openai/gpt-5", "bare"]

    found = Settings(providers={"lab": {"base_url": "http://x"}}, prices=dict.fromkeys(names, price)).prices

    assert list(found) == [
        "anthropic/claude-sonnet-4-20250514",
        "google-ai-studio/gemini-2.5-pro",
        "lab/x",
        "agg/openai/gpt-5",
        "bare",
    ]


@pytest.mark.parametrize(
    ("provider", "chosen", "pays"),
    [
        ("openai", {}, True),
        ("vllm", {"base_url": "http://x"}, False),
        ("vllm", {"base_url": "http://x", "api_keys": "k"}, True),
        ("lab", {"base_url": "http://x"}, False),
        ("lab", {"base_url": "http://x", "api_keys": "k"}, True),
    ],
)
def test_a_brought_key_pays_where_the_provider_cannot_do_without_one(provider: str, chosen: dict, pays: bool):
    assert Settings(providers={provider: chosen}).byok_pays(provider) is pays


def test_it_pays_for_nothing_behind_a_gateway():
    assert not Settings(ai_gateway_account_id="a", ai_gateway_id="g").byok_pays("openai")


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("routes: {a: {targets: [x]}}\nport: 1\nroutes: {b: {targets: [y]}}\n", (1, 3)),
        ("routes:\n  a: {targets: [x]}\n  b: {targets: [x]}\n  a: {targets: [y]}\n", (2, 4)),
        ("providers:\n  lab: {base_url: 'http://a/v1'}\n  'lab':\n    base_url: http://b/v1\n", (2, 3)),
        ("providers: {lab: {base_url: 'http://a/v1', base_url: 'http://b/v1'}}\n", (1, 1)),
    ],
)
def test_a_key_that_is_written_twice_is_refused_with_its_lines(elsewhere, text, lines):
    (elsewhere / "sluice.yaml").write_text(text)

    with pytest.raises(UnreadableSettings, match=f"in line {lines[0]} and in line {lines[1]}"):
        Settings()


def test_merge_keys_of_yaml_may_be_replaced_and_merged_again(elsewhere):
    (elsewhere / "sluice.yaml").write_text(
        "providers:\n"
        "  a: &a {base_url: 'http://a/v1', api_keys: [k]}\n"
        "  b: &b {<<: *a, base_url: 'http://b/v1'}\n"
        "  c: {<<: *b, base_url: 'http://c/v1'}\n"
    )

    providers = Settings().providers

    assert [providers[name].base_url for name in "abc"] == ["http://a/v1", "http://b/v1", "http://c/v1"]
    assert [len(providers[name].api_keys) for name in "abc"] == [1, 1, 1]


def test_a_copy_with_other_values_keeps_nothing_that_was_worked_out_from_the_old_ones():
    before = Settings(secret="a" * 32, providers={"openai": {"api_keys": "k"}})
    assert [secret.get_secret_value() for secret in before.secrets] == ["a" * 32]
    assert before.vendor_ids

    after = before.model_copy(update={"secret": None})

    assert after.secrets == ()
    assert after == before.model_copy(update={"secret": None})
