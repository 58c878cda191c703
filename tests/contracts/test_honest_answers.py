"""Nothing is an empty success, and what a client's format cannot carry is named: for every wire, in every dialect."""

from collections.abc import Mapping
from typing import Any

import orjson
import pytest

from common.canonical.errors import ErrorKind, Failed
from common.canonical.events import Completed
from common.dialects import DIALECTS
from common.dialects.base import ReplyInfo
from common.sse import split_blocks
from tests.contracts.test_citations import BODIES, chunk, sse
from workers.attempt.reply_headers import add_left_out
from workers.providers import FAMILIES, WIRES
from workers.transcode.pumps import Folding, Passing, PassingWhole, Translating

PIXEL = "iVBORw0KGgo="
DONE = b"data: [DONE]\n\n"


def info(dialect: str, **fields: Any) -> ReplyInfo:
    body = {**BODIES[dialect], **fields}
    return ReplyInfo("gen_" + "0" * 32, "m", 0, "openai", body, lambda: 0, lambda usage: None)


def translate(wire: str, dialect: str, blocks: list[bytes], **fields: Any) -> tuple[Translating, bytes]:
    known = info(dialect, **fields)
    pump = Translating(WIRES[wire], DIALECTS[dialect], DIALECTS[dialect].parse(known.body), known)
    return pump, pump.feed(blocks) + pump.end()


def fold(wire: str, dialect: str, blocks: list[bytes]) -> tuple[Folding, bytes]:
    known = info(dialect)
    pump = Folding(WIRES[wire], DIALECTS[dialect], DIALECTS[dialect].parse(known.body), known)
    return pump, pump.feed(blocks) + pump.end()


def gemini(*parts: dict[str, Any], reason: str | None = "STOP", **candidate: Any) -> list[bytes]:
    fields = {"content": {"role": "model", "parts": [*parts]}, **({"finishReason": reason} if reason else {}), **candidate}
    return [sse({"candidates": [fields], "usageMetadata": {"promptTokenCount": 3, "totalTokenCount": 3}})]


def responses(*items: dict[str, Any], status: str = "completed", **more: Any) -> list[bytes]:
    done = [sse({"type": "response.output_item.done", "output_index": at, "item": item}) for at, item in enumerate(items)]
    ended = {"id": "resp_1", "object": "response", "status": status, "output": [*items], **more}
    return [*done, sse({"type": f"response.{status}", "response": ended})]


def messages(*blocks: dict[str, Any], reason: str | None = "end_turn") -> list[bytes]:
    started = {"type": "message_start", "message": {"id": "msg_1", "content": [], "usage": {"input_tokens": 3}}}
    sent = [sse({"type": "content_block_start", "index": at, "content_block": block}) for at, block in enumerate(blocks)]
    ended = [{"type": "message_delta", "delta": {"stop_reason": reason}}, {"type": "message_stop"}]
    return [sse(started), *sent, *map(sse, ended)]


def cohere(reason: str) -> list[bytes]:
    return [sse({"type": "message-start", "id": "1"}), sse({"type": "message-end", "delta": {"finish_reason": reason}})]


