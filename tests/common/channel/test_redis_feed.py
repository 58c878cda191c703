"""What a process hears, and what it makes of a Redis that does not let it listen."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable

import hiredis
import pytest
from structlog.testing import capture_logs

from common.canonical.errors import StoreUnavailable
from common.channel.base import Frame, FrameId, FrameKind, Message
from common.channel.redis import RedisFeed
from common.channel.redis_feed import OUTPUT_LIMIT, read_message
from common.redis.client import Client, connect
from common.redis.errors import is_refusal

HEARTBEAT = "beat 1-1 1-1\n"


async def eventually(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not holds():
            await asyncio.sleep(0.01)


@pytest.fixture
async def feed(redis: Client, redis_server, monkeypatch) -> AsyncIterator[RedisFeed]:
    """Of a user who may be kept from listening."""
    monkeypatch.setattr("common.channel.redis_feed.FEED_PING_S", 0.05)
    await redis.execute_command("ACL", "SETUSER", "listener", "reset", "on", ">pw", "~*", "allchannels", "+@all")
    client = connect(redis_server.url.replace("unix://", "unix://listener:pw@"))
    found = RedisFeed(client)
    yield found
    await found.stop()
    await client.aclose()
    await redis.execute_command("ACL", "DELUSER", "listener")


async def allow(redis: Client, *rules: str) -> None:
    await redis.execute_command("ACL", "SETUSER", "listener", *rules)


DEAF = {"no channel": ("resetchannels",), "no command": ("-subscribe",)}
HEARS = ("allchannels", "+subscribe")


def test_a_message_is_a_frame_that_follows_another_one():
    assert read_message(b"data 1-1 1-2\ndata: a\n\ndata: b\n\n") == Message(
        FrameId(1, 1), Frame(FrameId(1, 2), FrameKind.DATA, b"data: a\n\ndata: b\n\n")
    )
    assert read_message(b"end 1-2 2-0\n{}") == Message(FrameId(1, 2), Frame(FrameId(2, 0), FrameKind.END, b"{}"))
    assert read_message(b"beat 1-2 1-2\n") == Message(FrameId(1, 2), None)


@pytest.mark.parametrize("rules", DEAF.values(), ids=DEAF)
async def test_who_may_not_subscribe_is_deaf_from_the_start_and_says_why(redis, feed, rules):
    await allow(redis, *rules)
    await feed.start()

    await eventually(lambda: feed.refusal)

    assert "permission" in feed.refusal
    assert not feed.is_connected
    async with asyncio.timeout(1):  # At once, not after the two seconds that an answer may take.
        with pytest.raises(StoreUnavailable) as refused:
            await feed.subscribe("gen_1", lambda _: None)
    assert is_refusal(refused.value)
    assert feed.subscriptions == 0


@pytest.mark.parametrize("rules", DEAF.values(), ids=DEAF)
async def test_who_is_kept_from_listening_and_then_let_hears_all_again(redis, feed, rules):
    heard: list[Message] = []
    await feed.start()
    await eventually(lambda: feed.is_connected)
    await feed.subscribe("gen_1", heard.append)

    await allow(redis, *rules)
    if rules == ("-subscribe",):  # What was subscribed to before is still heard.
        with pytest.raises(StoreUnavailable):
            await feed.subscribe("gen_2", heard.append)
    await eventually(lambda: not feed.is_connected)
    await allow(redis, *HEARS)
    await eventually(lambda: feed.is_connected)

    assert feed.refusal == ""
    await redis.publish("{gen_1}:live", HEARTBEAT)
    await eventually(lambda: heard)
    assert heard[-1] == Message(FrameId(1, 1), None)


async def test_what_is_no_message_of_ours_cuts_nobody_off(redis, feed):
    heard: list[Message] = []
    await feed.start()
    await eventually(lambda: feed.is_connected)
    await feed.subscribe("gen_1", heard.append)

    with capture_logs() as logs:
        for junk in (b"", b"none of ours", b"\xff\n", b"data 1-1 x\n", b"odd 1-1 1-2\nx"):
            await redis.publish("{gen_1}:live", junk)
        await redis.publish("{gen_1}:live", HEARTBEAT)
        await eventually(lambda: heard)

    assert heard == [Message(FrameId(1, 1), None)]
    assert [line["event"] for line in logs] == ["message_unreadable"]


async def test_nothing_stays_subscribed_that_nobody_listens_to(redis, feed):
    await feed.start()
    await eventually(lambda: feed.is_connected)
    await feed.subscribe("gen_1", lambda _: None)

    await feed.unsubscribe("gen_1")

    async with asyncio.timeout(10):
        while await redis.pubsub_channels("*"):
            await asyncio.sleep(0.01)


class ScriptedServer:
    """A Redis that answers commands until it ``is_silent``. ``connections`` counts those that were opened."""

    def __init__(self) -> None:
        self.is_silent, self.connections = False, 0
        self.greeting = b""  # Sent right behind the confirmation of a subscription.
        self.unanswered: set[bytes] = set()
        self.commands: list[list[bytes]] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        parser = hiredis.Reader()
        while data := await reader.read(65_536):
            parser.feed(data)
            while (command := parser.gets()) is not False:
                self.commands.append(command)
                if self.is_silent or command[0] in self.unanswered:
                    continue
                if command[0] in (b"SUBSCRIBE", b"UNSUBSCRIBE"):
                    for channel in command[1:]:
                        kind = command[0].lower()
                        writer.write(b"*3\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n:1\r\n" % (len(kind), kind, len(channel), channel))
                        writer.write(self.greeting)
                else:
                    writer.write(b"+PONG\r\n" if command[0] == b"PING" else b"+OK\r\n")
        writer.close()


@pytest.fixture
async def scripted(monkeypatch) -> AsyncIterator[tuple[ScriptedServer, RedisFeed]]:
    monkeypatch.setattr("common.channel.redis_feed.FEED_PING_S", 0.05)
    monkeypatch.setattr("common.channel.redis_feed.FEED_SILENCE_MAX_S", 0.3)
    monkeypatch.setattr("common.channel.redis_feed.COMMAND_TIMEOUT_S", 0.3)
    found = ScriptedServer()
    server = await asyncio.start_server(found.serve, "127.0.0.1", 0)
    client = connect(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    feed = RedisFeed(client)
    yield found, feed
    await feed.stop()
    await client.aclose()
    server.close()


async def test_a_server_that_falls_silent_is_left_and_its_subscriptions_are_made_anew(scripted):
    server, feed = scripted
    resubscribed: list[None] = []
    feed.on_resubscribed(lambda: resubscribed.append(None))
    await feed.start()
    await eventually(lambda: feed.is_connected)
    await feed.subscribe("gen_1", lambda _: None)
    before = server.connections

    with capture_logs() as logs:
        server.is_silent = True
        await eventually(lambda: not feed.is_connected)
        server.is_silent = False
        await eventually(lambda: feed.is_connected)

    assert server.connections > before
    assert len(resubscribed) == 2
    assert any(b"{gen_1}:live" in command for command in server.commands[-30:])
    assert [line["event"] for line in logs].count("feed_lost") == 1  # Not for each attempt to come back.


async def test_a_new_connection_delivers_nothing_before_its_listeners_know_that_messages_were_lost(scripted):
    server, feed = scripted
    heard: list[str] = []
    feed.on_resubscribed(lambda: heard.append("resubscribed"))
    await feed.start()
    await eventually(lambda: feed.is_connected)
    await feed.subscribe("gen_1", lambda _: heard.append("message"))
    channel, message = b"{gen_1}:live", b"data 1-1 1-2\nx"
    server.greeting = b"*3\r\n$7\r\nmessage\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n" % (len(channel), channel, len(message), message)
    heard.clear()

    server.is_silent = True
    await eventually(lambda: not feed.is_connected)
    server.is_silent = False
    await eventually(lambda: "message" in heard)

    assert heard.index("resubscribed") < heard.index("message")


async def test_a_subscription_that_is_not_confirmed_in_time_fails_and_is_given_up(scripted):
    server, feed = scripted
    await feed.start()
    await eventually(lambda: feed.is_connected)
    server.is_silent = True

    with pytest.raises(StoreUnavailable, match="no confirmation"):
        await feed.subscribe("gen_1", lambda _: None)

    assert feed.subscriptions == 0


async def test_a_subscription_fails_in_time_where_there_is_no_connection(scripted):
    _, feed = scripted

    with pytest.raises(StoreUnavailable, match="no confirmation"):
        await feed.subscribe("gen_1", lambda _: None)

    assert feed.subscriptions == 0
    await feed.stop()  # It was never started.


async def test_a_caller_that_gives_up_leaves_no_subscription(scripted):
    server, feed = scripted
    await feed.start()
    await eventually(lambda: feed.is_connected)
    server.is_silent = True
    waiting = asyncio.create_task(feed.subscribe("gen_1", lambda _: None))
    await eventually(lambda: feed.subscriptions)

    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)

    assert waiting.cancelled()
    assert feed.subscriptions == 0
    await eventually(lambda: [b"UNSUBSCRIBE", b"{gen_1}:live"] in server.commands)


async def test_what_is_subscribed_while_there_is_no_connection_is_confirmed_with_the_next(scripted):
    server, feed = scripted
    waiting = asyncio.create_task(feed.subscribe("gen_1", lambda _: None))
    await asyncio.sleep(0)

    await feed.start()
    await waiting

    assert feed.subscriptions == 1
    assert [command for command in server.commands if b"{gen_1}:live" in command] == [[b"SUBSCRIBE", b"{gen_1}:live"]]


async def test_a_server_that_never_answers_is_left_for_another_connection(scripted):
    server, feed = scripted
    server.is_silent = True

    await feed.start()

    await eventually(lambda: server.connections >= 2)
    assert not feed.is_connected


async def test_the_feed_is_connected_only_when_the_server_has_answered_its_probe(scripted):
    server, feed = scripted
    server.unanswered = {b"PING", b"SUBSCRIBE"}

    await feed.start()
    await eventually(lambda: [b"PING"] in server.commands)
    assert not feed.is_connected
    server.unanswered = set()

    await eventually(lambda: feed.is_connected)


async def test_each_probe_subscribes_to_an_unused_channel_of_a_generation(scripted):
    server, feed = scripted

    await feed.start()
    await eventually(lambda: [command[0] for command in server.commands].count(b"UNSUBSCRIBE") >= 3)

    probed = [command[1].decode() for command in server.commands if command[0] == b"SUBSCRIBE"]
    assert all(re.fullmatch(r"\{gen_[0-9a-f]{8}\}:live", channel) for channel in probed)
    assert len(set(probed)) == len(probed)
    assert [command[1].decode() for command in server.commands if command[0] == b"UNSUBSCRIBE"] == probed


async def test_the_server_may_hold_back_as_much_as_a_busy_process_needs(scripted):
    server, feed = scripted

    await feed.start()
    await eventually(lambda: feed.is_connected)

    assert [b"CONFIG", b"SET", b"client-output-buffer-limit", OUTPUT_LIMIT.encode()] in server.commands


async def test_a_confirmation_that_is_far_behind_other_messages_is_waited_for(monkeypatch):
    monkeypatch.setattr("common.channel.redis_feed.FEED_PING_S", 0.05)
    monkeypatch.setattr("common.channel.redis_feed.COMMAND_TIMEOUT_S", 0.5)
    confirms: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        parser = hiredis.Reader()
        while data := await reader.read(65_536):
            parser.feed(data)
            while (command := parser.gets()) is not False:
                if command[0] == b"SUBSCRIBE" and b"gen_late" in command[1]:
                    confirms.append(command[1])
                    confirmation = b"*3\r\n$9\r\nsubscribe\r\n$%d\r\n%s\r\n:1\r\n" % (len(command[1]), command[1])
                    asyncio.get_running_loop().call_later(2, writer.write, confirmation)
                elif command[0] == b"PING":
                    writer.write(b"+PONG\r\n")
                elif command[0] in (b"CLIENT", b"CONFIG"):
                    writer.write(b"+OK\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    client = connect(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    found = RedisFeed(client)
    await found.start()
    await eventually(lambda: found.is_connected)

    await found.subscribe("gen_late", lambda _: None)

    assert len(confirms) == 1
    await found.stop()
    await client.aclose()
    server.close()
