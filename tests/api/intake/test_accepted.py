"""What a request becomes: the job that a worker reads, and what the ledger knows about it."""

from dataclasses import replace
from decimal import Decimal
from typing import Any

import httpx
import orjson
import pytest
from pydantic import SecretStr
from redis.asyncio import Redis

from api.cache.plan import CachePlan
from api.intake.accepted import LEDGER_NAME_MAX, SAFETY_EXPIRY_EXTRA_S, AcceptedRequest, request_summary
from api.main import ApiProcess, create_app
from cli.dev.embedded_redis import EmbeddedRedis
from common.access.principal import Access, Budget, Limits, Principal
from common.canonical.errors import StoreUnavailable
from common.canonical.job import Job, Policy
from common.channel.base import Opening
from common.config.groups.models import ProviderSettings
from common.config.guardrail_policy import GuardrailPolicy
from common.config.route_rules import Route, RouteTarget
from common.config.settings import Settings
from common.dialects import DIALECTS
from common.limits.charges import NO_CHARGES, Charges
from common.queue.jobs import IdempotencyKey, JobClass

SECRET = "a long random text of 32 bytes or more"
BODY = {"model": "demo", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}
KEY = {"authorization": "Bearer sk-key"}


@pytest.fixture
async def process(redis: Redis, redis_server: EmbeddedRedis):
    settings = Settings(
        redis_url=redis_server.url,
        secret=SECRET,
        api_keys="sk-key",
        ai_gateway_account_id="account",
        ai_gateway_id="gateway",
        providers={"demo": ProviderSettings(base_url="http://127.0.0.1:9/v1")},
    )
    api = ApiProcess(settings)
    await api.start()
    yield api
    await api.stop()


@pytest.fixture
def send(process: ApiProcess, monkeypatch: pytest.MonkeyPatch):
    """Send a request; return what its channel was opened with."""
    openings: list[Opening] = []

    async def keep(_: str, opening: Opening, *__: object) -> None:
        openings.append(opening)
        raise StoreUnavailable("enough seen")

    monkeypatch.setattr(process.services.channel, "open", keep)

    async def post(path: str = "/v1/chat/completions", headers: dict[str, str] | None = None, **body: Any) -> Opening:
        transport = httpx.ASGITransport(create_app(process))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            response = await client.post(path, json=BODY | body, headers=KEY | (headers or {}))
        assert response.status_code in (503, 529), response.text
        return openings.pop()

    return post


def job_of(opening: Opening) -> Job:
    return Job.unpack(opening.request + opening.body)


def be(monkeypatch: pytest.MonkeyPatch, process: ApiProcess, **changes: Any) -> None:
    """Have the principal differ in these fields from the one that the key belongs to."""
    identify = process.services.authenticator.identify

    async def changed(*args: Any) -> Any:
        identity = await identify(*args)
        return replace(identity, principal=replace(identity.principal, **changes))

    monkeypatch.setattr(process.services.authenticator, "identify", changed)


def configure(monkeypatch: pytest.MonkeyPatch, process: ApiProcess, **changes: Any) -> None:
    monkeypatch.setattr(process.services, "settings", process.services.settings.model_copy(update=changes))


async def test_a_request_becomes_a_job_with_its_body_as_it_came(send):
    opening = await send(stream=True, user="ann")

    job = job_of(opening)
    assert (job.dialect, job.model, job.stream, job.operation) == ("openai-chat", "demo", True, "generate")
    assert (job.policy, job.grace_s, job.provider, job.targets, job.brought_key) == (Policy.STOP, 0, None, None, None)
    assert orjson.loads(bytes(job.body)) == {**BODY, "stream": True, "user": "ann"}
    assert (opening.dialect, opening.model, opening.stream) == ("openai-chat", "demo", True)
    assert (opening.policy, opening.grace_s, opening.created_s) == (Policy.STOP, 0, job.created_s)
    assert opening.job_class is JobClass.INTERACTIVE
    assert not opening.is_audited


