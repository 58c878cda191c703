"""Which settings say what prompts and answers are checked for?"""

from pydantic import BaseModel, Field, field_validator

from common.access.principal import GuardrailPolicy
from common.config.setting_sources import environment as environment
from common.config.setting_values import GIB as GIB
from common.config.setting_values import KIB as KIB
from common.config.setting_values import MIB as MIB
from common.config.setting_values import (
    HttpUrl,
)


class GuardrailSettings(BaseModel):
    """Guardrails"""

    guardrails: GuardrailPolicy = Field(
        default_factory=GuardrailPolicy,
        description='For principals without their own policy: {"pii": "block", "injection": "log"}. See docs/guardrails.md.',
    )
    guardrails_by_model: dict[str, GuardrailPolicy] = Field(
        default_factory=dict, description='By model, for all principals: {"openai/*": {"pii": "block"}}. The strictest wins.'
    )
    guardrail_patterns_in: tuple[str, ...] = Field(
        (), description='Regular expressions that prompts must not match: ["(?i)project x"].'
    )
    guardrail_patterns_out: tuple[str, ...] = Field((), description="The same for answers.")
    guardrail_input_chars_max: int = Field(
        400_000, ge=1, le=10**9, description="Maximum of characters in a prompt, if the size guardrail is on."
    )
    guardrail_messages_max: int = Field(
        1_000, ge=1, le=10**6, description="Maximum of messages in a prompt, if the size guardrail is on."
    )
    guardrail_plugin: str | None = Field(None, description="A guardrail of your own: module:callable. See docs/guardrails.md.")
    guardrail_webhook_url: HttpUrl | None = Field(
        None, description="A guardrail of your own as a service, which Sluice calls by POST."
    )
    guardrail_timeout_s: float = Field(2, gt=0, le=60, description="How long your own guardrail may take to answer.")

    @field_validator("guardrail_patterns_in", "guardrail_patterns_out")
    @classmethod
    def _check_patterns(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        if patterns:
            from common.guardrails.expressions import compile_patterns  # Most processes do not need its engine.

            compile_patterns(patterns)
        return patterns