# What vendors send without any content.
EMPTY: dict[str, tuple[str, list[bytes]]] = {
    "Gemini without a part": ("gemini", gemini()),
    "Gemini with an empty text": ("gemini", gemini({"text": ""})),
    "Gemini with thoughts alone": ("gemini", gemini({"text": "hm", "thought": True})),
    "Gemini after a call that it could not write": ("gemini", gemini(reason="MALFORMED_FUNCTION_CALL")),
    "Gemini for another reason": ("gemini", gemini(reason="OTHER")),
    "Gemini without a candidate": ("gemini", [sse({"candidates": [], "usageMetadata": {"promptTokenCount": 3}})]),
    "chat without a choice": ("openai-chat", [sse({"id": "c", "choices": []}), DONE]),
    "chat with an empty text": ("openai-chat", [chunk({"role": "assistant", "content": ""}), chunk({}, "stop"), DONE]),
    "chat with calls that are missing": ("openai-chat", [chunk({"content": ""}), chunk({}, "tool_calls"), DONE]),
    "responses without an item": ("openai-responses", responses()),
    "responses with an empty message": ("openai-responses", responses({"type": "message", "content": []})),
    "responses with reasoning alone": ("openai-responses", responses({"type": "reasoning", "summary": []})),
    "messages without a reason": ("anthropic-messages", messages(reason=None)),
    "messages with calls that are missing": ("anthropic-messages", messages(reason="tool_use")),
    "Cohere": ("cohere", cohere("COMPLETE")),
}
# Ends that explain themselves.
EXPLAINED: dict[str, tuple[str, list[bytes]]] = {
    "Claude has nothing to add": ("anthropic-messages", messages()),
    "a limit at Anthropic": ("anthropic-messages", messages(reason="max_tokens")),
    "a refusal": ("anthropic-messages", messages(reason="refusal")),
    "a limit in chat": ("openai-chat", [chunk({}, "length"), DONE]),
    "a filter in chat": ("openai-chat", [chunk({}, "content_filter"), DONE]),
    "a limit in responses": (
        "openai-responses",
        responses(status="incomplete", incomplete_details={"reason": "max_output_tokens"}),
    ),
    "a limit at Gemini": ("gemini", gemini(reason="MAX_TOKENS")),
    "a filter at Gemini": ("gemini", gemini(reason="SAFETY")),
    "a refused prompt at Gemini": ("gemini", [sse({"promptFeedback": {"blockReason": "SAFETY"}})]),
    "a limit at Cohere": ("cohere", cohere("MAX_TOKENS")),
}


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("case", EMPTY)
def test_an_empty_answer_is_a_failure_that_is_tried_again(case: str, dialect: str) -> None:
    wire, blocks = EMPTY[case]
    for pump, data in (translate(wire, dialect, blocks), fold(wire, dialect, blocks)):
        assert isinstance(pump.terminal, Failed)
        assert pump.terminal.kind in (ErrorKind.UPSTREAM_PROTOCOL, ErrorKind.UPSTREAM_UNAVAILABLE)
        assert not DIALECTS[dialect].is_final([b"", *split_blocks(data)][-1])


@pytest.mark.parametrize("case", [case for case, (wire, _) in EMPTY.items() if wire in FAMILIES])
def test_the_same_if_bytes_pass_unchanged(case: str) -> None:
    wire, blocks = EMPTY[case]
    family = FAMILIES[wire]
    pump = Passing(family, DIALECTS[family.dialect], info(family.dialect))

    pump.feed(blocks)
    pump.end()

    assert isinstance(pump.terminal, Failed)
    assert not pump.has_output


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("case", EXPLAINED)
def test_an_end_that_explains_itself_stays_a_success(case: str, dialect: str) -> None:
    wire, blocks = EXPLAINED[case]
    for pump, data in (translate(wire, dialect, blocks), fold(wire, dialect, blocks)):
        assert isinstance(pump.terminal, Completed)
        assert data


def test_a_stop_sequence_of_the_request_explains_an_empty_answer() -> None:
    blocks = [chunk({"content": ""}), chunk({}, "stop"), DONE]

    assert isinstance(translate("openai-chat", "anthropic-messages", blocks, stop_sequences=["X"])[0].terminal, Completed)
    passing = Passing(FAMILIES["openai-chat"], DIALECTS["openai-chat"], info("openai-chat", stop="X"))
    assert passing.feed(blocks)
    assert isinstance(passing.terminal, Completed)


def test_whole_answers_are_judged_alike() -> None:
    empty = {"id": "c", "choices": [{"index": 0, "message": {"role": "assistant", "content": ""}, "finish_reason": "stop"}]}
    pump = PassingWhole(FAMILIES["openai-chat"], DIALECTS["openai-chat"], info("openai-chat"))

    pump.feed_whole(orjson.dumps(empty))

    assert isinstance(pump.terminal, Failed)
    assert pump.terminal.code == "empty_answer"


# Parts that a format cannot carry

