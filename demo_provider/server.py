"""How is the demo provider reached, and how does it start and stop?

``POST /v1/chat/completions``, ``/v1/responses``, ``/v1/messages``, ``/v2/chat`` (Cohere's), Gemini's
``/v1beta/models/MODEL:generateContent`` and related paths, token counting (``/v1/messages/count_tokens``,
``/v1/responses/input_tokens``), ``GET /v1/models``, ``GET /v1/responses/ID?stream=true`` and ``POST …/cancel`` (for
background answers) are the vendors' own paths. Every key is accepted except ``bad-key``. For tests there are ``GET /stats``
(counters), ``GET /requests?last=N`` (the requests it received), ``POST /revoke?key=K`` (from now on this key is refused) and
``POST /reset`` (clear all of it). It listens on loopback, because its keys protect nothing.

When a client leaves, aiohttp cancels the handler. So any other ``AppRunner`` around ``create_app()`` needs
``handler_cancellation=True``.
"""

import asyncio
import resource
import secrets
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

import orjson
import uvloop
from aiohttp import web

from common.process.listening import bind
from demo_provider import chat, cohere, gemini, messages, responses
from demo_provider.background import Background, Backgrounds
from demo_provider.ledger import REQUESTS_KEPT, Ledger
from demo_provider.plan import make_plan
from demo_provider.playback import Player
from demo_provider.script import Fault, FaultKind, Script, parse
from demo_provider.wire import AnswerRequest, Wire, WireError, read_key

_WIRES: dict[str, Wire] = {
    "/v1/chat/completions": chat,
    "/v1/responses": responses,
    "/v1/messages": messages,
    "/v2/chat": cohere,
}
_GEMINI_MODEL = r"/{version:v1\w*}/models/{model}"
# Failures that replace the answer.
_FAULTS_INSTEAD_OF_ANSWER = (FaultKind.STATUS, FaultKind.OVERFLOW, FaultKind.POLICY, FaultKind.SPENT, FaultKind.DROP)
_OVERFLOW = "prompt is too long: it has more tokens than this model's maximum context length."
_POLICY = "Your request was rejected as a result of our safety system."
_SPENT = "You exceeded your current quota, please check your plan and billing details."
_MODELS = ("demo", "demo-think", "demo-tool", "demo-refuse", "demo-n500-d5")
_MODELS_SINCE = 1_750_000_000
_MODELS_SINCE_TEXT = "2025-06-15T15:06:40Z"
_BODY_BYTES_MAX = 64 << 20  # Higher than the gateway's limit, so that the gateway's limit applies first.
_STOP_S = 0.5  # Answers may never end, so a stop does not wait for them.
_BACKLOG = 4096  # Load tests connect all at once; the system's own limit still applies.


@dataclass(slots=True)
class _Call:
    """One request in a handler, and what is known about it so far."""

    http: web.Request
    wire: Wire
    request_id: str = field(default_factory=lambda: f"req_{secrets.token_hex(12)}")
    request: AnswerRequest | None = None
    script: Script = field(default_factory=Script)


