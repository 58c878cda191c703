"""What is the usage of an answer that broke off before its provider reported it?

It is read from the log: what the upstream reported before it was lost, and for the rest an estimate
(``common/metering/token_estimate.py``) of the text that the client got and of the prompt. Pure. The caller marks the figures as
estimated.
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
    """``head`` is the head of the last attempt, which says who answered. The last of ``attempts`` is that attempt."""

    head: Head
    attempts: list[Attempt]


def read_partial(transcript: Transcript, request: bytes | None) -> Partial | None:
    """Return what a log says about an answer that broke off; None: no answer had begun.

    ``request`` is the packed job. Without it the prompt counts as 0 tokens, and the usage is too low.
    """
    if not transcript.attempts:
        return None
    *before, last = transcript.attempts
    reported, output_tokens = _client_usage(transcript, last)
    # After earlier attempts with output, the figures in the client's bytes are those of all attempts together; see
    # ``workers.transcode.continuing``.
    usage = fill_usage(
        None if last.head.spent else reported,
        lambda: _prompt_tokens(transcript.dialect, request) + estimate_text_tokens(transcript.text(before)),
        output_tokens,
    )
    attempt = Attempt(last.head.provider, last.head.upstream_model, usage, is_estimated=True)
    return Partial(last.head, [*last.head.attempts, attempt])


def _client_usage(transcript: Transcript, last: LoggedAttempt) -> tuple[Usage | None, int]:
    """Return the usage that the client's bytes report, and about how many tokens of text they have."""
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
