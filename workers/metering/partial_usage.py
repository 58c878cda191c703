"""What did an answer take that broke off before its provider told?

Read from the log: what the upstream reported before it was lost, and for the rest an estimate
(``common/metering/token_estimate.py``) of what the client was sent and of what was asked. Pure; whoever uses it marks the
figures as estimated.
"""

from collections.abc import Sequence
from copy import copy
from itertools import chain
from typing import Any, NamedTuple

import orjson

from common.canonical.errors import GatewayError
from common.canonical.events import Event, Usage
from common.canonical.job import Job
from common.channel.base import Frame, FrameKind
from common.channel.said_text import said_in_stream, said_in_whole
from common.dialects import DIALECTS
from common.metering.attempts import Attempt, attempts_in
from common.metering.token_estimate import estimate_event_tokens, estimate_text_tokens, estimate_tokens
from common.sse import split_blocks
from workers.providers import WIRES
from workers.providers.base import Decoder, FamilyWire


class Partial(NamedTuple):
    """``head`` is the data of the last head frame: who answered, at which try. The last of ``attempts`` is that try."""

    head: dict[str, Any]
    attempts: list[Attempt]


def read_partial(dialect: str, frames: Sequence[Frame], request: bytes | None, *, is_stream: bool) -> Partial | None:
    """Return what a log tells of an answer that broke off; None where none had begun.

    ``request`` is the packed job. Without it what was asked counts for nothing, and the figure is too low.
    """
    begins = [index for index, frame in enumerate(frames) if frame.kind is FrameKind.HEAD]
    if not begins:
        return None
    if not is_stream:
        begins = begins[-1:]  # Each claim begins a body anew, and nobody has seen those before.
    head = orjson.loads(frames[begins[-1]].data)
    before, pieces = _data(frames[: begins[-1]]) if is_stream else [], _data(frames[begins[-1] :])
    reported, output_tokens = _told(dialect, pieces if is_stream else [b"".join(pieces)], is_stream=is_stream)
    # Behind what other tries have said, a dialect's own figures are those of all tries together; see
    # ``workers.transcode.pumps``.
    usage = copy(reported) if reported and not head.get("spent") else Usage()
    said_before = estimate_text_tokens("".join(said_in_stream(dialect, piece) for piece in before)) if before else 0
    usage.input_tokens = usage.input_tokens or _asked_tokens(dialect, request) + said_before
    usage.output_tokens = max(usage.output_tokens, output_tokens)
    last = Attempt(head.get("provider") or "", head.get("upstream_model") or "", usage, is_estimated=True)
    return Partial(head, [*attempts_in(head), last])


def _data(frames: Sequence[Frame]) -> list[bytes]:
    return [frame.data for frame in frames if frame.kind is FrameKind.DATA]


def _told(dialect: str, pieces: list[bytes], *, is_stream: bool) -> tuple[Usage | None, int]:
    """Return what the client's bytes tell of the usage, and about how many tokens they have. A stream's are looked at piece by
    piece, each whole events: a large answer is not to be there several times.
    """
    wire = WIRES.get(dialect)
    if not isinstance(wire, FamilyWire):
        said_in = said_in_stream if is_stream else said_in_whole
        return None, estimate_text_tokens("".join(said_in(dialect, piece) for piece in pieces))
    decoder = wire.decoder()
    events = chain.from_iterable(_events(decoder, piece, is_stream=is_stream) for piece in pieces)
    tokens = estimate_event_tokens(events)
    return decoder.usage, tokens


def _events(decoder: Decoder, piece: bytes, *, is_stream: bool) -> list[Event]:
    if is_stream:
        return [event for block in split_blocks(piece) for event in decoder.decode(block)]
    return decoder.decode_whole(piece)


def _asked_tokens(dialect: str, request: bytes | None) -> int:
    try:
        return estimate_tokens(DIALECTS[dialect].parse(orjson.loads(Job.unpack(request).body))) if request else 0
    except (ValueError, TypeError, GatewayError):
        return 0
