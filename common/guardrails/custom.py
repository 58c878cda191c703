"""What can an operator's own guardrail say, and how is it asked?

Two ways, with one question and one answer: a Python callable (setting ``guardrail_plugin``), and a webhook
(``guardrail_webhook_url``). Where both are set the callable comes first, and the webhook sees what it left. Both see whole
texts: a request's, and an answer's once it is complete. Each tier posts to a webhook with the HTTP client that it has, and
says what it sends and takes in the words of this file.
"""

import asyncio
import importlib
import inspect
from collections.abc import AsyncIterable, Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

import orjson

from common.guardrails.table import Mode, Side

# Between the texts of one request (messages, parts, arguments…) or of one answer. A replacement must keep them.
SEPARATOR = "\x1e"
ANSWER_BYTES_MAX = 33 * 1024 * 1024  # A replacement is about as long as what it replaces: a body at most.
REASON_CHARS_MAX = 200
WEBHOOK_CONNECTIONS_MAX = 100  # Of one process.
WEBHOOK_HEADERS = {"content-type": "application/json", "accept-encoding": "identity"}


class Action(StrEnum):
    ALLOW = "allow"
    BLOCK = "block"
    REPLACE = "replace"


@dataclass(frozen=True, slots=True)
class Check:
    """One question. ``model`` is as the client wrote it."""

    side: Side
    text: str
    model: str
    tenant: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """One answer. ``text`` is the replacement; ``reason`` goes to the client and to the log, so it must quote nothing."""

    action: Action
    text: str | None = None
    reason: str = ""


class GuardrailPlugin(Protocol):
    """What ``guardrail_plugin`` names. It may be a coroutine function; one that is none runs in a thread."""

    def __call__(self, check: Check) -> Verdict | Awaitable[Verdict]: ...


class GuardrailUnavailable(Exception):
    """It did not answer in time, or with nonsense. The message holds no text of a client's."""


class PluginError(ValueError):
    """The plugin that the settings name cannot be loaded."""


class PostWebhook(Protocol):
    """The body of a POST to the body of its answer. Raises anything where there is none with status 200."""

    async def __call__(self, body: bytes) -> bytes: ...

    async def close(self) -> None: ...


def load(name: str) -> GuardrailPlugin:
    """Return the callable that ``module:callable`` names.

    Raises:
        PluginError: there is none; the message says what failed.
    """
    module_name, colon, attribute = name.partition(":")
    if not (module_name and colon and attribute):
        raise PluginError(f"{name!r} must be written as module:callable")
    try:
        found: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except Exception as error:  # Whatever the module does when it is loaded.
        raise PluginError(f"{name!r} could not be loaded: {type(error).__name__}: {error}") from error
    if not callable(found):
        raise PluginError(f"{name!r} is not callable")
    guardrail: GuardrailPlugin = found
    return guardrail


class CustomGuardrails:
    """An operator's own guardrails, one per process. ``ask`` is all there is to it; where there are none, nobody says that a
    text may pass."""

    def __init__(self, plugin: GuardrailPlugin | None = None, post: PostWebhook | None = None, timeout_s: float = 0) -> None:
        self._plugin, self._post, self._timeout_s = plugin, post, timeout_s

    def is_needed(self, mode: str) -> bool:
        """Whether it is to be asked: where there is nothing to ask, only a policy that blocks needs an answer."""
        return mode == Mode.BLOCK or (mode == Mode.LOG and bool(self._plugin or self._post))

    async def close(self) -> None:
        if self._post:
            await self._post.close()

    async def evaluate(self, check: Check) -> Verdict:
        """Return what is to become of a text; a replacement has as many texts as there were.

        Raises:
            GuardrailUnavailable: one of them did not say, or there is none.
        """
        if not (self._plugin or self._post):
            raise GuardrailUnavailable("the settings name none")
        verdict = Verdict(Action.ALLOW)
        for ask in [self._ask_plugin] * (self._plugin is not None) + [self._ask_webhook] * (self._post is not None):
            said = await self._in_time(ask, check)
            if said.action is Action.BLOCK:
                return said
            if said.action is Action.REPLACE:
                if said.text is None or said.text.count(SEPARATOR) != check.text.count(SEPARATOR):
                    raise GuardrailUnavailable("its replacement has not the same number of texts")
                verdict = said
                check = Check(check.side, said.text, check.model, check.tenant)
        return verdict

    async def _in_time(self, ask: Callable[[Check], Awaitable[Verdict]], check: Check) -> Verdict:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await ask(check)
        except TimeoutError as error:
            raise GuardrailUnavailable(f"it did not answer within {self._timeout_s:g} s") from error
        except GuardrailUnavailable:
            raise
        except Exception as error:  # Somebody else's code, or network.
            raise GuardrailUnavailable(type(error).__name__) from error

    async def _ask_plugin(self, check: Check) -> Verdict:
        plugin: Any = self._plugin
        if inspect.iscoroutinefunction(plugin) or inspect.iscoroutinefunction(type(plugin).__call__):
            said = await plugin(check)
        else:
            said = await asyncio.to_thread(plugin, check)
            if inspect.isawaitable(said):
                said = await said
        if not isinstance(said, Verdict):
            raise GuardrailUnavailable("it did not return a Verdict")
        return said

    async def _ask_webhook(self, check: Check) -> Verdict:
        assert self._post is not None
        asked = {"side": check.side, "text": check.text, "model": check.model, "tenant": check.tenant}
        return _read(await self._post(orjson.dumps(asked)))


async def read_webhook_answer(status: int, pieces: AsyncIterable[bytes]) -> bytes:
    """Return the body of a webhook's answer.

    Raises:
        ValueError: it has another status than 200, as a redirect has, or is too long.
    """
    if status != 200:
        raise ValueError(f"status {status}")
    answer = bytearray()
    async for piece in pieces:
        answer += piece
        if len(answer) > ANSWER_BYTES_MAX:
            raise ValueError("a longer answer than is taken")
    return bytes(answer)


def _read(answer: bytes) -> Verdict:
    try:
        said = orjson.loads(answer)
        action = Action(said["action"])
    except (ValueError, TypeError, KeyError) as error:
        raise GuardrailUnavailable("its answer is not {action: allow|block|replace}") from error
    text, reason = said.get("text"), said.get("reason")
    return Verdict(
        action,
        text if isinstance(text, str) else None,
        reason[:REASON_CHARS_MAX] if isinstance(reason, str) else "",
    )


def join_texts(texts: list[str]) -> str:
    """Return several texts as one, as a guardrail sees them."""
    return SEPARATOR.join(text.replace(SEPARATOR, " ") for text in texts)
