"""How is the demo provider reached, and how does it start and stop?

``POST /v1/chat/completions``, ``/v1/responses``, ``/v1/messages``, ``/v1/messages/count_tokens`` and ``GET /v1/models``
are the vendors' own. Any key will do but ``bad-key``. For tests there are ``GET /stats`` (what it did), ``GET
/requests?last=N`` (what it was sent) and ``POST /reset`` (forget both). It listens on loopback: its keys are none.

A client that leaves is noticed because aiohttp then cancels the handler; an own ``AppRunner`` around ``create_app()``
therefore needs ``handler_cancellation=True``.
"""

import asyncio
import resource
import secrets
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import orjson
import uvloop
from aiohttp import web

from cli.demo_provider import chat, messages, responses
from cli.demo_provider.ledger import REQUESTS_KEPT, Ledger
from cli.demo_provider.plan import make_plan
from cli.demo_provider.playback import Player
from cli.demo_provider.script import Fault, FaultKind, Script, parse
from cli.demo_provider.wire import Ask, Wire, WireError, key_of

_WIRES: dict[str, Wire] = {
    "/v1/chat/completions": chat,
    "/v1/responses": responses,
    "/v1/messages": messages,
}
_COUNT_TOKENS = "/v1/messages/count_tokens"
_WHOLE_FAULTS = (FaultKind.STATUS, FaultKind.DROP)  # Those that come instead of an answer, not within it.
_MODELS = ("demo", "demo-think", "demo-tool", "demo-refuse", "demo-n500-d5")
_MODELS_SINCE = 1_750_000_000
_MODELS_SINCE_TEXT = "2025-06-15T15:06:40Z"
_BODY_BYTES_MAX = 64 << 20  # Above what the gateway takes, so that its own limit is the one that is felt.
_STOP_S = 0.5  # Answers may last for ever, so a stop does not wait for them.
_BACKLOG = 4096  # Load tests connect all at once; the system's own limit still applies.


@dataclass(slots=True)
class _Call:
    """One request on its way through a handler, with what is known of it so far."""

    http: web.Request
    wire: Wire
    request_id: str = field(default_factory=lambda: f"req_{secrets.token_hex(12)}")
    ask: Ask | None = None
    script: Script = field(default_factory=Script)


