"""Which guardrails apply to a request?

Those of the principal (the key's and the tenant's policies, or the settings' policy where neither has one), and those of the
model (every entry of ``guardrails_by_model`` that names one of the request's targets, however the client spelled it). For each
guardrail the strictest mode wins. So no entry can weaken another one, and an operator need not know all entries. A principal
that should be exempt from the settings' guardrails gets a policy of its own. The entries for models apply to everybody.
"""

from collections.abc import Mapping

from common.access.principal import GuardrailPolicy, Principal
from common.config.model_patterns import guards
from common.config.model_routes import Target
from common.config.settings import Settings
from common.guardrails.table import Mode, guardrails_for_side


class GuardrailPolicies:
    """The settings' policies. One object per process."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._default = settings.guardrails
        self._by_model = settings.guardrails_by_model
        self._is_idle = self._default.is_off and not self._by_model

    def find(self, principal: Principal, sent: str, targets: list[Target]) -> GuardrailPolicy | None:
        """Return the policy for a request. None where all guardrails are off.

        Args:
            sent: the model's name as the client sent it.
            targets: what the name resolved to.
        """
        principal_policy = principal.guardrails
        if principal_policy is None and self._is_idle:
            return None
        policy = self._default if principal_policy is None else principal_policy
        for pattern, model_policy in self._by_model.items():
            if guards(pattern, sent, targets, self._settings):
                policy = policy.stricter(model_policy)
        return None if policy.is_off else policy


def output_modes(policy: GuardrailPolicy | None) -> Mapping[str, str]:
    """Return the modes of the answers' guardrails that are on, by name. The worker applies them."""
    if policy is None:
        return {}
    return {row.name: str(mode) for row in guardrails_for_side("output") if (mode := policy.mode(row.name)) is not Mode.OFF}
