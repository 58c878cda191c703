"""Which guardrails apply: the strictest of who asks and where it goes."""

import pytest

from common.access.principal import Access, GuardrailPolicy, Mode, Principal
from common.canonical.job import Job, Policy
from common.config.guardrail_policy import GuardrailPolicies, output_modes
from common.config.model_routes import Target, resolve
from common.config.settings import Settings

LOG_ALL = GuardrailPolicy(**dict.fromkeys(GuardrailPolicy.model_fields, Mode.LOG))


M = ("m", [Target("lab", "m")])
KEYS = {"openai": {"api_keys": "k"}, "agg": {"base_url": "http://agg"}}


def policies(**settings) -> GuardrailPolicies:
    return GuardrailPolicies(Settings(**settings))


def test_nothing_applies_where_nothing_is_set():
    assert policies().find(Principal("k"), *M) is None


def test_the_settings_apply_to_who_has_none_of_his_own():
    found = policies(guardrails={"pii": "block"})

    assert found.find(Principal("k"), *M) == GuardrailPolicy(pii="block")
    assert found.find(Principal("k", access=Access(guardrails=GuardrailPolicy())), *M) is None
    assert found.find(Principal("k", access=Access(guardrails=GuardrailPolicy(size="log"))), *M) == GuardrailPolicy(size="log")


def test_of_key_and_tenant_the_strictest_wins():
    key = Access(guardrails=GuardrailPolicy(pii="log", injection="block"))
    tenant = Access(guardrails=GuardrailPolicy(pii="block", patterns="log"))

    found = policies().find(Principal("k", access=key, tenant_access=tenant), *M)

    assert found == GuardrailPolicy(pii="block", injection="block", patterns="log")


def test_a_route_s_guardrails_hold_for_everybody():
    found = policies(guardrails_by_model={"openai/*": {"pii": "block"}, "*": {"size": "log"}})
    exempt = Principal("k", access=Access(guardrails=GuardrailPolicy()))

    assert found.find(exempt, "fast", [Target("openai", "gpt-5")]) == GuardrailPolicy(pii="block", size="log")
    assert found.find(exempt, "claude", [Target("anthropic", "claude")]) == GuardrailPolicy(size="log")


@pytest.mark.parametrize("pattern", ["gpt-5", "gpt-*", "openai/gpt-5", "OpenAI/*", "gpt-5#openai", "fast", "GPT-5"])
@pytest.mark.parametrize("sent", ["gpt-5", "openai/gpt-5", "gpt-5#openai", "fast", "mixed", "openai/gpt-5 "])
def test_no_spelling_of_a_model_gets_round_its_guardrails(pattern, sent):
    aliases = {"fast": ["openai/gpt-5"], "mixed": ["agg/x", "openai/gpt-5"]}
    settings = Settings(providers=KEYS, aliases=aliases, guardrails_by_model={pattern: {"pii": "block"}})

    found = GuardrailPolicies(settings).find(Principal("k"), sent, resolve(sent, settings))

    assert found == GuardrailPolicy(pii="block")


def test_neither_does_a_public_name_of_it_nor_one_among_several():
    settings = Settings(providers={"anthropic": {"api_keys": "k"}}, guardrails_by_model={"claude-sonnet-4": {"pii": "block"}})

    for target in (Target("anthropic", "claude-sonnet-4-20250514"), Target("agg", "x, claude-sonnet-4")):
        assert GuardrailPolicies(settings).find(Principal("k"), "x", [target]) == GuardrailPolicy(pii="block")
    assert GuardrailPolicies(settings).find(Principal("k"), "x", [Target("anthropic", "claude-sonnet-4-5")]) is None


@pytest.mark.parametrize("mode", list(Mode))
def test_the_stricter_of_two_does_not_depend_on_their_order(mode):
    one, other = GuardrailPolicy(pii=mode), LOG_ALL

    assert one.stricter(other) == other.stricter(one)
    assert one.stricter(GuardrailPolicy()) == one


def test_a_worker_is_told_what_concerns_answers():
    policy = GuardrailPolicy(pii="block", injection="block", size="block", patterns="log")

    assert output_modes(policy) == {"patterns": "log", "pii": "block"}
    assert output_modes(None) == {}


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
        ("guardrail_patterns_in", ["("], "pattern 1 is not a usable regular expression"),
        ("guardrail_patterns_out", ["x", "y*"], "pattern 2 matches an empty text"),
        ("guardrail_webhook_url", "file:///etc/passwd", "must begin with http"),
        ("guardrails", {"pii": "maybe"}, "pii"),
        ("guardrails_by_model", {"m": {"spam": "log"}}, "spam"),
    ],
)
def test_what_cannot_work_is_refused_at_the_start(name, value, reason):
    with pytest.raises(ValueError, match=reason):
        Settings(**{name: value})