async def test_a_provider_that_is_named_beside_the_model_is_the_job_s(send):
    assert job_of(await send("/v1/chat", provider="demo", model="m")).provider == "demo"


async def test_a_route_that_changes_a_body_knows_whose_it_is(send, monkeypatch):
    asked: list[str] = []

    async def continued(principal: Principal, body: dict[str, Any], _: object) -> dict[str, Any]:
        asked.append(principal.id)
        return {**body, "user": "ann"}

    monkeypatch.setattr("api.routes.responses.continued", continued)

    opening = await send("/v1/responses", input="hi")

    assert asked == [opening.owner]
    assert orjson.loads(bytes(job_of(opening).body))["user"] == "ann"


async def test_a_count_of_tokens_is_never_a_stream(send):
    opening = await send("/v1/messages/count_tokens", stream=True)

    assert (job_of(opening).operation, job_of(opening).stream) == ("count_tokens", False)


async def test_a_price_must_be_known_for_an_answer_and_not_for_a_count(send, process, monkeypatch):
    be(monkeypatch, process, access=Access(budget=Budget(day_usd=Decimal(1))))
    configure(monkeypatch, process, budget_unknown_price="refuse")

    await send("/v1/messages/count_tokens", model="demo/unpriced")
    with pytest.raises(AssertionError, match="price_unknown"):
        await send(model="demo/unpriced")


async def test_the_upstream_gets_the_headers_that_are_meant_for_it_and_no_other(send):
    passed = {"anthropic-version": "1", "anthropic-beta": "2", "openai-beta": "3", "cf-aig-cache-ttl": "4"}
    kept = {"cf-aig-authorization": "5", "cf-aig-byok-alias": "6", "cf-aig-custom-host": "7", "x-other": "8"}

    assert job_of(await send(headers=passed | kept)).headers == passed


async def test_without_a_gateway_there_is_nobody_to_read_its_headers(send, process, monkeypatch):
    configure(monkeypatch, process, ai_gateway_id=None)

    assert job_of(await send(headers={"cf-aig-cache-ttl": "4", "openai-beta": "3"})).headers == {"openai-beta": "3"}


@pytest.mark.parametrize(
    ("headers", "retention_s"),
    [
        ({}, 1),
        ({"x-disconnect": "grace=5"}, 2),
        ({"x-disconnect": "detach"}, 3),
    ],
)
async def test_a_log_is_kept_for_as_long_as_its_policy_says(send, process, monkeypatch, headers, retention_s):
    configure(monkeypatch, process, retention_stop_s=1, retention_grace_s=2, retention_detach_s=3)

    assert (await send(headers=headers)).retention_s == retention_s


@pytest.mark.parametrize(("idempotency_s", "retention_s"), [(500, 500), (50, 100)])
async def test_a_request_that_may_come_again_is_kept_for_it(send, process, monkeypatch, idempotency_s, retention_s):
    configure(monkeypatch, process, retention_detach_s=100, idempotency_s=idempotency_s)

    opening = await send(headers={"idempotency-key": "k", "x-disconnect": "detach"})

    assert opening.retention_s == retention_s


@pytest.mark.parametrize(("job_class", "wait_s"), [("interactive", 10), ("background", 1000)])
async def test_nothing_of_a_request_stays_for_ever(send, process, monkeypatch, job_class, wait_s):
    configure(monkeypatch, process, queue_wait_s=10, queue_wait_background_s=1000, total_timeout_s=7)

    opening = await send(headers={"x-sluice-class": job_class})

    assert opening.job_class == job_class
    assert opening.expiry_s == wait_s + 7 + SAFETY_EXPIRY_EXTRA_S


