"""What a request is charged for, and whose limits it meets."""

from decimal import Decimal

import pytest

from api.intake.charges import OPEN_ADDRESS_LIMITS, charges_of
from common.access.principal import Access, Budget, Limits, Principal
from common.canonical.generation import GenerationRequest, Message, Role, TextPart
from common.config.settings import Settings
from common.limits.charges import Charges
from common.metering.token_estimate import OUTPUT_TOKENS_DEFAULT

ADDRESS = "192.0.2.1"
DAY = Budget(day_usd=Decimal(1))


def request(**fields: object) -> GenerationRequest:
    return GenerationRequest("m", [Message(Role.USER, [TextPart("hello there")])], **fields)


def charge(principal: Principal, asked: GenerationRequest | None = None, settings: Settings | None = None, **more) -> Charges:
    return charges_of(principal, ADDRESS, asked or request(), ["openai"], settings or Settings(), **more)


def counted(charges: Charges) -> set[tuple[str, str, str]]:
    return {(window.scope, window.name, window.kind) for window in charges.windows}


def test_nothing_is_limited_unless_it_is_set():
    charges = charge(Principal("key_1"))

    assert (charges.windows, charges.slots, charges.alternatives) == ([], [], [])
    assert [(account.scope, account.name) for account in charges.accounts] == [("key", "key_1"), ("tenant", "key_1")]


def test_a_limit_of_ones_own_stands_for_the_settings():
    settings = Settings(limits={"key": Limits(requests=5), "tenant": Limits(requests=50)})

    own = charge(Principal("key_1", "acme", access=Access(limits=Limits(concurrent=3))), settings=settings)

    assert counted(own) == {("tenant", "acme", "requests")}
    assert [slot.limit for slot in own.slots] == [3]
    assert counted(charge(Principal("key_2", "acme"), settings=settings)) == {
        ("key", "key_2", "requests"),
        ("tenant", "acme", "requests"),
    }


def test_end_users_of_two_tenants_are_two():
    settings = Settings(limits={"end_user": Limits(requests=5)})
    asked = request(end_user="ann")

    names = {charge(Principal("k", tenant), asked, settings).windows[0].name for tenant in ("acme", "other")}

    assert len(names) == 2


def test_who_a_token_names_is_not_another_because_the_request_says_so():
    settings = Settings(limits={"end_user": Limits(requests=5)})

    charges = charge(Principal("k", "acme", end_user="ann"), request(end_user="bob"), settings)

    assert charges.windows[0].name == "acme/ann"


def test_a_strange_name_stands_in_a_key_by_its_digest():
    settings = Settings(limits={"end_user": Limits(requests=5)})

    (window,) = charge(Principal("k", "a b\n" * 99), request(end_user="x y\x00" * 99), settings).windows

    assert len(window.name) == 65
    assert window.name.replace("/", "").isalnum()


def test_where_anybody_may_ask_each_address_is_limited():
    charges = charge(Principal("anonymous"), settings=Settings(auth="none"))

    assert [(window.scope, window.limit) for window in charges.windows] == [("address", OPEN_ADDRESS_LIMITS.requests)]


@pytest.mark.parametrize(
    ("fields", "output"),
    [({}, OUTPUT_TOKENS_DEFAULT), ({"max_output_tokens": 7}, 7), ({"max_output_tokens": 7, "choices": 3}, 21)],
)
def test_the_longest_answer_is_reserved(fields, output):
    settings = Settings(limits={"key": Limits(tokens=100_000)})

    (window,) = charge(Principal("k"), request(**fields), settings).windows

    assert output < window.amount < output + 20


def test_a_route_is_closed_only_if_every_provider_of_it_has_a_budget():
    settings = Settings(providers={"openai": {"budget": DAY}})

    assert [account.name for account in charge(Principal("k"), settings=settings).alternatives] == ["openai"]
    assert charges_of(Principal("k"), ADDRESS, request(), ["openai", "anthropic"], settings).alternatives == []


def test_who_brings_the_providers_key_pays_for_it():
    settings = Settings(providers={"openai": {"budget": DAY}}, limits={"key": Limits(requests=5)})

    charges = charge(Principal("k", access=Access(budget=DAY)), settings=settings, has_byok_key=True)

    assert (charges.accounts, charges.alternatives) == ((), ())
    assert counted(charges) == {("key", "k", "requests")}, "it may still not ask more often"


@pytest.mark.parametrize(
    ("provider", "chosen", "is_ours"),
    [
        ("openai", {"budget": DAY}, False),
        ("vllm", {"budget": DAY, "base_url": "http://gpu"}, True),  # It needs no key, so any would do.
        ("ollama", {"budget": DAY, "base_url": "http://gpu"}, True),
        ("lab", {"budget": DAY, "base_url": "http://gpu"}, True),
        ("lab", {"budget": DAY, "base_url": "http://gpu", "api_keys": ("k",)}, False),
    ],
)
def test_a_key_that_nobody_asked_for_pays_for_nothing(provider, chosen, is_ours):
    settings = Settings(providers={provider: chosen})
    principal = Principal("k", access=Access(budget=DAY))

    charges = charges_of(principal, ADDRESS, request(), [provider], settings, has_byok_key=True)

    assert bool(charges.accounts) is bool(charges.alternatives) is is_ours


def test_neither_does_one_behind_a_gateway_that_may_have_used_its_own():
    settings = Settings(ai_gateway_account_id="a", ai_gateway_id="g")

    assert charge(Principal("k"), settings=settings, has_byok_key=True).accounts


def test_of_several_providers_each_must_be_paid_by_the_client():
    settings = Settings(providers={"lab": {"base_url": "http://gpu"}})

    assert charges_of(Principal("k"), ADDRESS, request(), ["openai", "lab"], settings, has_byok_key=True).accounts


def test_who_pays_with_a_key_of_its_own_is_limited_as_before_and_spends_no_budget_of_ours():
    limits = Limits(requests=5, tokens=1000, concurrent=3)
    principal = Principal("key_1", access=Access(limits=limits, budget=DAY))

    charges = charge(principal, has_byok_key=True)

    assert counted(charges) == {("key", "key_1", "requests"), ("key", "key_1", "tokens")}
    assert [(slot.scope, slot.name, slot.limit) for slot in charges.slots] == [("key", "key_1", 3)]
    assert (list(charges.accounts), list(charges.alternatives)) == ([], [])
