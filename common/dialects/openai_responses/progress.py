"""What has a client of OpenAI's responses been told so far?

Events of ours, or of any vendor of the family: items, parts and events that are not known to be text, or reasoning in front
of it, make an answer one that no other call can go on with.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from common.dialects.shared.sent_events import dict_in, parse_events, text_in

Step = Literal["", "item", "part", "text", "end"]  # What was last said of the open message.


@dataclass(slots=True)
class SentAnswer:
    """``response`` is as it was announced; ``output`` its items, the open message, at the end if there is one, included."""

    text: str = ""
    is_plain: bool = True
    next_sequence: int = 0
    response: dict[str, Any] = field(default_factory=dict)
    output: list[dict[str, Any]] = field(default_factory=list)
    step: Step = ""
    open_pieces: list[str] = field(default_factory=list)  # The open message's text.
    last: dict[str, Any] = field(default_factory=dict)  # The response as the last event has it, once the answer is over.


def read_sent_answer(blocks: Sequence[bytes]) -> SentAnswer:
    said = SentAnswer()
    texts: list[str] = []
    for event in parse_events(blocks):
        if event is None:
            continue  # A gateway's "[DONE]".
        sequence = event.get("sequence_number")
        said.next_sequence = (sequence if isinstance(sequence, int) else said.next_sequence) + 1
        _read(event, said, texts)
    said.text = "".join(texts)
    # Thinking that is still open is the last item of the output.
    said.is_plain = said.is_plain and all(item.get("type") == "message" for item in said.output[-1:])
    return said


def _read(event: dict[str, Any], said: SentAnswer, texts: list[str]) -> None:
    match str(event.get("type")).removeprefix("response."):
        case "created" | "in_progress" | "queued":
            said.response = dict_in(event, "response")
        case "output_item.added":
            _read_item(dict_in(event, "item"), said, texts)
        case "output_item.done" if said.output:
            said.output[-1] = dict_in(event, "item")
            said.step = ""
        case "content_part.added" | "content_part.done" if dict_in(event, "part").get("type") == "reasoning_text":
            pass
        case "content_part.added" if dict_in(event, "part").get("type") == "output_text" and event.get("content_index") == 0:
            said.step = "part"
        case "output_text.delta" if not event.get("logprobs"):
            said.step = "part"
            said.open_pieces.append(text_in(event, "delta"))
            texts.append(text_in(event, "delta"))
        case "output_text.done":
            said.step = "text"
        case "content_part.done" if said.step == "text":
            said.step = "end"
        case "completed" | "incomplete":
            said.last = dict_in(event, "response")
        case kind if kind.startswith("reasoning_") or kind == "keepalive":
            pass
        case _:
            said.is_plain = False


def _read_item(item: dict[str, Any], said: SentAnswer, texts: list[str]) -> None:
    said.output.append(item)
    said.step, said.open_pieces = "", []
    match item.get("type"):
        case "message":
            said.step = "item"
        case "reasoning" if not texts:
            pass
        case _:
            said.is_plain = False
