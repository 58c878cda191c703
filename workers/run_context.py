"""What do the steps of one generation share? There is one context per claim, and the steps change only its total."""

from dataclasses import dataclass

from common.canonical.job import Job
from common.config.settings import Settings
from workers.outcome import ActiveJob, Total
from workers.publish.writer import Writer
from workers.services import Services


@dataclass(frozen=True, slots=True)
class RunContext:
    active_job: ActiveJob
    total: Total
    writer: Writer
    services: Services

    @property
    def job(self) -> Job:
        return self.active_job.job

    @property
    def settings(self) -> Settings:
        return self.services.settings
