"""How is an operator's own guardrail called, and what can it answer?

There are two kinds, with the same question and answer: a Python callable (setting ``guardrail_plugin``), and a webhook
(``guardrail_webhook_url``). If both are set, the callable runs first, and the webhook gets the text that it returned. Both get
complete texts: a request's, and an answer's once it is complete. Each tier posts to the webhook with its own HTTP client; this
file defines the body and the answer.
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

# Separates the texts of one request (messages, parts, arguments…) or of one answer. A replacement must keep all separators.
SEPARATOR = "\x1e"
ANSWER_BYTES_MAX = 33 * 1024 * 1024  # A replacement is about as long as the original, which is a body at most.
REASON_CHARS_MAX = 200
WEBHOOK_CONNECTIONS_MAX = 100  # Per process.
WEBHOOK_HEADERS = {"content-type": "application/json", "accept-encoding": "identity"}


class Action(StrEnum):
    ALLOW = "allow"
    BLOCK = "block"
    REPLACE = "replace"


@dataclass(frozen=True, slots=True)
class Check:
    """The question. ``model`` is the name as the client wrote it."""

    side: Side
    text: str
    model: str
    tenant: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer. ``text`` is the replacement. ``reason`` goes to the client and to the log, so it must not quote the text."""

    action: Action
    text: str | None = None
    reason: str = ""


class GuardrailPlugin(Protocol):
    """The callable that ``guardrail_plugin`` names. It may be a coroutine function; any other callable runs in a thread."""

    def __call__(self, check: Check) -> Verdict | Awaitable[Verdict]: ...


class GuardrailUnavailable(Exception):
    """The guardrail did not answer in time, or sent an invalid answer. The message contains no client text."""


class PluginError(ValueError):
    """The plugin in the settings cannot be loaded."""


class PostWebhook(Protocol):
    """Posts a body to the webhook and returns the answer's body. Raises any exception if there is no answer with status 200."""

    async def __call__(self, body: bytes) -> bytes: ...

    async def close(self) -> None: ...


def load(name: str) -> GuardrailPlugin:
    """Return the callable that ``module:callable`` names.

    Raises:
        PluginError: it cannot be loaded; the message says why.
    """
    module_name, colon, attribute = name.partition(":")
    if not (module_name and colon and attribute):
        raise PluginError(f"{name!r} must be written as module:callable")
    try:
        target: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            target = getattr(target, part)
    except Exception as error:  # The module's own code runs here; it may raise anything.
        raise PluginError(f"{name!r} could not be loaded: {type(error).__name__}: {error}") from error
    if not callable(target):
        raise PluginError(f"{name!r} is not callable")
    plugin: GuardrailPlugin = target
    return plugin


class CustomGuardrails:
    """An operator's own guardrails. One per process. If none are configured, ``evaluate`` raises: no text is approved."""

    def __init__(self, plugin: GuardrailPlugin | None = None, post: PostWebhook | None = None, timeout_s: float = 0) -> None:
        self._plugin, self._post, self._timeout_s = plugin, post, timeout_s

    def is_needed(self, mode: str) -> bool:
        """Whether ``evaluate`` must be called. If no guardrail is configured, only mode "block" needs it, and it raises."""
        return mode == Mode.BLOCK or (mode == Mode.LOG and bool(self._plugin or self._post))

    async def close(self) -> None:
        if self._post:
            await self._post.close()

    async def evaluate(self, check: Check) -> Verdict:
        """Return the verdict on a text. A replacement has the same number of texts as the original.

        Raises:
            GuardrailUnavailable: a guardrail gave no valid answer, or none is configured.
        """
        if not (self._plugin or self._post):
            raise GuardrailUnavailable("no guardrail is configured")
        result = Verdict(Action.ALLOW)
        for call in [self._call_plugin] * (self._plugin is not None) + [self._call_webhook] * (self._post is not None):
            verdict = await self._call_in_time(call, check)
            if verdict.action is Action.BLOCK:
                return verdict
            if verdict.action is Action.REPLACE:
                if verdict.text is None or verdict.text.count(SEPARATOR) != check.text.count(SEPARATOR):
                    raise GuardrailUnavailable("its replacement does not have the same number of texts")
                result = verdict
                check = Check(check.side, verdict.text, check.model, check.tenant)
        return result

    async def _call_in_time(self, call: Callable[[Check], Awaitable[Verdict]], check: Check) -> Verdict:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await call(check)
        except TimeoutError as error:
            raise GuardrailUnavailable(f"it did not answer within {self._timeout_s:g} s") from error
        except GuardrailUnavailable:
            raise
        except Exception as error:  # The operator's code or the network may raise anything.
            raise GuardrailUnavailable(type(error).__name__) from error

    async def _call_plugin(self, check: Check) -> Verdict:
        plugin: Any = self._plugin
        if inspect.iscoroutinefunction(plugin) or inspect.iscoroutinefunction(type(plugin).__call__):
            verdict = await plugin(check)
        else:
            verdict = await asyncio.to_thread(plugin, check)
            if inspect.isawaitable(verdict):
                verdict = await verdict
        if not isinstance(verdict, Verdict):
            raise GuardrailUnavailable("it did not return a Verdict")
        return verdict

    async def _call_webhook(self, check: Check) -> Verdict:
        assert self._post is not None
        body = {"side": check.side, "text": check.text, "model": check.model, "tenant": check.tenant}
        return _parse_verdict(await self._post(orjson.dumps(body)))


async def read_webhook_answer(status: int, pieces: AsyncIterable[bytes]) -> bytes:
    """Return the body of a webhook's answer.

    Raises:
        ValueError: its status is not 200 (a redirect, for example), or it is too long.
    """
    if status != 200:
        raise ValueError(f"status {status}")
    answer = bytearray()
    async for piece in pieces:
        answer += piece
        if len(answer) > ANSWER_BYTES_MAX:
            raise ValueError(f"the answer is longer than {ANSWER_BYTES_MAX} bytes")
    return bytes(answer)


def _parse_verdict(answer: bytes) -> Verdict:
    try:
        fields = orjson.loads(answer)
        action = Action(fields["action"])
    except (ValueError, TypeError, KeyError) as error:
        raise GuardrailUnavailable("its answer is not {action: allow|block|replace}") from error
    text, reason = fields.get("text"), fields.get("reason")
    return Verdict(
        action,
        text if isinstance(text, str) else None,
        reason[:REASON_CHARS_MAX] if isinstance(reason, str) else "",
    )


def join_texts(texts: list[str]) -> str:
    """Join the texts of a request or an answer into the one text that a guardrail gets."""
    return SEPARATOR.join(text.replace(SEPARATOR, " ") for text in texts)
