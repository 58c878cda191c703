"""The sources of an answer reach the clients of every dialect, streaming or not."""

from typing import Any

import orjson
import pytest

from common.canonical.events import Citation, Event
from common.canonical.reply import fold
from common.dialects import DIALECTS
from common.dialects.base import ReplyInfo
from workers.providers import WIRES
from workers.providers.anthropic.passed import without_foreign_reasoning

URL, TITLE = "https://a.example/1", "One"
SEARCHED = {"citations": [URL, "https://a.example/2"], "search_results": [{"title": TITLE, "url": URL}]}
ANNOTATION = {"type": "url_citation", "url_citation": {"url": URL, "title": TITLE, "start_index": 3, "end_index": 9}}
BODIES: dict[str, dict[str, Any]] = {
    "openai-chat": {"model": "m", "messages": [{"role": "user", "content": "hi"}]},
    "openai-responses": {"model": "m", "input": "hi"},
    "anthropic-messages": {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]},
    "unified": {"provider": "perplexity", "model": "m", "messages": [{"role": "user", "content": "hi"}]},
    "agentary": {"model": "m", "messages": [{"role": "user", "content": "hi"}]},
}


def sse(data: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(data) + b"\n\n"


def chunk(delta: dict[str, Any], finish_reason: str | None = None, **fields: Any) -> bytes:
    return sse({"id": "c", "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}], **fields})


def decode(wire: str, *blocks: bytes) -> list[Event]:
    decoder = WIRES[wire].decoder()
    return [event for block in blocks for event in decoder.decode(block)] + decoder.end()


def perplexity() -> list[Event]:
    return decode("openai-chat", chunk({"content": "It is [1]."}, **SEARCHED), chunk({}, "stop", **SEARCHED))


def encode(dialect: str, events: list[Event]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the events of the stream, and the whole answer."""
    body = BODIES[dialect]
    info = ReplyInfo("gen_" + "0" * 32, "m", 0, "perplexity", body, lambda: 0, lambda usage: None)
    request = DIALECTS[dialect].parse(body)
    encoder = DIALECTS[dialect].encoder(request, info)
    stream = b"".join(map(encoder.encode, events))
    blocks = [block for block in stream.split(b"\n\n") if b"[DONE]" not in block and block]
    sent = [orjson.loads(block.partition(b"data: ")[2]) for block in blocks]
    return sent, orjson.loads(DIALECTS[dialect].encode_reply(fold(events), request, info))


def citations(events: list[Event]) -> list[Event]:
    return [event for event in events if isinstance(event, Citation)]


def test_lists_beside_an_answer_are_told_once_each_and_in_order() -> None:
    assert citations(perplexity()) == [Citation(URL, TITLE), Citation("https://a.example/2")]


def test_annotations_are_citations_on_both_of_openais_wires() -> None:
    flat = {"type": "url_citation", **ANNOTATION["url_citation"]}
    item = {"type": "message", "content": [{"type": "output_text", "text": "It is so.", "annotations": [flat]}]}
    done = {"type": "response.output_item.done", "output_index": 0, "item": item}
    completed = {"type": "response.completed", "response": {"status": "completed"}}
    wanted = [Citation(URL, TITLE, 3, 9)]

    chat = chunk({"content": "It is so."}), chunk({"annotations": [ANNOTATION]}), chunk({}, "stop")
    assert citations(decode("openai-chat", *chat)) == wanted
    assert citations(decode("openai-responses", sse(done), sse(completed))) == wanted


def test_pages_that_claude_cites_are_citations_and_documents_are_not() -> None:
    page = {"type": "web_search_result_location", "url": URL, "title": TITLE, "encrypted_index": "E", "cited_text": "x"}
    document = {"type": "char_location", "document_index": 0, "document_title": "D"}
    deltas = [{"type": "citations_delta", "citation": citation} for citation in (page, document)]
    blocks = [sse({"type": "content_block_delta", "index": 0, "delta": delta}) for delta in deltas]

    assert citations(decode("anthropic-messages", *blocks)) == [Citation(URL, TITLE)]


def test_citations_stand_before_a_call() -> None:
    call = {"tool_calls": [{"index": 0, "id": "a", "function": {"name": "f", "arguments": "{}"}}]}

    events = decode("openai-chat", chunk({"content": "See [1]."}, **SEARCHED), chunk(call, **SEARCHED), chunk({}, "stop"))

    kinds = [type(event).__name__ for event in events]
    assert kinds[1:5] == ["TextDelta", "Citation", "Citation", "ToolCallStarted"]
    assert len(citations(events)) == 2


def test_chat_has_annotations() -> None:
    sent, whole = encode("openai-chat", decode("openai-chat", chunk({"content": "a", "annotations": [ANNOTATION]}, "stop")))

    assert [event["choices"][0]["delta"]["annotations"] for event in sent if "annotations" in event["choices"][0]["delta"]] == [
        [ANNOTATION]
    ]
    assert whole["choices"][0]["message"]["annotations"] == [ANNOTATION]


def test_responses_have_annotations_in_every_place() -> None:
    sent, whole = encode("openai-responses", perplexity())

    first = {"type": "url_citation", "start_index": 0, "end_index": 0, "url": URL, "title": TITLE}
    added = [event for event in sent if event["type"] == "response.output_text.annotation.added"]
    assert [(event["annotation_index"], event["annotation"]["url"]) for event in added] == [
        (0, URL),
        (1, "https://a.example/2"),
    ]
    assert added[0]["annotation"] == first
    assert sent[-1]["response"]["output"][0]["content"][0]["annotations"][0] == first
    assert whole["output"][0]["content"][0]["annotations"][0] == first


def test_messages_have_citations_that_do_not_go_back_to_anthropic() -> None:
    sent, whole = encode("anthropic-messages", perplexity())

    cited = [event["delta"]["citation"] for event in sent if event.get("delta", {}).get("type") == "citations_delta"]
    assert whole["content"][0]["citations"] == cited
    assert [citation["url"] for citation in cited] == [URL, "https://a.example/2"]

    answered = [{"role": "assistant", "content": whole["content"]}]
    assert without_foreign_reasoning(answered)[0]["content"] == [{"type": "text", "text": "It is [1]."}]


@pytest.mark.parametrize("dialect", ["unified", "agentary"])
def test_our_own_dialects_list_the_sources(dialect: str) -> None:
    sent, whole = encode(dialect, perplexity())

    wanted = [{"url": URL, "title": TITLE}, {"url": "https://a.example/2", "title": ""}]
    assert [event["citations"] for event in sent if "citations" in event] == [wanted]
    assert whole["citations"] == wanted


@pytest.mark.parametrize("dialect", list(BODIES))
def test_an_answer_without_sources_says_nothing_of_them(dialect: str) -> None:
    sent, whole = encode(dialect, decode("openai-chat", chunk({"content": "a"}), chunk({}, "stop")))

    assert b"citation" not in orjson.dumps([sent, whole])
