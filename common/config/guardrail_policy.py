"""Which guardrails apply to a request?

Those of who asks (the key's and the tenant's, or the settings' where neither has any) and those of where it goes (every
entry of ``guardrails_by_model`` that names one of the request's targets, however it was spelled). The strictest of them
wins, guardrail by guardrail: then no entry can take away what another one is there for, and nobody has to know all of them
to say what holds. Who is to be exempt from the settings' guardrails gets a policy of his own; what a route asks for holds
for all.
"""

from collections.abc import Mapping

from common.access.principal import GuardrailPolicy, Principal
from common.config.model_patterns import guards
from common.config.model_routes import Target
from common.config.settings import Settings
from common.guardrails.table import Mode, guardrails_for_side


class GuardrailPolicies:
    """The settings' side of it, one per process."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._default = settings.guardrails
        self._by_model = settings.guardrails_by_model
        self._is_idle = self._default.is_off and not self._by_model

    def find(self, principal: Principal, sent: str, targets: list[Target]) -> GuardrailPolicy | None:
        """Return what applies to a request whose model was ``sent`` by this name and leads to these; None where all is off."""
        principal_policy = principal.guardrails
        if principal_policy is None and self._is_idle:
            return None
        policy = self._default if principal_policy is None else principal_policy
        for pattern, model_policy in self._by_model.items():
            if guards(pattern, sent, targets, self._settings):
                policy = policy.stricter(model_policy)
        return None if policy.is_off else policy


def output_modes(policy: GuardrailPolicy | None) -> Mapping[str, str]:
    """Return what a worker has to do: the guardrails of answers that are on, by their modes."""
    if policy is None:
        return {}
    return {row.name: str(mode) for row in guardrails_for_side("output") if (mode := policy.mode(row.name)) is not Mode.OFF}
