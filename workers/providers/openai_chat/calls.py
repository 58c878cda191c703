"""Which tool calls do the pieces of a choice make?

Servers disagree on what a piece contains: the index may be 0 in all of them or missing, the id and the name may come late, come
again, or never come, and the arguments of the next call, or the same ones again, may follow the end of a call's own.
"""

from collections.abc import Callable, Iterator
from typing import Any

import orjson

from common.canonical.events import Event, ToolCallDelta, ToolCallStarted
from common.canonical.growing_text import GrowingText
from common.dialects.shared.custom_tools import custom_arguments
from workers.providers.shared.figures import index_of
from workers.providers.shared.loose_json import dict_of, word_of, written_text
from workers.providers.shared.object_end import ObjectEnd

_RESTS_MAX = 128  # Objects that follow the end of a call's arguments. No model makes so many calls at once.


class _Rest:
    """What follows the end of a call's arguments. ``first`` is its first character that is not white space."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.first = ""
        self.text = GrowingText()
        self.end = ObjectEnd()


class _Call:
    """One tool call of a choice. ``key``: the index that the upstream's pieces have for it.

    It starts for the client when its name has come, which may be later than its first piece; ``held`` arguments wait for it.
    """

    def __init__(self, key: int | None, id_: str) -> None:
        self.key = key
        self.id = id_
        self.name = ""
        self.index: int | None = None  # Its place among the choice's calls, once it has started.
        self.held = ""
        self.has_arguments = False
        self.arguments = GrowingText()
        self.end = ObjectEnd()
        self.rest: _Rest | None = None
        self.custom_input: GrowingText | None = None  # The plain text of a custom tool's call, until its end.

    @property
    def is_cut(self) -> bool:
        return self.end.is_open or (self.rest is not None and self.rest.end.is_open)


class ChoiceCalls:
    """The calls of one choice. ``start_call`` and ``invent_id`` are those of the decoder."""

    def __init__(
        self, choice: int, start_call: Callable[[int, str, str, int], ToolCallStarted], invent_id: Callable[[int, int], str]
    ) -> None:
        self._choice = choice
        self._start_call, self._invent_id = start_call, invent_id
        self._calls: list[_Call] = []
        self._rest_count = 0

    def __bool__(self) -> bool:
        return bool(self._calls)

    @property
    def lacks_name(self) -> bool:
        """Whether a call has arguments, but no name."""
        return any(call.held for call in self._calls)

    @property
    def is_cut(self) -> bool:
        """Whether the arguments of a call end before their JSON does."""
        return any(call.is_cut for call in self._calls)

    def read(self, item: dict[str, Any]) -> Iterator[Event]:
        """Yield the events of one piece."""
        custom = item.get("custom")
        function = {"name": custom.get("name")} if isinstance(custom, dict) else dict_of(item.get("function"))
        id_, name = word_of(item.get("id")), word_of(function.get("name"))
        text = written_text(function.get("arguments"))
        call = self._find(item, id_, name) or self._add_call(index_of(item.get("index")), id_)
        if isinstance(custom, dict):
            call.custom_input = call.custom_input or GrowingText()
            call.custom_input.add(written_text(custom.get("input")))
        if call.index is None:
            call.id = call.id or id_
            call.held += text
            if not name:
                return
            text, call.held = call.held, ""
            yield self._start(call, name)
        yield from self._add(call, text, name)

    def end(self) -> Iterator[Event]:
        """Yield the arguments of custom calls, and of the calls that have none."""
        for call in self._calls:
            if call.custom_input is not None:
                yield from self._add(call, custom_arguments(str(call.custom_input)), call.name)
            elif call.index is not None and not call.has_arguments:
                yield ToolCallDelta(call.index, "{}", self._choice)

    def _find(self, item: dict[str, Any], id_: str, name: str) -> _Call | None:
        """Return the call that a piece belongs to; None: it begins a new call."""
        key = index_of(item.get("index"))
        if key is None:
            # Older Mistral models send complete calls without an index. A piece without id and name continues the last call.
            matching = [call for call in self._calls if call.id == id_] if id_ else ([] if name else self._calls)
            return matching[-1] if matching else None
        call = next((call for call in reversed(self._calls) if call.key == key), None)
        if call is None:
            return None
        # Some servers give every call the index 0: a piece with another id and a name is another call. So is one with another
        # name, once the call's arguments are complete.
        is_another = call.id not in ("", id_) if id_ else call.end.is_reached and call.name != name
        return None if name and is_another else call

    def _add_call(self, key: int | None, id_: str) -> _Call:
        self._calls.append(_Call(key, id_))
        return self._calls[-1]

    def _start(self, call: _Call, name: str) -> ToolCallStarted:
        call.name = name
        call.index = sum(started.index is not None for started in self._calls)
        call.id = call.id or self._invent_id(self._choice, call.index)
        return self._start_call(call.index, call.id, name, self._choice)

    def _add(self, call: _Call, text: str, name: str) -> Iterator[Event]:
        while text:
            assert call.index is not None
            if not call.end.is_reached:
                own, text = call.end.split(text)
                call.arguments.add(own)
                call.has_arguments = True
                yield ToolCallDelta(call.index, own, self._choice)
                continue
            rest = call.rest = call.rest or _Rest(name)
            own, text = rest.end.split(text)
            rest.text.add(own)
            rest.first = rest.first or own.lstrip()[:1]
            if not rest.first or (rest.first == "{" and not rest.end.is_reached):
                return  # More of it may come.
            call.rest = None
            self._rest_count += 1
            if rest.first != "{" or self._rest_count > _RESTS_MAX:
                yield ToolCallDelta(call.index, str(rest.text) + text, self._choice)
                return
            if not _are_alike(str(call.arguments), str(rest.text)):
                previous, call = call, self._add_call(call.key, "")
                yield self._start(call, rest.name or previous.name)
                text = str(rest.text).lstrip() + text


def _are_alike(arguments: str, other: str) -> bool:
    """Whether the arguments are only told again: some servers repeat them at their end, perhaps with other white space."""
    try:
        return bool(orjson.loads(arguments) == orjson.loads(other))
    except orjson.JSONDecodeError:
        return arguments.strip() == other.strip()
