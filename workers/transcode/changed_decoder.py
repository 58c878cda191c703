"""How does a decoder change the events of another one, until nothing is left to change?"""

from abc import ABC, abstractmethod
from collections.abc import Callable

from common.canonical.events import Event, Usage
from workers.providers.base import Decoder


class ChangedDecoder(ABC):
    """A decoder whose events pass through ``_change``. After ``_stop_changing`` the inner decoder is called directly."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self.start_call = decoder.start_call
        self.is_plain, self.plain_head = decoder.is_plain, decoder.plain_head
        self.decode: Callable[[bytes], list[Event]] = self._decode

    @property
    def usage(self) -> Usage | None:
        return self._decoder.usage

    @property
    def has_absurd_usage(self) -> bool:
        return self._decoder.has_absurd_usage

    @property
    def is_whole(self) -> bool:
        return self._decoder.is_whole

    def decode_whole(self, body: bytes) -> list[Event]:
        return self._change(self._decoder.decode_whole(body))

    def end(self) -> list[Event]:
        return self._change(self._decoder.end())

    def _decode(self, block: bytes) -> list[Event]:
        return self._change(self._decoder.decode(block))

    def _stop_changing(self) -> None:
        """Pass the rest of the answer's blocks on as they are: no work per token."""
        self.decode = self._decoder.decode

    @abstractmethod
    def _change(self, events: list[Event]) -> list[Event]: ...
