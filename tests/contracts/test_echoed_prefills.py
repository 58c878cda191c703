"""A vendor that repeats the beginning of an answer does not make its client see that text twice."""

from typing import Any

import orjson
import pytest

from common.canonical.job import Job, Policy
from common.dialects import DIALECTS
from common.dialects.base import ReplyInfo
from common.vendors.models import MODELS
from tests.contracts.test_citations import chunk
from workers.attempt.prepare import prepare_request
from workers.providers import WIRES
from workers.providers.base import Deployment

PREFILL = "Sure, the list: "
MESSAGES = [{"role": "user", "content": "List"}, {"role": "assistant", "content": PREFILL}]
BODIES: dict[str, dict[str, Any]] = {
    "openai-chat": {"messages": MESSAGES},
    "anthropic-messages": {"messages": MESSAGES, "max_tokens": 100},
    "openai-responses": {"input": MESSAGES},
    "unified": {"provider": "mistral", "messages": MESSAGES},
    "agentary": {"messages": MESSAGES},
}
# How the vendor cuts its answer into pieces.
ECHOES = [
    ["Sure, the list: one"],
    ["Sure", ", the li", "st:", " ", "one"],
    ["Sure, the list:", " one"],
    ["one"],
    ["Su", "re one"],
]


def answer(dialect: str, pieces: list[str], *, stream: bool = True, provider: str = "mistral", **more: Any) -> str:
    """Return the text that the client sees."""
    body = {"model": "mistral/m", "stream": stream, **BODIES[dialect], **more}
    job = Job("gen_a", "r", dialect, "mistral/m", stream, Policy.STOP, grace_s=0, created_s=1, body=orjson.dumps(body))
    deployment = Deployment(provider, "http://h", "k", "m", "openai-chat", facts=MODELS.facts(provider, "m"))
    info = ReplyInfo("gen_a", "m", 1, provider, body)
    request, pump = prepare_request(job, WIRES["openai-chat"], deployment, info)
    assert orjson.loads(request.body)["messages"][-1].get("prefix") is (True if provider == "mistral" else None)
    if stream:
        blocks = [chunk({"content": piece}) for piece in pieces]
        data = b"".join(pump.feed([block]) for block in [*blocks, chunk({}, "stop")]) + pump.end()
        return "".join(filter(None, map(_text(dialect), data.split(b"\n\n"))))
    message = {"role": "assistant", "content": "".join(pieces)}
    whole = {"id": "c", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
    text = DIALECTS[dialect].reply_text(orjson.loads(pump.feed_whole(orjson.dumps(whole))))
    return text if isinstance(text, str) else "".join(part["text"] for part in text)  # type: ignore[attr-defined]


def _text(dialect: str) -> Any:
    def read(block: bytes) -> object:
        data = block.partition(b"data: ")[2]
        return DIALECTS[dialect].event_text(orjson.loads(data)) if data and data != b"[DONE]" else None

    return read


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("dialect", BODIES)
def test_only_the_rest_is_seen(dialect: str, stream: bool) -> None:
    seen = [answer(dialect, pieces, stream=stream) for pieces in ECHOES]

    assert seen == ["one", "one", "one", "one", "Sure one"]


def test_a_beginning_that_is_no_echo_is_not_lost() -> None:
    assert answer("agentary", ["Su"]) == "Su"


def test_a_client_that_marks_it_itself_gets_the_vendors_own_answer() -> None:
    marked = [MESSAGES[0], {**MESSAGES[1], "prefix": True}]

    assert answer("openai-chat", ["Sure, the list: one"], messages=marked) == "Sure, the list: one"


def test_a_vendor_that_repeats_nothing_is_not_cut() -> None:
    assert answer("agentary", ["Sure, the list: one"], provider="groq") == "Sure, the list: one"
