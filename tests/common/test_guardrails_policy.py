"""Which guardrails apply: the strictest of who asks and where it goes."""

import pytest

from common.access import Access, GuardrailPolicy, Mode, Principal
from common.channel.base import Policy
from common.guardrails.policy import Policies, on_output
from common.job import Job
from common.settings import Settings

LOG_ALL = GuardrailPolicy(**dict.fromkeys(GuardrailPolicy.model_fields, Mode.LOG))


def policies(**settings) -> Policies:
    return Policies(Settings(**settings))


def test_nothing_applies_where_nothing_is_set():
    assert policies().of(Principal("k"), {"gpt-5"}) is None


def test_the_settings_apply_to_who_has_none_of_his_own():
    found = policies(guardrails={"pii": "block"})

    assert found.of(Principal("k"), {"m"}) == GuardrailPolicy(pii="block")
    assert found.of(Principal("k", access=Access(guardrails=GuardrailPolicy())), {"m"}) is None
    assert found.of(Principal("k", access=Access(guardrails=GuardrailPolicy(size="log"))), {"m"}) == GuardrailPolicy(size="log")


def test_of_key_and_tenant_the_strictest_wins():
    key = Access(guardrails=GuardrailPolicy(pii="log", injection="block"))
    tenant = Access(guardrails=GuardrailPolicy(pii="block", patterns="log"))

    found = policies().of(Principal("k", access=key, tenant_access=tenant), {"m"})

    assert found == GuardrailPolicy(pii="block", injection="block", patterns="log")


def test_a_route_s_guardrails_hold_for_everybody():
    found = policies(guardrails_by_model={"openai/*": {"pii": "block"}, "*": {"size": "log"}})
    exempt = Principal("k", access=Access(guardrails=GuardrailPolicy()))

    assert found.of(exempt, {"fast", "openai/gpt-5"}) == GuardrailPolicy(pii="block", size="log")
    assert found.of(exempt, {"claude"}) == GuardrailPolicy(size="log")


@pytest.mark.parametrize("mode", list(Mode))
def test_the_stricter_of_two_does_not_depend_on_their_order(mode):
    one, other = GuardrailPolicy(pii=mode), LOG_ALL

    assert one.stricter(other) == other.stricter(one)
    assert one.stricter(GuardrailPolicy()) == one


def test_a_worker_is_told_what_concerns_answers():
    policy = GuardrailPolicy(pii="block", injection="block", size="block", patterns="log")

    assert on_output(policy) == {"patterns": "log", "pii": "block"}
    assert on_output(None) == {}


def test_the_policy_travels_in_the_job_and_older_jobs_have_none():
    job = Job(
        "gen_1", "r", "openai-chat", "m", False, Policy.STOP, 0, 1, guardrails={"pii": "block"}, tenant="acme", body=b"{}"
    )
    packed = job.pack()

    assert Job.unpack(packed) == job
    older = packed.replace(b',"guardrails":{"pii":"block"}', b"").replace(b',"tenant":"acme"', b"")
    assert Job.unpack(older).guardrails == {}


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("guardrail_patterns_in", ["("], "pattern 1 is not a regular expression"),
        ("guardrail_patterns_out", ["x", "y*"], "pattern 2 matches an empty text"),
        ("guardrail_webhook_url", "file:///etc/passwd", "must begin with http"),
        ("guardrails", {"pii": "maybe"}, "pii"),
        ("guardrails_by_model", {"m": {"spam": "log"}}, "spam"),
    ],
)
def test_what_cannot_work_is_refused_at_the_start(name, value, reason):
    with pytest.raises(ValueError, match=reason):
        Settings(**{name: value})
