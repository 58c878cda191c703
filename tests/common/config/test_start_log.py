"""Does a process say where its settings come from, and that there are none?"""

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from common.config.groups.models import ProviderSettings
from common.config.settings import Settings
from common.config.start_log import log_sources

OPENAI = {"openai": ProviderSettings(api_keys=("sk-canary",))}


@pytest.mark.parametrize("files", [[], [".env"], ["sluice.yaml"], [".env", "sluice.yaml"]])
def test_the_folder_and_the_files_that_were_read_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: list[str]
):
    monkeypatch.chdir(tmp_path)
    for name in files:
        (tmp_path / name).write_text("")

    with capture_logs() as logs:
        log_sources(Settings(providers=OPENAI))

    assert logs == [{"event": "settings_read", "log_level": "info", "folder": str(tmp_path), "files": files}]


def test_a_process_without_any_provider_says_so_and_where_keys_are_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)

    with capture_logs() as logs:
        log_sources(Settings(providers={}))

    _, line = logs
    assert (line["event"], line["log_level"]) == ("no_provider_configured", "warning")
    assert "the folder with your .env or sluice.yaml" in line["mend"]
