"""What becomes of documents and images that a vendor's wire or its model does not read, and of what only one vendor has?"""

import json
from typing import Any

import orjson
import pytest

from common.canonical.errors import GatewayError
from common.canonical.generation import (
    DocumentPart,
    GenerationRequest,
    ImagePart,
    Message,
    OpaquePart,
    Part,
    Role,
    TextPart,
    ToolCallPart,
    ToolResultPart,
)
from common.vendors.models import ModelFacts
from workers.providers import WIRES
from workers.providers.base import Deployment, FamilyWire, UpstreamRequest

PDF = DocumentPart("application/pdf", data="JVBERi0=", name="a.pdf", path="messages.0.content.0")
PDF_URL = DocumentPart("application/pdf", url="https://x/y.pdf", path="messages.0.content.0")
WAV = DocumentPart("audio/wav", data="QUJD", path="messages.0.content.0")
IMAGE = ImagePart(data="QUJD", media_type="image/png", path="messages.0.content.0")
ANSWERED = [Message(Role.ASSISTANT, [TextPart("a")]), Message(Role.USER, [TextPart("b")])]


def build(*messages: Message, provider: str, wire: str, reads: Any = None) -> UpstreamRequest:
    deployment = Deployment(provider, "https://x.example", "k", "gemini-3-flash", facts=ModelFacts(reads=reads))
    return WIRES[wire].build_request(GenerationRequest("m", list(messages)), deployment)


def sent(part: Part, **fields: Any) -> Any:
    """The only message, or the only item, of the built body."""
    body = orjson.loads(build(Message(Role.USER, [part]), **fields).body)
    (turn,) = body.get("messages") or body.get("input") or body["contents"]
    (content,) = turn.get("content") or turn["parts"]
    return content


DATA_URL = "data:application/pdf;base64,JVBERi0="


@pytest.mark.parametrize(
    ("provider", "wire", "written"),
    [
        ("openai", "openai-chat", {"type": "file", "file": {"filename": "a.pdf", "file_data": DATA_URL}}),
        ("openai", "openai-responses", {"type": "input_file", "filename": "a.pdf", "file_data": DATA_URL}),
        ("mistral", "openai-chat", {"type": "document_url", "document_url": DATA_URL, "document_name": "a.pdf"}),
        (
            "anthropic",
            "anthropic-messages",
            {
                "type": "document",
                "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0="},
                "title": "a.pdf",
            },
        ),
        ("google-ai-studio", "gemini", {"inlineData": {"mimeType": "application/pdf", "data": "JVBERi0="}}),
    ],
)
def test_a_pdf_is_written_for_every_vendor_that_reads_it(provider: str, wire: str, written: dict[str, Any]) -> None:
    assert sent(PDF, provider=provider, wire=wire) == written


@pytest.mark.parametrize(
    ("provider", "wire", "written"),
    [
        ("openai", "openai-responses", {"type": "input_file", "file_url": "https://x/y.pdf"}),
        ("mistral", "openai-chat", {"type": "document_url", "document_url": "https://x/y.pdf"}),
        ("anthropic", "anthropic-messages", {"type": "document", "source": {"type": "url", "url": "https://x/y.pdf"}}),
        ("google-ai-studio", "gemini", {"fileData": {"fileUri": "https://x/y.pdf", "mimeType": "application/pdf"}}),
    ],
)
def test_a_url_goes_to_a_vendor_that_fetches_it(provider: str, wire: str, written: dict[str, Any]) -> None:
    assert sent(PDF_URL, provider=provider, wire=wire) == written


def test_a_url_that_the_vendor_does_not_fetch_is_refused_with_advice() -> None:
    with pytest.raises(GatewayError, match=r"messages\.0\.content\.0 must hold the document itself, in base64"):
        sent(PDF_URL, provider="openai", wire="openai-chat")


def test_a_file_id_stays_within_its_family() -> None:
    file = DocumentPart("application/pdf", file_id="file_1", files_at="openai")

    assert sent(file, provider="openai", wire="openai-chat") == {"type": "file", "file": {"file_id": "file_1"}}
    assert sent(file, provider="openai", wire="openai-responses") == {"type": "input_file", "file_id": "file_1"}
    for provider, wire in (("anthropic", "anthropic-messages"), ("groq", "openai-chat"), ("google-ai-studio", "gemini")):
        with pytest.raises(GatewayError, match="uploaded to another vendor"):
            sent(file, provider=provider, wire=wire)


def test_audio_goes_where_it_is_read() -> None:
    assert sent(WAV, provider="google-ai-studio", wire="gemini") == {"inlineData": {"mimeType": "audio/wav", "data": "QUJD"}}
    assert sent(WAV, provider="openai", wire="openai-chat", reads={"audio"}) == {
        "type": "input_audio",
        "input_audio": {"data": "QUJD", "format": "wav"},
    }
    for provider, wire in (("openai", "openai-chat"), ("openai", "openai-responses"), ("anthropic", "anthropic-messages")):
        with pytest.raises(GatewayError, match="audio/wav"):
            sent(WAV, provider=provider, wire=wire)


