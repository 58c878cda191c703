"""What has a client of OpenAI's responses received so far?

The events were written by us or by any vendor of the family. If any item, part or event is not known to be text, or
reasoning before the text, no other call can continue the answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from common.dialects.shared.sent_events import dict_in, parse_events, text_in

Step = Literal["", "item", "part", "text", "end"]  # The last event type that was sent for the open message.


@dataclass(slots=True)
class SentAnswer:
    """The part of an answer that was sent.

    ``response`` is the response object as announced. ``output`` has its items; if a message is open, it is the last one.
    """

    text: str = ""
    is_plain: bool = True
    next_sequence: int = 0
    response: dict[str, Any] = field(default_factory=dict)
    output: list[dict[str, Any]] = field(default_factory=list)
    step: Step = ""
    open_pieces: list[str] = field(default_factory=list)  # Text of the open message.
    final_response: dict[str, Any] = field(default_factory=dict)  # From the last event, once the answer is over.


def read_sent_answer(blocks: Sequence[bytes]) -> SentAnswer:
    answer = SentAnswer()
    texts: list[str] = []
    for event in parse_events(blocks):
        if event is None:
            continue  # A gateway's "[DONE]".
        sequence = event.get("sequence_number")
        answer.next_sequence = (sequence if isinstance(sequence, int) else answer.next_sequence) + 1
        _read(event, answer, texts)
    answer.text = "".join(texts)
    # Reasoning that is still open is the last item of the output.
    answer.is_plain = answer.is_plain and all(item.get("type") == "message" for item in answer.output[-1:])
    return answer


def _read(event: dict[str, Any], answer: SentAnswer, texts: list[str]) -> None:
    match str(event.get("type")).removeprefix("response."):
        case "created" | "in_progress" | "queued":
            answer.response = dict_in(event, "response")
        case "output_item.added":
            _read_item(dict_in(event, "item"), answer, texts)
        case "output_item.done" if answer.output:
            answer.output[-1] = dict_in(event, "item")
            answer.step = ""
        case "content_part.added" | "content_part.done" if dict_in(event, "part").get("type") == "reasoning_text":
            pass
        case "content_part.added" if dict_in(event, "part").get("type") == "output_text" and event.get("content_index") == 0:
            answer.step = "part"
        case "output_text.delta" if not event.get("logprobs"):
            answer.step = "part"
            answer.open_pieces.append(text_in(event, "delta"))
            texts.append(text_in(event, "delta"))
        case "output_text.done":
            answer.step = "text"
        case "content_part.done" if answer.step == "text":
            answer.step = "end"
        case "completed" | "incomplete":
            answer.final_response = dict_in(event, "response")
        case kind if kind.startswith("reasoning_") or kind == "keepalive":
            pass
        case _:
            answer.is_plain = False


def _read_item(item: dict[str, Any], answer: SentAnswer, texts: list[str]) -> None:
    answer.output.append(item)
    answer.step, answer.open_pieces = "", []
    match item.get("type"):
        case "message":
            answer.step = "item"
        case "reasoning" if not texts:
            pass
        case _:
            answer.is_plain = False
