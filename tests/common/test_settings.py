import pytest
from pydantic import ValidationError

from common.settings import Settings


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


def test_secrets_do_not_show(monkeypatch):
    monkeypatch.setenv("SLUICE_API_KEYS", "sk-canary-1,sk-canary-2")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary-3")

    assert "canary" not in repr(Settings())


def test_what_cannot_be_is_refused(monkeypatch):
    monkeypatch.setenv("SLUICE_PORT", "many")

    with pytest.raises(ValidationError):
        Settings()
