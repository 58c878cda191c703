"""What did an answer take that broke off before its provider told?

Read from the log: what the upstream reported before it was lost, and for the rest an estimate
(``common/metering/token_estimate.py``) of what the client was sent and of what was asked. Pure; whoever uses it marks the
figures as estimated.
"""

from itertools import chain
from typing import NamedTuple

import orjson

from common.canonical.errors import GatewayError
from common.canonical.events import Event, Usage
from common.canonical.job import Job
from common.channel.transcript import LoggedAttempt, Transcript
from common.dialects import DIALECTS
from common.metering.attempt_cost import Attempt
from common.metering.token_estimate import estimate_event_tokens, estimate_text_tokens, estimate_tokens, fill_usage
from common.records.head import Head
from common.sse import split_blocks
from workers.providers import WIRES
from workers.providers.base import Decoder, FamilyWire


class Partial(NamedTuple):
    """``head`` is the last try's: who answered. The last of ``attempts`` is that try."""

    head: Head
    attempts: list[Attempt]


def read_partial(transcript: Transcript, request: bytes | None) -> Partial | None:
    """Return what a log tells of an answer that broke off; None where none had begun.

    ``request`` is the packed job. Without it what was asked counts for nothing, and the figure is too low.
    """
    if not transcript.attempts:
        return None
    *before, last = transcript.attempts
    reported, output_tokens = _client_usage(transcript, last)
    # Behind what other tries have said, a dialect's own figures are those of all tries together; see
    # ``workers.transcode.pumps``.
    usage = fill_usage(
        None if last.head.spent else reported,
        lambda: _prompt_tokens(transcript.dialect, request) + estimate_text_tokens(transcript.text(before)),
        output_tokens,
    )
    attempt = Attempt(last.head.provider, last.head.upstream_model, usage, is_estimated=True)
    return Partial(last.head, [*last.head.attempts, attempt])


def _client_usage(transcript: Transcript, last: LoggedAttempt) -> tuple[Usage | None, int]:
    """Return what the client's bytes tell of the usage, and about how many tokens they have."""
    wire = WIRES.get(transcript.dialect)
    if not isinstance(wire, FamilyWire):
        return None, estimate_text_tokens(transcript.text([last]))
    decoder = wire.decoder()
    pieces = last.data if transcript.is_stream else [b"".join(last.data)]
    events = chain.from_iterable(_events(decoder, piece, is_stream=transcript.is_stream) for piece in pieces)
    tokens = estimate_event_tokens(events)
    return decoder.usage, tokens


def _events(decoder: Decoder, piece: bytes, *, is_stream: bool) -> list[Event]:
    if is_stream:
        return [event for block in split_blocks(piece) for event in decoder.decode(block)]
    return decoder.decode_whole(piece)


def _prompt_tokens(dialect: str, request: bytes | None) -> int:
    try:
        return estimate_tokens(DIALECTS[dialect].parse(orjson.loads(Job.unpack(request).body))) if request else 0
    except (ValueError, TypeError, GatewayError):
        return 0
