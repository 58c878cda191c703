"""Is an answer empty, although its vendor calls it complete?

Some vendors end an answer that has no text, no call and no refusal with the same word as every other: Gemini after a call that
it could not write, servers whose parser lost the model's output. Its client would take it for a success, and an agent would
stop. So an empty answer is a failure, and it is tried once more before the client sees anything. It is none if its end explains
it: a limit, a filter, a stop sequence, or an end of a vendor that documents empty answers (``Finished.may_be_empty``).

Reasoning alone is no answer. An answer that has only parts which the client's format cannot carry, such as an image, is one: a
text says so in their place.
"""

from collections.abc import Collection

from common.canonical.events import (
    Completed,
    Event,
    Finished,
    FinishReason,
    LeftOut,
    OutputImage,
    RefusalDelta,
    TextDelta,
    ToolCallStarted,
)
from workers.providers.base import Decoder
from workers.providers.shared import errors
from workers.transcode.changed_decoder import ChangedDecoder

_CONTENT = (TextDelta, RefusalDelta, ToolCallStarted, OutputImage, LeftOut)
_NAMES_MAX = 5
_SELF_EXPLAINING = frozenset(FinishReason) - {FinishReason.STOP, FinishReason.TOOL_CALLS}


class NonEmptyDecoder(ChangedDecoder):
    """A decoder that ends an empty answer with a failure.

    ``unseen``: the kinds of events that the client does not get. ``has_stops``: the request has stop sequences. Most vendors do
    not say that one has ended the answer.
    """

    def __init__(self, decoder: Decoder, unseen: Collection[type[Event]] = (), *, has_stops: bool) -> None:
        super().__init__(decoder)
        self._unseen = unseen
        self._unseen_names: dict[str, None] = {}
        self._is_explained = has_stops

    def _change(self, events: list[Event]) -> list[Event]:
        for event in events:
            if isinstance(event, _CONTENT):
                if type(event) in self._unseen:
                    if len(self._unseen_names) < _NAMES_MAX:
                        self._unseen_names[event.name if isinstance(event, LeftOut) else "images"] = None
                    continue
                self._is_explained = True
                self._unseen_names.clear()
                self._stop_changing()
                self._unseen = ()
            elif isinstance(event, Finished):
                self._is_explained |= event.may_be_empty or event.reason in _SELF_EXPLAINING
            elif isinstance(event, Completed) and (self._unseen_names or not self._is_explained):
                return self._mended(events)
        return events

    def _mended(self, events: list[Event]) -> list[Event]:
        """Return the last events of an answer in which the client would see nothing."""
        before = [event for event in events if not isinstance(event, Finished | Completed)]
        if not self._unseen_names:
            return [*before, errors.empty_answer()]
        note = TextDelta(f"[This answer has only parts that this format cannot carry: {', '.join(self._unseen_names)}.]")
        return [*before, note, *(event for event in events if isinstance(event, Finished | Completed))]
