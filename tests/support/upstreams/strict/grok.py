"""What does xAI refuse? https://docs.x.ai/docs/guides/reasoning"""

import re
from typing import Any

from tests.support.upstreams.strict import chat
from tests.support.upstreams.strict.rules import ByModel, Call, Complaint, Rule, value_for

# grok-4.3: https://github.com/enricoros/big-AGI/issues/1104; grok-4.5: https://github.com/anomalyco/opencode/issues/39448;
# grok-4.6: https://github.com/VicBilibily/GCMP/issues/396. The others refuse the field: release @ai-sdk/xai 4.0.8 of vercel/ai
_EFFORTS: ByModel[tuple[str, ...]] = [
    (r"grok-3-mini", ("low", "high")),
    (r"grok-4\.20-multi-agent", ("low", "medium", "high", "xhigh")),
    (r"grok-4\.3", ("none", "low", "medium", "high")),
    (r"grok-4\.5", ("low", "medium", "high")),
    (r"grok-4\.[67]", ("low", "medium", "high", "xhigh")),
]
_REASONS = r"grok-(3-mini|4|code)(?!.*non-reasoning)"


def _refused(call: Call, parameter: str) -> Complaint:
    return Complaint(f"Model {call.model} does not support parameter {parameter}.")


def _effort(call: Call) -> Complaint | None:
    """https://github.com/neavo/LinguaGacha/issues/771"""
    effort = call.get("reasoning", "effort") if "/responses" in call.path else call.body.get("reasoning_effort")
    if effort is None:
        return None
    words = value_for(call.model, _EFFORTS, ())
    if not words:
        return _refused(call, "reasoningEffort")
    if effort not in words:
        return Complaint(f"Invalid reasoning effort: {effort}. Supported: {', '.join(words)}.")
    return None


def _sampling(call: Call) -> Complaint | None:
    """The guide: "presencePenalty, frequencyPenalty and stop parameters are not supported by reasoning models"."""
    names = {"presence_penalty": "presencePenalty", "frequency_penalty": "frequencyPenalty", "stop": "stop"}
    for field, name in names.items():
        if call.body.get(field) and re.match(_REASONS, call.model):
            return _refused(call, name)
    return None


def _choice(call: Call) -> Complaint | None:
    """https://github.com/Wei-Shaw/sub2api/pull/4439"""
    if call.body.get("tool_choice") not in (None, "none") and not call.body.get("tools"):
        return Complaint("A tool_choice was set on the request but no tools were specified.")
    return None


CHAT: tuple[Rule, ...] = (_effort, _sampling, _choice, chat.messages_say_something)
RESPONSES: tuple[Rule, ...] = (_effort, _sampling, _choice)


def error_body(complaint: Complaint) -> dict[str, Any]:
    return {"code": "Client specified an invalid argument", "error": complaint.message}