class DemoProvider:
    """The handlers, and their shared ledger."""

    def __init__(self) -> None:
        self.ledger = Ledger()
        self._revoked: set[str] = set()
        self._backgrounds = Backgrounds()

    async def generate(self, http: web.Request) -> web.StreamResponse:
        return await self._generate(_Call(http, _WIRES[http.path]), {})

    async def generate_content(self, http: web.Request) -> web.StreamResponse:
        # Without alt=sse Gemini streams one JSON array. Nobody uses that, so a complete answer is sent instead.
        is_stream = http.match_info["method"] == "streamGenerateContent" and http.query.get("alt") == "sse"
        return await self._generate(_Call(http, gemini), {"model": http.match_info["model"], "stream": is_stream})

    async def _generate(self, call: _Call, path_fields: dict[str, object]) -> web.StreamResponse:
        """Answer a request. ``path_fields`` are from its URL; other vendors have them in the body."""
        try:
            body = {**await self._body(call, call.wire.NAME), **path_fields}
            call.request = request = call.wire.read(body)
            fault = self._fault(call, request, tuple(FaultKind))
            if call.wire is responses and request.is_stream and body.get("background") is True:
                return await self._generate_in_background(call, request, fault)
            with self.ledger.generation():
                player = await self._begin(call, fault)
                if player is None:
                    return web.Response()
                plan = make_plan(call.script, request)
                play = player.play_stream if request.is_stream else player.play_json
                return await play(call.wire, request, plan, call.wire.headers(call.request_id))
        except WireError as error:
            return self._refuse(call, error)

    async def _generate_in_background(self, call: _Call, request: AnswerRequest, fault: Fault | None) -> web.StreamResponse:
        if request.body.get("store") is False:
            raise WireError(400, "Background mode requires store=true.", param="store")
        if fault is not None and fault.kind in _FAULTS_INSTEAD_OF_ANSWER:
            await self._begin(call, fault)
            return web.Response()
        # An error event is part of the answer; any other failure is one of the connection.
        is_answer_fault = fault is not None and fault.kind is FaultKind.ERROR_EVENT
        stream = responses.open_stream(request, make_plan(call.script, request))
        player = Player(call.http, call.script, fault if is_answer_fault else None, self.ledger)
        answer = self._backgrounds.start(stream.response, partial(self._play_in_background, player, stream))
        reader = Player(call.http, call.script, None if is_answer_fault else fault, self.ledger)
        return await reader.play_background(answer, 0, call.wire.headers(call.request_id))

    async def _play_in_background(self, player: Player, stream: responses.ResponseStream, answer: Background) -> None:
        with self.ledger.generation():
            await player.play(stream, answer)

    async def read_again(self, http: web.Request) -> web.StreamResponse:
        call = _Call(http, responses)
        try:
            answer = await self._find_background(call, "responses/read")
            if http.query.get("stream") != "true":
                raise WireError(400, "The demo provider returns a stored answer only as a stream.", param="stream")
            after = http.query.get("starting_after", "-1")
            start = int(after) + 1 if after.removeprefix("-").isdecimal() else 0
            player = Player(http, Script(), None, self.ledger)
            return await player.play_background(answer, max(0, start), call.wire.headers(call.request_id))
        except WireError as error:
            return self._refuse(call, error)

    async def cancel(self, http: web.Request) -> web.StreamResponse:
        call = _Call(http, responses)
        try:
            answer = await self._find_background(call, "responses/cancel")
        except WireError as error:
            return self._refuse(call, error)
        answer.cancel()
        return _json(answer.response, call.wire.headers(call.request_id))

    async def _find_background(self, call: _Call, name: str) -> Background:
        self.ledger.record_request(name, call.http, await call.http.read())
        self._check_key(call)
        id_ = call.http.match_info["id"]
        answer = self._backgrounds.find(id_)
        if answer is None:
            raise WireError(404, f"Response with id '{id_}' not found.")
        return answer

    async def stop(self, _: web.Application) -> None:
        self._backgrounds.stop()

    async def count_tokens(self, http: web.Request) -> web.StreamResponse:
        return await self._count_tokens(_Call(http, messages), {}, messages.read_prompt, "input_tokens")

    async def count_input_tokens(self, http: web.Request) -> web.StreamResponse:
        return await self._count_tokens(_Call(http, responses), {}, responses.read, "input_tokens")

    async def count_content_tokens(self, http: web.Request) -> web.StreamResponse:
        path_fields: dict[str, object] = {"model": http.match_info["model"]}
        return await self._count_tokens(_Call(http, gemini), path_fields, gemini.read_prompt, "totalTokens")

    async def _count_tokens(
        self, call: _Call, path_fields: dict[str, object], read: Callable[[dict[str, object]], AnswerRequest], name: str
    ) -> web.StreamResponse:
        try:
            body = {**await self._body(call, "count_tokens"), **path_fields}
            call.request = request = read(body)
            fault = self._fault(call, request, _FAULTS_INSTEAD_OF_ANSWER)
            if fault is not None:
                with self.ledger.generation():
                    await self._begin(call, fault)
                return web.Response()
        except WireError as error:
            return self._refuse(call, error)
        return _json({name: request.input_tokens}, call.wire.headers(call.request_id))

    async def list_models(self, http: web.Request) -> web.StreamResponse:
        is_anthropic = "anthropic-version" in http.headers or "x-api-key" in http.headers
        call = _Call(http, messages if is_anthropic else chat)
        try:
            self._check_key(call)
        except WireError as error:
            return self._refuse(call, error)
        models: list[dict[str, object]]
        if is_anthropic:
            models = [{"type": "model", "id": name, "display_name": name, "created_at": _MODELS_SINCE_TEXT} for name in _MODELS]
            page = {"data": models, "has_more": False, "first_id": _MODELS[0], "last_id": _MODELS[-1]}
        else:
            models = [{"id": name, "object": "model", "created": _MODELS_SINCE, "owned_by": "demo"} for name in _MODELS]
            page = {"object": "list", "data": models}
        return _json(page, call.wire.headers(call.request_id))

    async def show_stats(self, _: web.Request) -> web.StreamResponse:
        return _json(self.ledger.stats())

    async def show_requests(self, http: web.Request) -> web.StreamResponse:
        last = http.query.get("last", str(REQUESTS_KEPT))
        return _json(self.ledger.last_requests(int(last) if last.isdecimal() else REQUESTS_KEPT))

    async def revoke(self, http: web.Request) -> web.StreamResponse:
        self._revoked.add(http.query.get("key", ""))
        return _json({"revoked": len(self._revoked)})

    def _check_key(self, call: "_Call") -> None:
        key = read_key(call.http.headers)
        missing, wrong = (403, 400) if call.wire is gemini else (401, 401)
        if not key:
            raise WireError(missing, call.wire.MISSING_KEY)
        if key == "bad-key" or key in self._revoked:
            raise WireError(wrong, call.wire.BAD_KEY, code="invalid_api_key")

    async def reset(self, _: web.Request) -> web.StreamResponse:
        self.ledger.reset()
        self._revoked.clear()
        return _json(self.ledger.stats())

    async def _body(self, call: _Call, name: str) -> dict[str, object]:
        raw = await call.http.read()
        self.ledger.record_request(name, call.http, raw)
        self._check_key(call)
        try:
            body = orjson.loads(raw)
        except orjson.JSONDecodeError:
            body = None
        if not isinstance(body, dict):
            raise WireError(400, call.wire.INVALID_JSON)
        return body

    def _fault(self, call: _Call, request: AnswerRequest, kinds: tuple[FaultKind, ...]) -> Fault | None:
        """Parse the script, and return the next failure of these kinds, if any."""
        header = call.http.headers.get("x-demo", "")
        call.script = parse(header or request.model)
        faults = tuple(fault for fault in call.script.faults if fault.kind in kinds)
        return self.ledger.take_turn((request.model, header), faults)

    async def _begin(self, call: _Call, fault: Fault | None) -> Player | None:
        """Return the player for the answer; ``None`` if the script broke the connection instead.

        Raises:
            WireError: the answer is an HTTP error.
        """
        player = Player(call.http, call.script, fault, self.ledger)
        if fault is None or fault.kind not in _FAULTS_INSTEAD_OF_ANSWER:
            return player
        await asyncio.sleep(call.script.first_s)
        if fault.kind is FaultKind.STATUS:
            raise WireError(fault.at)
        if fault.kind is FaultKind.OVERFLOW:
            raise WireError(400, _OVERFLOW, code="context_length_exceeded")
        if fault.kind is FaultKind.POLICY:
            raise WireError(400, _POLICY, code="content_policy_violation")
        if fault.kind is FaultKind.SPENT:
            raise WireError(429, _SPENT, code="insufficient_quota")
        await player.break_off(fault)
        return None

    def _refuse(self, call: _Call, error: WireError) -> web.StreamResponse:
        self.ledger.count("errors")
        headers = call.wire.headers(call.request_id, error)
        if call.script.retry_after is not None:
            headers["retry-after"] = call.script.retry_after
        return _json(call.wire.error_body(error, call.request, call.request_id), headers, error.status)


