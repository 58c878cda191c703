"""How is an answer read whose provider repeats the beginning that the client has written?

Mistral does, and no client expects it: the client has that text. It is removed here, before anything else sees the answer.
Source: https://docs.mistral.ai/capabilities/completion/usage (prefix)
"""

from common.canonical.events import Event, Finished, TextDelta, ToolCallStarted
from common.canonical.generation import GenerationRequest, Role, TextPart
from common.vendors.prefill import find_prefill
from workers.providers.base import Decoder, Deployment
from workers.transcode.changed_decoder import ChangedDecoder
from workers.transcode.pump import Decoding
from workers.transcode.splice import Splice


def echoed_prefill(request: GenerationRequest, deployment: Deployment) -> str:
    """Return the text that the provider will repeat; empty if it repeats none."""
    prefill = find_prefill(deployment.provider, deployment.model, deployment.wire, None)
    last = request.messages[-1]
    if prefill is None or not prefill.echoes or last.role is not Role.ASSISTANT or request.choices != 1:
        return ""
    return "".join(part.text for part in last.parts if isinstance(part, TextPart))


class Unechoed:
    """A wire whose answers begin with ``prefill``, without it."""

    def __init__(self, wire: Decoding, prefill: str) -> None:
        self._wire, self._prefill = wire, prefill

    def decoder(self, choices: int = 1) -> Decoder:
        return _UnechoedDecoder(self._wire.decoder(choices), Splice(self._prefill, echoes=True))


class _UnechoedDecoder(ChangedDecoder):
    def __init__(self, decoder: Decoder, splice: Splice) -> None:
        super().__init__(decoder)
        self._splice = splice

    def _change(self, events: list[Event]) -> list[Event]:
        passed: list[Event] = []
        for event in events:
            if isinstance(event, TextDelta) and not self._splice.is_over:
                text = self._splice.feed(event.text)
                passed += [TextDelta(text, event.choice)] if text else []
                continue
            if isinstance(event, Finished | ToolCallStarted) and (held := self._splice.end()):
                passed.append(TextDelta(held))
            passed.append(event)
        if self._splice.is_over:
            self._stop_changing()
        return passed
