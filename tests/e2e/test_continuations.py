"""Answers that break off behind their first token and go on: real processes, real signals, every dialect."""

import json
import signal
import threading
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from demo_provider.script import answer
from tests.support.clients import sdk_clients, seed_clients
from tests.support.fleet import KEY, Fleet, fleet, headers_of, until

QUICK_LEASE = {"SLUICE_LEASE_S": "2", "SLUICE_RENEW_S": "0.5", "SLUICE_HEARTBEAT_S": "0.5"}
HI = [{"role": "user", "content": "hi"}]
# Per dialect: path, the rest of the body, and its strict reader.
DIALECTS: dict[str, tuple[str, dict[str, Any], Any]] = {
    "openai-chat": ("/v1/chat/completions", {"stream_options": {"include_usage": True}}, sdk_clients.openai_stream),
    "openai-responses": ("/v1/responses", {"input": "hi"}, sdk_clients.responses_stream),
    "anthropic-messages": ("/v1/messages", {"max_tokens": 100_000}, sdk_clients.anthropic_stream),
    "agentary": ("/api/{provider}", {}, seed_clients.agentary_stream),
    "unified": ("/v1/chat", {}, seed_clients.unified_stream),
}
FAMILIES = {"demo": "demo-n{}-d20", "anthropic": "claude-3-n{}-d20"}


class Stream(threading.Thread):
    """One stream in a dialect, read to its end."""

    def __init__(self, found: Fleet, dialect: str, provider: str, model: str, **more: Any) -> None:
        super().__init__(daemon=True)
        path, fields, self.read = DIALECTS[dialect]
        self.name = f"{dialect} on {provider}"
        self.body = b""
        self._url = found.url + path.format(provider=provider)
        named = model if dialect == "agentary" else f"{provider}/{model}"
        body = {"model": named, "stream": True, "messages": HI, **fields, **more}
        if dialect == "unified":
            body |= {"provider": provider, "model": model}
        self._sent = {name: value for name, value in body.items() if not (name == "messages" and "input" in body)}
        self.start()

    def run(self) -> None:
        with httpx.stream("POST", self._url, json=self._sent, headers=headers_of(), timeout=120) as response:
            for piece in response.iter_bytes():
                self.body += piece

    def finished(self) -> "Stream":
        self.join(120)
        assert not self.is_alive(), f"{self.name} hangs"
        return self


def streams(found: Fleet, tokens: int) -> list[Stream]:
    """One stream per dialect and family, all of them flowing."""
    made = [
        Stream(found, dialect, provider, model.format(tokens)) for dialect in DIALECTS for provider, model in FAMILIES.items()
    ]
    for each in made:
        until(lambda each=each: each.body.count(b"\n\n") > 10, f"{each.name} flows")
    return made


def check_whole(made: list[Stream], tokens: int) -> None:
    for each in made:
        seen = each.finished().read(each.body)
        assert seen.text == answer(tokens), each.name
        assert seen.output_tokens >= tokens - 2, each.name


def test_a_killed_worker_s_answers_go_on_in_every_dialect(tmp_path: Path):
    with fleet(tmp_path, workers=1, **QUICK_LEASE) as found:
        reserve = found.start_reserve()
        made = streams(found, 250)

        found.workers[0].kill()
        reserve.send(signal.SIGCONT)

        check_whole(made, 250)


def test_a_frozen_worker_says_nothing_when_it_wakes(tmp_path: Path):
    with fleet(tmp_path, workers=1, **QUICK_LEASE) as found:
        reserve = found.start_reserve()
        made = streams(found, 600)

        found.workers[0].send(signal.SIGSTOP)
        reserve.send(signal.SIGCONT)
        until(lambda: len(found.workers[1].events("job_taken_over")) == len(made), "all are taken over")
        found.workers[0].send(signal.SIGCONT)

        check_whole(made, 600)
        until(lambda: found.stats()["open"] == 0, "no upstream is left open")
        assert found.workers[0].is_alive


