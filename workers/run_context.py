"""What do the steps of one generation share? There is one context per claim, and the steps change only its total."""

import time
from dataclasses import dataclass, field

from common.canonical.errors import ErrorKind
from common.canonical.job import Job
from common.config.settings import Settings
from workers.outcome import ActiveJob, Total
from workers.publish.writer import Writer
from workers.routing.order import Router
from workers.services import Services
from workers.transcode.output_guardrails import OutputGuards

REPLACED_S = 120.0  # How long the configuration before still serves: twice as long as an interactive job waits for a worker.


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
        """Take the configuration that the process has now."""
        services = self.services
        self.settings, self.guards, self.router = services.settings, services.guards, services.router

    async def use_other_settings(self, kind: ErrorKind) -> bool:
        """Take another configuration if it may do better after this failure. Only before the commit point. Returns whether.

        The API may have accepted the job with a newer configuration than this process has, and a key may have been replaced:
        then it is the newest. Or the API had an older one, which named targets that are gone: then it is the one before.
        """
        # A key that the client brought is the same in every configuration.
        is_our_key = kind is ErrorKind.UPSTREAM_CREDENTIALS and not self.job.brought_key
        if not (is_our_key or kind is ErrorKind.MODEL_NOT_FOUND):
            return False
        before = self.settings
        await self.services.refresh()
        if self.services.settings is not before:
            self.use_present_settings()
            return True
        replaced = self.services.replaced
        if kind is ErrorKind.UPSTREAM_CREDENTIALS or replaced is None or time.time() - replaced.at_s > REPLACED_S:
            return False
        self.settings, self.guards, self.router, _ = replaced
        return True
