"""How do metrics show which configuration a process has? Both tiers have the same ones."""

from prometheus_client import CollectorRegistry, Gauge

from common.live.live_settings import LiveSettings


class ConfigMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self._revision = Gauge(
            "sluice_config_revision_info",
            "The revision of this process's settings: equal where the settings are",
            ["revision"],
            registry=registry,
        )
        self._is_good = Gauge("sluice_config_last_reload_successful", "Whether the last reload succeeded", registry=registry)
        self._reloaded_at = Gauge(
            "sluice_config_last_reload_success_timestamp_seconds",
            "When this process read its settings with success for the last time",
            registry=registry,
        )

    def show(self, live: LiveSettings) -> None:
        self._revision.clear()
        self._revision.labels(live.revision).set(1)
        self._is_good.set(live.is_good)
        self._reloaded_at.set(live.reloaded_at_s)