URL = "https://a.example/1"
WORDS = {"text": "words"}
BLOCK = {"type": "text", "text": "words"}
MESSAGE = {"type": "message", "content": [{"type": "output_text", "text": "words", "annotations": []}]}
PARTS: dict[str, tuple[str, list[bytes], list[str]]] = {
    "code that ran": (
        "gemini",
        gemini(WORDS, {"executableCode": {"code": "1"}}, {"codeExecutionResult": {"outcome": "OUTCOME_OK"}}),
        ["executableCode", "codeExecutionResult"],
    ),
    "audio of Gemini": ("gemini", gemini(WORDS, {"inlineData": {"mimeType": "audio/wav", "data": "AAAA"}}), ["audio"]),
    "log probabilities of Gemini": ("gemini", gemini(WORDS, logprobsResult={"chosenCandidates": [{}]}), ["logprobs"]),
    "a search at Anthropic": (
        "anthropic-messages",
        messages({"type": "server_tool_use", "id": "s", "name": "web_search"}, {"type": "web_search_tool_result"}, BLOCK),
        ["server_tool_use", "web_search_tool_result"],
    ),
    "a citation of a document": (
        "anthropic-messages",
        messages({**BLOCK, "citations": [{"type": "char_location", "document_index": 0}]}),
        ["citations"],
    ),
    "a search at OpenAI": (
        "openai-responses",
        responses({"type": "web_search_call", "id": "ws_1"}, MESSAGE),
        ["web_search_call"],
    ),
    "log probabilities": (
        "openai-responses",
        responses({**MESSAGE, "content": [{**MESSAGE["content"][0], "logprobs": [{"token": "w"}]}]}),
        ["logprobs"],
    ),
    "audio in chat": ("openai-chat", [chunk({"content": "words", "audio": {"id": "a"}}), chunk({}, "stop"), DONE], ["audio"]),
    "log probabilities in chat": (
        "openai-chat",
        [
            sse({"id": "c", "choices": [{"index": 0, "delta": {"content": "words"}, "logprobs": {"content": [{}]}}]}),
            chunk({}, "stop"),
            DONE,
        ],
        ["logprobs"],
    ),
    "citations of Cohere": (
        "cohere",
        [
            sse({"type": "content-delta", "index": 0, "delta": {"message": {"content": {"text": "words"}}}}),
            sse({"type": "citation-start", "index": 0, "delta": {}}),
            *cohere("COMPLETE"),
        ],
        ["citations"],
    ),
    "a word that is none": ("anthropic-messages", messages({"type": "x\r\ny: z"}, BLOCK), ["unknown"]),
}


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("case", PARTS)
def test_a_part_without_a_place_is_named(case: str, dialect: str) -> None:
    wire, blocks, names = PARTS[case]
    for pump, data in (translate(wire, dialect, blocks), fold(wire, dialect, blocks)):
        assert isinstance(pump.terminal, Completed)
        assert b"words" in data
        assert [*pump.left_out] == names


def test_bytes_that_pass_lack_nothing() -> None:
    for wire, blocks, _ in PARTS.values():
        if wire in FAMILIES:
            passing = Passing(FAMILIES[wire], DIALECTS[wire], info(wire))
            passing.feed(blocks)
            assert not passing.left_out


def test_a_whole_answer_names_them_in_a_header() -> None:
    headers: dict[str, str] = {"x-sluice-dropped": "seed"}

    add_left_out(headers, {"images": None, "audio": None})
    add_left_out(bare := {}, {})

    assert headers == {"x-sluice-dropped": "seed, answer.images, answer.audio"}
    assert bare == {}


# Images that a model makes

IMAGE = {"mimeType": "image/png", "data": PIXEL}
DATA_URL = f"data:image/png;base64,{PIXEL}"
CHAT_IMAGE = {"type": "image_url", "image_url": {"url": DATA_URL}}
IMAGES: dict[str, tuple[str, list[bytes]]] = {
    "Gemini": ("gemini", gemini(WORDS, {"inlineData": IMAGE})),
    "responses": (
        "openai-responses",
        responses(MESSAGE, {"type": "image_generation_call", "id": "ig", "result": PIXEL, "output_format": "png"}),
    ),
    "chat": ("openai-chat", [chunk({"content": "words", "images": [CHAT_IMAGE]}), chunk({}, "stop"), DONE]),
    "chat in a list": ("openai-chat", [chunk({"content": [BLOCK, CHAT_IMAGE]}), chunk({}, "stop"), DONE]),
}


def events_of(data: bytes) -> list[dict[str, Any]]:
    blocks = [block for block in data.split(b"\n\n") if block and b"[DONE]" not in block]
    return [orjson.loads(block.partition(b"data: ")[2]) for block in blocks]


