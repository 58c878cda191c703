"""Answers that break off behind their first token and go on: real processes, real signals, every dialect."""

import json
import signal
import threading
from pathlib import Path

import httpx
import orjson
import pytest

from demo_provider.script import answer
from tests.support.clients.streams import DIALECTS, DialectStream
from tests.support.fleet import KEY, QUICK_LEASE, Fleet, fleet, headers_of, until

FAMILIES = {"demo": "demo-n{}-d20", "anthropic": "claude-3-n{}-d20"}


def streams(found: Fleet, tokens: int) -> list[DialectStream]:
    """One stream per dialect and family, all of them flowing."""
    made = [
        DialectStream(found, dialect, provider, model.format(tokens))
        for dialect in DIALECTS
        for provider, model in FAMILIES.items()
    ]
    for each in made:
        until(lambda each=each: each.body.count(b"\n\n") > 10, f"{each.name} flows")
    return made


def check_whole(made: list[DialectStream], tokens: int) -> None:
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
            DialectStream(found, dialect, provider, f"{model.format(60)}-{fault}")
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
            DialectStream(found, "openai-chat", "demo", "demo-n50-d20-tool-cut1", **tool),
            DialectStream(found, "openai-chat", "demo", "demo-n50-d20-think30-cut10"),
            DialectStream(found, "openai-chat", "demo", "demo-n50-d20-cut10", n=2),
            DialectStream(found, "openai-chat", "demo", "demo-n50-d20-cut2", **document),
        ]

        for each in made:
            last = each.finished().body.rstrip().rpartition(b"data: ")[2]
            assert orjson.loads(last)["error"]["message"]
            assert each.body.count(b'"error"') == 1
            assert b"[DONE]" not in each.body


def test_a_body_of_a_killed_worker_comes_whole(tmp_path: Path):
    with fleet(tmp_path, workers=1, **QUICK_LEASE) as found:
        answers: list[httpx.Response] = []
        body = {"model": "demo-n50-d20", "messages": [{"role": "user", "content": "hi"}]}
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
                DialectStream(found, dialect, "upper", "openai/demo-n250-d20")
                for dialect in ("openai-chat", "anthropic-messages")
            ]
            for each in made:
                until(lambda each=each: each.body.count(b"\n\n") > 10, f"{each.name} flows")

            found.workers[0].kill()
            reserve.send(signal.SIGCONT)

            for each in made:
                seen = each.finished().read(each.body)
                assert (seen.text, seen.output_tokens) == (answer(250), 250)
            assert upper.stats()["requests"] == len(made)