def test_a_stopping_worker_hands_its_answers_over(tmp_path: Path):
    with fleet(tmp_path, workers=1, SLUICE_WORKER_DRAIN_S="1") as found:
        reserve = found.start_reserve()
        made = streams(found, 250)
        reserve.send(signal.SIGCONT)

        found.workers[0].send(signal.SIGTERM)

        check_whole(made, 250)
        assert found.workers[0].wait(120) == 0


@pytest.mark.parametrize("fault", ["cut20x1", "end20x1", "stall20x1", "err20x1"])
def test_a_lost_upstream_s_answer_goes_on(tmp_path: Path, fault: str):
    with fleet(tmp_path, SLUICE_BETWEEN_TOKENS_TIMEOUT_S="1") as found:
        made = [
            Stream(found, dialect, provider, f"{model.format(60)}-{fault}")
            for dialect in ("openai-chat", "anthropic-messages")
            for provider, model in FAMILIES.items()
        ]

        for each in made[:1] + made[-1:]:
            assert each.finished().read(each.body).text == answer(60), each.name
        for each in made:
            each.finished()


def test_what_cannot_go_on_ends_in_one_error_event(tmp_path: Path):
    tool = {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]}
    document = {"response_format": {"type": "json_object"}}
    with fleet(tmp_path) as found:
        made = [
            Stream(found, "openai-chat", "demo", "demo-n50-d20-tool-cut1", **tool),
            Stream(found, "openai-chat", "demo", "demo-n50-d20-think30-cut10"),
            Stream(found, "openai-chat", "demo", "demo-n50-d20-cut10", n=2),
            Stream(found, "openai-chat", "demo", "demo-n50-d20-cut2", **document),
        ]

        for each in made:
            last = each.finished().body.rstrip().rpartition(b"data: ")[2]
            assert orjson.loads(last)["error"]["message"]
            assert each.body.count(b'"error"') == 1
            assert b"[DONE]" not in each.body


def test_a_body_of_a_killed_worker_comes_whole(tmp_path: Path):
    with fleet(tmp_path, workers=1, **QUICK_LEASE) as found:
        answers: list[httpx.Response] = []
        body = {"model": "demo-n50-d20", "messages": HI}
        url = f"{found.url}/v1/chat/completions"
        asking = threading.Thread(
            target=lambda: answers.append(httpx.post(url, json=body, headers=headers_of(), timeout=120)), daemon=True
        )
        reserve = found.start_reserve()
        asking.start()
        until(lambda: found.stats()["open"] == 1, "the upstream is called")

        found.workers[0].kill()
        reserve.send(signal.SIGCONT)

        asking.join(120)
        assert answers[0].json()["choices"][0]["message"]["content"] == answer(50)


def test_an_answer_of_another_sluice_is_read_again_exactly(tmp_path: Path):
    """The model there takes no prefill: only the same answer can go on."""
    (tmp_path / "upper").mkdir()
    (tmp_path / "lower").mkdir()
    with fleet(tmp_path / "upper", SLUICE_PUBLISH_LINGER_MS="0") as upper:
        provider = {"base_url": f"{upper.url}/v1", "api_keys": KEY, "continuation": "reattach"}
        settings = {"SLUICE_PROVIDERS": json.dumps({"upper": provider}), **QUICK_LEASE}
        with fleet(tmp_path / "lower", workers=1, **settings) as found:
            reserve = found.start_reserve()
            made = [
                Stream(found, dialect, "upper", "openai/demo-n250-d20") for dialect in ("openai-chat", "anthropic-messages")
            ]
            for each in made:
                until(lambda each=each: each.body.count(b"\n\n") > 10, f"{each.name} flows")

            found.workers[0].kill()
            reserve.send(signal.SIGCONT)

            for each in made:
                seen = each.finished().read(each.body)
                assert (seen.text, seen.output_tokens) == (answer(250), 250)
            assert upper.stats()["requests"] == len(made)
