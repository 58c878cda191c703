"""Variables in a cloud's secret store, with stand-ins for the clouds' libraries."""

import json
import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from pydantic_settings.sources.providers import aws, azure, gcp

from common.config.setting_sources import UnreadableSettings
from common.config.settings import Settings

STORED = {
    "SLUICE_LOG_LEVEL": "debug",
    "SLUICE_WORKER_SLOTS": "7 \n",
    "OPENAI_API_KEY": "sk-from-the-store",
    "SLUICE_SECRET_STORE": "aws:another",
    "OTHER": "not ours",
}


def module(monkeypatch: pytest.MonkeyPatch, name: str, **names: Any) -> None:
    made = ModuleType(name)
    vars(made).update(names)
    monkeypatch.setitem(sys.modules, name, made)


class Aws:
    reads = 0

    def __init__(self, stored: dict[str, Any]) -> None:
        self.stored = stored

    def get_secret_value(self, **request: str) -> dict[str, str]:
        assert request["SecretId"] == "sluice/prod"
        self.reads += 1
        return {"SecretString": json.dumps(self.stored)}


class Azure:
    def __init__(self, stored: dict[str, str]) -> None:
        self.stored = {name.replace("_", "-"): value for name, value in stored.items()}
        self.read: list[str] = []

    def list_properties_of_secrets(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(name=name, enabled=True) for name in self.stored]

    def get_secret(self, name: str) -> SimpleNamespace:
        self.read.append(name)
        return SimpleNamespace(value=self.stored[name])


class Google:
    def __init__(self, stored: dict[str, str]) -> None:
        self.stored = stored

    def common_project_path(self, project: str) -> str:
        return f"projects/{project}"

    def list_secrets(self, parent: str) -> list[SimpleNamespace]:
        assert parent == "projects/our-project"
        return [SimpleNamespace(name=f"{parent}/secrets/{name}") for name in self.stored]

    def parse_secret_path(self, path: str) -> dict[str, str]:
        return {"secret": path.rpartition("/")[2]}

    def secret_version_path(self, project: str, name: str, version: str) -> str:
        return f"{name}/{version}"

    def access_secret_version(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(payload=SimpleNamespace(data=self.stored[name.partition("/")[0]].encode()))


def use_aws(monkeypatch: pytest.MonkeyPatch, stored: dict[str, Any]) -> Aws:
    cloud = Aws(stored)
    module(monkeypatch, "boto3", client=lambda *_, **__: cloud)
    monkeypatch.setenv("SLUICE_SECRET_STORE", "aws:sluice/prod")
    return cloud


def use_azure(monkeypatch: pytest.MonkeyPatch, stored: dict[str, Any]) -> Azure:
    cloud = Azure(stored)
    monkeypatch.setattr(azure, "import_azure_key_vault", lambda: None)
    monkeypatch.setattr(azure, "SecretClient", lambda **_: cloud, raising=False)
    module(monkeypatch, "azure.identity", DefaultAzureCredential=object)
    monkeypatch.setenv("SLUICE_SECRET_STORE", "azure:https://ours.vault.azure.net")
    return cloud


def use_google(monkeypatch: pytest.MonkeyPatch, stored: dict[str, Any]) -> Google:
    cloud = Google(stored)
    monkeypatch.setattr(gcp, "import_gcp_secret_manager", lambda: None)
    monkeypatch.setattr(gcp, "google_auth_default", lambda: ("login", "our-project"), raising=False)
    monkeypatch.setattr(gcp, "SecretManagerServiceClient", lambda **_: cloud, raising=False)
    monkeypatch.setattr(gcp, "Credentials", object, raising=False)
    monkeypatch.setenv("SLUICE_SECRET_STORE", "google:our-project")
    return cloud


@pytest.fixture(autouse=True)
def empty_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(aws, "boto3_client", None, raising=False)
    for name in STORED:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("use", [use_aws, use_azure, use_google])
def test_a_store_has_settings_and_keys_of_providers(monkeypatch: pytest.MonkeyPatch, use: Callable[..., Any]):
    use(monkeypatch, STORED)

    settings = Settings()

    assert (settings.log_level, settings.worker_slots) == ("debug", 7)
    assert settings.providers["openai"].api_keys[0].get_secret_value() == "sk-from-the-store"


def test_the_environment_wins_and_the_store_wins_over_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Any):
    use_aws(monkeypatch, STORED)
    monkeypatch.setenv("SLUICE_LOG_LEVEL", "error")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-environment")
    (tmp_path / "sluice.yaml").write_text("worker_slots: 3\nkeep_alive_s: 4\n")

    settings = Settings()

    assert (settings.log_level, settings.worker_slots, settings.keep_alive_s) == ("error", 7, 4)
    assert settings.providers["openai"].api_keys[0].get_secret_value() == "sk-of-the-environment"


def test_values_that_are_no_text_are_json(monkeypatch: pytest.MonkeyPatch):
    use_aws(monkeypatch, {"SLUICE_WORKER_SLOTS": 9, "SLUICE_ALIASES": {"fast": ["openai/gpt-5"]}, "SLUICE_SECRET": None})

    settings = Settings()

    assert (settings.worker_slots, settings.aliases, settings.secret) == (9, {"fast": ["openai/gpt-5"]}, None)


def test_a_store_is_read_once_for_each_building_of_settings(monkeypatch: pytest.MonkeyPatch):
    cloud = use_aws(monkeypatch, STORED)

    Settings()
    assert cloud.reads == 1
    cloud.stored = {"SLUICE_WORKER_SLOTS": "8"}

    assert Settings().worker_slots == 8
    assert cloud.reads == 2


def test_secrets_of_others_are_not_read(monkeypatch: pytest.MonkeyPatch):
    cloud = use_azure(monkeypatch, STORED)

    Settings()

    assert "OTHER" not in cloud.read


@pytest.mark.parametrize(
    ("store", "word"),
    [
        ("aws", "must be"),
        ("aws:", "must be"),
        ("vault:x", "must be"),
        ("aws:sluice/prod", "sluice-gateway[aws]"),
        ("google:p", "sluice-gateway[google]"),
        ("azure:https://x", "sluice-gateway[azure]"),
    ],
)
def test_what_cannot_be_read_stops_the_start_and_says_what_to_do(monkeypatch: pytest.MonkeyPatch, store: str, word: str):
    for name in ("boto3", "azure.identity", "google.cloud.secretmanager"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(gcp, "SecretManagerServiceClient", None, raising=False)
    monkeypatch.setenv("SLUICE_SECRET_STORE", store)

    with pytest.raises(UnreadableSettings) as error:
        Settings()

    assert word in str(error.value)


def test_an_error_of_the_cloud_is_named_without_its_words(monkeypatch: pytest.MonkeyPatch):
    cloud = use_aws(monkeypatch, STORED)

    def refuse(**_: str) -> None:
        raise PermissionError("sk-from-the-store is not yours")

    monkeypatch.setattr(cloud, "get_secret_value", refuse)

    with pytest.raises(UnreadableSettings) as error:
        Settings()

    assert "PermissionError" in str(error.value)
    assert "sk-from" not in str(error.value)
