"""What do the decoders of most wires have in common?

Events and whole answers are JSON objects; anything else is unreadable. After a terminal event no more events are returned.
"""

from collections.abc import Callable
from typing import Any

import orjson

from common.canonical.errors import Failed
from common.canonical.events import Event, ReasoningDelta, TextDelta, ToolCallStarted, Usage
from common.dialects.shared.openai_words import DONE
from common.sse import read_block
from workers.providers.shared import errors
from workers.providers.shared.figures import Figures
from workers.providers.shared.loose_json import dict_of, read_json
from workers.providers.shared.plain_shape import NumberedShape, PlainShape


class JsonDecoder:
    """A ``Decoder`` base class. A wire only defines how it reads one object: ``_read`` and ``_read_whole``.

    ``plain`` recognizes blocks that contain only text, so that they need not be decoded.
    """

    def __init__(self, plain: PlainShape | NumberedShape | None = None) -> None:
        self.start_call: Callable[[int, str, str, int], ToolCallStarted] = ToolCallStarted
        self.is_whole = False
        self._started = False
        self._ended = False
        self._report: dict[str, Any] = {}  # The last usage report, unchanged. It is read only on demand.
        self._figures: tuple[dict[str, Any], Usage | None, bool] = ({}, None, False)
        self._model = self._tier = ""
        self._plain = plain
        self._sample: TextDelta | ReasoningDelta | None = None  # The event of the block from which ``plain`` has learned.

    @property
    def usage(self) -> Usage | None:
        return self._read_figures()[1]

    @property
    def has_absurd_usage(self) -> bool:
        return self._read_figures()[2]

    def _read_figures(self) -> tuple[dict[str, Any], Usage | None, bool]:
        if self._figures[0] is not self._report:
            figures = Figures(self._report)
            self._figures = (self._report, self._usage_of(figures), figures.is_absurd)
        return self._figures

    def decode(self, block: bytes) -> list[Event]:
        if self._ended:
            return []
        if plain := self._read_plain(block):
            return [plain]
        name, data = read_block(block)
        try:
            fields = read_json(data)
        except ValueError:
            if data.startswith(DONE):
                return self._read_done()
            if not data and block.startswith(b"{"):
                return self._read_bare(block)
            return self._broken(errors.error_in_stream(None) if name == "error" else errors.not_json(data or block))
        if not isinstance(fields, dict):
            return self._broken(errors.unreadable_answer("not a JSON object"))
        events = self._read(name, fields)
        if self._plain and len(events) == 1 and isinstance(events[0], TextDelta | ReasoningDelta):
            self._plain.learn(block)
            self._sample = events[0]
        return events

    def _read_plain(self, block: bytes) -> TextDelta | ReasoningDelta | None:
        """Return the piece of text in a block, if the block differs from the last decoded one only in its text."""
        # Hot path: once per token that is translated.
        if self._sample is None or self._plain is None or (text := self._plain.text_in(block)) is None:
            return None
        try:
            return type(self._sample)(orjson.loads(text), self._sample.choice)
        except orjson.JSONDecodeError:
            return None  # Half an emoji or a control character: the lenient reader handles it.

    def decode_whole(self, body: bytes) -> list[Event]:
        try:
            answer = read_json(body)
        except ValueError:
            return [self._fail(errors.not_json(body))]
        if not isinstance(answer, dict):
            return [self._fail(errors.no_answer(answer))]
        return self._read_whole(answer)

    def end(self) -> list[Event]:
        if self._ended:
            return []
        return self._complete() if self.is_whole else [self._fail(errors.cut_short())]

    def is_plain(self, block: bytes) -> bool:
        # Hot path: once per block that passes.
        return self._plain is not None and not self._ended and self._plain.text_in(block) is not None

    def plain_head(self, run: bytes) -> tuple[int, int]:
        # Hot path: once per upstream read that passes.
        return (0, 0) if self._plain is None or self._ended else self._plain.head_in(run)

    def _read_bare(self, block: bytes) -> list[Event]:
        """Return the events of JSON that is in a stream but not in an event: some servers write their errors like this."""
        try:
            fields = dict_of(read_json(block))
        except ValueError:
            return []
        return self._broken(errors.error_in_stream(fields)) if fields.get("error") else []

    def _read(self, name: str, fields: dict[str, Any]) -> list[Event]:
        """Return our events for one event of the wire. ``name``: the value of its ``event:`` line, if it has one."""
        raise NotImplementedError

    def _read_whole(self, answer: dict[str, Any]) -> list[Event]:
        """Return the events of a whole answer, including the terminal event."""
        raise NotImplementedError

    def _usage_of(self, figures: Figures) -> Usage | None:
        """Return the usage from a report's figures."""
        raise NotImplementedError

    def _read_done(self) -> list[Event]:
        """Return the events for ``[DONE]``. By default none: servers of several families send it after the real end."""
        return []

    def _complete(self) -> list[Event]:
        """Return the last events of a finished answer. Only for wires that report the finish before the end."""
        raise NotImplementedError

    def _broken(self, failed: Failed) -> list[Event]:
        """Return the failure for an error or unreadable data. After the finish it changes nothing: it is just the end."""
        return self.end() if self.is_whole else [self._fail(failed)]

    def _fail(self, failed: Failed) -> Failed:
        self._ended = True
        return failed
