"""What must everything be able to do that turns an upstream's bytes into the client's? ``pumps`` has the pumps themselves."""

from typing import Protocol

from common.canonical.errors import Failed
from common.canonical.events import Completed, Event, FinishReason, Started, Usage
from workers.providers.base import Decoder


class Pump(Protocol):
    """``is_stream``: the request asks the upstream for a stream. ``gives_stream``: the client gets a stream, not one body."""

    is_stream: bool
    gives_stream: bool
    has_output: bool  # Whether the client's bytes so far contain output.
    finish_reason: FinishReason | None
    output_events: int
    upstream_id: str  # The upstream's id of the answer; empty until it has sent it.
    started: Started  # The upstream's start event.
    prompt_tokens: int  # An estimate, if the prompt is not the client's own request (a continuation); otherwise 0.
    is_estimated: bool  # Whether ``usage`` is an estimate, of an upstream that reports none.
    left_out: dict[str, None]  # The parts of the answer that the client's format does not carry, by name.
    held_bytes: int  # Output that is collected here, for a client that gets one body.
    loop_bytes_max: float  # A larger complete answer takes so long that it is fed in a thread.

    @property
    def terminal(self) -> Completed | Failed | None:
        """How the answer ended; None: it has not. Some of the client's bytes may come only from ``release_held``."""
        ...

    @property
    def has_activity(self) -> bool:
        """Whether the upstream has sent any output, passed on or not."""
        ...

    @property
    def awaits_verdict(self) -> bool:
        """Whether the answer is over, and ``release_held`` must be called for what its client gets."""
        ...

    @property
    def is_cut(self) -> bool:
        """Whether the answer was ended here, before its upstream ended it."""
        ...

    @property
    def usage(self) -> Usage | None: ...

    @property
    def is_whole(self) -> bool:
        """Whether the upstream has finished the answer; see ``Decoder.is_whole``."""
        ...

    @property
    def has_absurd_usage(self) -> bool: ...

    @property
    def seen_tokens(self) -> int:
        """About how many tokens have come: for a body by its text, for a stream one per event with output."""
        ...

    def pass_head(self, run: bytes) -> int:
        """Return how many bytes of complete events go to the client unchanged, and count them. The rest must be fed."""
        ...

    def feed(self, blocks: list[bytes]) -> bytes:
        """Return the client's bytes for SSE blocks of the upstream. Blocks after a terminal event are ignored."""
        ...

    def feed_whole(self, body: bytes) -> bytes:
        """Return the client's bytes for an upstream's answer that is one body. Sets ``terminal``."""
        ...

    def end(self) -> bytes:
        """Return the client's last bytes at the end of the upstream's bytes, however they ended. Sets ``terminal``."""
        ...

    async def release_held(self) -> bytes:
        """Return the client's bytes that were held until the end. Called if the pump ``awaits_verdict``.

        Raises:
            GatewayError: the client must not get them.
        """
        ...

    async def after_written(self) -> None:
        """Do what is left after all of an answer has been written."""
        ...

    def close(self) -> None:
        """Called once when nothing more comes, however the answer ended."""
        ...


class EventPump(Pump, Protocol):
    """A pump in two halves: ``read…`` from the upstream's bytes to events, ``encode…`` from events to the client's bytes."""

    def read(self, blocks: list[bytes]) -> list[Event]: ...

    def read_whole(self, body: bytes) -> list[Event]: ...

    def read_end(self) -> list[Event]: ...

    def encode(self, events: list[Event]) -> bytes: ...

    def encode_last(self, events: list[Event]) -> bytes:
        """The same for the last events of an answer."""
        ...

    def estimate_cut_usage(self, text_bytes: int) -> Usage | None:
        """Return the client's usage of an answer that we end here, after ``text_bytes`` of its text.

        From now on ``usage`` is this value: what the upstream has reported, and an estimate for the rest.
        """
        ...


class Decoding(Protocol):
    """All that a pump needs of a wire if bytes do not pass unchanged."""

    def decoder(self, choices: int = 1) -> Decoder: ...
