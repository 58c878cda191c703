from common.canonical.generation import (
    DocumentPart,
    GenerationRequest,
    ImagePart,
    Message,
    OpaquePart,
    Part,
    ReasoningPart,
    Role,
    TextPart,
    Tool,
    ToolCallPart,
    ToolResultPart,
)
from common.metering.token_estimate import estimate_tokens


def estimate(*parts: Part, tools: list[Tool] | None = None) -> int:
    return estimate_tokens(GenerationRequest("m", [Message(Role.USER, list(parts))], tools=tools or []))


def test_four_bytes_are_a_token_and_a_message_has_a_few_of_its_own():
    assert estimate(TextPart("abcd" * 25)) == 4 + 25
    assert estimate(TextPart("abcde")) == 4 + 2
    assert estimate(TextPart("谢谢你的")) == 4 + 3


def test_everything_that_is_sent_counts():
    plain = estimate(TextPart("x" * 40))

    assert estimate(TextPart("x" * 40), ToolCallPart("a", "f" * 4, '{"x":1}')) == plain + 3
    assert estimate(TextPart("x" * 40), ToolResultPart("a", [TextPart("y" * 40)])) == plain + 10
    assert estimate(TextPart("x" * 40), ReasoningPart("z" * 40, "SIGNATURE" * 99)) == plain + 10
    assert estimate(TextPart("x" * 40), tools=[Tool("f" * 8, "d" * 8, {"a": 1})]) == plain + 100 + 10 + 6


def test_media_count_by_the_piece_wherever_they_stand():
    image = ImagePart(url="https://x/y.png")

    assert estimate(image, OpaquePart("document", "messages.0.content.1")) == 4 + 2000
    assert estimate(ToolResultPart("a", [image])) == 4 + 1000
    assert estimate(DocumentPart("application/pdf", data="QUJD")) == 4 + 1000
    assert estimate(DocumentPart("text/plain", text="x" * 400)) == 4 + 100


def test_an_empty_prompt_is_a_token_at_least():
    assert estimate_tokens(GenerationRequest("m", [])) == 1
