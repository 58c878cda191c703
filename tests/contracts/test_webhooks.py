"""Both tiers ask a guardrail that is a service in the same way: bounded, in time, and nobody else."""

import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

import api.guardrails.webhook
import workers.upstream.webhook
from common.config.proxies import Proxy
from common.guardrails.custom import Action, Check, CustomGuardrails, GuardrailUnavailable, PostWebhook, Verdict
from tests.support.upstreams.answering_server import AnsweringServer, ReceivedRequest, Reply

CHECK = Check("output", "words", "m", "acme")


class Service(AnsweringServer):
    """Answers with what it is told, and keeps the paths and bodies that it was asked."""

    def __init__(self) -> None:
        self.status, self.body, self.wait = 200, b'{"action": "allow"}', False
        self.asked: list[tuple[str, bytes, str]] = []
        self.passwords: list[str | None] = []
        self.is_over = threading.Event()
        super().__init__()
        self.url += "/check"

    def reply(self, request: ReceivedRequest) -> Reply:
        self.asked.append((request.path, request.body, request.headers.get("content-type", "")))
        self.passwords.append(request.headers.get("proxy-authorization"))
        if self.wait:
            self.is_over.wait(20)
        return Reply(self.body, self.status, headers={"location": "/elsewhere"})

    def close(self) -> None:
        self.is_over.set()
        super().close()


@pytest.fixture
def service() -> Iterator[Service]:
    made = Service()
    yield made
    made.close()


@pytest.fixture(params=[api.guardrails.webhook, workers.upstream.webhook], ids=["api", "workers"])
async def ask(request: pytest.FixtureRequest, service: Service, monkeypatch: Any) -> AsyncIterator[Callable[..., Any]]:
    monkeypatch.setattr("common.guardrails.custom.ANSWER_BYTES_MAX", 1000)
    made: list[PostWebhook] = []

    async def asking(timeout_s: float = 10, url: str = "") -> Verdict:
        made.append(request.param.poster(url or service.url, timeout_s))
        return await CustomGuardrails(None, made[-1], timeout_s).evaluate(CHECK)

    yield asking
    for each in made:
        await each.close()


async def test_it_is_asked_by_post_and_its_answer_read(ask, service):
    service.body = b'{"action": "replace", "text": "other words"}'

    verdict = await ask()

    assert verdict.text == "other words"
    assert service.asked == [("/check", b'{"side":"output","text":"words","model":"m","tenant":"acme"}', "application/json")]


@pytest.mark.parametrize("status", [204, 302, 307, 401, 500])
async def test_no_status_but_200_is_an_answer_and_no_redirect_is_followed(ask, service, status):
    service.status, service.body = status, b"" if status == 204 else service.body

    with pytest.raises(GuardrailUnavailable):
        await ask()

    assert [path for path, *_ in service.asked] == ["/check"]


async def test_an_answer_that_is_too_long_is_none(ask, service):
    service.body = b'{"action": "allow", "reason": "' + b"x" * 1000 + b'"}'

    with pytest.raises(GuardrailUnavailable):
        await ask()


async def test_an_answer_that_does_not_come_is_none(ask, service):
    service.wait = True

    with pytest.raises(GuardrailUnavailable, match=r"did not answer|Timeout"):
        await ask(timeout_s=0.2)


async def test_a_service_that_is_not_there_gives_no_answer(ask):
    with pytest.raises(GuardrailUnavailable):
        await ask(url="http://127.0.0.1:9/check")


async def test_the_proxy_that_is_given_is_used(service):
    for tier in (api.guardrails.webhook, workers.upstream.webhook):
        proxy = Proxy(service.url.removesuffix("/check"), "proxy", "Basic bWU6d29yZA==")
        post = tier.poster("http://guardrail.invalid/check", 10, proxy)

        assert await CustomGuardrails(None, post, 10).evaluate(CHECK) == Verdict(Action.ALLOW)

        await post.close()
    assert [path for path, *_ in service.asked] == ["http://guardrail.invalid/check"] * 2
    assert service.passwords == ["Basic bWU6d29yZA=="] * 2


async def test_no_other_proxy_sees_what_is_asked(ask, service, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")

    await ask()

    assert len(service.asked) == 1
