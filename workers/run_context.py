"""What do the steps of one generation share? One of these per claim; no step changes anything in it but the total."""

from dataclasses import dataclass

from common.canonical.job import Job
from common.config.settings import Settings
from workers.outcome import Ask, Total
from workers.publish.writer import Writer
from workers.services import Services


@dataclass(frozen=True, slots=True)
class Running:
    ask: Ask
    total: Total
    writer: Writer
    services: Services

    @property
    def job(self) -> Job:
        return self.ask.job

    @property
    def settings(self) -> Settings:
        return self.services.settings
