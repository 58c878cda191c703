"""What does a process log about its settings when it starts?

Without this line, a process that was started in the wrong folder looks like one whose settings are ignored.
"""

from pathlib import Path

import structlog

from common.config.model_routes import available
from common.config.setting_sources import ENV_FILE, YAML_FILE
from common.config.settings import Settings

log = structlog.get_logger()


def log_sources(settings: Settings) -> None:
    """Log from which files the settings were read, by name only, and whether there is no provider at all."""
    files = [name for name in (ENV_FILE, YAML_FILE) if Path(name).is_file()]
    log.info("settings_read", folder=str(Path.cwd()), files=files)
    if not available(settings):
        log.warning(
            "no_provider_configured",
            problem="No provider is configured. Only requests that bring a key of their provider can be answered.",
            mend=f"Set OPENAI_API_KEY, for example, or start the process in the folder with your {ENV_FILE} or {YAML_FILE}.",
        )