@pytest.mark.parametrize("case", IMAGES)
def test_an_image_reaches_clients_of_chat_and_responses(case: str) -> None:
    wire, blocks = IMAGES[case]

    chat = [event["choices"][0]["delta"].get("images") for event in events_of(translate(wire, "openai-chat", blocks)[1])]
    whole = orjson.loads(fold(wire, "openai-chat", blocks)[1])
    streamed = events_of(translate(wire, "openai-responses", blocks)[1])
    response = orjson.loads(fold(wire, "openai-responses", blocks)[1])

    wanted = [{"index": 0, **CHAT_IMAGE}]
    assert [images for images in chat if images] == [wanted]
    assert whole["choices"][0]["message"]["images"] == wanted
    for output in (streamed[-1]["response"]["output"], response["output"]):
        [item] = [item for item in output if item["type"] == "image_generation_call"]
        assert (item["result"], item["status"], item["output_format"]) == (PIXEL, "completed", "png")
    kinds = [event["type"] for event in streamed if event.get("output_index") == 1]
    assert kinds == ["response.output_item.added", "response.image_generation_call.completed", "response.output_item.done"]


@pytest.mark.parametrize("dialect", ["anthropic-messages", "unified", "agentary"])
@pytest.mark.parametrize("case", IMAGES)
def test_formats_without_images_name_them(case: str, dialect: str) -> None:
    wire, blocks = IMAGES[case]
    for pump, data in (translate(wire, dialect, blocks), fold(wire, dialect, blocks)):
        assert [*pump.left_out] == ["images"]
        assert b"words" in data
        assert PIXEL.encode() not in data


@pytest.mark.parametrize("dialect", ["anthropic-messages", "unified", "agentary"])
def test_an_answer_of_images_alone_does_not_look_empty_where_they_have_no_place(dialect: str) -> None:
    blocks = gemini({"inlineData": IMAGE})

    for pump, data in (translate("gemini", dialect, blocks), fold("gemini", dialect, blocks)):
        assert isinstance(pump.terminal, Completed)
        assert b"only parts that this format cannot carry: images." in data


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "javascript:alert(1)", "https://a.example/) [x](y", "data:text/html;base64,AAAA"]
)
def test_an_address_that_is_none_is_left_out(url: str) -> None:
    image = {"type": "image_url", "image_url": {"url": url}}

    pump, data = translate(
        "openai-chat", "openai-responses", [chunk({"content": "words", "images": [image]}), chunk({}, "stop")]
    )

    assert [*pump.left_out] == ["images"]
    assert b"generation_call" not in data


def test_an_image_with_an_address_is_a_link_in_responses() -> None:
    image = {"type": "image_url", "image_url": {"url": URL}}
    blocks = [chunk({"images": [image]}), chunk({}, "stop"), DONE]

    for data in (translate("openai-chat", "openai-responses", blocks)[1], fold("openai-chat", "openai-responses", blocks)[1]):
        assert f"![image]({URL})".encode() in data


# Sources of Gemini

GROUNDED: Mapping[str, Any] = {
    "groundingMetadata": {
        "groundingChunks": [{"web": {"uri": URL, "title": "One"}}, {"web": {"uri": "https://a.example/2", "title": "Two"}}],
        "groundingSupports": [
            {"segment": {"startIndex": 0, "endIndex": 8, "text": "Zürich."}, "groundingChunkIndices": [0, 7]}
        ],
    }
}


def test_pages_that_gemini_names_are_citations_with_the_range_in_characters() -> None:
    _, data = fold("gemini", "openai-chat", gemini({"text": "Zürich."}, **GROUNDED))

    annotations = orjson.loads(data)["choices"][0]["message"]["annotations"]
    cited = [annotation["url_citation"] for annotation in annotations]
    assert [(page["url"], page["title"], page["start_index"], page["end_index"]) for page in cited] == [
        (URL, "One", 0, 7),
        ("https://a.example/2", "Two", 0, 0),
    ]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_they_reach_every_dialect(dialect: str) -> None:
    blocks = gemini({"text": "Zürich."}, **GROUNDED)

    for pump, data in (translate("gemini", dialect, blocks), fold("gemini", dialect, blocks)):
        assert URL.encode() in data
        assert not pump.left_out


@pytest.mark.parametrize(
    "junk", [{"groundingChunks": [5, {}, {"web": 3}]}, {"groundingSupports": "x"}, {"groundingChunks": None}, 7]
)
def test_sources_that_cannot_be_read_are_none(junk: Any) -> None:
    _, data = fold("gemini", "openai-chat", gemini({"text": "a"}, groundingMetadata=junk))

    assert "annotations" not in orjson.loads(data)["choices"][0]["message"]