async def test_the_ledger_knows_who_asked_for_what(send, process, monkeypatch):
    be(monkeypatch, process, tenant="t" * 300)

    opening = await send(headers={"x-request-id": "r-1"}, user="u" * 200)

    asked = orjson.loads(opening.request_summary)
    created_ms = asked.pop("created_ms")
    assert isinstance(created_ms, int)
    assert asked == {
        "format": 2,
        "owner": opening.owner,
        "tenant": "t" * LEDGER_NAME_MAX,
        "end_user": "u" * 200,
        "request_id": job_of(opening).request_id,
        "dialect": "openai-chat",
        "operation": "generate",
        "stream": False,
        "model": "demo",
        "is_audited": False,
        "cache": "off",
        "row_id": None,
        "answered_by": None,
    }
    assert created_ms // 1000 - opening.created_s in (0, 1)
    assert job_of(opening).tenant == "t" * 300


async def test_the_end_user_of_a_token_is_the_one_that_counts(send, process, monkeypatch):
    be(monkeypatch, process, end_user="from the token")

    assert orjson.loads((await send(user="from the body")).request_summary)["end_user"] == "from the token"


async def test_where_nobody_is_named_there_is_no_end_user(send):
    assert orjson.loads((await send()).request_summary)["end_user"] is None


async def test_who_is_audited_is_so_in_the_channel_and_in_the_ledger(send, process, monkeypatch):
    be(monkeypatch, process, access=Access(audit=True))

    opening = await send()

    assert opening.is_audited
    assert orjson.loads(opening.request_summary)["is_audited"]


async def test_what_runs_without_a_client_is_background_work_that_nobody_leaves(send, process, monkeypatch):
    configure(monkeypatch, process, retention_detach_s=3)

    opening = await send("/v1/generations")

    assert (opening.policy, opening.job_class, opening.retention_s) == (Policy.DETACH, JobClass.BACKGROUND, 3)


async def test_a_request_that_may_come_again_waits_a_minute_for_its_client(send):
    opening = await send(headers={"idempotency-key": "k"})

    assert (opening.policy, opening.grace_s) == (Policy.GRACE, 60)


async def test_a_worker_gets_the_body_that_the_guardrails_left(send, process, monkeypatch):
    be(monkeypatch, process, access=Access(guardrails=GuardrailPolicy(sanitize="block", pii="log")))

    job = job_of(await send(messages=[{"role": "user", "content": "a\u202eb"}]))

    assert orjson.loads(bytes(job.body))["messages"][0]["content"] == "ab"
    assert job.guardrails == {"pii": "log"}


async def test_without_guardrails_a_worker_is_told_of_none(send):
    assert job_of(await send()).guardrails == {}


@pytest.mark.parametrize(("models", "targets"), [(("demo/*",), None), (("*",), None)])
async def test_a_route_that_is_allowed_as_a_whole_is_found_again_by_the_worker(send, process, monkeypatch, models, targets):
    be(monkeypatch, process, access=Access(models=models))

    assert job_of(await send()).targets == targets


async def test_of_a_route_that_is_allowed_in_part_the_worker_is_told_which(send, process, monkeypatch):
    providers = {name: ProviderSettings(base_url="http://127.0.0.1:9/v1", api_keys=("k",)) for name in ("openai", "groq")}
    configure(monkeypatch, process, providers=providers, aliases={"ours": ["openai/a", "groq/b"]})
    be(monkeypatch, process, access=Access(providers=("groq",)))

    assert job_of(await send(model="ours")).targets == ["groq/b"]


async def test_a_key_that_the_request_brought_is_sealed_for_its_generation(send, process, monkeypatch):
    identify = process.services.authenticator.identify

    async def with_key(*args: Any) -> Any:
        return replace(await identify(*args), byok_key=SecretStr("sk-their-own"))

    monkeypatch.setattr(process.services.authenticator, "identify", with_key)

    job = job_of(await send(model="openai/m"))

    assert job.brought_key and "sk-their-own" not in job.brought_key