def test_a_server_of_ones_own_gets_a_pdf_if_the_table_says_that_its_model_reads_it() -> None:
    assert sent(PDF, provider="lab", wire="openai-chat", reads={"image", "pdf"})["type"] == "file"
    with pytest.raises(GatewayError, match="this model cannot read it"):
        sent(PDF, provider="lab", wire="openai-chat")


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("part", [PDF, IMAGE], ids=["pdf", "image"])
def test_what_the_model_does_not_read_is_refused_now_and_a_text_in_the_history(
    wire: str, part: DocumentPart | ImagePart
) -> None:
    asked = Message(Role.USER, [part, TextPart("look")])
    with pytest.raises(GatewayError, match=r"messages\.0\.content\.0 must not be") as caught:
        build(asked, provider="openai", wire=wire, reads=set())
    assert caught.value.failed.param == part.path

    built = build(asked, *ANSWERED, provider="openai", wire=wire, reads=set())

    mention = "Here was a document a.pdf" if part is PDF else "Here was an image"
    assert (mention in built.body.decode(), built.dropped) == (True, [part.path])
    assert asked.parts[0] is part  # The request itself is not changed.


@pytest.mark.parametrize("wire", WIRES)
def test_a_tools_document_is_history_even_in_the_last_turn(wire: str) -> None:
    called = Message(Role.ASSISTANT, [ToolCallPart("c", "read", "{}")])
    result = Message(Role.USER, [ToolResultPart("c", [TextPart("here"), PDF])])

    built = build(Message(Role.USER, [TextPart("x")]), called, result, provider="lab", wire=wire, reads=set())

    assert (b"Here was a document a.pdf" in built.body, built.dropped) == (True, [PDF.path])


@pytest.mark.parametrize(
    ("provider", "wire", "place"),
    [
        ("openai", "openai-chat", ["messages", 3, "content", 0, "file", "file_data"]),
        ("openai", "openai-responses", ["input", 2, "output", 1, "file_data"]),
        ("anthropic", "anthropic-messages", ["messages", 2, "content", 0, "content", 1, "source", "data"]),
        ("google-ai-studio", "gemini", ["contents", 2, "parts", 0, "functionResponse", "parts", 0, "inlineData", "data"]),
    ],
)
def test_a_tools_document_is_read(provider: str, wire: str, place: list[Any]) -> None:
    called = Message(Role.ASSISTANT, [ToolCallPart("c", "read", "{}")])
    result = Message(Role.USER, [ToolResultPart("c", [TextPart("here"), PDF])])

    built = build(Message(Role.USER, [TextPart("x")]), called, result, provider=provider, wire=wire)

    found = json.loads(built.body)
    for step in place:
        found = found[step]
    assert (found.endswith("JVBERi0="), built.dropped) == (True, [])


def test_the_beginning_of_the_next_answer_does_not_make_the_question_history() -> None:
    with pytest.raises(GatewayError):
        build(
            Message(Role.USER, [PDF]),
            Message(Role.ASSISTANT, [TextPart("So")]),
            provider="lab",
            wire="openai-chat",
            reads=set(),
        )


def test_media_and_foreign_blocks_of_the_model_are_left_out_and_named() -> None:
    turn = Message(Role.ASSISTANT, [IMAGE, OpaquePart("search", "messages.1.content.1"), TextPart("found")])

    built = build(Message(Role.USER, [TextPart("x")]), turn, provider="openai", wire="openai-chat")

    assert json.loads(built.body)["messages"][1] == {"role": "assistant", "content": "found"}
    assert built.dropped == [IMAGE.path, "messages.1.content.1"]


def test_a_long_list_of_names_is_cut() -> None:
    blocks: list[Part] = [OpaquePart("search", f"messages.0.content.{index}") for index in range(30)]

    built = build(Message(Role.ASSISTANT, blocks), *ANSWERED, provider="openai", wire="openai-chat")

    assert len(built.dropped) == 11
    assert built.dropped[-1] == "20 more parts of messages"


IMAGE_PART = {"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD"}}
FILE_PART = {"type": "file", "file": {"filename": "a.pdf", "file_data": DATA_URL}}


def passed(*messages: dict[str, Any], reads: Any) -> tuple[list[Any], list[str]]:
    deployment = Deployment("groq", "https://x.example", "k", "m", facts=ModelFacts(reads=reads))
    wire = WIRES["openai-chat"]
    assert isinstance(wire, FamilyWire)
    request = wire.pass_request({"model": "m", "messages": list(messages)}, {}, deployment)
    return orjson.loads(request.body)["messages"], request.dropped


def test_media_in_the_history_of_a_passed_body_are_mentioned_if_the_model_is_known_not_to_read_them() -> None:
    asked = {"role": "user", "content": [IMAGE_PART, FILE_PART, {"type": "text", "text": "look"}]}
    answered = {"role": "assistant", "content": "a"}

    messages, dropped = passed(asked, answered, asked, reads=set())

    assert messages[0]["content"] == [
        {"type": "text", "text": "[Here was an image, which this model cannot read.]"},
        {"type": "text", "text": "[Here was a document a.pdf, which this model cannot read.]"},
        {"type": "text", "text": "look"},
    ]
    assert messages[1:] == [answered, asked]  # The vendor itself says what it thinks of the question.
    assert dropped == ["messages.0.content.0", "messages.0.content.1"]
    for reads in (None, {"image", "pdf"}):
        assert passed(asked, answered, asked, reads=reads) == ([asked, answered, asked], [])


def test_an_image_that_an_agent_sends_after_a_result_is_history() -> None:
    called = {"role": "assistant", "content": None, "tool_calls": []}
    result = {"role": "tool", "tool_call_id": "c", "content": "see"}

    messages, dropped = passed(called, result, {"role": "user", "content": [IMAGE_PART]}, reads=set())

    assert (messages[2]["content"][0]["type"], dropped) == ("text", ["messages.2.content.0"])