class DemoProvider:
    """The handlers, and the ledger that they share."""

    def __init__(self) -> None:
        self.ledger = Ledger()

    async def generate(self, http: web.Request) -> web.StreamResponse:
        call = _Call(http, _WIRES[http.path])
        try:
            body = await self._body(call, call.wire.NAME)
            call.ask = ask = call.wire.read(body)
            fault = self._fault(call, ask, tuple(FaultKind))
            with self.ledger.generation():
                player = await self._begin(call, fault)
                if player is None:
                    return web.Response()
                plan = make_plan(call.script, ask)
                play = player.play_stream if ask.is_stream else player.play_whole
                return await play(call.wire, ask, plan, call.wire.headers(call.request_id))
        except WireError as error:
            return self._refuse(call, error)

    async def count_tokens(self, http: web.Request) -> web.StreamResponse:
        call = _Call(http, messages)
        try:
            body = await self._body(call, "count_tokens")
            call.ask = ask = messages.read_prompt(body)
            fault = self._fault(call, ask, _WHOLE_FAULTS)
            if fault is not None:
                with self.ledger.generation():
                    await self._begin(call, fault)
                return web.Response()
        except WireError as error:
            return self._refuse(call, error)
        return _json({"input_tokens": ask.input_tokens}, messages.headers(call.request_id))

    async def list_models(self, http: web.Request) -> web.StreamResponse:
        is_anthropic = "anthropic-version" in http.headers or "x-api-key" in http.headers
        call = _Call(http, messages if is_anthropic else chat)
        try:
            _check_key(call)
        except WireError as error:
            return self._refuse(call, error)
        models: list[dict[str, object]]
        if is_anthropic:
            models = [{"type": "model", "id": name, "display_name": name, "created_at": _MODELS_SINCE_TEXT} for name in _MODELS]
            found = {"data": models, "has_more": False, "first_id": _MODELS[0], "last_id": _MODELS[-1]}
        else:
            models = [{"id": name, "object": "model", "created": _MODELS_SINCE, "owned_by": "demo"} for name in _MODELS]
            found = {"object": "list", "data": models}
        return _json(found, call.wire.headers(call.request_id))

    async def show_stats(self, _: web.Request) -> web.StreamResponse:
        return _json(self.ledger.stats())

    async def show_requests(self, http: web.Request) -> web.StreamResponse:
        last = http.query.get("last", str(REQUESTS_KEPT))
        return _json(self.ledger.last_requests(int(last) if last.isdecimal() else REQUESTS_KEPT))

    async def reset(self, _: web.Request) -> web.StreamResponse:
        self.ledger.reset()
        return _json(self.ledger.stats())

    async def _body(self, call: _Call, name: str) -> dict[str, object]:
        raw = await call.http.read()
        self.ledger.note_request(name, call.http, raw)
        _check_key(call)
        try:
            body = orjson.loads(raw)
        except orjson.JSONDecodeError:
            body = None
        if not isinstance(body, dict):
            raise WireError(400, call.wire.INVALID_JSON)
        return body

    def _fault(self, call: _Call, ask: Ask, kinds: tuple[FaultKind, ...]) -> Fault | None:
        """Read the script, and return the failure of these kinds whose turn it is."""
        header = call.http.headers.get("x-demo", "")
        call.script = parse(header or ask.model)
        faults = tuple(fault for fault in call.script.faults if fault.kind in kinds)
        return self.ledger.take_turn((ask.model, header), faults)

    async def _begin(self, call: _Call, fault: Fault | None) -> Player | None:
        """Return who says the answer, or ``None`` if the connection is gone instead.

        Raises:
            WireError: the answer is an HTTP error.
        """
        player = Player(call.http, call.script, fault, self.ledger)
        if fault is None or fault.kind not in _WHOLE_FAULTS:
            return player
        await asyncio.sleep(call.script.first_s)
        if fault.kind is FaultKind.STATUS:
            raise WireError(fault.at)
        await player.break_off(fault)
        return None

    def _refuse(self, call: _Call, error: WireError) -> web.StreamResponse:
        self.ledger.note("errors")
        headers = call.wire.headers(call.request_id, error)
        if call.script.retry_after is not None:
            headers["retry-after"] = call.script.retry_after
        return _json(call.wire.error_body(error, call.ask, call.request_id), headers, error.status)


def _check_key(call: _Call) -> None:
    key = key_of(call.http.headers)
    if not key:
        raise WireError(401, call.wire.MISSING_KEY)
    if key == "bad-key":
        raise WireError(401, call.wire.BAD_KEY, code="invalid_api_key")


def _json(value: object, headers: dict[str, str] | None = None, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(value), status=status, headers=headers, content_type="application/json")


def create_app() -> web.Application:
    """Return the demo provider as an aiohttp application, with counters of its own."""
    provider = DemoProvider()
    app = web.Application(client_max_size=_BODY_BYTES_MAX)
    app.add_routes([web.post(path, provider.generate) for path in _WIRES])
    app.add_routes(
        [
            web.post(_COUNT_TOKENS, provider.count_tokens),
            web.get("/v1/models", provider.list_models),
            web.get("/stats", provider.show_stats),
            web.get("/requests", provider.show_requests),
            web.post("/reset", provider.reset),
        ]
    )
    return app


@asynccontextmanager
async def running(host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[str]:
    """Serve inside this event loop until the block is left; the value is the address, ``http://127.0.0.1:51234``."""
    runner = web.AppRunner(create_app(), handler_cancellation=True, access_log=None, shutdown_timeout=_STOP_S)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port, backlog=_BACKLOG).start()
        bound_host, bound_port = runner.addresses[0][:2]
        yield f"http://[{bound_host}]:{bound_port}" if ":" in bound_host else f"http://{bound_host}:{bound_port}"
    finally:
        await runner.cleanup()


async def serve(host: str = "127.0.0.1", port: int = 0, on_ready: Callable[[str], None] | None = None) -> None:
    """Serve until cancelled. ``on_ready`` gets the address once connections are accepted."""
    async with running(host, port) as address:
        if on_ready is not None:
            on_ready(address)
        await asyncio.Event().wait()


def run(host: str = "127.0.0.1", port: int = 0) -> None:
    """Serve as a process: print the address, and return after SIGTERM or SIGINT. Port 0 takes a free one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, hard), hard))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve_until_signal(host, port))


async def _serve_until_signal(host: str, port: int) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stopped.set)
    async with running(host, port) as address:
        print(f"demo provider listens on {address}", flush=True)
        await stopped.wait()