async def test_with_a_brought_key_a_rule_for_models_means_those_of_its_vendor(send, process, monkeypatch):
    """Without it, Claude would answer to this name here, as there is no other key."""
    identify = process.services.authenticator.identify
    only = Access(models=("gpt-*",))

    async def with_key(*args: Any) -> Any:
        identity = await identify(*args)
        return replace(identity, byok_key=SecretStr("sk-own"), principal=replace(identity.principal, access=only))

    monkeypatch.setattr(process.services.authenticator, "identify", with_key)
    configure(monkeypatch, process, providers={"anthropic": ProviderSettings(api_keys=("k",))}, ai_gateway_id=None)

    assert job_of(await send(model="openai/gpt-4o")).model == "openai/gpt-4o"


async def test_what_a_brought_key_pays_for_needs_no_known_price(send, process, monkeypatch):
    identify = process.services.authenticator.identify
    access = Access(budget=Budget(day_usd=Decimal(1)))

    async def with_key(*args: Any) -> Any:
        identity = await identify(*args)
        return replace(identity, byok_key=SecretStr("sk-own"), principal=replace(identity.principal, access=access))

    monkeypatch.setattr(process.services.authenticator, "identify", with_key)
    configure(monkeypatch, process, budget_unknown_price="refuse", ai_gateway_id=None)

    assert job_of(await send(model="openai/unpriced")).brought_key


async def test_what_is_charged_is_reckoned_by_address_and_end_user(process, monkeypatch):
    configure(monkeypatch, process, limits={scope: Limits(requests=5) for scope in ("key", "tenant", "address", "end_user")})
    charged: list[Charges] = []

    async def enqueue(*_: Any, charges: Charges, **__: Any) -> None:
        charged.append(charges)
        raise StoreUnavailable("enough seen")

    monkeypatch.setattr(process.services.queue, "enqueue", enqueue)
    transport = httpx.ASGITransport(create_app(process), client=("192.0.2.7", 1))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        await client.post("/v1/chat/completions", json=BODY | {"user": "ann"}, headers=KEY)

    (charges,) = charged
    names = {window.scope: window.name for window in charges.windows}
    assert names["address"] == "192.0.2.7"
    assert names["end_user"].endswith("/ann")
    assert names.keys() == {"key", "tenant", "address", "end_user"}


# Retries


@pytest.fixture
def key_of(process: ApiProcess, monkeypatch: pytest.MonkeyPatch):
    """Send a request with an idempotency key; return what it is enqueued with."""
    keys: list[IdempotencyKey | None] = []

    async def enqueue(_: str, owner: str, job_class: JobClass, key: IdempotencyKey | None, **__: Any) -> None:
        keys.append(key)
        raise StoreUnavailable("enough seen")

    monkeypatch.setattr(process.services.queue, "enqueue", enqueue)

    async def post(path: str = "/v1/messages", **body: Any) -> IdempotencyKey:
        transport = httpx.ASGITransport(create_app(process))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            await client.post(path, json=BODY | body, headers=KEY | {"idempotency-key": "mine"})
        key = keys.pop()
        assert key
        return key

    return post


async def test_a_retry_is_the_same_body_for_the_same_purpose_in_the_same_format(key_of, process, monkeypatch):
    first, again = await key_of(), await key_of()
    others = [await key_of(temperature=1), await key_of("/v1/messages/count_tokens"), await key_of("/v1/chat/completions")]

    assert first == again
    assert {other.key for other in others} == {first.key}
    assert len({key.digest for key in (first, *others)}) == 4
    be(monkeypatch, process, id="somebody else")
    assert (await key_of()).key != first.key


# The cache


def plan_with(monkeypatch: pytest.MonkeyPatch, process: ApiProcess, plan: CachePlan | None) -> list[tuple[str, Any]]:
    """Have every request planned like this. Return what the planner is asked, as it is asked."""
    asked: list[tuple[str, Any]] = []

    def planned(*args: Any) -> CachePlan | None:
        asked.append(("plan", args))
        return plan

    def key(*args: Any) -> str:
        asked.append(("key", args))
        return "the key"

    monkeypatch.setattr(process.services.planner, "plan", planned)
    monkeypatch.setattr(process.services.planner, "key", key)
    return asked