def _json(value: object, headers: dict[str, str] | None = None, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(value), status=status, headers=headers, content_type="application/json")


def create_app() -> web.Application:
    """Return the demo provider as an aiohttp application with its own counters."""
    provider = DemoProvider()
    app = web.Application(client_max_size=_BODY_BYTES_MAX)
    app.on_shutdown.append(provider.stop)
    app.add_routes([web.post(path, provider.generate) for path in _WIRES])
    app.add_routes(
        [
            web.post("/v1/messages/count_tokens", provider.count_tokens),
            web.post("/v1/responses/input_tokens", provider.count_input_tokens),
            web.get("/v1/responses/{id}", provider.read_again),
            web.post("/v1/responses/{id}/cancel", provider.cancel),
            web.post(_GEMINI_MODEL + ":{method:generateContent|streamGenerateContent}", provider.generate_content),
            web.post(_GEMINI_MODEL + ":countTokens", provider.count_content_tokens),
            web.get("/v1/models", provider.list_models),
            web.get("/stats", provider.show_stats),
            web.get("/requests", provider.show_requests),
            web.post("/reset", provider.reset),
            web.post("/revoke", provider.revoke),
        ]
    )
    return app


@asynccontextmanager
async def running(host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[str]:
    """Serve in this event loop until the block ends. The value is the address, such as ``http://127.0.0.1:51234``."""
    runner = web.AppRunner(create_app(), handler_cancellation=True, access_log=None, shutdown_timeout=_STOP_S)
    await runner.setup()
    try:
        await web.SockSite(runner, bind(host, port, port_option="--port", host_option="--host"), backlog=_BACKLOG).start()
        bound_host, bound_port = runner.addresses[0][:2]
        yield f"http://[{bound_host}]:{bound_port}" if ":" in bound_host else f"http://{bound_host}:{bound_port}"
    finally:
        await runner.cleanup()


async def serve(host: str = "127.0.0.1", port: int = 0, on_ready: Callable[[str], None] | None = None) -> None:
    """Serve until cancelled. ``on_ready`` is called with the address once connections are accepted."""
    async with running(host, port) as address:
        if on_ready is not None:
            on_ready(address)
        await asyncio.Event().wait()


def run(host: str = "127.0.0.1", port: int = 0) -> None:
    """Serve as a process: print the address, and return after SIGTERM or SIGINT. Port 0 takes a free one.

    Raises:
        CannotListen
    """
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
