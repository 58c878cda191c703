"""What do the steps of one generation share? There is one context per claim, and the steps change only its total."""

from dataclasses import dataclass, field

from common.canonical.job import Job
from common.config.settings import Settings
from workers.outcome import ActiveJob, Total
from workers.publish.writer import Writer
from workers.routing.order import Router
from workers.services import Services
from workers.transcode.output_guardrails import OutputGuards


@dataclass(slots=True)
class RunContext:
    """``settings``, ``guards`` and ``router`` belong to one configuration: that of the claim's start."""

    active_job: ActiveJob
    total: Total
    writer: Writer
    services: Services
    settings: Settings = field(init=False)
    guards: OutputGuards = field(init=False)
    router: Router = field(init=False)

    def __post_init__(self) -> None:
        self.use_present_settings()

    @property
    def job(self) -> Job:
        return self.active_job.job

    def use_present_settings(self) -> None:
        """Take the configuration that the process has now. Only before the first attempt, or after all of them have failed."""
        services = self.services
        self.settings, self.guards, self.router = services.settings, services.guards, services.router