async def test_a_request_that_the_cache_serves_has_a_key_of_all_that_its_answer_depends_on(send, process, monkeypatch):
    plan = CachePlan(scope="tenant", ttl_s=60, may_use=True, may_store=True)
    asked = plan_with(monkeypatch, process, plan)

    opening = await send("/v1/messages", headers={"x-mark": "m"}, temperature=0)

    (_, (headers, principal, parsed, body, dialect, targets)), (_, key_args) = asked
    assert (headers["x-mark"], principal.id, dialect) == ("m", opening.owner, "anthropic-messages")
    assert (parsed.temperature, body) == (0, {**BODY, "temperature": 0})
    assert [target.provider for target in targets] == ["demo"]
    scope, job, *rest = key_args
    assert (scope, job.generation_id, rest) == ("tenant", job_of(opening).generation_id, [principal, body, targets, None])
    assert orjson.loads(opening.request_summary)["cache"] == "miss"


@pytest.mark.parametrize(("plan", "served"), [(None, "off"), (CachePlan(), "bypass")])
async def test_a_request_that_it_does_not_serve_has_no_key_and_says_whether_somebody_wanted_it(
    send, process, monkeypatch, plan, served
):
    asked = plan_with(monkeypatch, process, plan)

    opening = await send()

    assert [name for name, _ in asked] == ["plan"]
    assert orjson.loads(opening.request_summary)["cache"] == served


def test_the_ledger_knows_whose_answer_served_a_request_and_which_row_is_its_own():
    job = Job("gen_1", "r", "openai-chat", "m" * 300, True, Policy.STOP, 0, 1)
    accepted = AcceptedRequest({}, DIALECTS["openai-chat"], Principal("key_1", "acme"), job, NO_CHARGES, end_user="u" * 300)

    told = orjson.loads(request_summary(accepted, cache="hit", answered_by="gen_2", row_id="gen_3"))

    assert (told["cache"], told["answered_by"], told["row_id"]) == ("hit", "gen_2", "gen_3")
    assert (told["owner"], told["tenant"], told["stream"], told["operation"]) == ("key_1", "acme", True, "generate")
    assert (told["model"], told["end_user"]) == ("m" * LEDGER_NAME_MAX, "u" * LEDGER_NAME_MAX)


async def test_a_count_of_tokens_is_not_planned(send, process, monkeypatch):
    asked = plan_with(monkeypatch, process, CachePlan(scope="key", ttl_s=60, may_use=True, may_store=True))

    opening = await send("/v1/messages/count_tokens")

    assert asked == []
    assert orjson.loads(opening.request_summary)["cache"] == "off"


# Routes


@pytest.fixture
def routed(process: ApiProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """A route with affinity, whose second target has a tag."""
    providers = {name: ProviderSettings(base_url="http://127.0.0.1:9/v1", api_keys=("k",)) for name in ("openai", "groq")}
    targets = [RouteTarget(model="openai/a"), RouteTarget(model="groq/b", tags=("eu",))]
    models = [target.model for target in targets]
    route = Route(targets=targets, affinity=True)
    configure(monkeypatch, process, providers=providers, routes={"fast": route}, aliases={"fast": models})


async def test_of_a_route_the_worker_is_told_the_targets_with_the_tags_that_are_asked_for(send, routed):
    assert job_of(await send(model="fast", headers={"x-sluice-tags": "eu"})).targets == ["groq/b"]
    assert job_of(await send(model="fast")).targets is None


async def test_the_requests_of_a_conversation_have_a_name_in_common_where_a_route_keeps_them_together(send, routed):
    names = [
        job_of(await send(model=model, headers={"x-session-id": session})).conversation
        for model, session in (("fast", "one"), ("fast", "one"), ("fast", "two"), ("openai/a", "one"))
    ]

    assert names[0] == names[1] != names[2]
    assert [bool(name) for name in names] == [True, True, True, False]
