"""A session of Codex can be compacted, whatever serves it: its vendor does it, or its model is asked for a summary."""

from dataclasses import replace
from typing import Any

import orjson
import pytest

from common.canonical.job import Job, Policy
from tests.support.clients.every_dialect import INFO
from tests.support.upstreams.recordings import blocks_of
from tests.support.upstreams.wire_answers import STREAMS, AnswerSpec
from workers.attempt.prepare import prepare_request
from workers.providers import WIRES
from workers.providers.base import Deployment

JOB = Job("gen_1", "r", "openai-responses", "m", True, Policy.STOP, 0, 1)
PLACES = [(name, wire) for wire in WIRES for name in ("p", "openai") if name != "openai" or wire == "openai-responses"]
ASKED = {"model": "m", "input": [{"role": "user", "content": "fix it"}, {"type": "compaction_trigger"}], "stream": True}


def prepared(name: str, wire: str, body: dict[str, Any]) -> Any:
    return prepare_request(JOB, WIRES[wire], Deployment(name, "http://x", "k", "m", wire), replace(INFO, body=body))


@pytest.mark.parametrize(("name", "wire"), PLACES)
def test_who_makes_the_compaction(name: str, wire: str) -> None:
    request, pump = prepared(name, wire, ASKED)

    sent = orjson.loads(request.body)
    if name == "openai":
        assert sent["input"][-1] == {"type": "compaction_trigger"}
        return
    assert b"compaction" not in request.body
    assert b"Summarize this conversation" in request.body
    answer = pump.feed(blocks_of(STREAMS[wire](AnswerSpec(text="The summary.")))) + pump.end()
    assert answer.count(b'"type":"response.output_item.done"') == 1
    assert b'"encrypted_content":"sluice-summary:The summary."' in answer


@pytest.mark.parametrize(("name", "wire"), PLACES)
def test_a_summary_reaches_every_vendor_as_a_user_s_message(name: str, wire: str) -> None:
    item = {"type": "compaction", "id": "cmp_1", "encrypted_content": "sluice-summary:The user wants a fix."}

    request, _ = prepared(name, wire, {"model": "m", "input": [item, {"role": "user", "content": "go on"}]})

    assert b"The user wants a fix." in request.body
    assert b"sluice-summary" not in request.body
