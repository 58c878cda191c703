"""How does an answer pass through guardrails on its way to the client?

``GuardedPump`` wraps a pump that works on events, and filters them between its two halves. Callers use it like any other pump.
An answer without guardrails has no ``GuardedPump``, and nothing in this file runs.
"""

from operator import attrgetter
from typing import Any

from common.canonical.errors import Failed
from common.canonical.events import Completed, FinishReason, Started, Usage
from workers.transcode.output_guardrails import OutputGuard
from workers.transcode.pump import EventPump, Pump

LOOP_BYTES_MAX = 16 * 1024  # Guardrails search a complete answer up to this size on the loop: some milliseconds.


def guarded(pump: EventPump, guard: OutputGuard | None, *, known_text: str = "") -> Pump:
    """Return the pump, wrapped if there is a guard. ``known_text``: the text that the client already has."""
    return GuardedPump(pump, guard, known_text=known_text) if guard else pump


def _of_pump(name: str) -> Any:
    """Return a property that reads the attribute from the wrapped pump."""
    return property(attrgetter(f"_pump.{name}"))


class GuardedPump:
    """See ``Pump``. There is one per attempt, and so is its guard."""

    loop_bytes_max: float = LOOP_BYTES_MAX
    is_stream: bool = _of_pump("is_stream")
    gives_stream: bool = _of_pump("gives_stream")
    has_output: bool = _of_pump("has_output")
    finish_reason: FinishReason | None = _of_pump("finish_reason")
    output_events: int = _of_pump("output_events")
    upstream_id: str = _of_pump("upstream_id")
    started: Started = _of_pump("started")
    prompt_tokens: int = _of_pump("prompt_tokens")
    is_estimated: bool = _of_pump("is_estimated")
    left_out: dict[str, None] = _of_pump("left_out")
    held_bytes: int = _of_pump("held_bytes")
    usage: Usage | None = _of_pump("usage")
    is_whole: bool = _of_pump("is_whole")
    has_absurd_usage: bool = _of_pump("has_absurd_usage")
    seen_tokens: int = _of_pump("seen_tokens")

    def __init__(self, pump: EventPump, guard: OutputGuard, *, known_text: str = "") -> None:
        self._pump, self._guard = pump, guard
        self._is_body = False  # The upstream's answer is one body: its usage is known, wherever we end the answer.
        if known_text:
            guard.resume(known_text)

    @property
    def terminal(self) -> Completed | Failed | None:
        return self._pump.terminal or self._guard.held_end

    @property
    def has_activity(self) -> bool:
        return self._guard.has_activity or self._pump.has_activity

    @property
    def awaits_verdict(self) -> bool:
        return self._guard.awaits_verdict

    @property
    def is_cut(self) -> bool:
        return self._guard.is_cut

    def pass_head(self, run: bytes) -> int:
        return 0  # Bytes that pass unchanged cannot be filtered.

    def feed(self, blocks: list[bytes]) -> bytes:
        # Hot path: once per upstream read.
        return self._pump.encode(self._guard.feed(self._pump.read(blocks), self._usage_at_cut))

    def feed_whole(self, body: bytes) -> bytes:
        self._is_body = True
        return self._pump.encode_last(self._guard.feed(self._pump.read_whole(body), self._usage_at_cut))

    def end(self) -> bytes:
        return self._pump.encode_last(self._guard.feed(self._pump.read_end(), self._usage_at_cut))

    async def release_held(self) -> bytes:
        return self._pump.encode_last(await self._guard.release_held())

    async def after_written(self) -> None:
        await self._guard.check_afterwards()

    def close(self) -> None:
        self._guard.report()

    def _usage_at_cut(self) -> Usage | None:
        return self._pump.usage if self._is_body else self._pump.estimate_cut_usage(self._guard.text_bytes)
